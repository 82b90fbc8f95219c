"""
Tasks against an API with a rate limit: a pool, a pace for each task, both and neither.

Each task is a real Airflow task (LocalExecutor), mapped over batches of sites that land in a real S3 server. Then tasks
try what a limiter over all workers would need: the metadata database, and a counter in a Variable. Needs Airflow 3.
Prints tables::

    python -m benchmarks.pace --tasks 64 --sites 8 --rate 4
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer
from tests.servers.s3 import S3Server

RUN_ID = "bench"
ROUNDS = 100
COUNTERS = 8
PARALLELISM = 16
# Name, pool, slots, share of the rate for each task.
WAYS = (
    ("no_pool_no_pace", "default_pool", 0, None),
    ("pool_of_4", "four", 4, None),
    ("pool_of_4_a_quarter_each", "four", 4, 1 / 4),
    ("pool_of_1_all_for_it", "one", 1, 1),
)
DAGS = f"""
import time
from datetime import timedelta
from airflow.sdk import DAG, Variable
from airflow.sdk.bases.operator import BaseOperator
from airflow_provider_stem.operators import StemStreamsToS3Operator


class Count(BaseOperator):
    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def execute(self, context):
        began = time.monotonic()
        for _ in range({ROUNDS}):
            Variable.set("turns", str(int(Variable.get("turns", default="0")) + 1))
        return time.monotonic() - began


class ReadDatabase(BaseOperator):
    def execute(self, context):
        try:
            from airflow import settings

            settings.Session().connection()
        except Exception as exc:
            return f"{{type(exc).__name__}}: {{exc}}"
        return "it has access"


for name, pool, conn_id in NAMES:
    with DAG(name, schedule=None, max_active_tasks=1000):
        StemStreamsToS3Operator.partial(
            task_id="land", pool=pool, stem_conn_id=conn_id, start="2025-07-01T00:00Z", end="2025-07-02T00:00Z",
            s3_bucket="lake", retries=20, retry_delay=timedelta(seconds=5),
        ).expand_kwargs(BATCHES)

with DAG("shared", schedule=None, max_active_tasks=1000):
    Count.partial(task_id="count").expand(number=list(range({COUNTERS})))
    ReadDatabase(task_id="read_database")
"""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=64)
    options.add_argument("--sites", type=int, default=8, help="of each task; each is one request")
    options.add_argument("--rate", type=float, default=4.0, help="requests per second that the API allows")
    given = options.parse_args()
    number_of_sites = given.tasks * given.sites
    batches = [
        {
            "sites": [f"site-{site + 1:05}" for site in range(task, number_of_sites, given.tasks)],
            "batch": f"{task:03}-of-{given.tasks:03}",
        }
        for task in range(given.tasks)
    ]
    names = [(name, pool, f"stem_{name}") for name, pool, *_ in WAYS]
    settings = Settings(sites=number_of_sites, rate_limit=given.rate)
    with (
        tempfile.TemporaryDirectory(prefix="pace-") as folder,
        Simulator(settings) as sim,
        S3Server(Path(folder, "s3")) as s3,
    ):
        s3.client().create_bucket(Bucket="lake")
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "paces.py").write_text(DAGS.replace("NAMES", repr(names)).replace("BATCHES", repr(batches)))
        environment = {"AIRFLOW_CONN_AWS_DEFAULT": s3.connection}
        for name, _, _, share in WAYS:
            extra = {} if share is None else {"requests_per_second": given.rate * share}
            connection = {**json.loads(sim.connection), "extra": extra}
            environment[f"AIRFLOW_CONN_STEM_{name.upper()}"] = json.dumps(connection)
        progress("Starting Airflow")
        preload = ["airflow_provider_stem.operators", "airflow_provider_stem.streams.landing"]
        with AirflowServer(
            Path(folder, "airflow"), dags, environment=environment, parallelism=PARALLELISM, preload=preload
        ) as server:
            pools = {pool: slots for _, pool, slots, _ in WAYS if slots}
            server.commands(*(("pools", "set", pool, str(slots), pool) for pool, slots in pools.items()))
            server.wait_for_dags(*(name for name, *_ in WAYS), "shared")
            print(f"{given.tasks} tasks of {given.sites} requests, {given.rate:g} requests/s, {PARALLELISM} at a time")
            ideal = number_of_sites / given.rate
            print(
                "| | state | requests | 429 | wasted | repeated tasks | seconds | of the ideal |\n" + "|---" * 8 + "|"
            )
            for name, *_ in WAYS:
                print(_row(server, sim, name, number_of_sites, ideal), flush=True)
            print(_shared(server))


def _row(server: AirflowServer, sim: Simulator, name: str, needed: int, ideal: float) -> str:
    progress(f"Running {name}")
    time.sleep(1)  # the API allows a second's worth of requests again
    sim.reset_requests()
    began = time.monotonic()
    server.trigger(name, dag_run_id=RUN_ID)
    state = server.wait_for_run(name, RUN_ID)
    seconds = time.monotonic() - began
    refused = sum(request.status == 429 for request in sim.requests)
    sent = len(sim.requests)
    repeated = sum(task["try_number"] - 1 for task in server.tasks(name, RUN_ID))
    cells = (name.replace("_", " "), state, sent, refused, sent - needed, repeated, f"{seconds:.0f}")
    return f"| {' | '.join(map(str, cells))} | {seconds / ideal:.2f} |"


def _shared(server: AirflowServer) -> str:
    progress("Counting in a Variable")
    server.trigger("shared", dag_run_id=RUN_ID)
    server.wait_for_run("shared", RUN_ID)
    seconds: list[Any] = [server.xcom("shared", RUN_ID, "count", map_index=number) for number in range(COUNTERS)]
    counted = int(server.call("GET", "variables/turns")["value"])
    wanted = COUNTERS * ROUNDS
    return (
        f"\nthe metadata database in a task: {server.xcom('shared', RUN_ID, 'read_database')}\n"
        f"a Variable that {COUNTERS} tasks count up {ROUNDS} times each: {counted} of {wanted}, "
        f"{sum(filter(None, seconds)) / wanted * 1000:.0f} ms for each count"
    )


if __name__ == "__main__":
    main()
