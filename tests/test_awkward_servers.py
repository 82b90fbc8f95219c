"""Servers that interpret the guide differently, in every way that the simulator supports, and in every pair of ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.simulator import Settings, Simulator, middleware
from airflow_provider_stem.streams import source
from airflow_provider_stem.streams.extraction import Extraction
from airflow_provider_stem.streams.sites import Site, read_sites
from airflow_provider_stem.streams.tables import landing_batch
from airflow_provider_stem.streams.windows import Window
from tests.streams.helpers import ends_of, rows_of, truth
from tests.support import STREAM_TYPES, full_depth_only, landed_rows

NOW = datetime(2025, 7, 2, 12, 7, 31, tzinfo=UTC)
LACKING = "site-00002"

SWITCHES: dict[str, tuple[Any, ...]] = {
    "reading": ("A", "B"),
    "rounding": ("half_up", "half_even", "floor", "ceil"),
    "future": ("accept", "refuse"),
    "total_as": ("items", "pages", "string", "missing"),
    "max_per_page": (500, 1, 3),
    "past_end": ("empty", "not_found", "repeat", "null"),
    "row_zone": ("+00:00", "Z"),
    "row_order": ("ascending", "descending"),
    "unknown_fields": (False, True),
    "partial_bin": (False, True),
    "settle": (0.0, 1800.0, 100_000.0),
    "restate": (0.0, 7200.0),
    "gaps": (0.0, 0.1, 1.0),
    "null_values": (0.0, 0.2, 1.0),
    "forbidden": (frozenset(), frozenset({LACKING}), frozenset({"acme-foods"})),
    "faults": ((), ("503:0.1",), ("429:0.1",), ("cut_body:0.1",), ("cut_json:0.1",), ("reset:0.1",), ("html:0.1",)),
    "cache_mb": (512.0, 0.0),
    "resolution": (900, 1800, 3600),  # of the request
}


def alone() -> Iterator[dict[str, Any]]:
    """Return each choice of each switch, with the first choice of the others."""
    yield {}
    for name, choices in SWITCHES.items():
        for choice in choices[1:]:
            yield {name: choice}


def pairs_of(case: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(case.items(), 2))


def all_pairs() -> list[dict[str, Any]]:
    """Return few cases that together have each pair of choices of two switches (greedy all-pairs)."""
    left = {
        ((one, a), (other, b))
        for one, other in itertools.combinations(SWITCHES, 2)
        for a, b in itertools.product(SWITCHES[one], SWITCHES[other])
    }
    cases = []
    while left:
        chosen = dict(min(left, key=repr))
        for name, choices in SWITCHES.items():
            if name not in chosen:
                fits = [
                    sum(
                        tuple(sorted(((name, choice), known), key=lambda item: list(SWITCHES).index(item[0]))) in left
                        for known in chosen.items()
                    )
                    for choice in choices
                ]
                chosen[name] = choices[fits.index(max(fits))]
        case = {name: chosen[name] for name in SWITCHES}
        left -= pairs_of(case)
        cases.append(case)
    return cases


PAIRS = all_pairs()


def test_every_pair_is_among_the_cases() -> None:
    met = set().union(*map(pairs_of, PAIRS))
    for one, other in itertools.combinations(SWITCHES, 2):
        for a, b in itertools.product(SWITCHES[one], SWITCHES[other]):
            assert ((one, a), (other, b)) in met


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return NOW.astimezone(tz)

    monkeypatch.setattr(source, "datetime", Stopped)


def listed(simulator: Simulator, client: StemClient) -> list[Site]:
    """List all sites, and check the result against the simulator."""
    fleet, forbidden = simulator.fleet, simulator.settings.forbidden
    clients = [one.id for one in fleet.clients if one.id not in forbidden]
    assert [one["id"] for one in client.list_clients()] == clients
    expected = [
        site_id
        for one in clients
        for site_id in (fleet.site_id(index) for index in fleet.site_indices(one))
        if site_id not in forbidden
    ]
    records = list(client.list_sites())
    assert [one["id"] for one in records] == expected
    for one in records:
        assert client.get_site(one["id"]) == one
        assert one["stream_start_times"].keys() == fleet.site(one["id"]).stream_start_times.keys()
    return read_sites(records)


def check_rows(simulator: Simulator, client: StemClient, sites: list[Site], of: Window, *, lacks_last: bool) -> int:
    """Read a window of all sites, and check rows and counts against what the server returns."""
    rows = 0
    extraction: Extraction[pa.RecordBatch] = Extraction(client, STREAM_TYPES, of, lambda stream: stream)
    for site, result in zip(sites, extraction.read(sites, 3), strict=True):
        starts = simulator.fleet.site(site.site_id).stream_start_times
        assert sorted(result.unavailable) == sorted(set(STREAM_TYPES) - set(starts))
        for stream_type in starts:
            shown = truth(simulator, site.site_id, stream_type, of)
            if lacks_last:
                shown = [row for row in shown if row[0] != of.last_end]
            got = [row for part in result.kept.get(stream_type, []) for row in rows_of(part)]
            assert got == shown
            account = result.accounts[stream_type]
            assert (account.expected, account.received) == (of.intervals, len(shown))
            came = {end for end, _ in shown}
            missing = [k for k in range(of.first_end, of.last_end + 1, of.resolution) if k not in came]
            assert account.first_missing == (datetime.fromtimestamp(missing[0], UTC) if missing else None)
            rows += len(got)
            for part in result.kept.get(stream_type, []):
                landing_batch(site.site_id, stream_type, of.resolution, part).validate(full=True)
                assert ends_of(part) == sorted(set(ends_of(part)))
    return rows


def check(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(clients=2, sites=6, seed=3, now=NOW, **{n: v for n, v in case.items() if n != "resolution"})
    resolution = case.get("resolution", 900)
    with Simulator(settings) as simulator:
        config = ClientConfig(ApiKey(settings.api_key), simulator.url, page_size=4, max_attempts=8)
        with StemClient(config, sleep=lambda _: None) as client:
            sites = listed(simulator, client)
            past = Window.covering(NOW - timedelta(hours=30), NOW - timedelta(hours=6), resolution)
            rows = check_rows(simulator, client, sites, past, lacks_last=False)
            if settings.gaps < 1 and settings.settle < 10_000:
                assert rows > len(sites)
        with StemClient(config, sleep=lambda _: None) as client:
            # Taken literally, a range selects the intervals that end one earlier, and a later range is rejected. So the
            # last interval cannot be read yet: it is reported as missing, and a later look-back reads it.
            is_out_of_reach = settings.reading == "B" and settings.future == "refuse"
            current = Window.covering(NOW - timedelta(hours=5), NOW, resolution)
            check_rows(simulator, client, sites, current, lacks_last=is_out_of_reach)
        # The same with the hook, as a table.
        site_id = sites[0].site_id
        monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", simulator.connection)
        hook = StemHook()
        hook.client = StemClient(config, sleep=lambda _: None)
        table = hook.get_streams(
            site_id, past.start, past.end, stream_types=STREAM_TYPES, resolution=resolution, on_unavailable="skip"
        )
        hook.client.close()
        assert landed_rows(table) == [
            (site_id, stream_type, resolution, end - resolution, end, value)
            for stream_type in sorted(simulator.fleet.site(site_id).stream_start_times)
            for end, value in truth(simulator, site_id, stream_type, past)
        ]


@full_depth_only  # the pairs have each switch too
@pytest.mark.parametrize("case", alone(), ids=lambda case: ",".join(f"{n}={v}" for n, v in case.items()) or "usual")
def test_each_switch_alone(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("case", PAIRS, ids=range(len(PAIRS)))
def test_every_two_switches_at_once(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.parametrize("retry_after", ["seconds", "date"])
def test_a_server_with_a_low_rate_limit(retry_after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(clients=1, sites=4, now=NOW, rate_limit=6, retry_after=retry_after)
    waited: list[float] = []
    # The limiter's clock advances only when the client waits.
    monkeypatch.setattr(middleware, "time", SimpleNamespace(monotonic=lambda: sum(waited)))

    def wait(seconds: float) -> None:
        waited.append(max(seconds, 1.0))

    with Simulator(settings) as simulator:
        config = ClientConfig(ApiKey(settings.api_key), simulator.url, max_attempts=8)
        with StemClient(config, sleep=wait) as client:
            sites = listed(simulator, client)
            past = Window.covering(NOW - timedelta(hours=30), NOW - timedelta(hours=6), 900)
            assert check_rows(simulator, client, sites, past, lacks_last=False)
    assert waited
