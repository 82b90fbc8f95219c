"""The number of requests for each kind of window, counted at the server: the minimum that the API allows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from tests.support import run_context

ALL_TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
BEGIN = datetime.fromisoformat("2025-01-01T00:00Z")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def records(stem):
    listed = StemSiteListOperator(task_id="list").execute(run_context())
    stem.reset_requests()
    return listed


@pytest.fixture
def cost(stem, lake):
    """Land a window, and return the number of requests that the server received."""

    def landed(sites, start=BEGIN, end=BEGIN + DAY, **changed):
        arguments = {"stream_types": ALL_TYPES, "s3_bucket": lake.bucket, **changed}
        task = StemStreamsToS3Operator(task_id="land", sites=sites, start=start, end=end, **arguments)
        receipt = task.execute(run_context())
        assert receipt["requests"] == len(stem.requests)
        assert receipt["missing"] == 0
        return len(stem.requests)

    return landed


def complete(records):
    return next(r for r in records if set(r["stream_start_times"]) == set(ALL_TYPES))


def lacking(records):
    return next(r for r in records if "INTERVAL_REVENUE" not in r["stream_start_times"])


def newest_of(record):
    newest = max(record["stream_start_times"], key=record["stream_start_times"].get)
    return newest, datetime.fromisoformat(record["stream_start_times"][newest]).replace(minute=0, second=0)


def starts(record):
    return sorted(datetime.fromisoformat(start) for start in record["stream_start_times"].values())


@pytest.mark.parametrize(
    ("length", "requests"),
    [
        (timedelta(minutes=15), 1),
        (HOUR, 1),
        (DAY, 1),
        (timedelta(days=364), 1),
        (timedelta(days=365) - timedelta(minutes=30), 1),  # with the padding: 365 days
        (timedelta(days=365) - timedelta(minutes=15), 2),
        (timedelta(days=365), 2),
        (timedelta(days=2 * 365) - timedelta(hours=1), 2),
        (timedelta(days=2 * 365), 3),
    ],
)
def test_a_window_takes_one_request_per_year(length, requests, records, cost):
    end = datetime.fromisoformat("2026-01-01T00:00Z")
    assert cost(complete(records), end - length, end) == requests
    assert starts(complete(records))[-1] < end - length


@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_the_padding_is_two_intervals_of_any_resolution(resolution, records, cost, stem):
    longest = timedelta(days=365) - timedelta(seconds=2 * resolution)
    assert cost(complete(records), BEGIN, BEGIN + longest, resolution=resolution) == 1
    stem.reset_requests()
    longer = longest + timedelta(seconds=resolution)
    assert cost(complete(records), BEGIN, BEGIN + longer, resolution=resolution) == 2


def test_ten_years_take_eleven_requests(stem, records, cost):
    site = min(records, key=lambda record: starts(record)[0])
    first = min(site["stream_start_times"], key=site["stream_start_times"].get)
    begin = datetime.fromisoformat("2025-12-31T00:00Z") - 10 * timedelta(days=365)
    if starts(site)[0] > begin:
        pytest.fail("the simulator has no site with ten years")
    assert cost(site, begin, begin + 10 * timedelta(days=365), stream_types=[first]) == 11


@pytest.mark.parametrize(
    "changed", [{"partition": "hour"}, {"partition": "day"}, {"lookback": 2 * DAY, "partition": "day"}]
)
def test_objects_and_a_look_back_cost_no_requests(changed, records, cost):
    assert cost(complete(records), **changed, s3_key="{start}.parquet") == 1


def test_many_sites_take_one_request_each(records, cost):
    assert cost(records) == len(records) == 20


def test_a_window_without_an_interval_takes_no_request(stem, lake):
    task = StemStreamsToS3Operator(
        task_id="land", sites="site-00001", start=BEGIN + timedelta(minutes=1), end=BEGIN + timedelta(minutes=14)
    )
    with pytest.raises(AirflowSkipException):
        task.execute(run_context())
    assert stem.requests == []


def test_types_that_a_site_lacks_and_times_before_its_streams_are_not_requested(records, cost, stem):
    assert cost(lacking(records)) == 1
    [asked] = [request.query["stream_type"] for request in stem.requests]
    assert set(asked[0].split(",")) == {"CONVERTER", "MONITOR"} & set(lacking(records)["stream_start_times"])
    stem.reset_requests()
    early = datetime.fromisoformat("2005-01-01T00:00Z")
    assert cost(complete(records), early, early + DAY) == 0


def test_years_before_a_known_stream_take_no_request(records, cost):
    site = complete(records)
    newest, begin = newest_of(site)
    assert cost(site, begin - timedelta(days=3650), begin + 30 * DAY, stream_types=[newest]) == 1


def test_without_a_record_the_site_is_read_only_if_rows_are_missing(records, cost, stem):
    assert cost(complete(records)["site_id"]) == 1
    stem.reset_requests()
    assert cost(lacking(records)["site_id"]) == 3  # rejected, the site, the types that it has
    stem.reset_requests()
    site = complete(records)
    newest, begin = newest_of(site)
    assert cost(site["site_id"], begin - DAY, begin + DAY, stream_types=[newest]) == 2


def test_a_server_that_rejects_the_future_costs_one_more_request_per_run(stem_simulator_factory, lake, monkeypatch):
    now = datetime.now(UTC)
    now = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
    sim = stem_simulator_factory(future="refuse", sites=20)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    task = StemStreamsToS3Operator(
        task_id="land",
        sites=list(sim.fleet.site_ids),
        stream_types=["MONITOR"],
        start=now - HOUR,
        end=now,
        s3_bucket=lake.bucket,
        max_workers=1,
    )
    assert task.execute(run_context())["requests"] == len(sim.requests) == 21


@pytest.mark.parametrize(("sites", "requests"), [(99, 1), (100, 1), (101, 2), (250, 3)])
def test_a_listing_takes_one_request_per_page_and_one_for_its_end(sites, requests, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(sites=sites, clients=1)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    client = sim.fleet.clients[0].id
    assert len(StemSiteListOperator(task_id="list", client_id=client).execute(run_context())) == sites
    assert len(sim.requests) == requests + 1
