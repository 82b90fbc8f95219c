"""Load ten thousand sites (or ``CLUSTER_SITES``) on PostgreSQL, Redis and Celery workers, while parts are killed."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.servers import progress
from tests.servers.airflow_cluster import Cluster, missing_programs
from tests.support import RUNS_KEY, Lake, expected_table

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.s3,
    pytest.mark.timeout(0),
    pytest.mark.skipif(bool(missing_programs()), reason=missing_programs()),
]

SITES = int(os.environ.get("CLUSTER_SITES", "10000"))
FEW = int(os.environ.get("CLUSTER_FEW", "5"))
DAYS = int(os.environ.get("CLUSTER_DAYS", "30"))
ENGINES = ("duckdb", "postgres")
TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
POOL, SLOTS, MAX_WORKERS = "stem", 3, 8
ROOT = Path(__file__).parents[2]
TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
START = YESTERDAY - timedelta(days=DAYS)
# Retries after an hour are too late for a test. Airflow reads this policy from its home.
POLICY = """
from datetime import timedelta

def task_policy(task):
    task.retry_delay = timedelta(seconds=2)
"""
SETTINGS = {
    # The scheduler detects a killed task by its missing heartbeat, by default after minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    # The next scheduler adopts the tasks of one that was killed, by default every five minutes.
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with Simulator(Settings(sites=SITES, clients=5, latency=0.02)) as running:
        yield running


@pytest.fixture(scope="module")
def few() -> Iterator[Simulator]:
    """An API with few sites."""
    with Simulator(Settings(sites=FEW, clients=5, latency=0.02)) as running:
        yield running


@pytest.fixture(scope="module")
def late() -> Iterator[Simulator]:
    """An API whose streams come late."""
    with Simulator(Settings(sites=20, api_key="late")) as running:
        yield running


@pytest.fixture(scope="module")
def lake(s3_server: Any) -> Lake:
    return Lake(s3_server)


@pytest.fixture(scope="module")
def older_lake(s3_server: Any) -> Lake:
    return Lake(s3_server)


@pytest.fixture(scope="module")
def duckdb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warehouse") / "telemetry.duckdb"


@pytest.fixture(scope="module")
def cluster(
    late: Simulator, lake: Lake, older_lake: Lake, duckdb_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    dags = folder / "dags"
    dags.mkdir()
    example = ROOT / "example_dags" / "stem_daily.py"
    for path in (example, Path(__file__).parent / "dags" / "waiting.py"):
        (dags / path.name).symlink_to(path)
    # The same DAG with a start a month ago, and another bucket.
    others = {"STEM_START": START.isoformat(), "STEM_LAKE": f"s3://{older_lake.bucket}/stem"}
    again = example.read_text().replace('dag_id="stem_daily"', 'dag_id="stem_older"')
    (dags / "stem_older.py").write_text(again.replace("import os\n", f"import os\n\nos.environ |= {others}\n", 1))
    to_warehouse = (ROOT / "example_dags" / "stem_to_warehouse.py").read_text()
    for engine in ENGINES:
        (dags / f"to_{engine}.py").write_text(
            to_warehouse.replace('"stem_to_warehouse"', f'"to_{engine}"').replace('"stem_warehouse"', f'"{engine}"')
        )
    environment = {
        "AIRFLOW_CONN_AWS_DEFAULT": lake.server.connection,
        "AIRFLOW_CONN_STEM_LATE": late.connection,
        "AIRFLOW_CONN_DUCKDB": json.dumps({"conn_type": "duckdb", "host": str(duckdb_file)}),
        "STEM_LAKE": f"s3://{lake.bucket}/stem",
        "STEM_POOL": POOL,
        "STEM_START": YESTERDAY.isoformat(),
        **SETTINGS,
    }
    policies = folder / "airflow" / "config" / "airflow_local_settings.py"
    policies.parent.mkdir(parents=True)
    policies.write_text(POLICY)
    preload = [
        "airflow_provider_stem.operators",
        "airflow_provider_stem.streams.landing",
        "airflow_provider_stem._s3",
    ]
    with Cluster(folder / "airflow", dags, environment=environment, preload=preload, progress=progress) as running:
        running.wait_for_dags("stem_daily", "stem_older", "waiting", *(f"to_{engine}" for engine in ENGINES))
        running.call("POST", "pools", json={"name": POOL, "slots": SLOTS})
        yield running


def connect(cluster: Cluster, sim: Simulator) -> None:
    """Make a simulator the connection ``stem_default``."""
    fields = {"connection_id": "stem_default", "conn_type": "stem", "host": sim.url, "password": sim.settings.api_key}
    known = {one["connection_id"] for one in cluster.call("GET", "connections")["connections"]}
    if "stem_default" in known:
        cluster.call("PATCH", "connections/stem_default", json=fields)
    else:
        cluster.call("POST", "connections", json=fields)


def landed(lake: Lake, keys: list[str]) -> pa.Table:
    """Return the rows of objects, sorted by site, type and time."""
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda key: pq.read_table(io.BytesIO(lake.read(key))), keys))
    order = [(name, "ascending") for name in ("site_id", "stream_type", "interval_end")]
    return pa.concat_tables(tables).sort_by(order).combine_chunks()


def without_rows(_: Any, payload: Any) -> Any:
    """Remove all rows from a response, as if the streams had not arrived yet."""
    for one in payload.get("stream_types", ()):
        one["streams"] = []
    return payload


def keys_of(lake: Lake) -> list[str]:
    pages = lake.client.get_paginator("list_objects_v2").paginate(Bucket=lake.bucket, Prefix="stem/daily/")
    return [one["Key"] for page in pages for one in page.get("Contents", [])]


class Gauge(threading.Thread):
    """Measures the memory and the CPU time of each part, tasks included."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._over = threading.Event()
        self._peaks: dict[str, int] = {}
        self._seconds: dict[str, dict[int, tuple[float, float]]] = {}  # at the first and the last measurement
        self._began, self._at = time.monotonic(), time.time()
        self._cpu = sum(psutil.cpu_times()[:3])

    def run(self) -> None:
        while not self._over.wait(1):
            for component in self._cluster.components:
                held = 0
                for pid in self._cluster.processes(component):
                    try:
                        process = psutil.Process(pid)
                        held += process.memory_full_info().pss
                        taken = sum(process.cpu_times()[:2])
                        # The CPU time of a process that started later counts in full.
                        known = taken if process.create_time() < self._at else 0.0
                        first, _ = self._seconds.setdefault(component, {}).get(pid, (known, taken))
                        self._seconds[component][pid] = first, taken
                    except psutil.Error:  # it has ended
                        continue
                self._peaks[component] = max(self._peaks.get(component, 0), held)

    def stop(self) -> str:
        """Return a summary: wall time, CPU time of the machine, and peak memory and CPU time of each part."""
        wall, cpu = time.monotonic() - self._began, sum(psutil.cpu_times()[:3]) - self._cpu
        self._over.set()
        self.join()
        parts = ", ".join(
            f"{part} {peak >> 20:,} MB {sum(b - a for a, b in self._seconds[part].values()):.0f} s"
            for part, peak in self._peaks.items()
        )
        return f"{wall:.0f} s, {cpu:.0f} CPU s in total; peak memory and CPU of each part: {parts}"


def metadata(cluster: Cluster) -> str:
    """Return a summary of the size of the metadata database."""
    import psycopg2  # type: ignore[import-untyped]

    with closing(psycopg2.connect(cluster.database)) as database, database.cursor() as cursor:
        counts = {}
        for table in ("task_instance", "task_instance_history", "xcom", "rendered_task_instance_fields", "log"):
            cursor.execute(f"SELECT count(*), pg_total_relation_size('{table}') FROM {table}")
            counts[table] = cursor.fetchone()
        cursor.execute("SELECT task_id, max(length(value::text)) FROM xcom WHERE key = 'return_value' GROUP BY task_id")
        largest = ", ".join(f"{task_id} {size:,}" for task_id, size in sorted(cursor.fetchall()))
    sizes = ", ".join(f"{table} {rows:,} rows {size / 1e6:.1f} MB" for table, (rows, size) in counts.items())
    return f"{sizes}; largest XCom in bytes: {largest}"


def more_than(sim: Simulator, requests: float) -> bool:
    return len(sim.requests) > requests


def kill_at_work(cluster: Cluster, worker: str, run_id: str) -> bool:
    """Kill a worker, and return whether it was running a task. Otherwise start it again."""

    def at_work() -> set[int]:
        return {task["pid"] for task in cluster.tasks("stem_daily", run_id) if task["state"] == "running"}

    members = set(cluster.processes(worker))
    if not members & at_work():
        return False
    cluster.kill(worker)
    if members & at_work():
        return True
    cluster.start(worker)
    return False


def test_a_backfill(cluster: Cluster, few: Simulator, older_lake: Lake, request: pytest.FixtureRequest) -> None:
    connect(cluster, few)
    progress(f"Backfilling {DAYS} days")
    gauge = Gauge(cluster)
    gauge.start()
    cluster.cli(
        "backfill",
        "create",
        "--dag-id=stem_older",
        f"--from-date={START}",
        f"--to-date={YESTERDAY - timedelta(days=1)}",
        "--max-active-runs=4",
    )
    (backfill,) = cluster.call("GET", "backfills", params={"dag_id": "stem_older"})["backfills"]
    runs = cluster.runs("stem_older")
    assert [run["run_type"] for run in runs] == ["backfill"] * DAYS
    # The scheduler now creates a run of the last day, which the backfill does not cover.
    cluster.unpause("stem_older")
    cluster.wait_until(
        lambda: cluster.call("GET", f"backfills/{backfill['id']}")["completed_at"], "the end of the backfill"
    )
    scheduled = cluster.wait_until(
        lambda: [run for run in cluster.runs("stem_older") if run["run_type"] == "scheduled"], "a scheduled run"
    )
    for run in [*runs, *scheduled]:
        assert cluster.wait_for_run("stem_older", run["dag_run_id"]) == "success"
    usage = gauge.stop()
    assert len(scheduled) == 1
    assert few.peak_concurrency <= SLOTS * MAX_WORKERS
    expected = expected_table(few, few.fleet.site_ids, TYPES, 900, f"{START}T00:00Z", f"{TODAY}T00:00Z")
    keys = keys_of(older_lake)
    found = landed(older_lake, keys)
    assert found.equals(expected)
    request.config.stash[RUNS_KEY].append(
        f"a backfill on a cluster: {DAYS} days of {FEW} sites, {found.num_rows:,} rows, all correct, in {len(keys)} "
        f"objects; {len(few.requests):,} requests, {few.peak_concurrency} of {SLOTS * MAX_WORKERS} at once; {usage}"
    )


def test_ten_thousand_sites_while_parts_are_killed(
    cluster: Cluster, sim: Simulator, late: Simulator, lake: Lake, request: pytest.FixtureRequest
) -> None:
    connect(cluster, sim)
    sites = list(sim.fleet.site_ids)
    cluster.unpause("waiting")
    late.rewrite = without_rows
    waiting = cluster.trigger("waiting")
    cluster.wait_until(
        lambda: [task["state"] for task in cluster.tasks("waiting", waiting)].count("deferred") == 5,
        "deferred sensors",
    )

    gauge = Gauge(cluster)
    gauge.start()
    cluster.unpause("stem_daily")  # the scheduler creates the run of the last day
    (run,) = cluster.wait_until(lambda: cluster.runs("stem_daily"), "a scheduled run")
    for share, part in ((0.2, "worker-1"), (0.4, "triggerer"), (0.6, "scheduler")):
        cluster.wait_until(partial(more_than, sim, share * SITES), f"{share:.0%} of the sites")
        progress(f"{share:.0%} of {SITES:,} sites read, killing {part}")
        if part in cluster.workers:
            cluster.wait_until(partial(kill_at_work, cluster, part, run["dag_run_id"]), f"a task in {part}")
        else:
            cluster.kill(part)
        cluster.start(part)
    cluster.wait_until(lambda: cluster.tasks("waiting", waiting) and cluster.is_healthy(), "a healthy cluster")
    late.rewrite = None
    progress("Waiting for the end of the run")
    assert cluster.wait_for_run("stem_daily", run["dag_run_id"]) == "success"
    assert cluster.wait_for_run("waiting", waiting) == "success"
    usage = gauge.stop()

    assert run["run_type"] == "scheduled"
    expected = expected_table(sim, sites, TYPES, 900, f"{YESTERDAY}T00:00Z", f"{TODAY}T00:00Z")
    keys = keys_of(lake)
    assert len(keys) <= 100
    found = landed(lake, keys)
    assert found.equals(expected)
    assert lake.uploads() == []
    assert 1 < sim.peak_concurrency <= SLOTS * MAX_WORKERS
    tasks = cluster.tasks("stem_daily", run["dag_run_id"])
    again = sum(task["try_number"] > 1 for task in tasks)
    assert again
    request.config.stash[RUNS_KEY].append(
        f"{SITES:,} sites on a cluster: {found.num_rows:,} rows, all correct, in {len(keys)} objects; worker, "
        f"triggerer and scheduler killed, {again} tasks retried; {len(sim.requests):,} requests, "
        f"{sim.peak_concurrency} of {SLOTS * MAX_WORKERS} at once; {usage}; {metadata(cluster)}"
    )


def test_landed_objects_are_loaded_into_both_warehouses_and_again_after_a_restatement(
    cluster: Cluster, sim: Simulator, lake: Lake, duckdb_file: Path, request: pytest.FixtureRequest
) -> None:
    if not cluster.runs("stem_daily"):
        pytest.skip("No day has landed. Run the previous test too.")
    (run,) = cluster.runs("stem_daily")
    # The warehouse is a separate schema in the metadata database.
    server = urlsplit(cluster.database)
    fields = {"connection_id": "postgres", "conn_type": "postgres", "host": server.hostname, "port": server.port}
    login = {"login": server.username, "password": server.password, "schema": server.path.strip("/")}
    cluster.call("POST", "connections", json={**fields, **login})
    for engine in ENGINES:
        cluster.unpause(f"to_{engine}")
    expected = expected_table(sim, list(sim.fleet.site_ids), TYPES, 900, f"{YESTERDAY}T00:00Z", f"{TODAY}T00:00Z")
    rows = expected.num_rows
    total = {"objects": len(keys_of(lake)), "replaced": 0, "rows": rows}

    progress("Loading the warehouses")
    cluster.clear("stem_daily", run["dag_run_id"], "enter")
    first = {engine: loads(cluster, engine, 1) for engine in ENGINES}
    for counts, _ in first.values():
        assert counts == {**total, **outcome(inserted=rows)}

    # The batch of the site lands again. The event of the day lists all batches.
    site = sim.fleet.site_ids[SITES // 2]
    sim.rewrite = partial(restated, site)
    progress("Loading a restated site")
    batches = cluster.xcom("stem_daily", run["dag_run_id"], "list_sites")
    (place,) = (n for n, batch in enumerate(batches) if any(one["site_id"] == site for one in batch["sites"]))
    cluster.clear("stem_daily", run["dag_run_id"], ("land_streams", place))
    again = {engine: loads(cluster, engine, 2) for engine in ENGINES}
    sim.rewrite = None
    for counts, _ in again.values():
        assert counts == {**total, **outcome(unchanged=rows - 96, changed=96)}

    is_site = pc.and_(pc.equal(expected["site_id"], site), pc.equal(expected["stream_type"], "MONITOR"))
    values = pc.if_else(is_site, pc.add(expected["kw_total_avg"], 1.0), expected["kw_total_avg"])
    expected = expected.set_column(5, expected.schema.field(5), values).combine_chunks()
    for found in (in_duckdb(duckdb_file), in_postgres(cluster.database)):
        assert found.cast(expected.schema).equals(expected)
    times = ", ".join(f"{engine} {first[engine][1]:.0f} and {again[engine][1]:.0f} s" for engine in ENGINES)
    request.config.stash[RUNS_KEY].append(
        f"into the warehouses: {rows:,} rows from events, inserted; all of them again, 96 of one site restated: 96 "
        f"changed, {rows - 96:,} unchanged, {rows:,} in the table, all correct; the loads took {times}"
    )


def loads(cluster: Cluster, engine: str, number: int) -> tuple[dict[str, int], float]:
    """Return the counts of the n-th run of a load, and its duration in seconds."""
    dag_id = f"to_{engine}"
    cluster.wait_until(lambda: len(cluster.runs(dag_id)) >= number, f"an event for {dag_id}")
    run_id = cluster.runs(dag_id)[number - 1]["dag_run_id"]
    assert cluster.wait_for_run(dag_id, run_id) == "success"
    (task,) = (task for task in cluster.tasks(dag_id, run_id) if task["task_id"] == "load_streams")
    return cluster.xcom(dag_id, run_id, "load_streams", map_index=0), task["duration"]


def outcome(*, inserted: int = 0, changed: int = 0, unchanged: int = 0) -> dict[str, int]:
    return {"inserted": inserted, "changed": changed, "unchanged": unchanged, "absent": 0}


def restated(site: str, request: Any, payload: Any) -> Any:
    """Add a kilowatt to each value of a site."""
    if f"/{site}/streams" in request.path:
        for one in payload["stream_types"]:
            for row in one["streams"] if one["stream_type"] == "MONITOR" else ():
                row["kw_total_avg"] += 1.0
    return payload


STORED = (
    "SELECT site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg FROM stem.streams "
    "ORDER BY site_id{0}, stream_type{0}, interval_end"
)


def in_duckdb(file: Path) -> pa.Table:
    import duckdb

    with duckdb.connect(str(file), read_only=True) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        table: pa.Table = connection.sql(STORED.format("")).to_arrow_table()
    return table.combine_chunks()


def in_postgres(address: str) -> pa.Table:
    import psycopg2

    text = io.BytesIO()
    with closing(psycopg2.connect(address)) as database, database.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.copy_expert(f"""COPY ({STORED.format(' COLLATE "C"')}) TO STDOUT WITH (FORMAT csv)""", text)
    text.seek(0)
    types = {field.name: field.type for field in LANDING_SCHEMA}
    names = pyarrow.csv.ReadOptions(column_names=list(types))
    table = pyarrow.csv.read_csv(text, names, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
    return table.combine_chunks()
