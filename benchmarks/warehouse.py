"""
Cost of a load into a warehouse: days of many sites, the last day again, and the bare rows for comparison.

The floor loads the same objects into a table of the same columns with the engine's bulk load, in one transaction,
without verifying, counting or merging. Each engine is measured in its own process::

    python -m benchmarks.warehouse --sites 10000 --days 5
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
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
COLUMNS = "site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg"


def make_day(folder: Path, number: int, sites: int, batches: int) -> list[dict[str, Any]]:
    """Write a day's objects, and return their entries as in a receipt."""
    import numpy as np
    import pyarrow as pa

    from airflow_provider_stem.streams.formats import FORMATS
    from airflow_provider_stem.streams.tables import STREAM_SCHEMA, landing_batch
    from airflow_provider_stem.streams.windows import Window, iso

    window = Window(FIRST + number * DAY, FIRST + (number + 1) * DAY, 900)
    ends = pa.array([window.start + timedelta(minutes=15 * n) for n in range(1, 97)], STREAM_SCHEMA.field(0).type)
    dice = np.random.default_rng(number)
    objects = []
    for batch in range(batches):

        def rows(batch: int = batch) -> Iterator[pa.RecordBatch]:
            for site in range(batch * sites // batches, (batch + 1) * sites // batches):
                for stream_type in TYPES:
                    values = pa.array(dice.normal(50, 20, 96).round(3))
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
    """Load one day after another, and the last day again. Yield the counts."""
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
    for objects in [*receipts, receipts[-1]]:
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


def measure() -> None:
    """Load the objects listed on standard input, and print the seconds and megabytes of each step."""
    given = json.load(sys.stdin)
    how = {"us": load_with_us, "bare": load_bare}[given.pop("how")]
    steps = how(**given)
    began = time.perf_counter()
    for result in steps:
        now = time.perf_counter()
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"seconds": now - began, "mb": int(peak.split()[1]) >> 10, "result": result}), flush=True)
        began = time.perf_counter()


def run(how: str, engine: str, address: str, receipts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Measure in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.warehouse", "--measure"],
        input=json.dumps({"how": how, "engine": engine, "address": address, "receipts": receipts}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Write the objects, load them into each engine, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=["duckdb", "postgres"])
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
        receipts = [make_day(folder, day, options.sites, options.batches) for day in range(options.days)]
        rows = sum(landed["rows"] for landed in receipts[0])
        print(f"{options.days} days of {rows:,} rows in {options.batches} objects")
        for engine in options.engines:
            progress(f"Loading into {engine}")
            if engine == "postgres":
                with PostgresServer(folder / "log") as server:
                    for database in ("us", "bare"):
                        server.create(database)
                    figures = {how: run(how, engine, f"postgresql://{server.address(how)}", receipts) for how in HOWS}
            else:
                figures = {how: run(how, engine, str(folder / f"{how}_.duckdb"), receipts) for how in HOWS}
            print_figures(engine, rows, figures)


HOWS = ("bare", "us")


def print_figures(engine: str, rows: int, figures: dict[str, list[dict[str, Any]]]) -> None:
    """Print the figures as multiples of the floor."""
    [bare], [first, *days, again] = figures["bare"], figures["us"]
    for name, step in [
        ("bare rows", bare),
        ("first day", first),
        ("last day", (days or [first])[-1]),
        ("again", again),
    ]:
        seconds = step["seconds"]
        print(
            f"{engine:10}{name:12}{seconds:8.2f} s  {seconds / bare['seconds']:6.2f} of bare "
            f"{rows / seconds / 1000:8,.0f} thousand rows/s {step['mb']:6,} MB"
        )


if __name__ == "__main__":
    main()
