from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.pace import NoTurnError, Pace, pace_of
from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.simulator import Simulator
from tests.servers.processes import HUNG_AFTER

from .conftest import KEY, Factory, RawServer, config_for, reply

RATE = 40.0
SLOW = 0.001


def lower_bounds_hold(simulator: Simulator, began: float, rate: float = RATE) -> bool:
    """Return whether no request arrived before its turn: a busy machine can only delay them."""
    arrived = sorted(request.arrived for request in simulator.requests)
    return all(at - began >= number / rate for number, at in enumerate(arrived, 1))


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.001, 1000),
    steps=st.lists(st.one_of(st.just(0.0), st.floats(0, 5), st.floats(0, 5000)), min_size=1, max_size=60),
)
def test_turns_keep_the_pace_and_none_is_later_than_needed(rate: float, steps: Sequence[float]) -> None:
    clock = FakeClock()
    pace = Pace(rate, clock)
    turns = [clock.now]  # the first request waits too
    for step in steps:
        clock.now += step
        wait = pace.take_turn()
        assert wait >= 0
        turns.append(clock.now + wait)
        assert turns[-1] == pytest.approx(max(clock.now, turns[-2] + 1 / rate))
    assert all(later - earlier >= 1 / rate - 1e-6 for earlier, later in pairwise(turns))


def test_a_turn_that_is_too_late_stays_free() -> None:
    pace = Pace(0.5, lambda: 0.0)
    assert pace.take_turn(until=2.0) == 2.0
    for _ in range(2):
        with pytest.raises(NoTurnError):
            pace.take_turn(until=3.9)
    assert pace.take_turn() == 4.0


def test_threads_never_share_a_turn() -> None:
    pace = Pace(2.0, lambda: 0.0)
    together = threading.Barrier(8, timeout=HUNG_AFTER)

    def take(_: int) -> list[float]:
        together.wait()
        return [pace.take_turn() for _ in range(200)]

    with ThreadPoolExecutor(8) as pool:
        turns = sorted(turn for taken in pool.map(take, range(8)) for turn in taken)
    assert turns == [number / 2 for number in range(1, 1601)]


def test_clients_with_the_same_server_key_and_rate_share_a_pace() -> None:
    config = config_for("http://127.0.0.1:1", requests_per_second=3)
    pace = pace_of(config)
    assert pace is not None
    assert pace_of(config_for("http://127.0.0.1:1", requests_per_second="3", page_size=5)) is pace
    others = [
        config_for("http://127.0.0.1:2", requests_per_second=3),
        config_for("http://127.0.0.1:1", KEY[:-1], requests_per_second=3),
        config_for("http://127.0.0.1:1", requests_per_second=4),
    ]
    assert not any(pace_of(other) is pace for other in others)
    assert pace_of(config_for("http://127.0.0.1:1")) is None


def test_a_pace_after_the_last_client_begins_with_a_wait() -> None:
    config = config_for("http://127.0.0.1:1", requests_per_second=SLOW)
    pace = pace_of(config)
    assert pace is not None
    assert pace.take_turn() == pytest.approx(1000, abs=HUNG_AFTER / 2)
    assert pace.take_turn() > 1000
    del pace
    gc.collect()
    assert StemClient(config)._transport._pace.take_turn() <= 1000  # type: ignore[union-attr]


def test_all_requests_of_a_process_keep_the_pace(stem_simulator_factory: Factory) -> None:
    """Two clients of eight threads; pages and retries count too."""
    simulator = stem_simulator_factory(sites=4)
    simulator.fail(503, times=4, path="/sites/", retry_after=0)
    config = config_for(simulator.url, "demo-key", requests_per_second=RATE, page_size=2)
    began = time.monotonic()
    with StemClient(config) as first, StemClient(config) as second, ThreadPoolExecutor(8) as pool:
        reads = [
            pool.submit(client.get_site, f"site-0000{number}") for client in (first, second) for number in (1, 2, 3, 4)
        ]
        assert [site["id"] for site in second.list_sites()]
        for read in reads:
            assert read.result(HUNG_AFTER)
    assert len(simulator.requests) == first.requests_sent + second.requests_sent > 12
    assert [request.status for request in simulator.requests].count(503) == 4
    assert lower_bounds_hold(simulator, began)


def test_without_a_pace_nothing_waits(stem_simulator: Simulator) -> None:
    waits: list[float] = []
    with StemClient(config_for(stem_simulator.url, "demo-key"), sleep=waits.append) as client:
        client.get_site("site-00001")
    assert waits == []


def test_the_wait_is_before_the_request_and_its_timeout(raw_server: type[RawServer]) -> None:
    server = raw_server(reply({"id": "a"}))
    waits: list[tuple[float, int]] = []
    config = config_for(server.url, requests_per_second=SLOW)
    with StemClient(config, sleep=lambda seconds: waits.append((seconds, len(server.heads)))) as client:
        client.get_site("a")
        client.get_site("a")
    assert [heads for _, heads in waits] == [0, 1]
    assert [seconds for seconds, _ in waits] == pytest.approx([1000, 2000], abs=HUNG_AFTER / 2)


def test_close_interrupts_the_wait_and_nothing_is_sent(
    raw_server: type[RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = threading.Semaphore(0)
    original = Pace.take_turn

    def take_turn(pace: Pace, until: float) -> float:
        wait = original(pace, until)
        taken.release()
        return wait

    monkeypatch.setattr(Pace, "take_turn", take_turn)
    server = raw_server(reply({"id": "a"}))
    client = StemClient(config_for(server.url, requests_per_second=SLOW))
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(client.get_site, "a") for _ in range(3)]
        for _ in reads:
            assert taken.acquire(timeout=HUNG_AFTER)
        client.close()
        errors = [read.exception(HUNG_AFTER) for read in reads]
    assert [type(error) for error in errors] == [StemTransportError] * 3
    assert (client.requests_sent, server.connections) == (0, 0)


def test_a_refused_request_waits_for_its_next_turn_too(stem_simulator: Simulator) -> None:
    stem_simulator.fail(429, retry_after=0)
    log = SimpleNamespace(waits=[])
    config = config_for(stem_simulator.url, "demo-key", requests_per_second=SLOW)
    with StemClient(config, sleep=log.waits.append) as client:
        client.get_site("site-00001")
    first, back_off, second = log.waits
    assert back_off < 100
    assert first < second
    assert client.requests_sent == 2
