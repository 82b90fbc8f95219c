"""What the tests share: a home for Airflow, a real S3 server, and runs of the operators as tasks see them."""

from __future__ import annotations

import io
import itertools
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Before anything imports Airflow: the tests must neither read nor write the user's own.
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from s3_server import S3Server  # noqa: E402


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


_NUMBERS = itertools.count(1)


class Lake:
    """One bucket of the S3 server."""

    def __init__(self, server):
        self.server = server
        self.client = server.client()
        self.bucket = f"lake-{next(_NUMBERS)}"
        self.client.create_bucket(Bucket=self.bucket)

    def objects(self):
        """Give content by key."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {one["Key"]: self.read(one["Key"]) for one in listed}

    def read(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def table(self):
        """Give the rows of all Parquet objects, in the order of their keys."""
        tables = [pq.read_table(io.BytesIO(body)) for _, body in sorted(self.objects().items())]
        return pa.concat_tables(tables)

    def uploads(self):
        return self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])


@pytest.fixture
def lake(s3_server, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.connection)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Lake(s3_server)


@pytest.fixture
def stem(stem_simulator, monkeypatch):
    """The simulator, as the connection ``stem_default``."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    return stem_simulator


def instant(text):
    return datetime.fromisoformat(text)


class Event(SimpleNamespace):
    """What Airflow hands out for an outlet's event."""

    def __init__(self):
        super().__init__(extra={}, added=[], partition_keys=set())

    def add(self, asset, extra):
        self.added.append((asset, extra))

    def add_partitions(self, key):
        self.partition_keys.add(key)


class Events(dict):
    def __missing__(self, key):
        self[key] = Event()
        return self[key]


def run_context(start=None, end=None, **more):
    """Give the context of a run with a data interval, or without."""
    context = {
        "outlet_events": Events(),
        "dag_run": SimpleNamespace(run_after=None),
        "ti": SimpleNamespace(map_index=-1),
        **more,
    }
    if start is not None:
        context["data_interval_start"] = instant(start)
        context["data_interval_end"] = instant(end)
    return context


def expected_rows(sim, sites, types, resolution, start, end):
    """Give the rows of a wall time [start, end) straight from the simulator's own values."""
    first = int(instant(start).timestamp()) // resolution * resolution + resolution
    last = int(instant(end).timestamp()) // resolution * resolution
    rows = []
    for site_id in sorted(sites):
        for stream_type in sorted(types):
            if stream_type not in sim.fleet.site(site_id).stream_start_times:
                continue
            shown = sim.fleet.shown(site_id, stream_type, resolution, first, last, instant("2100-01-01T00:00Z"))
            rows += [
                (site_id, stream_type, resolution, int(k) - resolution, int(k), None if null else float(v))
                for k, v, null in zip(shown.ends, shown.values, shown.nulls, strict=True)
            ]
    return rows


def landed_rows(table):
    """Give a table's rows in the form of :func:`expected_rows`."""
    seconds = [table[name].cast(pa.timestamp("s", "UTC")).cast(pa.int64()) for name in ("interval_start", "interval_end")]
    columns = [table["site_id"], table["stream_type"], table["resolution"], *seconds, table["kw_total_avg"]]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))
