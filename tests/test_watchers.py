from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.triggers import base

from airflow_provider_stem import watchers
from airflow_provider_stem._watcher_state import WatcherState
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.watchers import StemWindowsTrigger
from tests.servers.processes import HUNG_AFTER
from tests.waiting import through_database

HAS_WATCHERS = hasattr(base, "BaseEventTrigger")
needs_watchers = pytest.mark.skipif(not HAS_WATCHERS, reason="Airflow 3.0 and newer")
KEY = "sentinel/key+that=must:stay@home"
SITES = ["site-00001", "site-00002"]
EVERYTHING: dict[str, Any] = {
    "sites": ["site-00001", {"site_id": "site-00002", "stream_start_times": {"MONITOR": None}}],
    "stream_types": ["CONVERTER", "MONITOR"],
    "resolution": 1800,
    "window": 7200,
    "min_completeness": 0.5,
    "settle": 60.0,
    "lookback": 14_400.0,
    "restatement_interval": 900.0,
    "poll_interval": 17.0,
    "max_workers": 3,
    "stem_conn_id": "another",
}


class Store:
    """Airflow's state store of one asset, or of several; or one that does not work."""

    def __init__(self, assets=1):
        self.values: dict[str, str] = {}
        self.assets = assets
        self.is_down = False

    async def aget(self, key, default=None):
        self._check()
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key, value):
        self._check()
        self.values[key] = json.dumps(value)

    def _check(self):
        if self.is_down:
            raise RuntimeError("the store is down")
        if self.assets != 1:
            raise ValueError("Task has 2 concrete inlets and outlets")


@pytest.fixture
def variables(monkeypatch):
    """Airflow's variables."""
    from airflow.sdk import Variable

    values: dict[str, str] = {}
    monkeypatch.setattr(Variable, "get", lambda key, default=None: values.get(key, default))
    monkeypatch.setattr(Variable, "set", lambda key, value, _: values.__setitem__(key, value))
    return values


@pytest.fixture
def sim(stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(api_key=KEY, sites=4)
    connection = {**json.loads(sim.connection), "extra": {"max_attempts": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))
    monkeypatch.setattr(watchers, "_DELIVERY", 0)
    return sim


@pytest.fixture
def logged(caplog, capsys):
    """A function that returns all that was logged; Airflow 3.3 logs to standard output."""
    printed: list[str] = []

    def text():
        printed.extend(capsys.readouterr())
        return "".join(printed) + caplog.text

    return text


def trigger(**arguments):
    return StemWindowsTrigger(**{"sites": SITES, "lookback": 4 * 3600, "poll_interval": 1, **arguments})


def watcher_state(key: str, store: Any) -> Any:
    return WatcherState(key, store)


class Running:
    """A trigger that runs on the event loop; its events are collected."""

    def __init__(self, trigger, store=None):
        trigger.asset_state_store = store
        self.payloads = []
        self._task = asyncio.ensure_future(self._run(trigger))

    async def _run(self, trigger):
        async for event in trigger.run():
            self.payloads.append(json.loads(json.dumps(event.payload)))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def until(self, condition):
        async with asyncio.timeout(HUNG_AFTER):
            while not condition():
                assert not self._task.done(), self._task
                await asyncio.sleep(0.005)


def test_it_names_the_version_that_it_needs():
    if HAS_WATCHERS:
        trigger()
    else:
        with pytest.raises(StemConfigError, match=r"needs Airflow 3\.0 or later\. Use StemStreamsSensor"):
            trigger()


@needs_watchers
def test_every_argument_survives_the_database():
    assert set(EVERYTHING) == set(inspect.signature(StemWindowsTrigger).parameters)
    path, arguments = through_database(StemWindowsTrigger(**EVERYTHING)).serialize()
    assert arguments == EVERYTHING
    assert path == f"{StemWindowsTrigger.__module__}.{StemWindowsTrigger.__qualname__}"


@needs_watchers
@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("a", ["a"]),
        ({"id": "a"}, [{"id": "a"}]),
        ({*"fbcade"}, [*"abcdef"]),
        (dict.fromkeys("ba").keys(), ["a", "b"]),
        (["b", {"site_id": "a"}], [{"site_id": "a"}, "b"]),
    ],
)
def test_sites_are_a_sorted_list(sites, expected):
    assert trigger(sites=sites).serialize()[1]["sites"] == expected


@needs_watchers
def test_stream_types_can_be_one_string():
    assert trigger(stream_types="MONITOR").serialize()[1]["stream_types"] == ["MONITOR"]
    assert trigger(stream_types={"MONITOR", "CONVERTER"}).serialize()[1]["stream_types"] == ["CONVERTER", "MONITOR"]


@needs_watchers
def test_the_state_is_of_the_ids_of_the_sites_whatever_their_order_and_records():
    names = {
        trigger(sites=sites)._digest()
        for sites in ({"b", "a"}, ["b", "a"], ["a", "b", "a"], [{"site_id": "b", "name": "B"}, "a"])
    }
    assert len(names) == 1
    assert names != {trigger(sites=["a", "c"])._digest()}


@needs_watchers
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "sites is empty"),
        ({"sites": [3]}, "sites contains 3"),
        ({"sites": iter(SITES)}, "Invalid sites <list_iterator .*Use a site id, a site record, or a list of either"),
        ({"sites": (site for site in SITES)}, "Invalid sites <generator"),
        ({"stream_types": "MONITR"}, "stream_types contains 'MONITR'"),
        ({"stream_types": iter(["MONITOR"])}, "Invalid stream_types <list_iterator"),
        ({"window": 5400 + 900}, "window must be a multiple of the resolution of 900 s that divides a day, got 6300"),
        ({"window": 900, "resolution": 1800}, "window must be a multiple of the resolution of 1800 s"),
        ({"lookback": 3599}, "lookback must be at least settle and one window, and at most 1,000 windows, got 3599"),
        ({"lookback": 3600, "settle": 1}, "lookback must be at least settle"),
        ({"lookback": 3_600_001}, "at most 1,000 windows"),
        ({"poll_interval": 0.5}, "poll_interval must be a number of seconds >= 1"),
        ({"restatement_interval": 0}, "restatement_interval must be a number of seconds > 0"),
        ({"min_completeness": 0}, "min_completeness"),
        ({"stem_conn_id": ""}, "stem_conn_id must be the id of a connection"),
    ],
)
def test_a_wrong_argument_is_rejected_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(StemConfigError, match=message):
        trigger(**arguments)


@needs_watchers
def test_what_was_announced_survives_a_restart(sim, variables):
    hidden = {"on": True}
    newest = int(datetime.now(UTC).timestamp()) // 3600

    def number(row):
        return -(-int(datetime.fromisoformat(row["end_datetime"]).timestamp()) // 3600)

    def hide(request, payload):
        for entry in payload.get("stream_types", ()) if request.path.endswith("/streams") else ():
            if hidden["on"]:
                entry["streams"] = [row for row in entry["streams"] if number(row) not in (newest - 2, newest)]
        return payload

    sim.rewrite = hide
    store = Store()

    async def first():
        async with Running(trigger(), store) as running:
            await running.until(lambda: store.values and len(_announced(store)) == 2)
        return running.payloads

    async def second():
        hidden["on"] = False
        async with Running(trigger(), store) as running:
            await running.until(lambda: len(_announced(store)) >= 4)
        return running.payloads

    def starts(payloads):
        return sorted(int(datetime.fromisoformat(one["window"]["start"]).timestamp()) // 3600 for one in payloads)

    before, after = asyncio.run(first()), asyncio.run(second())
    assert {one["reason"] for one in before + after} == {"complete"}
    assert starts(before + after)[:4] == [newest - 4, newest - 3, newest - 2, newest - 1]
    assert not set(starts(before)) & set(starts(after))
    assert variables == {}


def _announced(store):
    return json.loads(next(iter(store.values.values())))["announced"]


@needs_watchers
@pytest.mark.parametrize("store", [None, Store(assets=2)], ids=["before 3.3", "several assets"])
def test_without_a_store_the_state_is_a_variable(sim, variables, store):
    async def run():
        async with Running(trigger(), store) as running:
            await running.until(lambda: any(json.loads(value)["announced"] for value in variables.values()))
            await asyncio.sleep(0)
        return running.payloads

    (payload,) = asyncio.run(run())
    assert payload["window"]["resolution"] == 900
    [(name, value)] = variables.items()
    assert name.startswith("stem_windows_")
    assert KEY not in value
    state = watcher_state(name, store)
    assert (asyncio.run(state.load()) or {})["upto"] == payload["window"]["end"]


@needs_watchers
def test_the_state_that_was_saved_last_counts(variables):
    record: Any = {"upto": "2025-07-01T00:00:00Z", "announced": {}}
    store = Store()
    asyncio.run(watcher_state("key", store).save(record))
    store.assets = 2
    asyncio.run(watcher_state("key", store).save({**record, "upto": "2025-07-02T00:00:00Z"}))
    store.assets = 1
    assert asyncio.run(watcher_state("key", store).load())["upto"] == "2025-07-02T00:00:00Z"
    asyncio.run(watcher_state("key", store).save({**record, "upto": "2025-07-03T00:00:00Z"}))
    assert asyncio.run(watcher_state("key", store).load())["upto"] == "2025-07-03T00:00:00Z"


@needs_watchers
def test_errors_of_the_api_and_of_the_store_are_logged_and_the_polls_go_on(sim, variables, logged, monkeypatch):
    monkeypatch.setattr(watchers, "_LONGEST_PAUSE", 0.01)
    store = Store()
    store.is_down = True
    sim.fail(503, times=2)

    async def run():
        async with Running(trigger(), store) as running:
            await running.until(lambda: "the store is down" in logged())
            assert running.payloads == []
            store.is_down = False
            await running.until(lambda: running.payloads)

    asyncio.run(run())
    assert "The next poll follows in" in logged()
    assert KEY not in logged()


@needs_watchers
@pytest.mark.parametrize("kind", [400, 500])
def test_a_site_that_always_fails_does_not_stop_the_events_of_the_others(sim, variables, logged, kind):
    sim.fail(kind, times=None, path="site-00002")

    async def run():
        async with Running(trigger(min_completeness=0.5), Store()) as running:
            await running.until(lambda: running.payloads)

    asyncio.run(run())
    text = logged()
    assert text.count("Site site-00002 counts as missing") == 1
    assert "The next poll follows in" not in text
    assert KEY not in text


@needs_watchers
@pytest.mark.parametrize("steps", range(4))
def test_a_cancellation_is_not_ignored_while_an_event_becomes_stored(sim, steps):
    async def run():
        polls = watchers._Polls(trigger())
        stream = polls.open_stream()
        poll, _ = await anext(stream)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        poll.has_event = True
        polls.mark_stored(poll)
        for _ in range(steps):
            await asyncio.sleep(0)
        is_accepted = following.cancel()
        await asyncio.wait([following])
        return is_accepted, following.cancelled()

    is_accepted, is_cancelled = asyncio.run(run())
    assert is_accepted == is_cancelled


@needs_watchers
def test_a_damaged_state_is_logged_once_with_its_remedy_until_it_is_deleted(sim, variables, logged, monkeypatch):
    from airflow.sdk import Variable

    damaged = ["xx", "{}", '{"saved_at": 1}']
    states = iter([*damaged[:1], *damaged, *damaged[2:], None])
    read: list[str | None] = []

    def get(key, default=None):
        read.append(next(states, None))
        return read[-1]

    monkeypatch.setattr(Variable, "get", get)

    async def polls():
        for _ in range(len(damaged) + 3):
            yield watchers._Poll(None)

    async def run():
        return [event async for event in trigger().filter_shared_stream(polls())]

    assert asyncio.run(run()) == []
    assert read == ["xx", "xx", "{}", '{"saved_at": 1}', '{"saved_at": 1}', None]
    text = logged()
    assert text.count("Cannot read or save what was announced. Correct or delete stem_windows_") == len(damaged)


@needs_watchers
def test_a_missing_connection_is_logged_with_its_remedy(variables, logged):
    async def run():
        async with Running(trigger(stem_conn_id="absent"), Store()) as running:
            await running.until(lambda: "Create this connection" in logged())

    asyncio.run(run())


@needs_watchers
def test_triggers_share_polls_unless_arguments_decide_what_is_requested():
    assert trigger().shared_stream_key() == trigger(min_completeness=0.5).shared_stream_key()
    for name, value in {**EVERYTHING, "window": 1800, "lookback": 7200.0}.items():
        if name != "min_completeness":
            other = {"resolution": 1800, name: value} if name == "window" else {name: value}
            assert trigger(**other).shared_stream_key() != trigger().shared_stream_key()


@needs_watchers
def test_on_airflow_3_3_several_triggers_share_one_poll_and_save_what_airflow_has_stored(sim, variables):
    shared_stream = pytest.importorskip("airflow.triggers.shared_stream")

    async def run():
        manager = shared_stream.SharedStreamManager()
        half, whole = trigger(min_completeness=0.5), trigger()
        assert half.shared_stream_key() == whole.shared_stream_key()
        payloads: dict[int, list[Any]] = {1: [], 2: []}
        sequences: list[int] = []

        async def subscribe(number, one):
            one.asset_state_store = Store()
            key = one.shared_stream_key()
            stream = manager.subscribe(trigger_id=number, trigger=one, key=key)
            async for event in one.filter_shared_stream(stream):
                payloads[number].append(event.payload)
                sequences.append(manager.bind_pending_event(trigger_id=number, key=key))

        tasks = [asyncio.ensure_future(subscribe(*each)) for each in ((1, half), (2, whole))]
        async with asyncio.timeout(HUNG_AFTER):
            while len(sequences) < 2:
                await asyncio.sleep(0.005)
            requests = len(sim.requests)
            states = [json.loads(value) for one in (half, whole) for value in one.asset_state_store.values.values()]
            assert [state["announced"] for state in states] == [{}, {}]
            manager.confirm_persisted(sequences)
            for one in (half, whole):
                while not _announced(one.asset_state_store):
                    await asyncio.sleep(0.005)
        assert requests == len(SITES)
        assert payloads[1] == payloads[2]
        assert len(payloads[1]) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.stop_all()

    asyncio.run(run())


@needs_watchers
def test_a_restatement_is_an_event_that_says_so(sim, variables):
    changed = {"on": False}
    step = timedelta(hours=1)
    at = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) // 3600 * 3600, UTC) - step

    def change(request, payload):
        for entry in payload.get("stream_types", ()) if request.path.endswith("/streams") else ():
            for row in entry["streams"]:
                if changed["on"] and datetime.fromisoformat(row["end_datetime"]) == at:
                    row["kw_total_avg"] += 1
        return payload

    sim.rewrite = change
    store = Store()

    async def run():
        async with Running(trigger(restatement_interval=1), store) as running:
            await running.until(lambda: store.values and _announced(store))
            changed["on"] = True
            await running.until(lambda: len(running.payloads) == 2)
        return running.payloads

    complete, restated = asyncio.run(run())
    assert (complete["reason"], restated["reason"]) == ("complete", "restated")
    assert datetime.fromisoformat(restated["window"]["start"]) == at - step
    assert datetime.fromisoformat(restated["window"]["end"]) == at
