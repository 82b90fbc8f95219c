"""Where the API, the worker's clock or the calendar do not agree: exact rows, or told what is missing."""

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
from processes import HUNG_AFTER
from requests_mock import ANY

from airflow_provider_stem.errors import StemIncompleteError, StemRequestError
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
def test_an_api_whose_clock_is_behind_delivers_less_and_that_is_told(simulated, lake, behind):
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
    # When its clock has come this far the same run lands the rest.
    sim.now = DAY_END + timedelta(hours=1)
    assert land(lake)["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


@pytest.mark.parametrize("behind", [timedelta(seconds=1), timedelta(minutes=40)])
def test_an_api_that_takes_the_window_for_the_future_lands_nothing_until_it_does_not(simulated, lake, behind):
    sim = simulated(now=DAY_END - behind, future="refuse")
    lake.client.put_object(Bucket=lake.bucket, Key="streams.parquet", Body=without_rows())
    # No error that Airflow would not retry.
    with pytest.raises(StemRequestError, match="must not lie in the future"):
        land(lake)
    assert lake.objects() == {"streams.parquet": without_rows()}
    sim.now = DAY_END + timedelta(hours=1)
    assert land(lake)["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


@pytest.mark.parametrize("reading", ["A", "B"])
def test_the_interval_that_still_runs_is_never_landed(simulated, lake, reading):
    sim = simulated(now=DAY_END + timedelta(minutes=7), partial_bin=True, reading=reading)
    receipt = land(lake)
    assert receipt["missing"] == 0
    assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)


def test_a_worker_whose_clock_is_behind_refuses_what_is_over_and_asks_nothing(simulated, lake):
    """It cannot tell that from a window which is not over; the retry, when its clock is right, can."""
    sim = simulated()
    end = pendulum.now("UTC").add(hours=2).start_of("hour")
    context = run_context()
    context["data_interval_start"], context["data_interval_end"] = end.subtract(hours=1), end
    with pytest.raises(AirflowFailException, match="lies in the future"):
        land(lake, context)
    assert sim.requests == []
    assert lake.objects() == {}


# --- values and streams that are not as they were told ----------------------------------------------------------------


def test_values_that_were_restated_between_two_runs_replace_the_old_ones(simulated, lake):
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


@pytest.mark.parametrize("told", ["2025-07-01T06:00:01Z", "2025-08-01T00:00:01Z", None])
def test_rows_from_before_the_start_that_was_told_are_landed_and_not_counted_as_expected(simulated, lake, told):
    sim = simulated()
    receipt = land(lake, sites=[{"site_id": SITE, "stream_start_times": {"MONITOR": told}}])
    expected = {"2025-07-01T06:00:01Z": 72, "2025-08-01T00:00:01Z": 0, None: 96}[told]
    assert receipt["missing"] == 0
    assert receipt["expected"] == expected
    if expected:
        assert landed_rows(lake.table()) == expected_rows(sim, [SITE], ["MONITOR"], 900, *DAY)
        assert receipt["rows"] == 96
    else:
        # Nothing is expected, so nothing is asked: what the record says of a stream is what a request costs.
        assert receipt["rows"] == receipt["requests"] == 0


def test_a_stream_that_begins_later_than_was_told_is_missing_until_then(simulated, lake):
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
    # As the API tells it, none of that is missing.
    assert land(lake, run_context(*day))["missing"] == 0


# --- a server that does not look at the range -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        ("2025-06-28T00:00:00Z", "2025-07-05T00:00:00Z", 96),
        ("2025-07-01T12:00:00Z", "2025-07-05T00:00:00Z", 48),
    ],
    ids=["more on both sides", "half of it"],
)
def test_what_lies_outside_of_the_window_is_dropped_and_what_lacks_is_missing(
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
def test_days_of_a_local_schedule_tile_when_the_clocks_change(simulated, lake, zone, first, intervals, resolution):
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
