"""
Cost and correctness of loads into an Iceberg table, beside pyiceberg's own ``overwrite`` and ``upsert``.

In a real S3 server, with its REST catalog and with a SQL catalog on SQLite: a day of many sites, the same again, a
restatement of two batches, look-backs, two loads at once, and loads that are killed. After each the table is compared
with the objects. All requests to S3 pass a proxy, which counts them. Prints a table in Markdown for each catalog::

    python -m benchmarks.iceberg --sites 10000 --batches 100 --rounds 50 --kills 50

``overwrite`` gets all rows of a load at once, and replaces the rows of their sites and days. It commits twice, and a
reader in between misses the rows. It writes whichever value is loaded last. ``upsert`` gets the rows of
``--upsert-sites`` sites only, since its time grows faster than the rows; times as many as there are sites, its seconds
are a lower bound.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

ROOT = Path(__file__).parent.parent
FIRST = datetime(2025, 7, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
KEY = ["site_id", "stream_type", "resolution", "interval_end"]
BUCKET = "lake"
LOOKBACK = 3

BOUNDS = ((min, "start"), (max, "end"))

Objects = list[dict[str, Any]]
"""Entries of a receipt."""


class Lake:
    """
    Objects of batches and days in S3, and a model of what a table of them must have.

    :param client: boto3 client of the server.
    :param sites: number of sites.
    :param batches: number of batches, to which sites belong as in ``StemSiteListOperator``.
    """

    def __init__(self, client: Any, sites: int, batches: int) -> None:
        from airflow_provider_stem.streams.batches import batch_index

        self._client = client
        self.sites: list[list[str]] = [[] for _ in range(batches)]
        for number in range(sites):
            self.sites[batch_index(f"site-{number:05}", batches)].append(f"site-{number:05}")
        self.batches = [batch for batch, found in enumerate(self.sites) if found]
        self._revisions = 0
        self.model: dict[tuple[int, int], int] = {}

    def land(self, day: int, batch: int, suffix: str = "") -> dict[str, Any]:
        """Write new values of a batch's day to S3, and return the object's entry in a receipt."""
        from airflow_provider_stem.streams.formats import FORMATS
        from airflow_provider_stem.streams.windows import iso

        self._revisions += 1
        self.model[day, batch] = self._revisions
        body = io.BytesIO()
        rows = FORMATS["parquet"].write(iter(self._rows(day, batch).to_batches()), body, "zstd", "portable")
        content, key = body.getvalue(), f"{day:03}/{batch:03}{suffix}.parquet"
        version = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "read-at": (FIRST + 30 * DAY + timedelta(seconds=self._revisions)).isoformat(),
        }
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content, Metadata=version)
        start = FIRST + day * DAY
        record = {"uri": f"s3://{BUCKET}/{key}", "rows": rows, "bytes": len(content), "sha256": version["sha256"]}
        return record | {"read_at": version["read-at"], "start": iso(start), "end": iso(start + DAY)}

    def _rows(self, day: int, batch: int) -> pa.Table:
        """Return the rows of the newest revision of a batch's day, some of them null."""
        import numpy as np

        from airflow_provider_stem.streams.tables import LANDING_SCHEMA

        sites, start = self.sites[batch], FIRST + day * DAY
        ends = [start + timedelta(minutes=15 * number) for number in range(1, 97)]
        count, streams = len(sites) * len(TYPES) * 96, len(sites) * len(TYPES)
        dice = np.random.default_rng((day, batch, self.model[day, batch]))
        columns = {
            "site_id": pa.array(np.repeat(sites, len(TYPES) * 96)),
            "stream_type": pa.array(np.tile(np.repeat(TYPES, 96), len(sites))),
            "resolution": pa.repeat(pa.scalar(900, pa.int32()), count),
            "interval_start": pa.array([end - timedelta(minutes=15) for end in ends] * streams),
            "interval_end": pa.array(ends * streams),
            "kw_total_avg": pa.array(dice.normal(50, 20, count).round(3), mask=dice.random(count) < 0.01),
        }
        return pa.table(columns).select(LANDING_SCHEMA.names).cast(LANDING_SCHEMA)

    def wrong(self, table: Any, parts: Iterable[tuple[int, int]]) -> int:
        """Return how many rows of some batches' days are missing, doubled, unexpected, or have another value."""
        parts = sorted(parts)
        expected = pa.concat_tables(self._rows(*part) for part in parts).select([*KEY, "kw_total_avg"])
        days, batches = sorted({day for day, _ in parts}), sorted({batch for _, batch in parts})
        assert parts == [(day, batch) for day in days for batch in batches]
        sites = [site for batch in batches for site in self.sites[batch]]
        rows = _filter(FIRST + days[0] * DAY, FIRST + (days[-1] + 1) * DAY, [] if batches == self.batches else sites)
        found = table.scan(row_filter=rows, selected_fields=(*KEY, "kw_total_avg")).to_arrow()
        found = found.cast(pa.schema([expected.schema.field(name) for name in found.schema.names]))
        once = found.group_by(KEY).aggregate([("kw_total_avg", "min"), ([], "count_all")])
        both = expected.join(once, KEY, join_type="full outer", right_suffix="_found", coalesce_keys=False)
        value, stored = both["kw_total_avg"], both["kw_total_avg_min"]
        same = pc.if_else(pc.is_null(value), pc.is_null(stored), pc.fill_null(pc.equal(value, stored), False))
        same = pc.and_(same, pc.and_(pc.is_valid(both["site_id"]), pc.is_valid(both["count_all"])))
        return int(found.num_rows - once.num_rows + pc.sum(pc.invert(same)).as_py())


def _filter(start: datetime, end: datetime, sites: Sequence[str]) -> Any:
    """Return pyiceberg's expression for the rows of a period, of some sites or of all."""
    from pyiceberg.expressions import And, In
    from pyiceberg.expressions.parser import parse

    period = parse(f"interval_start >= '{start.isoformat()}' and interval_start < '{end.isoformat()}'")
    return And(period, cast(Any, In)("site_id", sites)) if sites else period


def load_with_us(objects: Objects, table: str, buckets: int) -> None:
    """Run the operator."""
    from airflow_provider_stem.iceberg.operators import StemObjectsToIcebergOperator

    receipt = {"objects": objects, "window": {"resolution": 900}, "rows": sum(landed["rows"] for landed in objects)}
    StemObjectsToIcebergOperator(task_id="load", objects=receipt, table=table, buckets=buckets).execute({})


def _read(objects: Objects, sites: int | None = None) -> pa.Table:
    """Fetch objects, and return the rows of all sites or of the first ones, with the columns that a load adds."""
    import pyarrow.parquet
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    client = S3Hook("aws_default").get_conn()

    def read(landed: dict[str, Any]) -> pa.Table:
        key = landed["uri"].removeprefix(f"s3://{BUCKET}/")
        rows = pyarrow.parquet.read_table(io.BytesIO(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()))
        read_at = pa.scalar(datetime.fromisoformat(landed["read_at"]), pa.timestamp("us", "UTC"))
        rows = rows.append_column(pa.field("read_at", read_at.type, False), pa.repeat(read_at, rows.num_rows))
        return rows.append_column(pa.field("uri", pa.string(), False), pa.repeat(landed["uri"], rows.num_rows))

    with ThreadPoolExecutor(8) as pool:
        rows = pa.concat_tables(pool.map(read, objects))
    return rows if sites is None else rows.filter(pc.is_in(rows["site_id"], rows["site_id"].unique()[:sites]))


def load_with_overwrite(objects: Objects, table: str, buckets: int) -> None:
    """Overwrite the rows of the sites and days of all objects."""
    from airflow_provider_stem.iceberg.catalogs import catalog_from
    from airflow_provider_stem.iceberg.tables import open_table

    target = open_table(catalog_from("stem_iceberg", "aws_default"), table, buckets)
    rows = _read(objects)
    start, end = (datetime.fromisoformat(of(landed[bound] for landed in objects)) for of, bound in BOUNDS)
    target.overwrite(rows, overwrite_filter=_filter(start, end, pc.unique(rows["site_id"]).to_pylist()))


def load_with_upsert(objects: Objects, table: str, buckets: int, sites: int) -> None:
    """Upsert the rows of some sites by their key."""
    from airflow_provider_stem.iceberg.catalogs import catalog_from
    from airflow_provider_stem.iceberg.tables import open_table

    target = open_table(catalog_from("stem_iceberg", "aws_default"), table, buckets)
    target.upsert(_read(objects[:1], sites), join_cols=KEY)


def serve() -> None:
    """Do the loads that standard input lists, one a line, and print what each of them cost."""
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    for module in ("_s3", "iceberg.loading"):
        import_module(f"airflow_provider_stem.{module}")
    get_hook_lineage_collector()  # type: ignore[no-untyped-call]
    load: dict[str, Any] = {"us": load_with_us, "overwrite": load_with_overwrite, "upsert": load_with_upsert}
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        cpu, began = time.process_time(), time.perf_counter()
        load[job.pop("how")](**job)
        cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        # Unlike ru_maxrss, this does not begin with the peak of the process that started this one.
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(json.dumps(cost | {"mb": int(peak.split()[1]) >> 10}), flush=True)


class Loader:
    """
    A process that loads, as a context manager.

    :param environment: of the process.
    :param settings: arguments of each load, besides the objects.
    """

    def __init__(self, environment: dict[str, str], **settings: Any) -> None:
        self._settings = settings
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.iceberg", "--serve"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Loader:
        self._line()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The load failed, see above.")
        return line

    def start(self, objects: Objects) -> None:
        """Start a load."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**self._settings, "objects": objects}) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, float]:
        """Wait for the load, and return what it cost."""
        cost: dict[str, float] = json.loads(self._line())
        return cost

    def kill(self) -> None:
        """Kill the process now."""
        self._process.kill()


class Bench:
    """
    The steps in one catalog.

    :param environment: of the processes that load.
    :param proxy: what counts the requests to S3.
    :param catalog: the catalog.
    :param options: of the command line.
    """

    def __init__(self, lake: Lake, environment: dict[str, str], proxy: Any, catalog: Any, options: Any) -> None:
        self._lake, self._environment, self._proxy, self._catalog = lake, environment, proxy, catalog
        self._options = options

    def run(self) -> None:
        """Run all steps, and print a line for each."""
        lake, options = self._lake, self._options
        loaders: dict[str, Any] = {how: self._loader(how) for how in ("us", "overwrite", "upsert")}
        columns = ("", "rows wrong", "snapshots", "data files", "requests to S3", "seconds", "CPU s", "MB")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        restated = lake.batches[:2]
        day = [lake.land(0, batch) for batch in lake.batches]
        for title in ("a day", "the same again", "two batches restated"):
            step = [lake.land(0, batch) for batch in restated] if "restated" in title else day
            for how in ("us", "overwrite"):
                with loaders[how]() as loader:
                    self._measured(f"{title}: {how}", how, [loader], [[step]], {0})
            with loaders["upsert"](sites=options.upsert_sites) as loader:
                scale = sum(landed["rows"] for landed in step) / (options.upsert_sites * len(TYPES) * 96)
                self._measured(f"{title}: upsert", "upsert", [loader], [[step]], set(), scale)
        for number in range(1, LOOKBACK + 1):
            step = [lake.land(number, batch) for batch in lake.batches]
            step += [lake.land(before, batch) for before in range(number) for batch in restated]
            with loaders["us"]() as loader:
                title = f"day {number + 1}, and {number} before"
                self._measured(title, "us", [loader], [[step]], set(range(number + 1)))
        self._race(loaders["us"])
        self._kill(loaders["us"])

    def _loader(self, how: str) -> Any:
        settings = {"how": how, "table": f"stem.{how}", "buckets": self._options.buckets}
        return partial(Loader, self._environment, **settings)

    def _race(self, loader: Any) -> None:
        """Load two batches at once, and two revisions of one batch, in turns."""
        lake = self._lake

        def rounds() -> Iterator[list[Objects]]:
            for number in range(self._options.rounds):
                one, other = random.sample(lake.batches, 2) if number % 2 else [random.choice(lake.batches)] * 2
                yield [[lake.land(0, one, "-early")], [lake.land(0, other, "-late")]]

        with loader() as first, loader() as second:
            title = f"two loads at once, {self._options.rounds} times"
            self._measured(title, "us", [first, second], rounds(), {0})

    def _kill(self, loader: Any) -> None:
        """Kill loads of restated batches, and repeat each of them."""
        lake = self._lake
        batches = random.sample(lake.batches, min(5, len(lake.batches)))
        parts = [(0, batch) for batch in batches]
        wrong = killed = 0
        self._proxy.behave()
        with loader() as repeating:
            repeating.start([lake.land(0, batch) for batch in batches])
            whole = repeating.finish()["seconds"]
            for _ in range(self._options.kills):
                before = dict(lake.model)
                objects = [lake.land(0, batch) for batch in batches]
                snapshot_id = self._table("us").metadata.current_snapshot_id
                with loader() as one:
                    one.start(objects)
                    time.sleep(random.uniform(0, 1.2 * whole))
                    one.kill()
                is_done = self._table("us").metadata.current_snapshot_id != snapshot_id
                killed += not is_done
                now = lake.model
                lake.model = now if is_done else before
                wrong += lake.wrong(self._table("us"), parts)
                lake.model = now
                repeating.start(objects)
                repeating.finish()
                wrong += lake.wrong(self._table("us"), parts)
        self._print(f"{self._options.kills} kills ({killed} before the commit)", "us", wrong, {0}, ("", "", ""))

    def _measured(
        self,
        title: str,
        how: str,
        loaders: Sequence[Loader],
        rounds: Iterable[Sequence[Objects]],
        days: set[int],
        scale: float = 0.0,
    ) -> None:
        from tests.servers import progress

        progress(title)
        self._proxy.behave()
        cost: Counter[str] = Counter()
        for of_round in rounds:
            for loader, objects in zip(loaders, of_round, strict=True):
                loader.start(objects)
            done = [loader.finish() for loader in loaders]
            cost["seconds"] += max(one["seconds"] for one in done)  # type: ignore[assignment]
            cost["cpu"] += sum(one["cpu_seconds"] for one in done)  # type: ignore[assignment]
            cost["mb"] = max(cost["mb"], *(int(one["mb"]) for one in done))
        seconds, cpu = f"{cost['seconds']:.1f}", f"{cost['cpu']:.1f}"
        if scale:
            seconds = f"{seconds} x {scale:,.0f} = {cost['seconds'] * scale:,.0f}"
        self._print(title, how, 0, days, (seconds, cpu, f"{cost['mb']}"))

    def _print(self, title: str, how: str, wrong: int, days: set[int], cost: tuple[str, str, str]) -> None:
        sent = Counter(target.partition(" ")[0] for target in self._proxy.targets)
        table = self._table(how)
        wrong_text = ""
        if days:
            wrong += self._lake.wrong(table, [(day, batch) for day in days for batch in self._lake.batches])
            wrong_text = f"{wrong:,}"
        requests = ", ".join(f"{count:,} {method}" for method, count in sorted(sent.items()))
        files = table.inspect.files().num_rows
        cells = title, wrong_text, len(table.metadata.snapshots), f"{files:,}", requests, *cost
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def _table(self, how: str) -> Any:
        return self._catalog.load_table(f"stem.{how}")


def catalogs(names: Sequence[str], s3: Any, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the titles and Airflow connections of new catalogs."""
    from tests.servers.catalogs import rest_catalog, sql_catalog

    for name in names:
        if name == "rest":
            yield "REST catalog", rest_catalog(s3)
        else:
            yield "SQL catalog on SQLite", sql_catalog(f"sqlite:///{folder}/catalog.db", s3)


def main() -> None:
    """Start the servers, and run the steps in each catalog."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--buckets", type=int, default=20, help="best a divisor of --batches")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--upsert-sites", type=int, default=10)
    parser.add_argument("--catalogs", nargs="+", choices=["rest", "sqlite"], default=["rest", "sqlite"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return

    from tests.faults.proxy import FaultyProxy
    from tests.servers.s3 import S3Server

    random.seed(0)
    with tempfile.TemporaryDirectory() as name, S3Server(Path(name) / "s3") as s3, FaultyProxy(s3.url) as proxy:
        client = s3.client()
        client.create_bucket(Bucket=BUCKET)
        aws = json.loads(s3.connection)
        aws["extra"]["endpoint_url"] = proxy.url
        for title, connection in catalogs(options.catalogs, s3, Path(name)):
            environment = {
                "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
                "AIRFLOW_CONN_STEM_ICEBERG": json.dumps(connection),
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            }
            os.environ |= environment
            from airflow_provider_stem.iceberg.catalogs import catalog_from

            print(f"\n**{title}: {options.sites:,} sites, 3 types, {options.batches} batches**\n", flush=True)
            lake = Lake(client, options.sites, options.batches)
            # The table is read without the proxy, so that only the requests of loads are counted.
            os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = s3.connection
            catalog = catalog_from("stem_iceberg", "aws_default")
            Bench(lake, {**os.environ, **environment}, proxy, catalog, options).run()


if __name__ == "__main__":
    main()
