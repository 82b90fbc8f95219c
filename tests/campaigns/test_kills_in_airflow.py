"""Tasks, and the workers that run them, are killed in a whole Airflow, which detects that and retries the tasks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer
from tests.support import RUNS_KEY, Lake, expected_rows, landed_rows, until

pytestmark = [pytest.mark.airflow, pytest.mark.s3, pytest.mark.timeout(0)]

DAGS = Path(__file__).parent / "dags_killed"
KILLS = max(2, int(os.environ.get("KILLS", "200")) // 10)
DAYS = ("2025-07-01T00:00Z", "2025-07-05T00:00Z")
# A worker that is killed says nothing: the scheduler misses its heartbeat, after minutes by default.
SOON = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "6",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "6",
    "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "1",
}


def test_whatever_is_killed_the_retry_makes_the_same_objects(
    s3_server: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dice = random.Random("kills in Airflow")
    lake = Lake(s3_server)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Simulator(Settings(sites=40, latency=0.05)) as sim:
        sites = list(sim.fleet.site_ids)
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
            "STEM_TEST_BUCKET": lake.bucket,
            "STEM_TEST_SITES": " ".join(sites),
            "TMPDIR": str(temporary),
            **SOON,
        }
        preload = ["airflow_provider_stem.operators", "airflow_provider_stem.streams.landing"]
        with AirflowServer(tmp_path / "airflow", DAGS, environment=environment, preload=preload) as airflow:
            airflow.wait_for_dags("killed")
            working = 0.0
            for _ in range(2):
                sim.reset_requests()
                run = airflow.trigger("killed")
                until(lambda: sim.requests)
                began = time.monotonic()
                until(lambda: len(sim.requests) >= len(sites))
                until(lambda: len(lake.objects()) == 4)
                working = time.monotonic() - began
                assert airflow.wait_for_run("killed", run) == "success"
            undisturbed = lake.objects()
            assert sorted(landed_rows(lake.table())) == sorted(
                expected_rows(sim, sites, ("CONVERTER", "MONITOR"), 900, *DAYS)
            )

            outcomes: Counter[str] = Counter()
            for number in range(KILLS):
                progress(f"kill {number + 1} of {KILLS} in Airflow")
                for key in undisturbed:
                    lake.client.delete_object(Bucket=lake.bucket, Key=key)
                sim.reset_requests()
                run = airflow.trigger("killed")
                until(lambda: sim.requests)
                task = _reader(airflow, sim)
                is_worker = number % 2 == 0
                time.sleep(dice.uniform(0, working))
                victim = task.parent() if is_worker else task
                if victim is None or not task.is_running():
                    outcomes["ended before"] += 1
                else:
                    outcomes[f"{'worker' if is_worker else 'task'} killed"] += 1
                    victim.send_signal(signal.SIGKILL)
                assert airflow.wait_for_run("killed", run) == "success"
                (instance,) = airflow.tasks("killed", run)
                outcomes[f"attempts: {instance['try_number']}"] += 1
                # A task whose worker was killed may continue for a while.
                until(lambda task=task: not task.is_running() or task.status() == psutil.STATUS_ZOMBIE)
                assert lake.objects() == undisturbed
                assert lake.uploads() == []
                assert [path.name for path in temporary.rglob("stem-*")] == []
    counts = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
    request.config.stash[RUNS_KEY].append(f"killed in Airflow: {counts}; all objects identical")
    assert outcomes["worker killed"] + outcomes["task killed"] >= KILLS // 2


def _reader(airflow: AirflowServer, sim: Simulator) -> psutil.Process:
    """Return the process that reads from the API."""
    port = int(sim.url.split(":")[2].partition("/")[0])
    found: list[psutil.Process] = []

    def connected() -> bool:
        for pid in airflow.processes():
            try:
                process = psutil.Process(pid)
                if any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp")):
                    found.append(process)
            except psutil.Error:  # it has ended
                continue
        return bool(found)

    until(connected)
    return found[0]
