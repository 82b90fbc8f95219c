"""Run sensors as Airflow does in each mode, on a simulated clock that advances when something sleeps."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pkgutil import resolve_name
from types import SimpleNamespace

from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import BaseSensorOperator, TaskDeferred

from airflow_provider_stem import sensors, triggers
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.streams import source
from tests.support import instant, run_context

BASE = sys.modules[BaseSensorOperator.__module__]
"""Airflow's module of sensors."""

MODES = ("poke", "reschedule", "reschedule with a store", "deferred")
HOUR = ("2025-07-01T00:00Z", "2025-07-01T01:00Z")
RUN = 2 * 3600
"""Time-out of the sensors in these tests, in seconds."""


class Clock:
    """
    The time that the sensor, its trigger, Airflow's base class and the simulator see.

    :param sims: simulators whose clock follows.
    """

    def __init__(self, monkeypatch, now, *sims):
        self.now = instant(now)
        self.sims = sims
        self.sleeps = []
        """Seconds of each sleep."""
        self._set_simulators()
        monkeypatch.setattr(sensors, "datetime", self._stopped())
        monkeypatch.setattr(source, "datetime", self._stopped())
        monkeypatch.setattr(triggers, "_now", lambda: self.now)
        monkeypatch.setattr(triggers, "asyncio", _Over(asyncio, sleep=self._sleep_on_loop))
        monkeypatch.setattr(BASE, "time", SimpleNamespace(monotonic=self._monotonic, sleep=self.sleep))
        monkeypatch.setattr(BASE, "timezone", _Over(BASE.timezone, utcnow=lambda: self.now))

    def set(self, moment):
        assert moment >= self.now
        self.now = moment
        self._set_simulators()

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        # Airflow's base class may sleep for zero seconds again and again, until the clock has advanced.
        self.set(self.now + timedelta(seconds=seconds or 1))

    def _monotonic(self):
        return self.now.timestamp()

    async def _sleep_on_loop(self, seconds):
        self.sleep(seconds)
        await asyncio.sleep(0)

    def _set_simulators(self):
        for sim in self.sims:
            sim.now = self.now

    def _stopped(clock):  # noqa: N805
        class Meta(type):
            def __instancecheck__(cls, thing):
                return isinstance(thing, datetime)

        class Stopped(datetime, metaclass=Meta):
            @classmethod
            def now(cls, tz=None):
                return clock.now.astimezone(tz)

        return Stopped


class _Over:
    """A module with some names replaced."""

    def __init__(self, module, **others):
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name):
        return getattr(self._module, name)


class Store(dict):  # type: ignore[type-arg]
    """Values of a task between its executions, stored as JSON like in Airflow."""

    def set(self, key, value):
        assert value is not None
        self[key] = json.dumps(value)

    def get(self, key, default=None):
        return json.loads(self[key]) if key in self else default

    def delete(self, key):
        self.pop(key, None)


class Waiting:
    """
    Run sensors as Airflow does in one of its modes; return their result or raise their exception.

    :param mode: one of :data:`MODES`.
    """

    def __init__(self, mode, clock, monkeypatch):
        self.mode = mode
        self.clock = clock
        self.executions = 0
        self.payloads = []
        """Payloads of the events that the triggers fired."""
        self.store = Store()
        self._first_start = None
        if hasattr(BASE, "_orig_start_date"):  # Airflow 2 reads its database
            monkeypatch.setattr(BASE, "_orig_start_date", lambda **_: self._first_start)
            monkeypatch.setattr(BASE, "_is_metadatabase_mysql", lambda: False)

    def sensor(self, *, rendered=None, **arguments):
        """Return a sensor; ``rendered`` are arguments that templates set after it is created."""
        arguments = {"task_id": "wait", "sites": "site-00001", "poke_interval": 600, "timeout": RUN, **arguments}
        mode = "reschedule" if self.mode.startswith("reschedule") else "poke"
        sensor = StemStreamsSensor(mode=mode, deferrable=self.mode == "deferred", **arguments)
        for name, value in (rendered or {}).items():
            setattr(sensor, name, value)
        return sensor

    def context(self, start=HOUR[0], end=HOUR[1], **more):
        ti = SimpleNamespace(
            dag_id="dag",
            task_id="wait",
            run_id="run",
            map_index=-1,
            max_tries=0,
            get_first_reschedule_date=lambda _: self._first_start,
        )
        if self.mode == "reschedule with a store":
            more = {"task_state_store": self.store, **more}
        return run_context(start, end, ti=ti, **more)

    def __call__(self, context=None, **arguments):
        context = self.context() if context is None else context
        started = self.clock.now
        while True:
            self.executions += 1
            sensor = self.sensor(**arguments)
            try:
                return sensor.execute(context)
            except BASE.AirflowRescheduleException as exc:
                assert self.mode.startswith("reschedule")
                self._first_start = self._first_start or started
                self.clock.sleep((exc.reschedule_date - self.clock.now).total_seconds())
            except TaskDeferred as exc:
                assert self.mode == "deferred"
                deferred = exc
                break
        payload = fire(through_database(deferred.trigger))
        self.payloads.append(payload)
        return self.sensor(**arguments).resume_execution(
            deferred.method_name, {**(deferred.kwargs or {}), "event": payload}, context
        )


def through_database(trigger):
    """Return the trigger that the triggerer creates from what Airflow stored."""
    path, arguments = trigger.serialize()
    assert json.loads(json.dumps(arguments)) == arguments
    with suppress(ImportError):  # the encoding between the worker and the API server
        from airflow.sdk.serde import serialize

        arguments = json.loads(json.dumps(serialize(arguments)))
    encrypt = getattr(Trigger, "encrypt_kwargs", None) or Trigger._encrypt_kwargs
    return rebuilt(path, Trigger._decrypt_kwargs(encrypt(arguments)))


def rebuilt(path, stored):
    with suppress(ImportError):
        from airflow.serialization.decoders import smart_decode_trigger_kwargs

        stored = {name: smart_decode_trigger_kwargs(value) for name, value in stored.items()}
    return resolve_name(path)(**stored)


def fire(trigger):
    """Run a trigger to its end, and return the payload of its only event as read from the database."""

    async def events():
        return [event async for event in trigger.run()]

    (event,) = asyncio.run(events())
    return json.loads(json.dumps(event.payload))


def asked(sim):
    """Return the requests since the last call: site, types, and the range without its padding."""
    requests = list(sim.requests)
    sim.reset_requests()
    return sorted(_parsed(request) for request in requests)


def _parsed(request):
    site_id = request.path.split("/sites/")[1].partition("/")[0]
    if not request.path.endswith("/streams"):
        return (site_id,)
    step = timedelta(seconds=int(request.query["resolution"][0]))
    start, end = (instant(request.query[name][0]) for name in ("start_datetime", "end_datetime"))
    clock = [f"{moment.astimezone(UTC):%H:%M}" for moment in (start + step, end - step)]
    return (site_id, request.query["stream_type"][0], *clock)


class Arrivals:
    """
    Delay intervals, and record the times of requests.

    ``late("site-00001/MONITOR/00:45")`` returns the time from which that row is returned, or ``None`` for always.
    """

    def __init__(self, sim, late=lambda _: None):
        self.sim = sim
        self.late = late
        self.moments = []
        """Times of the requests for streams."""
        sim.rewrite = self

    @property
    def pokes(self):
        """Times of the pokes, without repetitions."""
        return [f"{moment:%H:%M:%S}" for moment in sorted(set(self.moments))]

    def __call__(self, request, payload):
        if request.path.endswith("/streams"):
            self.moments.append(self.sim.now)
            for entry in payload.get("stream_types", ()):
                entry["streams"] = [row for row in entry["streams"] if self._is_here(payload, entry, row)]
        return payload

    def _is_here(self, payload, entry, row):
        when = self.late(f"{payload['id']}/{entry['stream_type']}/{row['end_datetime'][11:16]}")
        return when is None or self.sim.now >= when
