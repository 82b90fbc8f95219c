"""Responses to another request are errors, and intervals that have not ended are missing, in every reader."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.streams import source
from tests.support import run_context

SITE = "site-00001"
DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")


def streams(*entries):
    return lambda payload: {**payload, "stream_types": [{"stream_type": "MONITOR", **entry} for entry in entries]}


ROW = {
    "start_datetime": "2019-05-01T00:00:01+00:00",
    "end_datetime": "2019-05-01T00:15:00+00:00",
    "kw_total_avg": 1.0,
}
WRONG = {
    "another window": (streams({"streams": [ROW]}), "another window"),
    "another site": (lambda payload: {**payload, "id": "site-b"}, "another id"),
    "another site without rows": (lambda payload: {**payload, "id": "site-b", "stream_types": []}, "another id"),
}
MISSING = {
    "no entry for the type": lambda payload: {**payload, "stream_types": []},
    "null entries": lambda payload: {**payload, "stream_types": None},
    "null rows": streams({"streams": None}),
    "an empty list of rows": streams({"streams": []}),
    "an entry without rows": streams({}),
}


def answering(sim, change):
    def rewrite(request, payload):
        return change(payload) if request.path.endswith("/streams") else payload

    sim.rewrite = rewrite


def land(lake, **arguments):
    operator = StemStreamsToS3Operator(
        task_id="land", dag=None, sites=SITE, s3_bucket=lake.bucket, start=DAY[0], end=DAY[1], **arguments
    )
    return operator.execute(run_context())


def poke(**arguments):
    sensor = StemStreamsSensor(task_id="wait", sites=SITE, **{"start": DAY[0], "end": DAY[1], **arguments})
    return sensor.poke(run_context())


@pytest.mark.parametrize("name", WRONG)
def test_a_response_to_another_request_is_an_error(name, stem, lake):
    change, message = WRONG[name]
    answering(stem, change)
    for read in (lambda: StemHook().get_streams(SITE, *DAY), lambda: land(lake), poke):
        with pytest.raises(StemDataError, match=message) as error:
            read()
        assert "Try again later, or report it to Stem if it persists [GET http" in str(error.value)
    assert lake.objects() == {}


@pytest.mark.parametrize("name", MISSING)
def test_rows_that_a_response_lacks_are_missing(name, stem, lake):
    answering(stem, MISSING[name])
    assert StemHook().get_streams(SITE, *DAY).num_rows == 0
    receipt = land(lake)
    assert (receipt["expected"], receipt["missing"], receipt["incomplete_count"]) == (96, 96, 1)
    assert receipt["unavailable"] == []
    done = poke()
    assert not done.is_done
    assert done.xcom_value["missing"] == 96


def test_a_record_of_another_site_is_an_error(stem, lake):
    """The streams lack their first rows, so the site record is read. Another site's record may have later starts."""

    def rewrite(request, payload):
        if request.path.endswith("/streams"):
            payload["stream_types"][0]["streams"] = payload["stream_types"][0]["streams"][40:]
            return payload
        return {**payload, "id": "site-00002", "stream_start_times": {"CONVERTER": "2025-07-01T10:00:01Z"}}

    stem.rewrite = rewrite
    for read in (lambda: StemHook().get_streams(SITE, *DAY), lambda: land(lake), poke):
        with pytest.raises(StemDataError, match=re.escape("The response is for id 'site-00002' instead of")):
            read()


@pytest.mark.parametrize("resolution", [900, 3600])
def test_an_interval_that_has_not_ended_is_missing(resolution, stem, lake, monkeypatch):
    end = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 3600 * 3600, UTC)

    class TenMinutesBefore(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return (end - timedelta(minutes=10)).astimezone(tz)

    monkeypatch.setattr(source, "datetime", TenMinutesBefore)
    arguments = {"start": end - timedelta(hours=6), "end": end, "resolution": resolution}
    table = StemHook().get_streams(SITE, **arguments)
    last = end - timedelta(seconds=resolution)
    expected = 6 * 3600 // resolution
    assert (table.num_rows, table["interval_end"][-1].as_py()) == (expected - 1, last)
    receipt = StemStreamsToS3Operator(task_id="land", sites=SITE, s3_bucket=lake.bucket, **arguments).execute(
        run_context()
    )
    assert (receipt["rows"], receipt["expected"], receipt["missing"]) == (expected - 1, expected, 1)
    assert datetime.fromisoformat(receipt["incomplete"][0]["first_missing"]) == end
    done = poke(**arguments)
    assert not done.is_done
    assert (done.xcom_value["expected"], done.xcom_value["missing"]) == (expected, 1)


@pytest.mark.parametrize("start_times", ["null", "missing"])
@pytest.mark.parametrize("batches", [None, 3])
def test_sites_without_start_times_are_listed(start_times, batches, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(start_times=start_times)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    listed = StemSiteListOperator(task_id="list", stream_types=["INTERVAL_REVENUE"], batches=batches).execute(
        run_context()
    )
    records = listed if batches is None else [record for batch in listed for record in batch["sites"]]
    assert sorted(record["site_id"] for record in records) == sorted(sim.fleet.site_ids)
    assert {json.dumps(record["stream_start_times"]) for record in records} == {"null"}


def test_sites_that_have_none_of_the_types_are_not_listed(stem):
    times = [None, {"CONVERTER": "2020-01-01T00:00:01Z"}, {"CONVERTER": None}, {}, {"MONITOR": None}, {"NEW": None}]

    def rewrite(request, payload):
        for site, start_times in zip(payload["sites"], times, strict=False):
            site["stream_start_times"] = start_times
        return payload

    stem.rewrite = rewrite
    client = stem.fleet.clients[0].id
    ids = [site["id"] for site in StemHook().list_sites(client)]
    listed = StemSiteListOperator(task_id="list", client_id=client, stream_types=["CONVERTER"]).execute(run_context())
    assert {record["site_id"] for record in listed} & set(ids[: len(times)]) == set(ids[:3])
