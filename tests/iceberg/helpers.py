"""Loads of an in-memory bucket into a table of a real catalog, and a model of what the table must have."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pyarrow as pa

from airflow_provider_stem.iceberg.catalogs import catalog_from
from airflow_provider_stem.iceberg.loading import load_objects
from airflow_provider_stem.streams.records import read_objects
from tests.warehouse.helpers import Bucket

KEY = ("site_id", "stream_type", "resolution", "interval_end")

PROGRAM = """
import itertools, json, os, pickle, signal, sys, threading
from pyiceberg.catalog import load_catalog
from airflow_provider_stem.iceberg.loading import load_objects
from airflow_provider_stem.streams.records import read_objects
name, properties, table, receipts, path, last_call = json.loads(sys.argv[1])
with open(path, "rb") as file:
    bucket = pickle.load(file)
catalog = load_catalog(name, **properties)
print("ready", flush=True)
sys.stdin.readline()
calls = itertools.count()

def count(frame, event, argument):
    if event == "call" and next(calls) == last_call:
        os.kill(os.getpid(), signal.SIGKILL)

if last_call:
    threading.setprofile(count)
    sys.setprofile(count)
load = load_objects(read_objects(receipts), bucket.fetch, bucket.versions.get, catalog, table, buckets=4)
sys.setprofile(None)
print(json.dumps({**load.counts, "calls": next(calls)}))
"""


class Target:
    """
    A table in the catalog of the connection ``stem_iceberg``.

    :param name: namespace and table.
    :param bucket: the objects that are loaded.
    """

    def __init__(self, name="stem.streams", bucket=None):
        self.name = name
        self.bucket = bucket or Bucket()
        self.catalog = catalog_from("stem_iceberg", "aws_default")

    def load(self, *receipts, buckets=4, fetch=None, head=None):
        """Load receipts, and return the counts."""
        return load_objects(
            read_objects(receipts),
            fetch or self.bucket.fetch,
            head or self.bucket.versions.get,
            self.catalog,
            self.name,
            buckets=buckets,
            dag_id="dag",
            run_id="run",
        ).counts

    @property
    def table(self):
        return self.catalog.load_table(self.name)

    def rows(self, snapshot_id=None):
        """Return value, ``read_at`` and URI by key, and check that no key is there twice."""
        return by_key(self.table.scan(snapshot_id=snapshot_id).to_arrow())

    def values(self, snapshot_id=None):
        """Return the value by key."""
        return {key: value for key, (value, *_) in self.rows(snapshot_id).items()}

    def files(self):
        """Return the path and the number of rows of each live data file."""
        listed = self.table.inspect.files()
        return dict(zip(listed["file_path"].to_pylist(), listed["record_count"].to_pylist(), strict=True))

    def snapshots(self):
        return [snapshot.snapshot_id for snapshot in self.table.metadata.snapshots]

    def start(self, tmp_path, *receipts, last_call=None):
        """
        Start a load in a process of its own, which waits for a line on its standard input.

        :param last_call: kill it at this call of a Python function.
        """
        path = tmp_path / f"bucket-{len(list(tmp_path.iterdir()))}.pickle"
        path.write_bytes(pickle.dumps(self.bucket))
        argument = json.dumps([self.catalog.name, self.catalog.properties, self.name, receipts, str(path), last_call])
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, argument],
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def race(*processes):
    """Let processes load at the same time, and return their counts."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1][-3000:]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate() for process in processes]
    for process, (_, log) in zip(processes, results, strict=True):
        assert process.returncode == 0, log[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in results]


def by_key(table: pa.Table):
    rows = {}
    for row in table.to_pylist():
        key = tuple(row[name] for name in KEY)
        assert key not in rows, f"{key} is in the table twice"
        rows[key] = row["kw_total_avg"], row["read_at"], row["uri"]
    return rows
