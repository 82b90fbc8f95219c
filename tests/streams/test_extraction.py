from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import (
    StemApiError,
    StemAuthError,
    StemDataError,
    StemError,
    StemNotFoundError,
    StemServerError,
    StemTransportError,
    StemUnavailableError,
)
from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.streams.extraction import Extraction
from airflow_provider_stem.streams.reading import SiteResult
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.windows import Window
from tests.servers.processes import HUNG_AFTER

from .conftest import Connect
from .helpers import rows_of, trail, truth, utc, window

DAY = window("2025-07-01", "2025-07-02")
HOUR = window("2025-07-01T00:00", "2025-07-01T01:00")
Factory = Callable[..., Simulator]
Result = SiteResult[pa.RecordBatch]


def extraction(
    client: StemClient, types: Any = ("MONITOR",), of: Window = HOUR, **policies: Any
) -> Extraction[pa.RecordBatch]:
    return Extraction(client, types, of, lambda rows: rows, **policies)


def read(client: StemClient, sites: list[str], workers: int, **options: Any) -> list[Result]:
    return list(extraction(client, **options).read(read_sites(sites), workers))


def streams_asked(simulator: Simulator) -> list[str]:
    return [request.path.split("/")[-2] for request in simulator.requests]


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_results_are_in_the_order_of_the_sites(stem_simulator: Simulator, connect: Connect, workers: int) -> None:
    sites = stem_simulator.fleet.site_ids
    results = read(connect(stem_simulator), sites, workers, of=DAY)
    assert [result.site_id for result in results] == sites
    for result in results:
        (part,) = result.kept["MONITOR"]
        assert rows_of(part) == truth(stem_simulator, result.site_id, "MONITOR", DAY)
    assert trail(stem_simulator) == ["200 streams"] * len(sites)


def test_a_slow_first_site_does_not_change_the_order(stem_simulator: Simulator, connect: Connect) -> None:
    sites = stem_simulator.fleet.site_ids
    stem_simulator.fail(503, path=sites[0], times=3)
    results = read(connect(stem_simulator), sites, 4)
    assert [result.site_id for result in results] == sites
    assert all(result.rows == 4 for result in results)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_max_workers_sites_are_read_concurrently(
    stem_simulator_factory: Factory, connect: Connect, workers: int
) -> None:
    simulator = stem_simulator_factory(latency=0.002)
    together = threading.Barrier(workers)

    def keep(rows: pa.RecordBatch) -> int:
        # Continues only when as many sites are read at the same time.
        return together.wait(HUNG_AFTER)

    sites = read_sites(simulator.fleet.site_ids)
    assert len(list(Extraction(connect(simulator), ["MONITOR"], HOUR, keep).read(sites, workers))) == 20
    assert simulator.peak_concurrency <= workers


@pytest.mark.parametrize("workers", [1, 4])
def test_a_server_that_rejects_the_future_costs_one_request_per_run(
    stem_simulator_factory: Factory, connect: Connect, clock: Callable[[datetime], None], workers: int
) -> None:
    now = utc("2025-07-02T00:00:03")
    clock(now)
    simulator = stem_simulator_factory(future="refuse", now=now)
    sites = simulator.fleet.site_ids
    results = read(connect(simulator), sites, workers, of=DAY)
    assert [result.rows for result in results] == [96] * len(sites)
    statuses = [request.status for request in simulator.requests]
    assert statuses.count(200) == len(sites)
    # Sites that are read concurrently find it out concurrently.
    assert 1 <= statuses.count(400) <= workers


def test_results_can_be_read_one_site_at_a_time(stem_simulator: Simulator, connect: Connect) -> None:
    results = extraction(connect(stem_simulator)).read(read_sites(stem_simulator.fleet.site_ids), 2)
    assert next(results).site_id == "site-00001"
    assert next(results).site_id == "site-00002"
    assert len(list(results)) == 18


def test_closing_the_iterator_ends_the_requests(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(sites=60)
    client = connect(simulator)

    def hold(_request: object, payload: object) -> object:
        if len(simulator.requests) > 10:
            client._transport._closed.wait(HUNG_AFTER)
        return payload

    simulator.rewrite = hold
    results = extraction(client).read(read_sites(simulator.fleet.site_ids), 2)
    next(results)
    results.close()
    asked = len(simulator.requests)
    assert asked <= 12
    with pytest.raises(StemTransportError, match="closed"):
        client.get_site("site-00001")
    assert len(simulator.requests) == asked


def test_an_error_of_keep_ends_the_run(stem_simulator: Simulator, connect: Connect) -> None:
    class FullDiskError(Exception):
        pass

    def keep(rows: pa.RecordBatch) -> None:
        raise FullDiskError

    sites = read_sites(stem_simulator.fleet.site_ids)
    run = Extraction(connect(stem_simulator), ["MONITOR"], HOUR, keep, on_site_error="skip").read(sites, 3)
    with pytest.raises(FullDiskError):
        list(run)


class TestTheFirstSiteThatFails:
    @pytest.mark.parametrize("workers", [1, 4])
    def test_ends_the_others_soon(self, stem_simulator_factory: Factory, connect: Connect, workers: int) -> None:
        simulator = stem_simulator_factory(latency=0.02, sites=80)
        simulator.fail(404, path="site-00005/")
        client = connect(simulator)

        def hold(_request: object, payload: object) -> object:
            if 404 in [request.status for request in simulator.requests]:
                client._transport._closed.wait(HUNG_AFTER)
            return payload

        simulator.rewrite = hold
        with pytest.raises(StemNotFoundError, match="site-00005"):
            read(client, simulator.fleet.site_ids, workers)
        # Requests that are running may complete.
        asked = [request.status for request in simulator.requests]
        assert len(asked) - asked.index(404) <= workers
        assert simulator.peak_concurrency <= workers
        assert not any(thread.name.startswith("stem_") for thread in threading.enumerate())

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [(404, StemNotFoundError), (403, StemAuthError), (401, StemAuthError), (400, StemApiError)],
    )
    def test_its_error_is_raised_and_not_that_of_the_closed_client(
        self, stem_simulator: Simulator, connect: Connect, kind: int, expected: type[StemError]
    ) -> None:
        # The others wait for their next attempt until the client is closed, and are first in the order of sites.
        stem_simulator.fail(503, times=None, path=r"site-0000[1-5]/")
        stem_simulator.fail(kind, times=None, path="site-00006/")
        client = connect(stem_simulator, patient=True, max_attempts=1000)
        with pytest.raises(expected, match="site-00006") as error:
            read(client, stem_simulator.fleet.site_ids, 6)
        assert "closed" not in str(error.value)
        assert not {"site-00012", "site-00020"} & set(streams_asked(stem_simulator))

    def test_is_named_where_all_fail(self, stem_simulator: Simulator, connect: Connect) -> None:
        stem_simulator.fail(404, times=None)
        with pytest.raises(StemNotFoundError, match="site-0000[1-8]/"):
            read(connect(stem_simulator), stem_simulator.fleet.site_ids, 8)

    @pytest.mark.parametrize("types", [["CONVERTER", "INTERVAL_REVENUE", "MONITOR"], ["INTERVAL_REVENUE"]])
    def test_can_be_one_that_lacks_a_type(self, stem_simulator: Simulator, connect: Connect, types: list[str]) -> None:
        for policy in ("fail", "skip"):
            with pytest.raises(StemUnavailableError, match="site-00003 has no stream of type INTERVAL_REVENUE"):
                read(
                    connect(stem_simulator),
                    stem_simulator.fleet.site_ids[:3],
                    1,
                    types=types,
                    on_unavailable="fail",
                    on_site_error=policy,
                )

    def test_a_lacking_type_that_is_skipped_is_not_a_failure(self, stem_simulator: Simulator, connect: Connect) -> None:
        results = read(connect(stem_simulator), stem_simulator.fleet.site_ids, 4, types=["INTERVAL_REVENUE", "MONITOR"])
        lacking = [result.site_id for result in results if result.unavailable]
        sites = stem_simulator.fleet.site_ids
        assert lacking == [
            s for s in sites if "INTERVAL_REVENUE" not in stem_simulator.fleet.site(s).stream_start_times
        ]
        assert lacking
        assert [result.rows for result in results] == [4 if s in lacking else 8 for s in sites]


def nan(request: Any, payload: Any) -> Any:
    if "site-00003" in request.path:
        payload["stream_types"][0]["streams"][2]["kw_total_avg"] = float("nan")
    return payload


class TestSkippingSites:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (403, StemAuthError),
            (404, StemNotFoundError),
            (nan, StemDataError),
            ("error_200", StemDataError),
            ("html", StemDataError),  # after all attempts
            (204, StemDataError),
        ],
    )
    def test_skips_a_site_that_is_forbidden_unknown_or_invalid(
        self,
        stem_simulator: Simulator,
        connect: Connect,
        caplog: pytest.LogCaptureFixture,
        kind: Any,
        expected: type[StemError],
    ) -> None:
        if callable(kind):
            stem_simulator.rewrite = kind
        else:
            stem_simulator.fail(kind, times=None, path="site-00003/")
        with caplog.at_level(logging.WARNING, "airflow_provider_stem.streams"):
            results = read(connect(stem_simulator), stem_simulator.fleet.site_ids, 4, on_site_error="skip")
        left_out = [result for result in results if result.error]
        assert [result.site_id for result in left_out] == ["site-00003"]
        assert isinstance(left_out[0].error, expected)
        assert (left_out[0].rows, left_out[0].kept, left_out[0].accounts) == (0, {}, {})
        assert sum(result.rows for result in results) == 19 * 4
        assert any(message.startswith("Site site-00003 is skipped: ") for message in caplog.messages)

    def test_skips_the_whole_site_if_a_later_part_is_invalid(self, stem_simulator: Simulator, connect: Connect) -> None:
        stem_simulator.fail(404, path="site-00003/", after=1)
        of = window("2023-06-01", "2025-06-01", 3600)
        results = read(connect(stem_simulator), ["site-00002", "site-00003"], 1, of=of, on_site_error="skip")
        assert [result.rows for result in results] == [of.intervals, 0]
        assert results[1].kept == {}

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (401, StemAuthError),
            (400, StemApiError),
            (429, StemApiError),
            (500, StemServerError),
            ("reset", StemTransportError),
            ("redirect", StemApiError),
        ],
    )
    def test_does_not_skip_errors_that_concern_all_sites(
        self, stem_simulator: Simulator, connect: Connect, kind: Any, expected: type[StemError]
    ) -> None:
        stem_simulator.fail(kind, times=None, path="site-00003/")
        with pytest.raises(expected, match="site-00003"):
            read(connect(stem_simulator, max_attempts=2), stem_simulator.fleet.site_ids, 2, on_site_error="skip")

    def test_may_skip_every_site(self, stem_simulator: Simulator, connect: Connect) -> None:
        stem_simulator.fail(404, times=None)
        results = read(connect(stem_simulator), stem_simulator.fleet.site_ids, 4, on_site_error="skip")
        assert [type(result.error) for result in results] == [StemNotFoundError] * 20

    def test_the_servers_own_permissions(self, stem_simulator_factory: Factory, connect: Connect) -> None:
        simulator = stem_simulator_factory(forbidden={"site-00002"})
        results = read(connect(simulator), ["site-00001", "site-00002", "site-99999"], 2, on_site_error="skip")
        assert [type(result.error) for result in results] == [type(None), StemAuthError, StemNotFoundError]
