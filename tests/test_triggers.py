from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import threading
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSensorTimeout, TaskDeferred
from airflow.triggers.base import BaseTrigger

from airflow_provider_stem import _polling, triggers
from airflow_provider_stem.api import transport
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import StemConfigError, StemError, StemTransportError
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.streams.watch import Watch
from airflow_provider_stem.triggers import StemStreamsTrigger
from tests.servers.processes import HUNG_AFTER
from tests.support import instant, run_context, until
from tests.waiting import HOUR, Arrivals, Clock, asked, fire, rebuilt, through_database

DAY = 86_400

KEY = "sentinel/key+that=must:stay@home"
NEVER = instant("2100-01-01T00:00Z")


@pytest.fixture
def sim(stem_simulator_factory, monkeypatch):
    """A simulator with its own key, as a connection whose requests have one attempt."""
    sim = stem_simulator_factory(api_key=KEY, sites=6)
    connect(sim, monkeypatch)
    return sim


def connect(sim, monkeypatch, **extra):
    connection = {**json.loads(sim.connection), "extra": {"max_attempts": 1, **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))


@pytest.fixture
def clock(sim, monkeypatch):
    return Clock(monkeypatch, "2025-07-01T02:00Z", sim)


def trigger(**arguments):
    arguments = {"sites": ["site-00001"], "start": HOUR[0], "end": HOUR[1], "poke_interval": 600, **arguments}
    return StemStreamsTrigger(**arguments)


async def until_on_loop(condition):
    """Wait on an event loop until a condition is true."""
    async with asyncio.timeout(HUNG_AFTER):
        while not condition():
            await asyncio.sleep(0.005)


# --- serialization ----------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "sites": ["site-00001", {"site_id": "site-00002", "stream_start_times": {"MONITOR": None}}],
    "stream_types": ["CONVERTER", "MONITOR"],
    "resolution": 1800,
    "start": "2025-07-01T00:00:00Z",
    "end": "2025-07-01T06:00:00Z",
    "default_interval": 3600.0,
    "min_completeness": 0.5,
    "settle": 60.0,
    "poke_interval": 17.0,
    "exponential_backoff": True,
    "max_wait": 99.0,
    "silent_fail": True,
    "deadline": "2025-07-02T00:00:00+00:00",
    "progress": {"of": {"window": {}, "stream_types": [], "sites": ""}, "lags": {"a": {"streams": {}, "starts": None}}},
    "max_workers": 3,
    "stem_conn_id": "another",
}


def test_every_argument_survives_the_database():
    assert set(EVERYTHING) == set(inspect.signature(StemStreamsTrigger).parameters)
    path, arguments = through_database(StemStreamsTrigger(**EVERYTHING)).serialize()
    assert arguments == EVERYTHING
    assert path == f"{StemStreamsTrigger.__module__}.{StemStreamsTrigger.__qualname__}"
    path, arguments = through_database(StemStreamsTrigger(sites="a")).serialize()
    assert arguments == StemStreamsTrigger(sites="a").serialize()[1]


def test_one_stream_type_may_be_a_string():
    assert trigger(stream_types="MONITOR").stream_types == ["MONITOR"]


def test_a_sensor_sets_every_argument_of_its_trigger(sim, clock):
    """Check that no argument of the trigger is left at its default by mistake."""
    Arrivals(sim, lambda row: NEVER if row.endswith("01:00") else None)
    sensor = StemStreamsSensor(
        task_id="wait",
        sites=["site-00001", "site-00002"],
        stream_types=["MONITOR", "CONVERTER"],
        resolution=1800,
        min_completeness=0.9,
        settle=timedelta(minutes=1),
        poke_interval=17,
        exponential_backoff=True,
        max_wait=99,
        silent_fail=True,
        timeout=1000,
        max_workers=3,
        deferrable=True,
    )
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(run_context(*HOUR))
    handed = deferred.value.trigger.serialize()[1]
    assert handed.pop("progress")["pokes"] == 1
    assert handed == {
        "sites": [{"site_id": "site-00001"}, {"site_id": "site-00002"}],
        "stream_types": ["CONVERTER", "MONITOR"],
        "resolution": 1800,
        "start": "2025-07-01T00:00:00Z",
        "end": "2025-07-01T01:00:00Z",
        "default_interval": None,
        "min_completeness": 0.9,
        "settle": 60.0,
        "poke_interval": 17,
        "exponential_backoff": True,
        "max_wait": 99.0,
        "silent_fail": True,
        "deadline": (clock.now + timedelta(seconds=1000)).isoformat(),
        "max_workers": 3,
        "stem_conn_id": "stem_default",
    }


def test_no_credential_is_stored_or_logged(sim, clock, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    Arrivals(sim, lambda row: instant("2025-07-01T02:15Z") if row.endswith("01:00") else None)
    sim.fail(503, after=1, times=1)
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, silent_fail=True, timeout=9999)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(run_context(*HOUR))
    waiting = deferred.value.trigger
    payload = fire(through_database(waiting))
    assert payload["status"] == "complete"
    assert all(request.authorized for request in sim.requests)
    logged = "".join(capsys.readouterr()) + caplog.text
    assert "HTTP 503" in logged
    for text in (repr(waiting), str(waiting.serialize()), json.dumps(payload), repr(vars(waiting)), logged):
        for part in (KEY, "sentinel", "must:stay", "must%3Astay"):
            assert part not in text


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["site-00001", ["site-00001"], {"site_id": "site-00001"}])
def test_it_fires_once_when_everything_is_available(sim, clock, form):
    payload = fire(trigger(sites=form))
    assert payload["status"] == "complete"
    assert payload["report"]["expected"] == 4
    assert clock.sleeps == []


@pytest.mark.parametrize("silent_fail", [False, True])
@pytest.mark.parametrize(
    ("wrong", "name", "says"),
    [
        ({"sites": []}, "StemConfigError", "sites is empty"),
        ({"start": None}, "StemConfigError", "Invalid start None"),
        ({"start": "soon"}, "StemConfigError", "Invalid start 'soon'"),
        ({"end": HOUR[0]}, "StemConfigError", "is not after start"),
        ({"resolution": 60}, "StemConfigError", "Invalid resolution 60"),
        ({"deadline": "2025-07-01T00:00"}, "StemConfigError", "deadline"),
        ({"stem_conn_id": "missing"}, "StemConfigError", "missing.*Create this connection"),
        ({"sites": ["site-99999"]}, "StemNotFoundError", "404"),
    ],
)
def test_a_final_error_is_one_event_at_once(sim, clock, wrong, name, says, silent_fail):
    waiting = trigger(silent_fail=silent_fail)
    vars(waiting).update(wrong)  # as templates do, which are rendered after the trigger is created
    payload = fire(waiting)
    assert (payload["status"], payload["error"]) == ("error", name)
    assert clock.sleeps == []
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, soft_fail=True)
    with pytest.raises(AirflowFailException, match=says):
        sensor.resume_execution("execute_complete", {"event": payload}, run_context(*HOUR))


def test_an_unexpected_error_is_one_event_and_logged(sim, clock, monkeypatch, caplog, capsys):
    def broken(*_):
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Watch, "poke_site", broken)
    payload = fire(trigger())
    assert payload == {
        "status": "error",
        "error": "StemError",
        "args": ["ZeroDivisionError: nobody thought of this"],
    }
    logged = "".join(capsys.readouterr()) + caplog.text
    assert "Traceback" in logged or "ZeroDivisionError" in logged
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, soft_fail=True)
    with pytest.raises(StemError, match="nobody thought of this"):
        sensor.resume_execution("execute_complete", {"event": payload}, run_context(*HOUR))


@pytest.mark.parametrize("deadline", ["2025-07-01T01:00Z", "2025-07-01T02:00Z"])
def test_there_is_one_poke_if_the_deadline_passed_while_no_triggerer_ran(sim, clock, deadline):
    assert fire(trigger(deadline=deadline))["status"] == "complete"
    Arrivals(sim, lambda row: NEVER if row.endswith("01:00") else None)
    asked(sim)
    assert fire(trigger(deadline=deadline))["status"] == "timeout"
    assert len(asked(sim)) == 1
    assert clock.sleeps == []


def test_a_window_without_an_interval_is_an_event(sim, clock):
    assert fire(trigger(start="2025-07-01T00:01Z", end="2025-07-01T00:02Z")) == {"status": "empty"}
    assert sim.requests == []


def test_pauses_double_up_to_max_wait_and_stay_in_the_range_of_datetime():
    waiting = trigger(poke_interval=60.0, exponential_backoff=True, max_wait=1000.0)
    pauses = [waiting._pause_after(pokes).total_seconds() for pokes in (0, 1, 2, 3, 4, 5, 6, 10_000)]
    assert pauses == [0, 60, 120, 240, 480, 960, 1000, 1000]
    steady = trigger(poke_interval=60.0, max_wait=50.0)
    assert steady._pause_after(9).total_seconds() == 50
    endless = trigger(poke_interval=3600.0, exponential_backoff=True)
    assert instant("2025-07-01T00:00Z") + endless._pause_after(10_000) > instant("2100-01-01T00:00Z")


# --- restart and cancellation -----------------------------------------------------------------------------------------


class Standstill:
    """Block the ``number``-th sleep for ever."""

    def __init__(self, monkeypatch, number):
        self.left = number
        self.reached = threading.Event()
        loop = vars(triggers)["asyncio"]
        self.sleep = loop.sleep
        monkeypatch.setattr(loop, "sleep", self)

    async def __call__(self, seconds):
        self.left -= 1
        if self.left:
            await self.sleep(seconds)
        else:
            self.reached.set()
            await asyncio.Event().wait()


async def run_until(waiting, condition):
    """Run a trigger until a condition is true, then cancel it like a triggerer that shuts down."""
    events = []

    async def run():
        async for event in waiting.run():
            events.append(event)

    task = asyncio.create_task(run())
    await until_on_loop(lambda: condition() or task.done())
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert events == []


def test_it_continues_in_another_triggerer(sim, clock, monkeypatch):
    late = {
        "site-00002/MONITOR/00:45": instant("2025-07-01T02:55Z"),
        "site-00003/MONITOR/00:30": instant("2025-07-01T02:15Z"),
    }
    arrivals = Arrivals(sim, late.get)
    sites = ["site-00001", "site-00002", "site-00003"]
    with pytest.raises(TaskDeferred) as deferred:
        StemStreamsSensor(task_id="wait", sites=sites, poke_interval=600, timeout=7200, deferrable=True).execute(
            run_context(*HOUR)
        )
    asked(sim)
    first = through_database(deferred.value.trigger)
    with monkeypatch.context() as patched:
        standstill = Standstill(patched, 3)
        asyncio.run(run_until(first, standstill.reached.is_set))
    assert arrivals.pokes[-1] == "02:20:00"
    assert {site for site, *_ in asked(sim)} == {"site-00002", "site-00003"}
    payload = fire(through_database(first))
    assert payload["status"] == "complete"
    assert payload["report"]["expected"] == 12
    # It continues with the worker's progress: the complete site is not requested again.
    assert {site for site, *_ in asked(sim)} == {"site-00002", "site-00003"}
    assert arrivals.pokes[-1] == "03:00:00"


def test_a_restart_does_not_move_the_deadline(sim, clock, monkeypatch):
    Arrivals(sim, lambda row: NEVER if row.endswith("01:00") else None)
    first = through_database(trigger(deadline="2025-07-01T03:00Z"))
    with monkeypatch.context() as patched:
        standstill = Standstill(patched, 4)
        asyncio.run(run_until(first, standstill.reached.is_set))
    assert clock.now == instant("2025-07-01T02:30Z")
    payload = fire(through_database(first))
    assert payload["status"] == "timeout"
    assert clock.now == instant("2025-07-01T03:00Z")
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True)
    with pytest.raises(AirflowSensorTimeout, match="3 of 4 intervals"):
        sensor.resume_execution("execute_complete", {"event": payload}, run_context(*HOUR))


@pytest.fixture
def clients(monkeypatch):
    """The clients that were created."""
    made = []

    def client_of(connection, original=StemHook.client_of):
        made.append(original(connection))
        return made[-1]

    monkeypatch.setattr(StemHook, "client_of", client_of)
    return made


def closed(client):
    with pytest.raises(StemTransportError, match="closed"):
        client.get_site("site-00001")
    return True


def all_threads_are_free():
    """Return whether every thread that the triggers share accepts work."""
    together = threading.Barrier(_polling._THREADS)
    met = [_polling._threads().submit(together.wait, HUNG_AFTER) for _ in range(_polling._THREADS)]
    return sorted(one.result(HUNG_AFTER) for one in met) == list(range(_polling._THREADS))


def test_a_cancellation_ends_waits_between_attempts_and_closes_the_client(sim, monkeypatch, clients):
    connect(sim, monkeypatch, max_attempts=5)
    waiting = []
    original = Transport._wait_until_closed

    def wait_until_closed(self, seconds):
        waiting.append(seconds)
        original(self, seconds)

    monkeypatch.setattr(Transport, "_wait_until_closed", wait_until_closed)
    monkeypatch.setattr(transport, "RETRY_AFTER_CAP", math.inf)
    sim.fail(429, times=None, retry_after=DAY)
    asyncio.run(run_until(trigger(sites=list(sim.fleet.site_ids)), lambda: len(waiting) == 6))
    assert min(waiting) >= DAY
    assert all_threads_are_free()
    assert len(clients) == 1
    assert closed(clients[0])


def test_the_client_is_closed_after_each_poke(sim, clock, clients):
    Arrivals(sim, lambda row: instant("2025-07-01T02:15Z") if row.endswith("01:00") else None)
    fire(trigger())
    assert len(clients) == 3
    assert all(map(closed, clients))


def test_the_first_error_ends_the_waits_of_other_sites(sim, monkeypatch, clients):
    connect(sim, monkeypatch, max_attempts=5)
    monkeypatch.setattr(transport, "RETRY_AFTER_CAP", math.inf)
    sim.fail(429, path="site-00001", times=None, retry_after=DAY)
    sim.fail(404, path="site-00002", times=None)
    payload = fire(trigger(sites=["site-00001", "site-00002", "site-00003"]))
    assert payload["error"] == "StemNotFoundError"
    assert closed(clients[0])
    assert all_threads_are_free()


def test_after_the_first_error_no_other_site_is_requested(sim, monkeypatch, clients):
    requested: list[str] = []

    def poke_site(self, source, site_id, original=Watch.poke_site):
        if requested:  # it may have started before the error
            assert clients[0]._transport._closed.wait(HUNG_AFTER)
        requested.append(site_id)
        original(self, source, site_id)

    monkeypatch.setattr(Watch, "poke_site", poke_site)
    sim.fail(404, path="site-00001", times=None)

    async def run():
        events = [event async for event in trigger(sites=list(sim.fleet.site_ids), max_workers=1).run()]
        await until_on_loop(lambda: len(asyncio.all_tasks()) == 1)
        return events

    (event,) = asyncio.run(run())
    assert event.payload["error"] == "StemNotFoundError"
    assert len(requested) <= 2


def test_max_workers_limits_the_sites_that_are_requested_at_a_time(stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(latency=0.02, sites=24)
    connect(sim, monkeypatch)
    together = threading.Barrier(3)

    def poke_site(self, source, site_id, original=Watch.poke_site):
        together.wait(HUNG_AFTER)  # continues only if three are here at once
        original(self, source, site_id)

    monkeypatch.setattr(Watch, "poke_site", poke_site)
    assert fire(trigger(sites=list(sim.fleet.site_ids), max_workers=3))["status"] == "complete"
    assert sim.peak_concurrency <= 3


# --- the event loop ---------------------------------------------------------------------------------------------------


def test_the_event_loop_runs_during_a_request(sim):
    """The server answers only after the loop has advanced, so a blocking request would never end."""
    ticked = threading.Event()

    def rewrite(request, payload):
        assert ticked.wait(HUNG_AFTER)
        return payload

    sim.rewrite = rewrite

    async def tick():
        await until_on_loop(lambda: sim.requests)
        for _ in range(20):
            await asyncio.sleep(0)
        ticked.set()

    async def both():
        ticking = asyncio.create_task(tick())
        events = [event async for event in trigger().run()]
        await ticking
        return events

    (event,) = asyncio.run(both())
    assert event.payload["status"] == "complete"


def test_fifty_triggers_share_a_loop_and_never_block_it(stem_simulator_factory, monkeypatch):
    """Each response comes only after the loop has advanced, so a trigger that blocks would never end."""
    sim = stem_simulator_factory(sites=4)
    connect(sim, monkeypatch)
    sites = list(sim.fleet.site_ids)
    ticks = 0

    def rewrite(request, payload):
        before = ticks
        until(lambda: ticks > before)
        return payload

    sim.rewrite = rewrite

    async def tick(done):
        nonlocal ticks
        while not done.is_set():
            await asyncio.sleep(0.002)
            ticks += 1

    async def everything():
        done = asyncio.Event()
        ticking = asyncio.create_task(tick(done))
        payloads = await asyncio.gather(*[first(trigger(sites=sites)) for _ in range(50)])
        done.set()
        await ticking
        return payloads

    async def first(waiting):
        return [event.payload async for event in waiting.run()]

    payloads = asyncio.run(everything())
    assert [payload["status"] for (payload,) in payloads] == ["complete"] * 50
    assert len(sim.requests) == 200


# --- a task that starts in the triggerer ------------------------------------------------------------------------------

starts_in_triggerer = pytest.mark.skipif(
    not hasattr(BaseTrigger, "render_template_fields"), reason="Airflow renders a trigger's fields from 3.3 on"
)


def sensor_in_dag(**arguments):
    arguments = {"task_id": "wait", "sites": ["site-00001"], "start_from_trigger": True, **arguments}
    with DAG("dag", schedule=None) as dag:
        sensor = StemStreamsSensor(**arguments)
    return dag, sensor


def started_in_triggerer(dag, run=None, **run_data):
    """Return the trigger that a triggerer creates from the DAG in the database, with rendered fields."""
    from airflow.executors.workloads.task import TaskInstanceDTO
    from airflow.jobs.triggerer_job_runner import TriggerRunner
    from airflow.serialization.serialized_objects import DagSerialization

    encoded = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    task = DagSerialization.from_dict(encoded).get_task("wait")
    assert task.start_from_trigger is True
    arguments = task.start_trigger_args
    assert arguments is not None
    stored = Trigger._decrypt_kwargs(Trigger.encrypt_kwargs(arguments.trigger_kwargs or {}))
    waiting = rebuilt(arguments.trigger_cls, stored)
    moments = {name: run_data.pop(name, None) for name in ("logical_date", "data_interval_start", "data_interval_end")}
    dag_run = {
        "dag_id": "dag",
        "run_id": "run",
        "run_after": "2025-07-01T01:00:00Z",
        "start_date": None,
        "end_date": None,
        "run_type": "scheduled",
        "state": "running",
        "consumed_asset_events": [],
        "partition_key": None,
        **moments,
        **run_data,
    }
    ti = TaskInstanceDTO.model_construct(
        id=uuid.uuid4(), task_id="wait", dag_id="dag", run_id="run", try_number=1, map_index=-1
    )
    waiting.task_instance = TriggerRunner.create_runtime_ti(ti, encoded, dag_run)
    waiting.render_template_fields(context=waiting.task_instance.get_template_context())
    return waiting, arguments


INTERVAL = {
    "logical_date": "2025-07-01T00:00:00Z",
    "data_interval_start": "2025-07-01T00:00:00Z",
    "data_interval_end": "2025-07-01T01:00:00Z",
}


@starts_in_triggerer
def test_a_task_starts_in_the_triggerer_with_its_runs_window(sim, clock):
    Arrivals(sim, lambda row: instant("2025-07-01T02:15Z") if row.endswith("01:00") else None)
    dag, sensor = sensor_in_dag(stream_types=["MONITOR", "CONVERTER"], poke_interval=300, timeout=3600)
    waiting, arguments = started_in_triggerer(dag, **INTERVAL)
    assert (waiting.start, waiting.end) == ("2025-07-01T00:00:00Z", "2025-07-01T01:00:00Z")
    assert arguments.timeout == timedelta(hours=1)
    payload = fire(waiting)
    assert payload["status"] == "complete"
    done = sensor.resume_execution(arguments.next_method, {"event": payload}, run_context(*HOUR))
    assert (done["expected"], done["window"]["start"]) == (8, "2025-07-01T00:00:00Z")
    assert clock.now == instant("2025-07-01T02:15Z")


@starts_in_triggerer
@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ({"start": HOUR[0], "end": HOUR[1]}, {}),
        ({"start": instant(HOUR[0]), "end": instant(HOUR[1])}, {"run_type": "asset_triggered"}),
        ({"start": "{{ run_id[:0] }}2025-07-01T00:00Z", "end": "{{ dag_run.run_after.isoformat() }}"}, {}),
        ({"default_interval": timedelta(hours=1)}, {}),
        ({"default_interval": timedelta(minutes=30)}, INTERVAL),
        ({}, {"partition_key": "2025-07-01T00:00Z/2025-07-01T01:00Z"}),
        ({}, {"partition_key": "2025-07-01T00:00Z/2025-07-01T01:00Z", "run_type": "asset_triggered"}),
        ({"default_interval": timedelta(hours=1)}, {"partition_key": "x", "partition_date": "2025-07-01T00:00:00Z"}),
    ],
)
def test_the_window_of_a_task_that_starts_there_is_the_operators(arguments, run):
    dag, _ = sensor_in_dag(**arguments)
    waiting, _ = started_in_triggerer(dag, **run)
    assert (waiting.start, waiting.end) == ("2025-07-01T00:00:00Z", "2025-07-01T01:00:00Z")


@starts_in_triggerer
@pytest.mark.parametrize(
    ("run", "remedy"),
    [
        ({"run_type": "asset_triggered"}, "triggerer cannot read their events. Leave it out, or set start and end"),
        ({}, "CronDataIntervalTimetable"),
        (INTERVAL | {"data_interval_end": HOUR[0]}, "CronDataIntervalTimetable"),
    ],
)
@pytest.mark.parametrize("flags", [{}, {"soft_fail": True}])
def test_a_run_without_a_window_fails_with_the_remedy(sim, run, remedy, flags):
    dag, sensor = sensor_in_dag(**flags)
    waiting, arguments = started_in_triggerer(dag, **run)
    payload = fire(waiting)
    with pytest.raises(AirflowFailException, match=remedy):
        sensor.resume_execution(arguments.next_method, {"event": payload}, run_context())
    assert sim.requests == []


@starts_in_triggerer
@pytest.mark.parametrize(
    "sites",
    [
        "site-00001",
        "{{ dag.dag_id and 'site-00001' }}",
        ["{{ dag.dag_id and 'site-00001' }}"],
        {"site_id": "site-00001", "stream_start_times": {"MONITOR": "2014-01-01T00:00:01Z"}},
        [{"site_id": "site-00001", "name": "n"}],
    ],
)
def test_sites_of_every_form_can_start_there(sim, sites):
    dag, _ = sensor_in_dag(sites=sites)
    waiting, _ = started_in_triggerer(dag, **INTERVAL)
    assert fire(waiting)["status"] == "complete"
    assert {site for site, *_ in asked(sim)} == {"site-00001"}


@starts_in_triggerer
def test_the_stored_arguments_of_such_a_task_have_no_credentials_and_survive(sim):
    dag, sensor = sensor_in_dag()
    waiting, arguments = started_in_triggerer(dag, **INTERVAL)
    for text in (str(arguments), repr(waiting), str(sensor.start_trigger_args)):
        assert "sentinel" not in text
    again = rebuilt(*waiting.serialize())
    assert fire(again)["status"] == "complete"


@starts_in_triggerer
def test_such_a_task_can_also_start_in_a_worker(sim, clock):
    """Airflow does this when it runs a DAG in one process."""
    _, sensor = sensor_in_dag()
    assert sensor.execute(run_context(*HOUR))["expected"] == 4
    Arrivals(sim, lambda row: NEVER if row.endswith("01:00") else None)
    with pytest.raises(TaskDeferred):
        sensor_in_dag()[1].execute(run_context(*HOUR))


@starts_in_triggerer
@pytest.mark.parametrize("unknown", ["sites", "start", "end"])
def test_arguments_that_are_known_only_in_a_run_are_rejected(unknown):
    with DAG("dag", schedule=None):
        listing = StemSiteListOperator(task_id="list")
        arguments: dict[str, Any] = {"sites": "site-00001", unknown: listing.output}
        with pytest.raises(StemConfigError, match=f"{unknown} is known only when the DAG runs. Set {unknown} to"):
            StemStreamsSensor(task_id="wait", **arguments, start_from_trigger=True)
        StemStreamsSensor(task_id="waits_in_a_worker", **arguments)


def test_an_older_airflow_names_the_required_version(monkeypatch):
    if hasattr(BaseTrigger, "render_template_fields"):
        monkeypatch.delattr(BaseTrigger, "render_template_fields")
    with pytest.raises(StemConfigError, match=r"needs Airflow 3\.3.*deferrable=True"):
        StemStreamsSensor(task_id="wait", sites="site-00001", start_from_trigger=True)


def test_mapped_tasks_start_in_a_worker():
    with pytest.raises(StemConfigError, match="mapped tasks start in a worker. Leave it out"):
        StemStreamsSensor.partial(task_id="wait", start_from_trigger=True)
