"""
Start a cluster, a simulated API and an S3 server, with the example DAGs, and print their addresses.

Everything runs until Ctrl-C. PostgreSQL and Redis are Debian's packages, or running servers whose addresses are in
``CLUSTER_POSTGRES`` (``USER:PASSWORD@HOST:PORT/DATABASE``) and ``CLUSTER_REDIS`` (``redis://HOST:PORT/NUMBER``).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_cluster import Cluster
from tests.servers.processes import Stopped, stoppable
from tests.servers.s3 import S3Server

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cluster"
"""Logs and data, kept until the next start."""


def serve(options: argparse.Namespace) -> int:
    """Start everything, print the addresses, and return the exit code when a part of the cluster has ended."""
    with ExitStack() as stack:
        settings = Settings(sites=options.sites, clients=options.clients, latency=options.latency)
        simulator = stack.enter_context(Simulator(settings, keep_requests=False))
        progress("Starting the S3 server")
        s3 = stack.enter_context(S3Server(FOLDER / "lake"))
        s3.client().create_bucket(Bucket="lake")
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": simulator.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
            "STEM_LAKE": "s3://lake/stem",
            "STEM_START": str(datetime.now(UTC).date() - timedelta(days=1)),
        }
        cluster = Cluster(
            FOLDER / "airflow",
            ROOT / "example_dags",
            environment=environment,
            workers=options.workers,
            slots=options.slots,
            progress=progress,
        )
        stack.enter_context(cluster)
        cluster.call("POST", "pools", json={"name": "stem_api", "slots": options.workers * options.slots // 2 or 1})
        print(f"Airflow    {cluster.url}")
        print(f"database   {cluster.database}")
        print(f"API        {simulator.url} ({options.sites:,} sites of {options.clients} clients)")
        print(f"S3         {s3.url} (access key {s3.access_key}, secret key {s3.secret_key})")
        print(f"logs       {FOLDER / 'airflow'}: {', '.join(f'{one}.log' for one in cluster.components)}")
        print("Unpause stem_daily in Airflow to load yesterday. Press Ctrl-C to stop everything.", flush=True)
        while not (ended := cluster.ended()):
            time.sleep(1)
        print(f"{', '.join(ended)} ended. See the log.", file=sys.stderr)
        return 1


def main() -> int:
    """Parse the command line, run the cluster, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make cluster")
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4, help="tasks that a worker runs at the same time")
    parser.add_argument("--latency", type=float, default=0.05, help="latency of each response of the API, in seconds")
    options = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        with stoppable():
            return serve(options)
    except Stopped:
        print("Everything has stopped.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
