from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api import transport
from airflow_provider_stem.errors import (
    StemAuthError,
    StemConfigError,
    StemDataError,
    StemError,
    StemNotFoundError,
    StemServerError,
    StemUnavailableError,
)
from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.streams.sites import Site, read_sites
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.watch import Watch
from airflow_provider_stem.streams.windows import Window
from tests.servers.processes import HUNG_AFTER
from tests.support import STREAM_TYPES

from .conftest import Connect
from .helpers import DAY, at, examples, grid, record, seconds, shown, stream, tally, trail, utc, window

HOUR = window("2025-07-01T00:00", "2025-07-01T01:00")
Factory = Callable[..., Simulator]


def watch(
    sites: Any, types: Sequence[str] = ("MONITOR",), of: Window = HOUR, progress: dict[str, Any] | None = None
) -> Watch:
    return Watch(read_sites(sites), types, of, progress)


def in_json(progress: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(progress)
    assert json.loads(text) == progress
    return json.loads(text)  # type: ignore[no-any-return]


class Withheld:
    """
    Make a simulator hide some rows.

    :param rows: such as ``site-00001/MONITOR/00:45``, or a function of a site, a type and an ``end_datetime``.
    """

    def __init__(self, simulator: Simulator, *rows: str, hides: Callable[[str, str, str], bool] | None = None) -> None:
        self.rows = set(rows)
        self.hides = hides or (lambda site_id, name, end: f"{site_id}/{name}/{end[11:16]}" in self.rows)
        simulator.rewrite = self.rewrite

    def rewrite(self, _: Any, payload: Any) -> Any:
        for entry in payload.get("stream_types", ()):
            name = entry["stream_type"]
            entry["streams"] = [
                row for row in entry["streams"] if not self.hides(payload["id"], name, row["end_datetime"])
            ]
        return payload


def requested(simulator: Simulator) -> list[str]:
    """Return the requests since the last call, without padding: ``site-00001 MONITOR 00:00-01:00``."""
    requests = list(simulator.requests)
    simulator.reset_requests()
    questions = []
    for request in requests:
        site_id = request.path.split("/sites/")[1].split("/")[0]
        if not request.path.endswith("/streams"):
            questions.append(site_id)
            continue
        step = timedelta(seconds=int(request.query["resolution"][0]))
        start = utc(request.query["start_datetime"][0].rstrip("Z")) + step
        end = utc(request.query["end_datetime"][0].rstrip("Z")) - step
        questions.append(f"{site_id} {request.query['stream_type'][0]} {start:%H:%M}-{end:%H:%M}")
    return sorted(questions)


class TestAPoke:
    def test_requests_each_site_once_and_then_only_incomplete_ones(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        client = connect(stem_simulator)
        seen = watch(stem_simulator.fleet.site_ids)
        assert seen.pending == stem_simulator.fleet.site_ids
        assert not seen.is_complete(0.01)
        for _ in range(3):
            seen.poke(client, 4)
            assert seen.is_complete()
        assert trail(stem_simulator) == ["200 streams"] * 20
        assert (seen.pokes, seen.pending) == (3, [])
        assert seen.report() == {
            "window": HOUR.as_json(),
            "sites": 20,
            "expected": 80,
            "missing": 0,
            "incomplete_sites": 0,
        }

    def test_requests_incomplete_streams_since_their_first_gap(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        client = connect(stem_simulator)
        withheld = Withheld(
            stem_simulator,
            "site-00001/MONITOR/00:30",
            "site-00001/CONVERTER/01:00",
            "site-00002/CONVERTER/00:15",
            "site-00002/CONVERTER/01:00",
        )
        sites = [record(stem_simulator, f"site-0000{number}") for number in (1, 2, 4)]
        seen = watch(sites, ("CONVERTER", "MONITOR"))
        seen.poke(client, 4)
        assert (seen.report()["expected"], seen.report()["missing"]) == (24, 4)
        assert seen.pending == ["site-00001", "site-00002"]
        requested(stem_simulator)
        seen.poke(client, 4)
        assert requested(stem_simulator) == [
            "site-00001 CONVERTER,MONITOR 00:15-01:00",
            "site-00002 CONVERTER 00:00-01:00",
        ]
        withheld.rows -= {"site-00001/MONITOR/00:30", "site-00002/CONVERTER/00:15"}
        seen.poke(client, 4)
        requested(stem_simulator)
        assert seen.report()["missing"] == 2
        seen.poke(client, 4)
        assert requested(stem_simulator) == ["site-00001 CONVERTER 00:45-01:00", "site-00002 CONVERTER 00:45-01:00"]
        withheld.rows.clear()
        seen.poke(client, 4)
        assert seen.is_complete()
        assert seen.report()["expected"] == 24

    @pytest.mark.parametrize("end", ["00:30", "01:00"])
    def test_reads_no_site_for_a_gap_that_is_not_at_the_start(
        self, stem_simulator: Simulator, connect: Connect, end: str
    ) -> None:
        Withheld(stem_simulator, f"site-00001/MONITOR/{end}")
        seen = watch("site-00001")
        for _ in range(3):
            seen.poke(connect(stem_simulator), 1)
        assert trail(stem_simulator) == ["200 streams"] * 3
        assert seen.report()["missing"] == 1

    def test_reads_a_site_once_for_a_gap_at_the_start(self, stem_simulator: Simulator, connect: Connect) -> None:
        Withheld(stem_simulator, "site-00001/MONITOR/00:15")
        seen = watch("site-00001")
        for _ in range(3):
            seen.poke(connect(stem_simulator), 1)
        assert trail(stem_simulator) == ["200 streams", "200 site", "200 streams", "200 streams"]

    def test_counts_a_null_as_received(self, stem_simulator_factory: Factory, connect: Connect) -> None:
        simulator = stem_simulator_factory(null_values=1.0)
        seen = watch("site-00001")
        seen.poke(connect(simulator), 1)
        assert seen.is_complete()

    def test_may_need_several_requests_for_a_window(self, stem_simulator: Simulator, connect: Connect) -> None:
        of = window("2023-06-01", "2025-06-01", 3600)
        Withheld(stem_simulator, hides=lambda _, __, end: end.startswith("2025-05-31T05:00"))
        seen = watch(record(stem_simulator, "site-00001"), of=of)
        seen.poke(connect(stem_simulator), 1)
        assert trail(stem_simulator) == ["200 streams"] * 3
        assert (seen.report()["expected"], seen.report()["missing"]) == (of.intervals, 1)
        seen.poke(connect(stem_simulator), 1)
        assert len(requested(stem_simulator)) == 1

    def test_polls_max_workers_sites_concurrently(self, stem_simulator_factory: Factory, connect: Connect) -> None:
        simulator = stem_simulator_factory(latency=0.02)
        watch(simulator.fleet.site_ids).poke(connect(simulator), 3)
        assert 1 <= simulator.peak_concurrency <= 3

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [(401, StemAuthError), (404, StemNotFoundError), (503, StemServerError), ("error_200", StemDataError)],
    )
    def test_ends_with_the_first_site_that_fails_and_keeps_other_results(
        self, stem_simulator: Simulator, connect: Connect, kind: str | int, expected: type[StemError]
    ) -> None:
        stem_simulator.fail(kind, path="site-00003", times=None)
        seen = watch(stem_simulator.fleet.site_ids)
        with pytest.raises(expected, match="site-00003"):
            seen.poke(connect(stem_simulator, max_attempts=1), 1)
        assert seen.pokes == 1
        assert not seen.is_complete()
        assert "site-00001" not in seen.pending
        assert {"site-00003", "site-00020"} <= set(seen.pending)
        assert seen.report()["incomplete_sites"] == len(seen.pending)
        stem_simulator.clear_faults()
        resumed = watch(stem_simulator.fleet.site_ids, progress=in_json(seen.progress()))
        requested(stem_simulator)
        resumed.poke(connect(stem_simulator), 4)
        assert resumed.is_complete()
        assert len(requested(stem_simulator)) == len(seen.pending)
        assert resumed.report()["expected"] == 80

    def test_that_fails_interrupts_the_waits_of_others(
        self, stem_simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "RETRY_AFTER_CAP", math.inf)
        stem_simulator.fail(429, path="site-00001", times=None, retry_after=86_400)
        stem_simulator.fail(404, path="site-00002", times=None)
        seen = watch(["site-00001", "site-00002"])
        # Returns, although the other site would wait for a day.
        with pytest.raises(StemNotFoundError):
            seen.poke(connect(stem_simulator, patient=True), 2)
        assert not any(thread.name.startswith("stem_") for thread in threading.enumerate())

    def test_that_fails_starts_no_further_site(
        self, stem_simulator: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = connect(stem_simulator)
        poked: list[str] = []

        def poke_site(self: Watch, source: Any, site_id: str, original: Any = Watch.poke_site) -> None:
            if poked:  # it may have begun before the error was known
                assert client._transport._closed.wait(HUNG_AFTER)
            poked.append(site_id)
            original(self, source, site_id)

        monkeypatch.setattr(Watch, "poke_site", poke_site)
        stem_simulator.fail(404, path="site-00001", times=None)
        with pytest.raises(StemNotFoundError):
            watch(stem_simulator.fleet.site_ids).poke(client, 1)
        assert len(poked) <= 2

    def test_corrects_an_outdated_record(self, stem_simulator: Simulator, connect: Connect) -> None:
        seen = watch(
            record(stem_simulator, "site-00003", INTERVAL_REVENUE="2014-01-01T00:00:01Z"),
            ("INTERVAL_REVENUE", "MONITOR"),
        )
        seen.poke(connect(stem_simulator), 1)
        assert seen.is_complete()
        assert seen.report()["expected"] == 4


class TestTheShareThatIsEnough:
    @pytest.mark.parametrize("of", [4, 25, 96, 100])
    def test_is_reached_by_the_float_that_a_user_writes(self, of: int) -> None:
        end = at(seconds(HOUR.start) + of * 900)
        day = Window(HOUR.start, end, 900)
        for there in range(1, of + 1, 3):
            seen = watch({"site_id": "a", "stream_start_times": {"MONITOR": None}}, of=day)
            seen.poke_site(Shown({"a": {"MONITOR": None}}, {("a", "MONITOR", k) for k in grid(day)[:there]}), "a")
            assert seen.is_complete(there / of)
            assert seen.is_complete(round(there / of, 12) - 1e-9)
            assert not seen.is_complete(min(1.0, (there + 1) / of)) or there == of
            assert seen.is_complete() is (there == of)

    def test_as_decimals(self) -> None:
        # In binary 0.28 * 25 exceeds 7, and 0.58 * 50 falls short of 29.
        for share, of, there in ((0.28, 25, 7), (0.58, 50, 29), (0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7)):
            span = Window(HOUR.start, at(seconds(HOUR.start) + of * 900), 900)
            here = grid(span)
            for number, enough in ((there - 1, False), (there, True)):
                seen = watch({"site_id": "a", "stream_start_times": {"MONITOR": None}}, of=span)
                seen.poke_site(Shown({"a": {"MONITOR": None}}, {("a", "MONITOR", k) for k in here[:number]}), "a")
                assert seen.is_complete(share) is enough

    def test_is_reached_if_nothing_is_expected(self) -> None:
        seen = watch({"site_id": "a", "stream_start_times": {}})
        seen.poke_site(Shown({"a": {}}, set()), "a")
        assert seen.is_complete()

    def test_counts_a_site_that_was_not_poked_as_missing(self) -> None:
        source = Shown({"a": {"MONITOR": None}, "b": {"MONITOR": None}}, {("a", "MONITOR", k) for k in grid(HOUR)})
        seen = watch(["a", "b"])
        seen.poke_site(source, "a")
        assert seen.is_complete(0.5)
        assert not seen.is_complete(0.51)
        seen.poke_site(source, "b")
        assert (seen.report()["expected"], seen.report()["missing"]) == (8, 4)


class TestProgress:
    @pytest.mark.parametrize(
        "changed",
        [
            {"sites": ["site-00001"]},
            {"sites": ["site-00001", "site-00003"]},
            {"types": ("CONVERTER",)},
            {"types": ("CONVERTER", "MONITOR")},
            {"of": window("2025-07-01T00:00", "2025-07-01T02:00")},
            {"of": window("2025-07-01T00:00", "2025-07-01T01:00", 1800)},
        ],
    )
    def test_of_other_arguments_is_ignored(
        self, stem_simulator: Simulator, connect: Connect, changed: dict[str, Any]
    ) -> None:
        arguments: dict[str, Any] = {"sites": ["site-00001", "site-00002"]}
        seen = watch(**arguments)
        seen.poke(connect(stem_simulator), 1)
        other = watch(**{**arguments, **changed}, progress=in_json(seen.progress()))
        assert other.pokes == 0
        assert other.pending == sorted(changed.get("sites", arguments["sites"]))
        assert not other.is_complete()

    @pytest.mark.parametrize("progress", [None, {}, {"pokes": 3}])
    def test_may_be_none(self, progress: dict[str, Any] | None) -> None:
        assert watch("a", progress=progress).pending == ["a"]

    def test_contains_no_complete_sites(self, stem_simulator_factory: Factory, connect: Connect) -> None:
        simulator = stem_simulator_factory(sites=300)
        Withheld(simulator, "site-00300/MONITOR/00:30")
        seen = watch([record(simulator, site_id) for site_id in simulator.fleet.site_ids])
        fresh = in_json(seen.progress())
        assert len(fresh["unseen"]) == 300
        seen.poke(connect(simulator), 8)
        assert len(json.dumps(in_json(seen.progress()))) < 600

    def test_continues_from_records_and_progress(self, stem_simulator: Simulator, connect: Connect) -> None:
        """Records and progress, as a trigger has them, contain the whole state of the first watch."""
        stem_simulator.fail(404, path="site-00004", times=1)
        withheld = Withheld(stem_simulator, "site-00002/MONITOR/00:15")
        sites = ["site-00002", record(stem_simulator, "site-00003"), record(stem_simulator, "site-00005")]
        types = ("INTERVAL_REVENUE", "MONITOR")
        seen = watch([*sites[:2], "site-00004", sites[2]], types)
        with pytest.raises(StemNotFoundError):
            seen.poke(connect(stem_simulator), 1)
        requested(stem_simulator)
        unseen = set(seen.pending) - {"site-00002"}
        records = in_json({"sites": seen.records()})["sites"]
        assert [entry["site_id"] for entry in records if "stream_start_times" in entry] == sorted(unseen)
        resumed = watch(records, types, progress=in_json(seen.progress()))
        assert (resumed.pending, resumed.pokes) == (seen.pending, 1)
        withheld.rows.clear()
        resumed.poke(connect(stem_simulator), 1)
        assert "site-00002" not in requested(stem_simulator)
        assert resumed.is_complete()
        starts = [stem_simulator.fleet.site(f"site-0000{n}").stream_start_times for n in (2, 3, 4, 5)]
        assert resumed.report()["expected"] == 4 * sum(name in of for of in starts for name in types)

    def test_of_strange_ids(self) -> None:
        sites = ["é/\u2028", "\ud800", "a\0b", " x "]
        seen = watch(sites)
        again = watch(list(reversed(sites)), progress=json.loads(json.dumps(seen.progress())))
        assert again.pending == seen.pending


def test_a_wait_that_ends_after_the_last_year_is_an_error() -> None:
    waiting = watch("a", of=window("9999-12-31T00:00", "9999-12-31T12:00"))
    assert waiting.ready(timedelta(hours=1)).hour == 13
    with pytest.raises(StemConfigError, match=r"Invalid settle .* Use a shorter one\."):
        waiting.ready(timedelta(days=1))


def test_no_sites_are_an_error() -> None:
    with pytest.raises(StemConfigError):
        watch([])


# --- against plain counting -------------------------------------------------------------------------------------------

Starts = dict[str, int | None]


class Shown(StreamsSource):
    """
    The API, as far as a watch needs it.

    :param sites: each site's streams, with the second at which they began, or None if it is unknown.
    :param here: ``(site, type, end)`` of the intervals that exist.
    """

    def __init__(self, sites: dict[str, Starts], here: set[tuple[str, str, int]]) -> None:
        self.sites = sites
        self.here = here
        self.fetched: list[tuple[str, tuple[str, ...], Window]] = []
        self.sites_read: list[str] = []
        self.client: Any = self
        self.base_url = "http://test/"

    def get_site(self, site_id: str) -> dict[str, Any]:
        self.sites_read.append(site_id)
        starts = {t: None if start is None else shown(start, "Z") for t, start in self.sites[site_id].items()}
        return {"id": site_id, "stream_start_times": starts}

    def fetch(self, site_id: str, types: Sequence[str], of: Window) -> dict[str, pa.RecordBatch]:
        self.fetched.append((site_id, tuple(types), of))
        lacking = [t for t in types if t not in self.sites[site_id]]
        if lacking:
            # It names one of them, as the guide's example does.
            message = f"The requested stream type - {lacking[0]} is unavailable for the requested site."
            raise StemUnavailableError(400, message, "url", None, lacking[:1])
        ends = {t: [k for k in grid(of) if (site_id, t, k) in self.here] for t in types}
        return {t: stream(ks, [1.0] * len(ks)) for t, ks in ends.items()}


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, Starts], dict[str, bool], tuple[str, ...], Window, dict[Any, int]]:
    """Sites, which of them have a record, the types, the window, and the poke since which each interval exists."""
    resolution = draw(st.sampled_from((900, 1800, 3600)))
    length = draw(st.integers(1, 6))
    first = seconds(utc("2025-07-01")) + draw(st.integers(0, 3)) * resolution
    of = Window(at(first), at(first + length * resolution), resolution)
    types = tuple(sorted(draw(st.sets(st.sampled_from(STREAM_TYPES), min_size=1))))
    begins = st.one_of(
        st.just(first - 30 * DAY),
        # A shown start somewhere around the window, on the grid of 900 s or off it.
        st.integers(-2, 4 * length + 4).map(lambda n: first + n * 900 + 1),
        st.integers(-900, length * resolution + 900).map(lambda n: first + n),
    )
    names = [f"site-{number}" for number in range(draw(st.integers(1, 4)))]
    sites = {name: draw(st.dictionaries(st.sampled_from(STREAM_TYPES), begins, max_size=3)) for name in names}
    known = {name: draw(st.booleans()) for name in names}
    arrivals = {
        (name, t, k): draw(st.integers(0, 4))
        for name, starts in sites.items()
        for t, start in starts.items()
        for k in grid(of)
        if k - resolution + 1 >= start
    }
    return sites, known, types, of, arrivals  # type: ignore[return-value]


@examples(300)
@given(worlds(), st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from([1.0, 0.5, 0.9]))
def test_the_report_equals_a_count(world: Any, handed_over: list[bool], share: float) -> None:
    sites, known, types, of, arrivals = world
    counts = tally("pokes of a wait against counting")
    source = Shown(sites, set())
    records = [
        Site(name, {t: at(start) for t, start in starts.items()} if known[name] else None)
        for name, starts in sites.items()
    ]
    seen = Watch(records, types, of)
    expected = {row for row in arrivals if row[1] in types}
    for step in range(5):
        source.here = {row for row, moment in arrivals.items() if moment <= step}
        missing_before = {row for row in expected if arrivals[row] > step - 1} if step else expected
        if handed_over[step]:
            seen = Watch(read_sites(json.loads(json.dumps(seen.records()))), types, of, in_json(seen.progress()))
            assert seen.pokes == step
        source.fetched.clear()
        source.sites_read.clear()
        poked = seen.begin_poke()
        for name in poked:
            seen.poke_site(source, name)
        missing = expected - source.here
        report = seen.report()
        assert (report["expected"], report["missing"]) == (len(expected), len(missing))
        assert report["incomplete_sites"] == len({name for name, _, _ in missing}) == len(seen.pending)
        assert seen.is_complete() is (not missing)
        assert seen.is_complete(share) is (len(expected) - len(missing) >= share * len(expected) or not missing)
        assert not any(known[name] for name in source.sites_read)
        if step:
            # Only incomplete sites are requested, only with their incomplete types, and only since the first gap.
            assert poked == sorted({name for name, _, _ in missing_before})
            assert source.sites_read == []
            for name, asked_types, part in source.fetched:
                gaps = [(t, k) for site, t, k in missing_before if site == name]
                assert set(asked_types) <= {t for t, _ in gaps}
                assert part.first_end >= min(k for _, k in gaps)
        counts.add(pokes=1, requests=len(source.fetched), intervals=len(expected), missing=len(missing))
    assert seen.is_complete()
    assert not seen.pending


def test_the_report_equals_what_the_server_shows(stem_simulator_factory: Factory, connect: Connect) -> None:
    """The same over HTTP, with gaps that are filled at random moments."""
    simulator = stem_simulator_factory(sites=6, seed=5)
    client = connect(simulator)
    of = window("2025-07-01", "2025-07-01T06:00")
    types = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")

    def moment(site_id: str, name: str, end: str) -> int:
        return sum(f"{site_id}{name}{end}".encode()) % 6

    step = 0
    Withheld(simulator, hides=lambda *row: moment(*row) > step)
    sites = [s if n % 2 else record(simulator, s) for n, s in enumerate(simulator.fleet.site_ids)]
    rows = [
        (s, t, shown(k))
        for s in simulator.fleet.site_ids
        for t in simulator.fleet.site(s).stream_start_times
        for k in grid(of)
    ]
    seen = watch(sites, types, of)
    for step in range(6):
        seen.poke(client, 3)
        assert seen.report()["expected"] == len(rows)
        assert seen.report()["missing"] == sum(moment(*row) > step for row in rows)
        seen = watch(seen.records(), types, of, in_json(seen.progress()))
    assert seen.is_complete()
