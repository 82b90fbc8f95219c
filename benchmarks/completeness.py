"""
Cost of the completeness page: of the example DAG's task, and of the page in Airflow's API server, for each engine.

Fills the tables of a warehouse with many sites and days, without streams, which completeness does not read. Then runs
the task of ``stem_completeness``, which queries the view and writes the page to a real S3 server::

    python -m benchmarks.completeness --sites 10000 --days 90
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
WHOLE = (1 << 48) - 1
"""All intervals of half a day of 900 s."""


def fill(sites: int, days: int) -> None:
    """
    Fill the warehouse of the connection ``stem_warehouse``, as loads would have until yesterday.

    Of the stream days, three in a hundred lack a random interval, and in three in a hundred one came late.
    """
    import numpy as np
    import pyarrow as pa

    from airflow_provider_stem.warehouse.connections import session_factory
    from airflow_provider_stem.warehouse.sites import load_sites, read_records
    from airflow_provider_stem.warehouse.sql import SCHEMA

    connect = session_factory("stem_warehouse", "stem", 60.0)
    today = datetime.now(UTC).date()
    ids = [f"site-{number:05}" for number in range(sites)]
    starts = dict.fromkeys(TYPES, "2024-01-01T00:00:01Z")
    records = [{"site_id": site, "name": site, "client_id": "c", "stream_start_times": starts} for site in ids]
    load_sites(read_records(records), connect)
    streams = {
        "site_id": pa.array(np.repeat(ids, len(TYPES)), pa.string()),
        "stream_type": pa.array(np.tile(TYPES, sites), pa.string()),
        "resolution": pa.repeat(pa.scalar(900, pa.int32()), sites * len(TYPES)),
    }
    dice = np.random.default_rng(0)

    def of_days() -> Iterator[pa.RecordBatch]:
        for back in range(days, 0, -1):
            halves = {name: np.full(len(TYPES) * sites, WHOLE) for name in ("received_am", "received_pm")}
            halves |= {name: np.zeros(len(TYPES) * sites, np.int64) for name in ("late_am", "late_pm")}
            chance = dice.random(len(TYPES) * sites)
            bits = np.int64(1) << dice.integers(0, 48, len(TYPES) * sites)
            halves["received_am"] -= np.where(chance < 0.03, bits, 0)
            halves["late_pm"] += np.where(chance > 0.97, bits, 0)
            day = pa.repeat(pa.scalar(today - timedelta(days=back)), len(TYPES) * sites)
            yield pa.RecordBatch.from_pydict({"day": day, **streams, **halves})

    def append(session: Any, table: str, *batches: pa.RecordBatch) -> None:
        session.append(f"{SCHEMA}.{table}", batches[0].schema, batches)

    with connect() as session, session.transaction():
        append(session, "loaded_streams", pa.RecordBatch.from_pydict(streams))
        append(session, "stream_days", *of_days())
        covered = {
            "day": pa.array([today - timedelta(days=back) for back in range(days, 0, -1)]),
            "resolution": pa.repeat(pa.scalar(900, pa.int32()), days),
            "covered_am": pa.repeat(WHOLE, days),
            "covered_pm": pa.repeat(WHOLE, days),
        }
        append(session, "covered_days", pa.RecordBatch.from_pydict(covered))
        for table in ("loaded_streams", "stream_days", "covered_days", "sites"):
            # As PostgreSQL's autovacuum does after the loads of days.
            session.execute(f"ANALYZE {SCHEMA}.{table}")


def publish(days: int) -> dict[str, Any]:
    """Run the DAG's task, and return what it cost and what it returned."""
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    from example_dags.stem_completeness import dag

    get_hook_lineage_collector()  # type: ignore[no-untyped-call]
    task: Any = dag.get_task("publish_page")
    params = {"path": "s3://bench/completeness.html", "days": days}
    cpu, began = time.process_time(), time.perf_counter()
    result = task.python_callable(params=params)
    cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return cost | {"mb": int(peak.split()[1]) >> 10, "result": result}


def serve(days: int) -> dict[str, Any]:
    """Request the heat map from Airflow's API server: first, again, and again from a browser that has it."""
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.utils.db import initdb
    from fastapi.testclient import TestClient

    initdb()
    client = TestClient(create_app(apps="core"))
    # Airflow gives every user this class.
    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="viewer", role="viewer"))
    client.cookies.set("_token", token)
    last = datetime.now(UTC).date() - timedelta(days=1)
    address = f"/stem/completeness?first_day={last - timedelta(days=days - 1)}&last_day={last}"
    costs: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for name in ("first", "again", "known"):
        cpu, began = time.process_time(), time.perf_counter()
        answer = client.get(address, headers=headers if name == "known" else {})
        costs[name] = {
            "status": answer.status_code,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "bytes": answer.num_bytes_downloaded,
        }
        headers = {"If-None-Match": answer.headers["etag"]}
    return costs


def main() -> None:
    """Fill each engine, run the task in a process of its own, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["duckdb", "postgres"])
    parser.add_argument("--step", choices=["fill", "publish", "serve"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "fill":
        fill(options.sites, options.days)
        return
    if options.step == "publish":
        print(json.dumps(publish(options.days)))
        return
    if options.step == "serve":
        print(json.dumps(serve(options.days)))
        return

    from tests.servers import progress
    from tests.servers.postgres import PostgresServer
    from tests.servers.s3 import S3Server

    size = ["--sites", str(options.sites), "--days", str(options.days)]

    def run(step: str, warehouse: dict[str, Any]) -> str:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.completeness", "--step", step, *size],
            env={
                **os.environ,
                "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
                "AIRFLOW_CONN_STEM_WAREHOUSE": json.dumps(warehouse),
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__STEM__COMPLETENESS_CONN_ID": "stem_warehouse",
                "AIRFLOW_HOME": f"{name}/airflow",
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3") as s3:
        s3.client().create_bucket(Bucket="bench")
        print(f"{options.sites:,} sites, {len(TYPES)} types, {options.days} days, in one task\n")
        print("| warehouse | seconds | CPU s of the task | MB | rows | missing | late |\n|---|---|---|---|---|---|---|")
        for engine in options.engines:
            with PostgresServer(Path(name) / "log") as server:
                warehouse: dict[str, Any] = {"conn_type": "duckdb", "host": f"{name}/warehouse.duckdb"}
                if engine == "postgres":
                    server.create("warehouse")
                    warehouse = {"conn_type": "postgres", "host": "127.0.0.1", "port": server.port}
                    warehouse |= {"login": server.user, "password": server.password, "schema": "warehouse"}
                progress(f"Filling {engine}")
                run("fill", warehouse)
                for number in range(options.rounds):
                    progress(f"Publishing from {engine}, round {number + 1}")
                    cost = json.loads(run("publish", warehouse).splitlines()[-1])
                    result = cost["result"]
                    print(
                        f"| {engine} | {cost['seconds']:.1f} | {cost['cpu_seconds']:.1f} | {cost['mb']} | "
                        f"{result['streams'] * options.days:,} | {result['missing']:,} | {result['late']:,} |",
                        flush=True,
                    )
                progress(f"Requesting the page in Airflow from {engine}")
                for name_of, cost in json.loads(run("serve", warehouse).splitlines()[-1]).items():
                    print(
                        f"| {engine}, page in Airflow, {name_of} ({cost['status']}) | {cost['seconds']:.2f} | "
                        f"{cost['cpu_seconds']:.2f} | {cost['bytes']:,} bytes |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
