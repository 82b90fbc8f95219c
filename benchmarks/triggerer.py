"""
Two hundred sensors that start in one triggerer: requests, lag of the event loop and memory while they wait.

The floor is the same number of Airflow's own triggers that only sleep, in the same run and triggerer. Needs Airflow
3.3. Prints a table::

    python -m benchmarks.triggerer --sensors 200 --seconds 60
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer

POKE_INTERVAL = 10
AIRFLOWS_OWN = 0.2
RUN_ID = "bench"
START, END = datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 1, 1, tzinfo=UTC)
DAGS = f"""
from datetime import timedelta
import pendulum
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator
from airflow.triggers.base import StartTriggerArgs
from airflow_provider_stem.sensors import StemStreamsSensor


class Sleeps(BaseOperator):
    start_from_trigger = True
    start_trigger_args = StartTriggerArgs(
        trigger_cls="airflow.providers.standard.triggers.temporal.TimeDeltaTrigger",
        trigger_kwargs={{"delta": timedelta(hours=1)}},
        next_method="execute_complete",
    )

    def execute(self, context): raise RuntimeError("it starts in the triggerer")
    def execute_complete(self, context, event=None): pass


with DAG("sleeps", schedule=None, max_active_tasks=1000):
    for number in range(SENSORS):
        Sleeps(task_id=f"sleep_{{number:03}}")

with DAG("streams", schedule=None, max_active_tasks=1000):
    for number in range(SENSORS):
        StemStreamsSensor(
            task_id=f"site_{{number:03}}", sites=f"site-{{number + 1:05}}", start="{START.isoformat()}",
            end="{END.isoformat()}", poke_interval={POKE_INTERVAL}, start_from_trigger=True,
        )
"""
# Airflow itself logs ticks of 100 ms that take 200 ms.
THRESHOLDS = {"AIRFLOW__TRIGGERER__BLOCKED_MAIN_THREAD_WARNING_THRESHOLD": "0.11"}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sensors", type=int, default=200)
    options.add_argument("--seconds", type=float, default=60.0, help="how long each kind is measured")
    options.add_argument("--latency", type=float, default=0.05, help="of the API, in seconds")
    given = options.parse_args()
    settings = Settings(sites=given.sensors, latency=given.latency, now=START)
    with tempfile.TemporaryDirectory(prefix="triggerer-") as folder, Simulator(settings) as sim:
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "waits.py").write_text(DAGS.replace("SENSORS", str(given.sensors)))
        environment = {"AIRFLOW_CONN_STEM_DEFAULT": sim.connection, **THRESHOLDS}
        progress("Starting Airflow")
        with AirflowServer(Path(folder, "airflow"), dags, environment=environment) as server:
            server.wait_for_dags("sleeps", "streams")
            rows = [("idle", 0, 0, 0, "", _memory(server))]
            rows.append(_watched(server, sim, "sleeps", given))
            server.call("PATCH", f"dags/sleeps/dagRuns/{RUN_ID}", json={"state": "failed"})
            server.wait_until(lambda: not _deferred(server, "sleeps"), "the sleeps to end")
            rows.append(_watched(server, sim, "streams", given))
            progress("Ending the waits")
            sim.now = END
            began = time.monotonic()
            server.wait_for_run("streams", RUN_ID)
            states = sorted({str(task["state"]) for task in server.tasks("streams", RUN_ID)})
        print(f"{given.sensors} waits, each kind measured for {given.seconds:g} s, API latency {given.latency:g} s")
        print(f"a poke every {POKE_INTERVAL} s: about {given.sensors * given.seconds / POKE_INTERVAL:g} requests")
        print(f"{'waits':8} {'requests':>8} {'ticks over 110 ms':>18} {'over 200 ms':>12} {'longest':>8} {'MB':>6}")
        for name, requests, late, warned, longest, memory in rows:
            print(f"{name:8} {requests:8} {late:18} {warned:12} {longest:>8} {memory / 1e6:6.0f}")
        print(f"streams arrive: all ended as {', '.join(states)} after {time.monotonic() - began:.0f} s")


def _watched(
    server: AirflowServer, sim: Simulator, dag_id: str, given: argparse.Namespace
) -> tuple[str, int, int, int, str, int]:
    progress(f"Starting {given.sensors} waits of the DAG {dag_id}")
    server.trigger(dag_id, dag_run_id=RUN_ID)
    server.wait_until(lambda: _deferred(server, dag_id) == given.sensors, "all to be deferred")
    if dag_id == "streams":
        server.wait_until(lambda: len(sim.requests) >= given.sensors, "the first poke of every sensor")
    sim.reset_requests()
    begin = server.log_file.stat().st_size
    progress(f"Watching them for {given.seconds:g} s")
    time.sleep(given.seconds)
    printed = server.log_file.read_bytes()[begin:].decode(errors="replace")
    lags = [float(lag) for lag in re.findall(r"was blocked for ([\d.]+) seconds", printed)]
    warned = sum(lag > AIRFLOWS_OWN for lag in lags)
    return dag_id, len(sim.requests), len(lags), warned, f"{max(lags, default=0.0):.2f}", _memory(server)


def _deferred(server: AirflowServer, dag_id: str) -> int:
    return sum(task["state"] == "deferred" for task in server.tasks(dag_id, RUN_ID))


def triggerer_processes(server: AirflowServer) -> list[psutil.Process]:
    """Return the processes of the triggerer."""
    found = []
    for pid in server.processes():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if "triggerer" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _memory(server: AirflowServer) -> int:
    """Return the bytes that only the triggerer's processes hold."""
    return sum(process.memory_full_info().uss for process in triggerer_processes(server))


if __name__ == "__main__":
    main()
