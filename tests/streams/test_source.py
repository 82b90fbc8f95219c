from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from airflow_provider_stem.errors import StemRequestError, StemUnavailableError
from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window

from .conftest import Connect
from .helpers import RESOLUTIONS, ends_of, rows_of, trail, truth, utc, window

SITE, LACKS_REVENUE = "site-00001", "site-00003"
DAY = window("2025-07-01", "2025-07-02")
NOW = utc("2025-07-02T00:00:07.25")
Factory = Callable[..., Simulator]
Clock = Callable[[datetime], None]


def ranges(simulator: Simulator) -> list[tuple[str, str]]:
    return [(r.query["start_datetime"][0], r.query["end_datetime"][0]) for r in simulator.requests]


def day(resolution: int) -> Window:
    return window("2025-07-01", "2025-07-02", resolution)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_one_extra_interval_is_requested_on_each_side_and_dropped(
    stem_simulator: Simulator, connect: Connect, resolution: int
) -> None:
    of = day(resolution)
    streams = StreamsSource(connect(stem_simulator)).fetch(SITE, ["CONVERTER", "MONITOR"], of)
    (request,) = stem_simulator.requests
    around = timedelta(seconds=resolution)
    assert request.query == {
        "start_datetime": [f"{of.start - around:%Y-%m-%dT%H:%M:%SZ}"],
        "end_datetime": [f"{of.end + around:%Y-%m-%dT%H:%M:%SZ}"],
        "resolution": [str(resolution)],
        "stream_type": ["CONVERTER,MONITOR"],
    }
    for name in ("CONVERTER", "MONITOR"):
        assert rows_of(streams[name]) == truth(stem_simulator, SITE, name, of)
        assert streams[name].num_rows == of.intervals


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("reading", ["A", "B"])
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_a_window_that_ends_now_is_complete_under_both_readings(
    stem_simulator_factory: Factory, connect: Connect, clock: Clock, reading: str, rounding: str, resolution: int
) -> None:
    simulator = stem_simulator_factory(reading=reading, rounding=rounding, partial_bin=True, now=NOW)
    clock(NOW)
    streams = StreamsSource(connect(simulator)).fetch(SITE, ["MONITOR"], day(resolution))
    ends, values = simulator.fleet.values(
        SITE, "MONITOR", resolution, day(resolution).first_end, day(resolution).last_end
    )
    assert rows_of(streams["MONITOR"]) == list(zip(ends.tolist(), values.tolist(), strict=True))
    assert trail(simulator) == ["200 streams"]


class TestAServerThatRejectsTheFuture:
    @pytest.fixture
    def simulator(self, stem_simulator_factory: Factory, clock: Clock) -> Simulator:
        clock(NOW)
        return stem_simulator_factory(future="refuse", now=NOW)

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_gets_a_second_request_without_the_rejected_padding(
        self, simulator: Simulator, connect: Connect, resolution: int
    ) -> None:
        of = day(resolution)
        streams = StreamsSource(connect(simulator)).fetch(SITE, ["MONITOR"], of)
        assert rows_of(streams["MONITOR"]) == truth(simulator, SITE, "MONITOR", of)
        assert streams["MONITOR"].num_rows == of.intervals
        (first, second) = ranges(simulator)
        assert first[0] == second[0]
        assert second[1] == "2025-07-02T00:00:00Z"
        assert trail(simulator) == ["400 streams", "200 streams"]

    def test_costs_one_extra_request_per_run_and_not_per_site(self, simulator: Simulator, connect: Connect) -> None:
        source = StreamsSource(connect(simulator))
        for number in range(1, 6):
            assert source.fetch(f"site-0000{number}", ["MONITOR"], DAY)["MONITOR"].num_rows == 96
        assert trail(simulator) == ["400 streams"] + ["200 streams"] * 5

    def test_gets_padded_requests_for_the_past(self, simulator: Simulator, connect: Connect) -> None:
        source = StreamsSource(connect(simulator))
        source.fetch(SITE, ["MONITOR"], DAY)
        simulator.reset_requests()
        source.fetch(SITE, ["MONITOR"], window("2025-06-30", "2025-07-01"))
        assert ranges(simulator) == [("2025-06-29T23:45:00Z", "2025-07-01T00:15:00Z")]

    def test_is_recognized_if_it_also_lacks_a_type(self, simulator: Simulator, connect: Connect) -> None:
        source = StreamsSource(connect(simulator))
        with pytest.raises(StemUnavailableError) as error:
            source.fetch(LACKS_REVENUE, ["INTERVAL_REVENUE", "MONITOR"], DAY)
        assert error.value.stream_types == ("INTERVAL_REVENUE",)
        assert trail(simulator) == ["400 streams", "400 streams"]
        source.fetch(SITE, ["MONITOR"], DAY)
        assert trail(simulator) == ["200 streams"]

    def test_may_call_the_future_unavailable(
        self, stem_simulator: Simulator, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock(NOW)
        client = connect(stem_simulator)
        get_streams = client.get_streams

        def refuse(site_id: str, start: datetime, end: datetime, *rest: Any) -> Any:
            if end > NOW:
                raise StemUnavailableError(400, "Data of the future is unavailable.", "url")
            return get_streams(site_id, start, end, *rest)

        monkeypatch.setattr(client, "get_streams", refuse)
        assert StreamsSource(client).fetch(SITE, ["MONITOR"], DAY)["MONITOR"].num_rows == 96
        assert trail(stem_simulator) == ["200 streams"]

    def test_is_not_inferred_from_an_unavailable_type_without_its_name(
        self, stem_simulator: Simulator, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock(NOW)
        stem_simulator.now = NOW
        client = connect(stem_simulator)

        def refuse(*_: Any) -> Any:
            raise StemUnavailableError(400, "The stream type is unavailable.", "url")

        source = StreamsSource(client)
        with monkeypatch.context() as patched:
            patched.setattr(client, "get_streams", refuse)
            with pytest.raises(StemUnavailableError):
                source.fetch(SITE, ["MONITOR"], DAY)
        source.fetch(SITE, ["MONITOR"], DAY)
        assert ranges(stem_simulator) == [("2025-06-30T23:45:00Z", "2025-07-02T00:15:00Z")]

    def test_may_have_a_clock_that_is_behind(self, simulator: Simulator, connect: Connect, clock: Clock) -> None:
        clock(NOW + timedelta(minutes=20))
        streams = StreamsSource(connect(simulator)).fetch(SITE, ["MONITOR"], DAY)
        assert streams["MONITOR"].num_rows == 96
        assert trail(simulator) == ["400 streams", "200 streams"]

    def test_is_not_inferred_from_another_400(self, stem_simulator: Simulator, connect: Connect, clock: Clock) -> None:
        clock(NOW)
        stem_simulator.now = NOW
        source = StreamsSource(connect(stem_simulator))
        stem_simulator.fail(400, times=2)
        with pytest.raises(StemRequestError):
            source.fetch(SITE, ["MONITOR"], DAY)
        assert trail(stem_simulator) == ["400 streams", "400 streams"]
        source.fetch(SITE, ["MONITOR"], DAY)
        assert ranges(stem_simulator) == [("2025-06-30T23:45:00Z", "2025-07-02T00:15:00Z")]


def test_a_400_for_the_past_is_not_retried(stem_simulator: Simulator, connect: Connect) -> None:
    stem_simulator.fail(400)
    with pytest.raises(StemRequestError):
        StreamsSource(connect(stem_simulator)).fetch(SITE, ["MONITOR"], DAY)
    assert trail(stem_simulator) == ["400 streams"]


class TestAnIntervalThatIsNotOver:
    """It ends up to one resolution ahead; the server has a partial value of it and of the next one."""

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @pytest.mark.parametrize(
        ("ahead", "delivered"), [(-1, True), (0, True), (59, True), (60, True), (61, False), (800, False)]
    )
    @pytest.mark.parametrize("reading", ["A", "B"])
    @pytest.mark.parametrize("future", ["accept", "refuse"])
    def test_is_never_returned(
        self, stem_simulator_factory: Factory, connect: Connect, clock: Clock,
        resolution: int, ahead: int, delivered: bool, reading: str, future: str,
    ) -> None:  # fmt: skip
        now = DAY.end - timedelta(seconds=ahead)
        clock(now)
        server_now = now if future == "refuse" else now + timedelta(hours=2)
        simulator = stem_simulator_factory(reading=reading, future=future, now=server_now)
        streams = StreamsSource(connect(simulator)).fetch(SITE, ["CONVERTER", "MONITOR"], day(resolution))
        last = day(resolution).last_end - (0 if delivered else resolution)
        if future == "refuse":
            # With an end that is not rejected, the second reading selects one interval fewer.
            last = int(now.timestamp()) // resolution * resolution - (resolution if reading == "B" else 0)
        for name in ("CONVERTER", "MONITOR"):
            assert ends_of(streams[name]) == list(range(day(resolution).first_end, last + 1, resolution))

    @pytest.mark.parametrize("ahead", [1, 59, 61, 899])
    def test_is_not_requested_from_a_server_that_rejects_it(
        self, stem_simulator_factory: Factory, connect: Connect, clock: Clock, ahead: int
    ) -> None:
        now = DAY.end - timedelta(seconds=ahead)
        clock(now)
        simulator = stem_simulator_factory(future="refuse", now=now)
        source = StreamsSource(connect(simulator))
        for _ in range(2):
            assert source.fetch(SITE, ["MONITOR"], DAY)["MONITOR"].num_rows == 95
        end_of_the_last = [end for _, end in ranges(simulator)][-1]
        assert end_of_the_last == "2025-07-01T23:45:00Z"
        assert trail(simulator) == ["400 streams"] * (2 if ahead < 60 else 1) + ["200 streams"] * 2


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_other_errors_are_not_retried(stem_simulator: Simulator, connect: Connect, clock: Clock, status: int) -> None:
    clock(NOW)
    stem_simulator.fail(status)
    with pytest.raises(Exception, match=f"HTTP {status}"):
        StreamsSource(connect(stem_simulator)).fetch(SITE, ["MONITOR"], DAY)
    assert trail(stem_simulator) == [f"{status} streams"]


@pytest.mark.parametrize(
    "settings",
    [
        {"row_order": "descending"},
        {"row_zone": "Z"},
        {"unknown_fields": True},
        {"row_zone": "Z", "row_order": "descending", "unknown_fields": True, "null_values": 0.2, "gaps": 0.2},
    ],
    ids=str,
)
def test_rows_are_the_same_in_every_format(
    stem_simulator_factory: Factory, connect: Connect, settings: dict[str, Any]
) -> None:
    simulator = stem_simulator_factory(**settings)
    source = StreamsSource(connect(simulator))
    for _ in range(2):
        streams = source.fetch(SITE, ["CONVERTER", "MONITOR"], DAY)
        for name in ("CONVERTER", "MONITOR"):
            assert rows_of(streams[name]) == truth(simulator, SITE, name, DAY)
