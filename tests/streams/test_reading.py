from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.errors import StemDataError, StemNotFoundError, StemUnavailableError
from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.streams.reading import SiteReading, SiteResult, StreamAccount
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window, first_expected_end
from tests.support import STREAM_TYPES

from .conftest import Connect
from .helpers import (
    DAY,
    RESOLUTIONS,
    at,
    ends_of,
    examples,
    record,
    rows_of,
    seconds,
    shown,
    tally,
    trail,
    truth,
    utc,
    window,
)

HAS_ALL, LACKS_REVENUE = "site-00001", "site-00003"
JULY_FIRST = window("2025-07-01", "2025-07-02")
Factory = Callable[..., Simulator]
Result = SiteResult[pa.RecordBatch]


def read(
    client: StemClient,
    site: Any,
    stream_types: Sequence[str] = ("MONITOR",),
    of: Window = JULY_FIRST,
    on_unavailable: Literal["skip", "fail"] = "skip",
) -> Result:
    (one,) = read_sites(site)
    return SiteReading(StreamsSource(client), one, stream_types, of, lambda rows: rows, on_unavailable).run()


def rows(result: Result, stream_type: str = "MONITOR") -> list[tuple[int, float | None]]:
    return [row for part in result.kept.get(stream_type, []) for row in rows_of(part)]


def start_of(simulator: Simulator, site_id: str, stream_type: str) -> int:
    return simulator.fleet.site(site_id).stream_start_times[stream_type]


def around(
    simulator: Simulator, site_id: str, stream_type: str, before: int, after: int, resolution: int = 900
) -> Window:
    """Return a window from some days before a stream's start to some days after it."""
    noon = start_of(simulator, site_id, stream_type) // DAY * DAY
    return Window.covering(at(noon - before * DAY), at(noon + after * DAY), resolution)


class TestWithAnIdOnly:
    def test_all_types_need_one_request(self, stem_simulator: Simulator, connect: Connect) -> None:
        result = read(connect(stem_simulator), HAS_ALL, STREAM_TYPES)
        assert trail(stem_simulator) == ["200 streams"]
        for name in STREAM_TYPES:
            assert rows(result, name) == truth(stem_simulator, HAS_ALL, name, JULY_FIRST)
            assert result.accounts[name] == StreamAccount(96, 96, None)
        assert (result.rows, result.unavailable, result.error) == (3 * 96, [], None)

    def test_a_lacking_type_costs_a_400_and_a_request_of_the_site(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        result = read(connect(stem_simulator), LACKS_REVENUE, STREAM_TYPES)
        assert trail(stem_simulator) == ["400 streams", "200 site", "200 streams"]
        assert result.unavailable == ["INTERVAL_REVENUE"]
        assert set(result.kept) == set(result.accounts) == {"MONITOR", "CONVERTER"}
        for name in ("MONITOR", "CONVERTER"):
            assert rows(result, name) == truth(stem_simulator, LACKS_REVENUE, name, JULY_FIRST)

    def test_a_400_that_names_no_type_is_resolved_by_the_site(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        def anonymous(request: Any, payload: Any) -> Any:
            for error in payload.get("errors", []):
                error["message"] = "A requested stream type is unavailable for the requested site."
            return payload

        stem_simulator.rewrite = anonymous
        result = read(connect(stem_simulator), LACKS_REVENUE, STREAM_TYPES)
        assert trail(stem_simulator) == ["400 streams", "200 site", "200 streams"]
        assert result.unavailable == ["INTERVAL_REVENUE"]
        assert result.rows == 2 * 96

    def test_an_unexplained_400_is_an_error(self, stem_simulator: Simulator, connect: Connect) -> None:
        def contradict(request: Any, payload: Any) -> Any:
            message = "The requested stream type is unavailable."
            return {"errors": [{"message": message, "code": 400}]} if "stream_types" not in payload else payload

        stem_simulator.fail(400, times=None, path="/streams")
        stem_simulator.rewrite = contradict
        with pytest.raises(Exception, match="HTTP 400"):
            read(connect(stem_simulator), HAS_ALL, STREAM_TYPES)
        assert trail(stem_simulator) == ["400 streams"]

    def test_the_only_type_is_lacking(self, stem_simulator: Simulator, connect: Connect) -> None:
        result = read(connect(stem_simulator), LACKS_REVENUE, ["INTERVAL_REVENUE"])
        assert trail(stem_simulator) == ["400 streams"]
        assert (result.unavailable, result.kept, result.accounts) == (["INTERVAL_REVENUE"], {}, {})

    def test_the_window_lies_before_the_stream(self, stem_simulator: Simulator, connect: Connect) -> None:
        of = around(stem_simulator, HAS_ALL, "MONITOR", 5, -2)
        result = read(connect(stem_simulator), HAS_ALL, ["MONITOR"], of)
        assert trail(stem_simulator) == ["200 streams", "200 site"]
        assert result.accounts.get("MONITOR", StreamAccount()) == StreamAccount(0, 0, None)
        assert (result.rows, result.unavailable) == (0, [])

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @pytest.mark.parametrize("site_id", [f"site-{n:05d}" for n in range(1, 9)])
    def test_the_stream_began_inside(
        self, stem_simulator: Simulator, connect: Connect, site_id: str, resolution: int
    ) -> None:
        of = around(stem_simulator, site_id, "MONITOR", 2, 3, resolution)
        result = read(connect(stem_simulator), site_id, ["MONITOR"], of)
        assert trail(stem_simulator) == ["200 streams", "200 site"]
        shown_rows = truth(stem_simulator, site_id, "MONITOR", of)
        assert rows(result) == shown_rows
        assert result.accounts["MONITOR"] == StreamAccount(len(shown_rows), len(shown_rows), None)

    def test_leading_intervals_are_missing(self, stem_simulator: Simulator, connect: Connect) -> None:
        def late(request: Any, payload: Any) -> Any:
            for entry in payload.get("stream_types", []):
                # The first two of the window; the one before is the padding.
                entry["streams"] = [
                    r for r in entry["streams"] if r["end_datetime"] > shown(JULY_FIRST.first_end + 900)
                ]
            return payload

        stem_simulator.rewrite = late
        result = read(connect(stem_simulator), HAS_ALL, ["CONVERTER", "MONITOR"])
        assert trail(stem_simulator) == ["200 streams", "200 site"]
        for name in ("CONVERTER", "MONITOR"):
            assert result.accounts[name] == StreamAccount(96, 94, at(JULY_FIRST.first_end))

    def test_missing_intervals_at_the_end_cost_no_request(
        self, stem_simulator_factory: Factory, connect: Connect
    ) -> None:
        simulator = stem_simulator_factory(now=utc("2025-07-01T18:00"))
        result = read(connect(simulator), HAS_ALL)
        assert trail(simulator) == ["200 streams"]
        assert result.accounts["MONITOR"] == StreamAccount(96, 72, utc("2025-07-01T18:15"))

    def test_missing_intervals_at_the_start_of_a_later_part_cost_no_request(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        of = window("2024-02-01", "2025-07-01", 3600)
        _, second = of.parts()

        def gap(request: Any, payload: Any) -> Any:
            for entry in payload["stream_types"]:
                entry["streams"] = [r for r in entry["streams"] if r["end_datetime"] != shown(second.first_end)]
            return payload

        stem_simulator.rewrite = gap
        result = read(connect(stem_simulator), HAS_ALL, ["MONITOR"], of)
        assert trail(stem_simulator) == ["200 streams"] * 2
        assert result.accounts["MONITOR"] == StreamAccount(of.intervals, of.intervals - 1, at(second.first_end))

    def test_a_leading_null_is_not_missing(self, stem_simulator_factory: Factory, connect: Connect) -> None:
        simulator = stem_simulator_factory(null_values=1.0)
        result = read(connect(simulator), HAS_ALL)
        assert trail(simulator) == ["200 streams"]
        assert result.accounts["MONITOR"] == StreamAccount(96, 96, None)
        assert {value for _, value in rows(result)} == {None}

    def test_an_empty_200_for_a_lacking_type_is_detected(self, stem_simulator: Simulator, connect: Connect) -> None:
        def tolerant(request: Any, payload: Any) -> Any:
            if request.path.endswith("/streams"):
                kept = [entry for entry in payload["stream_types"] if entry["stream_type"] == "MONITOR"]
                return {**payload, "stream_types": kept}
            del payload["stream_start_times"]["INTERVAL_REVENUE"]
            return payload

        stem_simulator.rewrite = tolerant
        result = read(connect(stem_simulator), HAS_ALL, ["INTERVAL_REVENUE", "MONITOR"])
        assert trail(stem_simulator) == ["200 streams", "200 site"]
        assert (result.unavailable, result.rows, list(result.accounts)) == (["INTERVAL_REVENUE"], 96, ["MONITOR"])
        with pytest.raises(StemUnavailableError, match="INTERVAL_REVENUE"):
            read(connect(stem_simulator), HAS_ALL, ["INTERVAL_REVENUE", "MONITOR"], on_unavailable="fail")

    def test_a_site_without_start_times_is_expected_from_the_start_of_the_window(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        stem_simulator.rewrite = lambda request, payload: (
            payload if request.path.endswith("/streams") else {"id": HAS_ALL, "name": "n"}
        )
        of = around(stem_simulator, HAS_ALL, "MONITOR", 1, 1)
        result = read(connect(stem_simulator), HAS_ALL, ["MONITOR"], of)
        assert trail(stem_simulator) == ["200 streams", "200 site"]
        assert result.accounts["MONITOR"].expected == 192
        assert result.accounts["MONITOR"].first_missing == at(of.first_end)

    @pytest.mark.parametrize("status", [403, 404])
    def test_a_site_that_cannot_be_read_is_an_error(
        self, stem_simulator: Simulator, connect: Connect, status: int
    ) -> None:
        stem_simulator.fail(status, path=r"/sites/site-00003$", times=None)
        with pytest.raises(Exception, match=f"HTTP {status}"):
            read(connect(stem_simulator), LACKS_REVENUE, STREAM_TYPES)


class TestWithARecord:
    def test_a_lacking_type_is_not_requested(self, stem_simulator: Simulator, connect: Connect) -> None:
        result = read(connect(stem_simulator), record(stem_simulator, LACKS_REVENUE), STREAM_TYPES)
        (request,) = stem_simulator.requests
        assert request.query["stream_type"] == ["MONITOR,CONVERTER"]
        assert result.unavailable == ["INTERVAL_REVENUE"]
        assert result.rows == 2 * 96

    def test_nothing_is_requested_if_all_types_are_lacking(self, stem_simulator: Simulator, connect: Connect) -> None:
        result = read(connect(stem_simulator), record(stem_simulator, LACKS_REVENUE), ["INTERVAL_REVENUE"])
        assert trail(stem_simulator) == []
        assert result.unavailable == ["INTERVAL_REVENUE"]

    def test_a_stream_that_began_after_the_window_costs_no_request(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        of = around(stem_simulator, HAS_ALL, "MONITOR", 5, 0)
        result = read(connect(stem_simulator), record(stem_simulator, HAS_ALL), ["MONITOR"], of)
        assert trail(stem_simulator) == []
        assert (result.rows, result.unavailable, result.accounts) == (0, [], {})

    @pytest.mark.parametrize("site_id", [f"site-{n:05d}" for n in range(1, 7)])
    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_a_stream_that_began_inside_is_expected_from_its_first_interval(
        self, stem_simulator: Simulator, connect: Connect, site_id: str, resolution: int
    ) -> None:
        of = around(stem_simulator, site_id, "CONVERTER", 2, 3, resolution)
        result = read(connect(stem_simulator), record(stem_simulator, site_id), ["CONVERTER", "MONITOR"], of)
        assert trail(stem_simulator) == ["200 streams"]
        for name in ("CONVERTER", "MONITOR"):
            start = at(start_of(stem_simulator, site_id, name))
            expected = [k for k in range(of.first_end, of.last_end + 1, resolution) if at(k - resolution + 1) >= start]
            assert [end for end, _ in rows(result, name)] == expected
            assert result.accounts[name] == StreamAccount(len(expected), len(expected), None)

    def test_its_first_interval_can_be_missing(self, stem_simulator: Simulator, connect: Connect) -> None:
        first = first_expected_end(at(start_of(stem_simulator, HAS_ALL, "MONITOR")), 900)
        stem_simulator.rewrite = lambda _, payload: {
            **payload,
            "stream_types": [
                {**entry, "streams": [r for r in entry["streams"] if r["end_datetime"] != shown(first)]}
                for entry in payload["stream_types"]
            ],
        }
        of = around(stem_simulator, HAS_ALL, "MONITOR", 1, 2)
        result = read(connect(stem_simulator), record(stem_simulator, HAS_ALL), ["MONITOR"], of)
        account = result.accounts["MONITOR"]
        assert account.first_missing == at(first)
        assert account.expected == account.received + 1 == (of.last_end - first) // 900 + 1
        assert trail(stem_simulator) == ["200 streams"]

    @pytest.mark.parametrize("lookahead", [1, 2])
    def test_a_type_that_begins_in_a_later_part_is_requested_from_there(
        self, stem_simulator: Simulator, connect: Connect, lookahead: int
    ) -> None:
        converter = start_of(stem_simulator, HAS_ALL, "CONVERTER")
        of = Window.covering(at(converter - 700 * DAY), at(converter + lookahead * 30 * DAY), 3600)
        site = record(stem_simulator, HAS_ALL, MONITOR="2001-01-01T00:00:01Z")
        result = read(connect(stem_simulator), site, ["CONVERTER", "MONITOR"], of)
        assert [r.query["stream_type"][0] for r in stem_simulator.requests] == ["MONITOR", "CONVERTER,MONITOR"] or [
            r.query["stream_type"][0] for r in stem_simulator.requests
        ] == ["MONITOR", "MONITOR", "CONVERTER,MONITOR"]
        assert rows(result, "CONVERTER") == truth(stem_simulator, HAS_ALL, "CONVERTER", of)
        assert result.accounts["CONVERTER"].first_missing is None


class TestARecordThatIsOutOfDate:
    def test_it_has_a_type_that_the_site_lacks(self, stem_simulator: Simulator, connect: Connect) -> None:
        site = record(stem_simulator, LACKS_REVENUE, INTERVAL_REVENUE="2014-01-01T00:00:00Z")
        result = read(connect(stem_simulator), site, STREAM_TYPES)
        assert trail(stem_simulator) == ["400 streams", "200 site", "200 streams"]
        assert result.unavailable == ["INTERVAL_REVENUE"]
        assert result.rows == 2 * 96

    def test_rows_before_its_start_time_are_returned_and_not_counted(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        site = record(stem_simulator, HAS_ALL, MONITOR="2025-07-01T12:00:01Z")
        result = read(connect(stem_simulator), site)
        assert rows(result) == truth(stem_simulator, HAS_ALL, "MONITOR", JULY_FIRST)
        assert result.rows == 96
        assert result.accounts["MONITOR"] == StreamAccount(48, 48, None)

    def test_a_start_time_that_is_too_early_is_used(self, stem_simulator: Simulator, connect: Connect) -> None:
        site = record(stem_simulator, HAS_ALL, MONITOR="2001-01-01T00:00:01Z")
        of = around(stem_simulator, HAS_ALL, "MONITOR", 1, 1)
        account = read(connect(stem_simulator), site, ["MONITOR"], of).accounts["MONITOR"]
        assert trail(stem_simulator) == ["200 streams"]
        assert account.expected == 192
        assert account.first_missing == at(of.first_end)


class TestThePolicyFail:
    def test_names_the_type_with_an_id_only(self, stem_simulator: Simulator, connect: Connect) -> None:
        with pytest.raises(StemUnavailableError, match="site-00003 has no stream of type INTERVAL_REVENUE") as error:
            read(connect(stem_simulator), LACKS_REVENUE, STREAM_TYPES, on_unavailable="fail")
        assert error.value.stream_types == ("INTERVAL_REVENUE",)
        assert error.value.status == 400
        assert "The requested stream type - INTERVAL_REVENUE is unavailable" in error.value.message
        assert trail(stem_simulator) == ["400 streams"]

    def test_needs_no_request_with_a_record(self, stem_simulator: Simulator, connect: Connect) -> None:
        site = record(stem_simulator, LACKS_REVENUE, CONVERTER=None)
        with pytest.raises(StemUnavailableError) as error:
            read(connect(stem_simulator), site, STREAM_TYPES, on_unavailable="fail")
        assert error.value.stream_types == ("CONVERTER", "INTERVAL_REVENUE")
        assert trail(stem_simulator) == []

    def test_returns_rows_if_no_type_is_lacking(self, stem_simulator: Simulator, connect: Connect) -> None:
        assert read(connect(stem_simulator), HAS_ALL, STREAM_TYPES, on_unavailable="fail").rows == 3 * 96


class TestLongWindows:
    @pytest.mark.parametrize("form", ["id", "record"])
    @pytest.mark.parametrize(
        ("start", "end", "resolution", "types", "requests"),
        [
            ("2024-06-01", "2025-05-31T23:30", 900, ("MONITOR",), 1),  # 365 days, padding included
            ("2024-06-01", "2025-05-31T23:45", 900, ("MONITOR",), 2),
            ("2024-01-01", "2025-07-01", 900, ("CONVERTER", "MONITOR"), 2),
            ("2023-12-31T13:30", "2025-12-31", 1800, ("MONITOR",), 3),
            ("2024-02-03T01:00", "2025-11-30", 3600, STREAM_TYPES, 2),
        ],
    )
    def test_need_the_fewest_requests_and_have_all_rows(
        self,
        stem_simulator_factory: Factory,
        connect: Connect,
        start: str,
        end: str,
        resolution: int,
        types: Sequence[str],
        requests: int,
        form: str,
    ) -> None:
        simulator = stem_simulator_factory(reading="B" if resolution == 1800 else "A", now=utc("2026-02-01"))
        of = window(start, end, resolution)
        result = read(connect(simulator), HAS_ALL if form == "id" else record(simulator, HAS_ALL), types, of)
        assert trail(simulator) == ["200 streams"] * requests
        for name in types:
            assert rows(result, name) == truth(simulator, HAS_ALL, name, of)
            assert len(result.kept[name]) == requests
            assert result.accounts[name] == StreamAccount(of.intervals, of.intervals, None)

    def test_need_fewer_requests_if_a_stream_began_late(self, stem_simulator: Simulator, connect: Connect) -> None:
        start = start_of(stem_simulator, HAS_ALL, "MONITOR")
        of = Window.covering(at(start // DAY * DAY - 2000 * DAY), at(start // DAY * DAY + 100 * DAY), 3600)
        for site, asked in (
            (record(stem_simulator, HAS_ALL), ["200 streams"]),
            # The first part is empty, so the site is read, and the parts before the start are skipped.
            (HAS_ALL, ["200 streams", "200 site", "200 streams"]),
        ):
            result = read(connect(stem_simulator), site, ["MONITOR"], of)
            assert trail(stem_simulator) == asked
            assert rows(result) == truth(stem_simulator, HAS_ALL, "MONITOR", of)
            assert result.accounts["MONITOR"].first_missing is None
            assert result.accounts["MONITOR"].expected == result.rows


@pytest.fixture(scope="module")
def patchy() -> Iterator[tuple[Simulator, StemClient]]:
    with ExitStack() as stack:
        simulator = stack.enter_context(Simulator(Settings(gaps=0.2, null_values=0.2, now=utc("2025-07-01"))))
        client = stack.enter_context(
            StemClient(ClientConfig(ApiKey(simulator.settings.api_key), simulator.url), sleep=lambda _: None)
        )
        yield simulator, client


def test_the_account_equals_a_count(patchy: tuple[Simulator, StemClient]) -> None:
    simulator, client = patchy
    counts = tally("accounts, gaps and nulls against counting")
    sites = simulator.fleet.site_ids

    @examples(300)
    @given(
        site_id=st.sampled_from(sites),
        anchor=st.sampled_from(["MONITOR", "CONVERTER", "2020", "now"]),
        shift=st.integers(-3 * DAY, DAY),
        length=st.integers(900, 3 * DAY),
        resolution=st.sampled_from(RESOLUTIONS),
        known=st.booleans(),
        types=st.lists(st.sampled_from(STREAM_TYPES), min_size=1, max_size=3, unique=True),
    )
    def check(
        site_id: str, anchor: str, shift: int, length: int, resolution: int, known: bool, types: list[str]
    ) -> None:
        starts = simulator.fleet.site(site_id).stream_start_times
        base = {"2020": seconds(utc("2020-02-28")), "now": seconds(utc("2025-07-01"))} | dict(starts)
        of = Window.covering(at(base[anchor] + shift), at(base[anchor] + shift + length), resolution)
        if not of.intervals:
            return
        simulator.reset_requests()
        result = read(client, record(simulator, site_id) if known else site_id, types, of)
        assert result.unavailable == [name for name in types if name not in starts]
        total = 0
        for name in set(types) & set(starts):
            begin = at(starts[name])
            expected = [k for k in range(of.first_end, of.last_end + 1, resolution) if at(k - resolution + 1) >= begin]
            came = truth(simulator, site_id, name, of)
            missing = sorted(set(expected) - {end for end, _ in came})
            account = result.accounts.get(name, StreamAccount())
            assert rows(result, name) == came
            # Leading gaps are resolved only after the site was read, so the result is the same for id and record.
            assert account == StreamAccount(len(expected), len(came), at(missing[0]) if missing else None)
            total += len(came)
            counts.add(streams=1, expected=len(expected), missing=len(missing))
        assert result.rows == total
        counts.add(cases=1, requests=len(simulator.requests))

    check()


class TestOtherwise:
    def test_parts_are_kept_in_order_of_time(self, stem_simulator: Simulator, connect: Connect) -> None:
        kept: list[int] = []

        def keep(part: pa.RecordBatch) -> int:
            kept.append(ends_of(part.slice(0, 1))[0])
            return len(kept)

        (site,) = read_sites(HAS_ALL)
        of = Window.covering(utc("2023-12-01"), utc("2026-01-01"), 3600)
        result = SiteReading(StreamsSource(connect(stem_simulator)), site, ["MONITOR"], of, keep, "skip").run()
        assert result.kept == {"MONITOR": [1, 2, 3]}
        assert kept == sorted(kept)

    def test_an_invalid_response_is_an_error(self, stem_simulator: Simulator, connect: Connect) -> None:
        def wrong(request: Any, payload: Any) -> Any:
            payload["stream_types"][0]["streams"][7]["kw_total_avg"] = float("nan")
            return payload

        stem_simulator.rewrite = wrong
        with pytest.raises(StemDataError, match="site site-00001, MONITOR, row 7: kw_total_avg is not a finite number"):
            read(connect(stem_simulator), HAS_ALL)

    def test_an_unknown_site_is_an_error(self, stem_simulator: Simulator, connect: Connect) -> None:
        with pytest.raises(StemNotFoundError):
            read(connect(stem_simulator), "site-99999")

    def test_an_id_is_quoted_whole(self, stem_simulator: Simulator, connect: Connect) -> None:
        with pytest.raises(StemNotFoundError):
            read(connect(stem_simulator), "../clients?x=1#é/")
        (request,) = stem_simulator.requests
        assert "/sites/..%2Fclients%3Fx%3D1%23%C3%A9%2F/streams?" in request.target

    def test_nothing_is_fetched_for_a_window_without_intervals(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        of = Window.covering(utc("2025-07-01T00:01"), utc("2025-07-01T00:01") + timedelta(minutes=5), 900)
        result = read(connect(stem_simulator), HAS_ALL, STREAM_TYPES, of)
        assert (result.rows, result.kept, result.accounts) == (0, {}, {})
        assert trail(stem_simulator) == []
