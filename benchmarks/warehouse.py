"""
Cost of a load into a warehouse: days of many sites, the last day again, and two objects of it with other values.

Beside it, in the same run and of the same objects: the bare rows of a day, which the engine's bulk load inserts into a
table of the same columns, without verifying, counting or merging; and dlt and sling, which merge by the same key.
Each is measured in its own process and environment, without the imports, but with the start of sling's program. At the
end, the rows and their sum are compared with the objects::

    python -m benchmarks.warehouse --sites 10000 --batches 100 --days 5

Years of history: a tenth of 10,000 sites, a year in loads of a month::

    python -m benchmarks.warehouse --sites 1000 --batches 10 --days 12 --period 30 --peers

dlt (``merge``: it deletes the known keys and inserts) and sling (``incremental`` with a primary key) fill a staging
table, and merge it into the table in the database. Neither verifies that a file is the one that was landed, counts what
changed, or keeps the former values. Which of two values of a key is the later one follows from the order of the loads
only. What a kill leaves was not examined.

sling 1.4.11 is the last release whose package has the program; later ones download it from elsewhere. It writes DuckDB
with DuckDB's own program, and from CSV files instead of HTTP, which needs an extension that is downloaded too.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIRST = datetime(2025, 7, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
KEY = ["site_id", "stream_type", "resolution", "interval_end"]
PYTHONS = {"dlt": ROOT / ".venv-bench-dlt/bin/python", "sling": ROOT / ".venv-bench-sling/bin/python"}
"""Other environments, by contender."""
COLUMNS = "site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg"


def make_period(folder: Path, number: int, sites: int, batches: int, days: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write a period's objects, and return their entries as in a receipt. Another seed makes other values."""
    import numpy as np
    import pyarrow as pa

    from airflow_provider_stem.streams.formats import FORMATS
    from airflow_provider_stem.streams.tables import STREAM_SCHEMA, landing_batch
    from airflow_provider_stem.streams.windows import Window, iso

    window = Window(FIRST + number * days * DAY, FIRST + (number + 1) * days * DAY, 900)
    ends = pa.array(
        [window.start + timedelta(minutes=15 * n) for n in range(1, 96 * days + 1)], STREAM_SCHEMA.field(0).type
    )
    dice = np.random.default_rng((number, seed))
    objects = []
    for batch in range(batches):

        def rows(batch: int = batch) -> Iterator[pa.RecordBatch]:
            for site in range(batch * sites // batches, (batch + 1) * sites // batches):
                for stream_type in TYPES:
                    values = pa.array(dice.normal(50, 20, len(ends)).round(3))
                    streams = pa.RecordBatch.from_arrays([ends, values], schema=STREAM_SCHEMA)
                    yield landing_batch(f"site-{site:05d}", stream_type, 900, streams)

        path = folder / f"{number:03d}_{batch:03d}.parquet"
        with path.open("wb") as file:
            count = FORMATS["parquet"].write(rows(), file, "zstd", "portable")
        bounds = {"start": iso(window.start), "end": iso(window.end)}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        landed = {"uri": f"s3://{path}", "rows": count, "bytes": size, "sha256": digest, "read_at": bounds["end"]}
        objects.append(landed | bounds)
    return objects


def load_with_us(engine: str, address: str, receipts: Sequence[list[dict[str, Any]]]) -> Iterator[str]:
    """Run the operator's load for one list of objects after another. Yield the counts."""
    from airflow_provider_stem.streams.records import read_objects
    from airflow_provider_stem.streams.store import Version
    from airflow_provider_stem.warehouse.loading import load_objects
    from airflow_provider_stem.warehouse.session import Session

    def fetch(uri: str, file: Any) -> Version:
        file.write(Path(uri.removeprefix("s3://")).read_bytes())
        return Version("", file.sha256, None)

    session: Callable[[], Session]
    if engine == "duckdb":
        import duckdb

        from airflow_provider_stem.warehouse.duckdb_session import DuckDBSession

        session = lambda: DuckDBSession(lambda: duckdb.connect(address), "stem", 60.0)  # noqa: E731
    else:
        import psycopg2  # type: ignore[import-untyped]

        from airflow_provider_stem.warehouse.postgres_session import PostgresSession

        session = lambda: PostgresSession(lambda: psycopg2.connect(address), "stem", 60.0)  # noqa: E731
    for objects in receipts:
        yield str(load_objects(read_objects(objects), fetch, session))


def load_bare(engine: str, address: str, receipts: Sequence[list[dict[str, Any]]]) -> Iterator[str]:
    """Load the first day's rows into a table, and do nothing else."""
    paths = [landed["uri"].removeprefix("s3://") for landed in receipts[0]]
    table = (
        "CREATE TABLE bare (site_id VARCHAR, stream_type VARCHAR, resolution INTEGER, interval_start TIMESTAMPTZ, "
        "interval_end TIMESTAMPTZ, kw_total_avg DOUBLE PRECISION, loaded_at TIMESTAMPTZ{key})"
    )
    if engine == "duckdb":
        import duckdb

        with duckdb.connect(address) as connection:
            connection.execute(table.format(key=""))
            connection.execute(f"INSERT INTO bare SELECT {COLUMNS}, now() FROM read_parquet(?)", [paths])
    else:
        import psycopg2
        import pyarrow.csv
        import pyarrow.parquet

        connection = psycopg2.connect(address)
        with connection.cursor() as cursor:
            cursor.execute(table.format(key=", PRIMARY KEY (site_id, stream_type, resolution, interval_end)"))
            for path in paths:
                text = io.BytesIO()
                options = pyarrow.csv.WriteOptions(include_header=False)
                pyarrow.csv.write_csv(pyarrow.parquet.read_table(path), text, options)
                text.seek(0)
                cursor.copy_expert(f"COPY bare ({COLUMNS}) FROM STDIN WITH (FORMAT csv)", text)
        connection.commit()
        connection.close()
    yield "bare"


def load_with_dlt(engine: str, address: str, receipts: Sequence[list[dict[str, Any]]]) -> Iterator[str]:
    """Merge the tables of one list of objects after another with dlt."""
    home = tempfile.TemporaryDirectory(prefix="bench-dlt-")
    os.environ |= dict.fromkeys(("DLT_PROJECT_DIR", "DLT_DATA_DIR", "DLT_LOCAL_DIR"), home.name)
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"

    import dlt
    import pyarrow.parquet

    destination = getattr(dlt.destinations, engine)(
        credentials=f"duckdb:///{address}" if engine == "duckdb" else address
    )
    pipeline = dlt.pipeline("bench", pipelines_dir=home.name, dataset_name="stem", destination=destination)
    yield "imports"
    for objects in receipts:
        tables = (pyarrow.parquet.read_table(landed["uri"].removeprefix("s3://")) for landed in objects)
        resource = dlt.resource(tables, name="streams", write_disposition="merge", primary_key=KEY)
        pipeline.run(resource, loader_file_format="parquet" if engine == "duckdb" else "csv").raise_on_failed_jobs()
        yield "dlt"


def load_with_sling(engine: str, address: str, receipts: Sequence[list[dict[str, Any]]]) -> Iterator[str]:
    """Merge the files of one list of objects after another with sling."""
    import duckdb_cli  # type: ignore[import-not-found]
    import sling_linux_amd64  # type: ignore[import-not-found]

    program, duckdb = sling_linux_amd64.SLING_BIN, Path(duckdb_cli.__file__).with_name("duckdb")
    for path in (program, duckdb):
        os.chmod(path, 0o755)  # noqa: PTH101
    target: Any = address + "?sslmode=disable"
    if engine == "duckdb":
        target = json.dumps({"type": "duckdb", "instance": address, "copy_method": "csv_files"})
    with tempfile.TemporaryDirectory(prefix="bench-sling-") as home:
        environment = {
            **os.environ,
            "SLING_HOME_DIR": home,
            "SLING_DISABLE_TELEMETRY": "true",
            "DUCKDB_PATH": str(duckdb),
            "DUCKDB_USE_INSTALLED_EXTENSIONS": "true",
            "TARGET": target,
        }
        yield "imports"
        for number, objects in enumerate(receipts):
            folder = Path(home, str(number))
            folder.mkdir()
            for position, landed in enumerate(objects):
                (folder / f"{position:03}.parquet").symlink_to(landed["uri"].removeprefix("s3://"))
            schema = "main" if engine == "duckdb" else "public"
            defaults = {"mode": "incremental", "object": f"{schema}.streams", "primary_key": KEY}
            replication = {"source": "LOCAL", "target": "TARGET", "defaults": defaults}
            replication["streams"] = {f"file://{folder}/*.parquet": {"single": True}}
            Path(home, "replication.json").write_text(json.dumps(replication))
            done = subprocess.run(
                [program, "run", "-r", f"{home}/replication.json"],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=3600,
            )
            if done.returncode:
                raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
            yield "sling"


LOADS = {"bare": load_bare, "us": load_with_us, "dlt": load_with_dlt, "sling": load_with_sling}
TITLES = {"us": "the operator", "dlt": "dlt", "sling": "sling"}


def measure() -> None:
    """Load the objects listed on standard input, and print the seconds and megabytes of each step."""
    given = json.load(sys.stdin)
    steps = LOADS[given.pop("how")](**given)
    began, cpu = time.perf_counter(), _cpu()
    for result in steps:
        seconds, cpu_seconds = time.perf_counter() - began, _cpu() - cpu
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        mb = max(int(peak.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10
        if result != "imports":
            print(json.dumps({"seconds": seconds, "cpu": cpu_seconds, "mb": mb, "result": result}), flush=True)
        began, cpu = time.perf_counter(), _cpu()


def _cpu() -> float:
    """Return the CPU seconds of this process and of those that it started. A server's are not among them."""
    return sum(os.times()[:4])


def run(how: str, engine: str, address: str, receipts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Measure in a separate process."""
    done = subprocess.run(
        [str(PYTHONS.get(how, sys.executable)), "-m", "benchmarks.warehouse", "--measure"],
        input=json.dumps({"how": how, "engine": engine, "address": address, "receipts": receipts}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seconds"')]


def is_right(how: str, engine: str, address: str, expected: tuple[int, float]) -> bool:
    """Return whether a table has as many rows as expected, and their sum."""
    schema = {"us": "stem", "dlt": "stem", "sling": "main" if engine == "duckdb" else "public"}[how]
    if engine == "duckdb":
        import duckdb

        connection: Any = duckdb.connect(address)
    else:
        import psycopg2

        connection = psycopg2.connect(address)
    cursor = connection.cursor()
    cursor.execute(f"SELECT count(*), sum(CAST(kw_total_avg AS NUMERIC(18, 3))) FROM {schema}.streams")
    rows, total = cursor.fetchone()
    connection.close()
    return (rows, round(float(total), 3)) == expected


def main() -> None:
    """Write the objects, load them into each engine with each program, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--days", type=int, default=5, help="number of loads")
    parser.add_argument("--period", type=int, default=1, help="days of each load, such as 30 for history")
    parser.add_argument("--engines", nargs="+", default=["duckdb", "postgres"])
    parser.add_argument("--peers", nargs="*", choices=["dlt", "sling"], default=["dlt", "sling"])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure()
        return

    from tests.servers import progress
    from tests.servers.postgres import PostgresServer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress("Writing the objects")
        size = options.sites, options.batches, options.period
        days = [make_period(folder, number, *size) for number in range(options.days)]
        (folder / "restated").mkdir()
        restated = make_period(folder / "restated", options.days - 1, *size, seed=1)
        receipts = [*days, days[-1], restated[:2]]
        expected = totals([*days[:-1], [*restated[:2], *days[-1][2:]]])
        rows = sum(landed["rows"] for landed in days[0])
        print(f"{options.days} loads, each of {options.period} days: {rows:,} rows in {options.batches} objects\n")
        print("| | | seconds | of bare | CPU s | thousand rows per s | MB | right |\n|---|---|---|---|---|---|---|---|")
        hows = ["us", *options.peers]
        for engine in options.engines:
            with PostgresServer(folder / "log") as server:
                addresses = {how: str(folder / f"{how}_.duckdb") for how in ("bare", *hows)}
                if engine == "postgres":
                    for how in addresses:
                        server.create(how)
                        addresses[how] = f"postgresql://{server.address(how)}"
                progress(f"{engine}: bare")
                [bare] = run("bare", engine, addresses["bare"], receipts)
                print(line(engine, "bare rows of the first load", bare, rows, bare["seconds"]), flush=True)
                for how in hows:
                    progress(f"{engine}: {TITLES[how]}")
                    steps = run(how, engine, addresses[how], receipts)
                    right = is_right(how, engine, addresses[how], expected)
                    for number, step in enumerate(steps):
                        title, count = f"load {number + 1}", rows
                        if number == options.days:
                            title = "the last load again"
                        elif number > options.days:
                            title, count = "two objects restated", sum(landed["rows"] for landed in restated[:2])
                        verdict = ("yes" if right else "no") if step is steps[-1] else ""
                        floor = bare["seconds"] * count / rows
                        print(line(engine, f"{TITLES[how]}, {title}", step, count, floor, verdict), flush=True)


def totals(receipts: Sequence[list[dict[str, Any]]]) -> tuple[int, float]:
    """Return the number of rows of objects, and the sum of their values."""
    import pyarrow.compute
    import pyarrow.parquet

    rows, total = 0, 0.0
    for landed in (landed for objects in receipts for landed in objects):
        values = pyarrow.parquet.read_table(landed["uri"].removeprefix("s3://"), columns=["kw_total_avg"])[0]
        # In thousandths, so that the sum is exact.
        total += pyarrow.compute.sum(pyarrow.compute.round(pyarrow.compute.multiply(values, 1000.0))).as_py()
        rows += len(values)
    return rows, round(total / 1000, 3)


def line(engine: str, title: str, step: dict[str, Any], rows: int, floor: float, right: str = "") -> str:
    """Return a row of the table."""
    seconds = step["seconds"]
    return (
        f"| {engine} | {title} | {seconds:.2f} | {seconds / floor:.2f} | {step['cpu']:.2f} | "
        f"{rows / seconds / 1000:,.0f} | {step['mb']:,} | {right} |"
    )


if __name__ == "__main__":
    main()
