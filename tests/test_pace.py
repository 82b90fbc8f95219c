"""The pace of a connection, through every class that sends requests."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.triggers import StemStreamsTrigger
from tests.support import run_context

RATE = 40.0
SITES = [f"site-0000{number}" for number in range(1, 6)]
WINDOW: dict[str, Any] = {"start": "2025-07-01T00:00Z", "end": "2025-07-01T01:00Z"}


@pytest.fixture
def sim(stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(sites=5)
    extra = {"requests_per_second": RATE, "page_size": 2}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({**json.loads(sim.connection), "extra": extra}))
    return sim


def by_hook(lake):
    hook = StemHook()
    for site_id in SITES:
        assert hook.get_streams(site_id, **WINDOW).num_rows == 4


def by_the_list_operator(lake):
    assert len(StemSiteListOperator(task_id="list").execute(run_context())) == 5


def by_the_streams_operator(lake):
    task = StemStreamsToS3Operator(task_id="land", sites=SITES, s3_bucket=lake.bucket, **WINDOW)
    assert task.execute(run_context())["rows"] == 20


def by_sensor(lake):
    for _ in range(2):
        assert StemStreamsSensor(task_id="wait", sites=SITES[:3], **WINDOW).poke(run_context())


def by_two_triggers(lake):
    async def first_event(trigger):
        return await anext(trigger.run())

    async def both():
        waiting = (StemStreamsTrigger(sites=SITES, **WINDOW) for _ in range(2))
        return await asyncio.gather(*map(first_event, waiting))

    assert [event.payload["status"] for event in asyncio.run(both())] == ["complete"] * 2


@pytest.mark.parametrize("read", [by_hook, by_the_list_operator, by_the_streams_operator, by_sensor, by_two_triggers])
def test_every_class_keeps_the_pace(sim, lake, read):
    began = time.monotonic()
    read(lake)
    arrived = sorted(request.arrived - began for request in sim.requests)
    assert len(arrived) >= 5
    assert all(at >= number / RATE for number, at in enumerate(arrived, 1))


def test_the_test_of_a_connection_does_not_wait(sim, monkeypatch):
    def wait(transport, seconds):
        raise AssertionError(f"It would wait {seconds} s.")

    monkeypatch.setattr(Transport, "_wait_until_closed", wait)
    assert StemHook().test_connection() == (True, f"Connected to {sim.url}")
