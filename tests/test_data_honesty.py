"""The API, the worker's clock or the calendar disagree: rows are exact, or reported as missing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import chain

import pendulum
import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.timetables.interval import CronDataIntervalTimetable
from requests_mock import ANY

from airflow_provider_stem.errors import StemIncompleteError, StemRequestError
from tests.servers.processes import HUNG_AFTER
from tests.support import expected_rows, instant, landed_rows, run_context, without_rows
from tests.test_operators import streams_to_s3

SITE = "site-00001"
DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
DAY_END = instant(DAY[1])


def land(lake, context=None, **arguments):
    arguments = {"sites": SITE, "stream_types": "MONITOR", "s3_key": "streams.{extension}", **arguments}
    return streams_to_s3(lake, **arguments).execute(context or run_context(*DAY))


@pytest.fixture
def simulated(stem_simulator_factory, monkeypatch):
    def start(**settings):
        sim = stem_simulator_factory(**settings)
        monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
        return sim

    return start


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [timedelta(seconds=1), timedelta(minutes=14), timedelta(minutes=40)])
def test_an_api_whose_clock_is_behind_returns_less_and_the_rest_is_reported_missing(simulated, lake, behind):
    sim = simulated(now=DAY_END - behind)
    over = 96 - (1 if behind <= timedelta(minutes=15) else 3)
    receipt = land(lake)
    cut_off = DAY_END - timedelta(minutes=15 * (96 - over))
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, DAY[0], cut_off.isoformat())
    assert (receipt["rows"], receipt["expected"], receipt["missing"]) == (over, 96, 96 - over)
    first = cut_off + timedelta(minutes=15)
    assert receipt["incomplete"][0]["first_missing"] == first.isoformat().replace("+00:00", "Z")
    with pytest.raises(StemIncompleteError):
        land(lake, on_incomplete="fail")
    # When its clock has caught up, the same run lands the rest.
    sim.now = DAY_END + timedelta(hours=1)
    assert land(lake)["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


@pytest.mark.parametrize("behind", [timedelta(seconds=1), timedelta(minutes=40)])
def test_nothing_lands_while_the_window_is_in_the_future_for_the_api(simulated, lake, behind):
    sim = simulated(now=DAY_END - behind, future="refuse")
    lake.client.put_object(Bucket=lake.bucket, Key="streams.parquet", Body=without_rows())
    # An error that Airflow retries.
    with pytest.raises(StemRequestError, match="must not lie in the future"):
        land(lake)
    assert lake.objects() == {"streams.parquet": without_rows()}
    sim.now = DAY_END + timedelta(hours=1)
    assert land(lake)["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


@pytest.mark.parametrize("reading", ["A", "B"])
def test_an_interval_that_has_not_ended_is_never_landed(simulated, lake, reading):
    sim = simulated(now=DAY_END + timedelta(minutes=7), partial_bin=True, reading=reading)
    receipt = land(lake)
    assert receipt["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


def test_a_worker_whose_clock_is_behind_rejects_a_past_window_without_a_request(simulated, lake):
    """To it the window has not ended. A retry with the right clock succeeds."""
    sim = simulated()
    end = pendulum.now("UTC").add(hours=2).start_of("hour")
    context = run_context()
    context["data_interval_start"], context["data_interval_end"] = end.subtract(hours=1), end
    with pytest.raises(AirflowFailException, match="is in the future"):
        land(lake, context)
    assert sim.requests == []
    assert lake.objects() == {}


# --- values that were restated, streams that start at another time ----------------------------------------------------


def test_values_that_were_restated_between_two_runs_replace_the_old_values(simulated, lake):
    sim = simulated(restate=86_400 * 2, now=DAY_END + timedelta(minutes=1))
    first = land(lake)
    provisional = landed_rows(lake.table())
    sim.now = DAY_END + timedelta(days=3)
    again = land(lake)
    compared = {"objects": [], "inserted": 0, "changed": 0, "unchanged": 0}
    assert {**first, **compared} == {**again, **compared}
    assert (first["inserted"], again["inserted"]) == (96, 0)
    assert again["changed"] > 0
    final = landed_rows(lake.table())
    assert final == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)
    assert len(final) == len(provisional)
    assert all(one[:5] == other[:5] for one, other in zip(final, provisional, strict=True))
    assert final != provisional


@pytest.mark.parametrize("start_time", ["2025-07-01T06:00:01Z", "2025-08-01T00:00:01Z", None])
def test_rows_before_the_reported_start_are_landed_but_not_expected(simulated, lake, start_time):
    sim = simulated()
    receipt = land(lake, sites=[{"site_id": SITE, "stream_start_times": {"MONITOR": start_time}}])
    expected = {"2025-07-01T06:00:01Z": 72, "2025-08-01T00:00:01Z": 0, None: 96}[start_time]
    assert receipt["missing"] == 0
    assert receipt["expected"] == expected
    if expected:
        assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)
        assert receipt["rows"] == 96
    else:
        # Nothing is expected, so there is no request: the record decides what is requested.
        assert receipt["rows"] == receipt["requests"] == 0


def test_rows_between_the_reported_start_and_the_real_start_are_missing(simulated, lake):
    sim = simulated()
    starts = sim.fleet.site(SITE).stream_start_times["MONITOR"]
    begin = datetime.fromtimestamp(starts // 86_400 * 86_400, UTC)
    day = (begin.isoformat(), (begin + timedelta(days=1)).isoformat())
    rows = expected_rows(sim, [SITE], ["MONITOR"], 900, *day)
    assert 0 < len(rows) < 96
    record = {"site_id": SITE, "stream_start_times": {"MONITOR": "2001-01-01T00:00:01Z"}}
    receipt = land(lake, run_context(*day), sites=[record])
    assert landed_rows(lake.table()) == rows
    assert (receipt["expected"], receipt["missing"]) == (96, 96 - len(rows))
    # According to the API nothing is missing.
    assert land(lake, run_context(*day))["missing"] == 0


# --- a server that ignores the range ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2025-06-28T00:00:00Z", "2025-07-05T00:00:00Z", 96),
        ("2025-07-01T12:00:00Z", "2025-07-05T00:00:00Z", 48),
    ],
    ids=["more on both sides", "half of it"],
)
def test_rows_outside_of_the_window_are_dropped_and_absent_ones_are_missing(
    simulated, lake, requests_mock, start, end, rows
):
    sim = simulated()
    requests_mock.register_uri(ANY, ANY, real_http=True)
    fixed = requests.get(
        f"{sim.url}sites/{SITE}/streams",
        params={"start_datetime": start, "end_datetime": end, "resolution": 900, "stream_type": "MONITOR"},
        headers={"Authorization": f"APIKEY {sim.settings.api_key}"},
        timeout=HUNG_AFTER,
    ).json()
    requests_mock.get(re.compile(f"/sites/{SITE}/streams"), text=json.dumps(fixed))
    receipt = land(lake, sites=[{"site_id": SITE, "stream_start_times": {"MONITOR": "2020-01-01T00:00:01Z"}}])
    assert (receipt["rows"], receipt["expected"], receipt["missing"]) == (rows, 96, 96 - rows)
    whole = expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)
    assert landed_rows(lake.table()) == whole[-rows:]


# --- days that are not 24 hours long ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [900, 3600])
@pytest.mark.parametrize(
    ("zone", "first", "intervals"),
    [
        ("America/Los_Angeles", "2025-03-08", [96, 92, 96]),
        ("America/Los_Angeles", "2025-11-01", [96, 100, 96]),
        ("Europe/Berlin", "2025-03-29", [96, 92, 96]),
        ("Europe/Berlin", "2025-10-25", [96, 100, 96]),
        ("Australia/Lord_Howe", "2025-04-05", [96, 98, 96]),
        ("Asia/Kathmandu", "2025-03-29", [96, 96, 96]),
    ],
)
def test_days_of_a_local_schedule_are_adjacent_when_the_clocks_change(
    simulated, lake, zone, first, intervals, resolution
):
    sim = simulated()
    timetable = CronDataIntervalTimetable("0 0 * * *", timezone=zone)
    start = pendulum.from_format(first, "YYYY-MM-DD", tz=zone)
    landed = []
    for number, _ in enumerate(intervals):
        interval = timetable.infer_manual_data_interval(run_after=start.add(days=number + 1))
        assert interval.start == start.add(days=number)
        context = run_context()
        context["data_interval_start"], context["data_interval_end"] = interval.start, interval.end
        receipt = land(lake, context, resolution=resolution, if_exists="replace")
        assert receipt["missing"] == 0
        landed.append(landed_rows(lake.table()))
    end = start.add(days=len(intervals))
    assert list(chain.from_iterable(landed)) == expected_rows(
        sim, [SITE], ["MONITOR"], resolution, start.in_tz("UTC").isoformat(), end.in_tz("UTC").isoformat()
    )
    if resolution == 900:
        assert [len(rows) for rows in landed] == intervals
