"""Helpers that run operators as tasks, and compute the rows that they must land."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from botocore.loaders import JSONFileLoader

from airflow_provider_stem.streams import stream_types
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.servers.processes import HUNG_AFTER

TALLIES_KEY = pytest.StashKey[dict[str, str]]()
RUNS_KEY = pytest.StashKey[list[str]]()
STREAM_TYPES = tuple(stream_types.STREAM_TYPES)
_NUMBERS = itertools.count(1)

IS_FULL = os.environ.get("TEST_DEPTH") == "full"
"""Whether to test all combinations and as many drawn examples as a test names, as ``.ci/run`` does."""
full_depth_only = pytest.mark.skipif(not IS_FULL, reason="takes many seconds of CPU; TEST_DEPTH=full runs it")


def at_most(number):
    """
    Return a number of drawn examples, limited to 50 unless the tests run at full depth.

    ``make test-mutation`` uses the same limit: no mutant that it kills needs more.
    """
    return number if IS_FULL else min(number, 50)


def read_botocore_files_once():
    """
    Share botocore's descriptions of services between all its sessions.

    Each task makes a session, and reading these files takes longer than most tasks.
    """
    load = cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda _, path: load(path)


def until(condition):
    """Wait until a condition is true."""
    deadline = time.monotonic() + HUNG_AFTER
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def time_out_soon(monkeypatch, chosen, arrived):
    """
    Time out chosen requests after 0.3 s, each once its server has received it; others keep the client's timeout.

    :param chosen: function of the server's port, the method and the target of a request.
    :param arrived: function of the server's port that returns how many requests it has received.
    """
    send = urllib3.HTTPConnectionPool.urlopen

    def urlopen(pool, method, url, *arguments, **options):
        if not chosen(pool.port, method, url):
            return send(pool, method, url, *arguments, **options)
        before = arrived(pool.port)
        try:
            return send(pool, method, url, *arguments, **{**options, "timeout": urllib3.Timeout(0.3)})
        finally:
            # On a busy machine the client may give up before the server has read the request.
            until(lambda: arrived(pool.port) > before)

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)


def printed_by(program, *arguments, **environment):
    """Run a Python program in a separate process, and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_AFTER,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def without_rows():
    """Return the bytes of an object in the landing schema without rows."""
    body = io.BytesIO()
    pq.write_table(LANDING_SCHEMA.empty_table(), body)
    return body.getvalue()


@cache
def _client(server):
    return server.client()


class Lake:
    """A bucket of the S3 server."""

    def __init__(self, server, bucket=None):
        self.server = server
        self.client = _client(server)
        self.bucket = bucket or f"lake-{os.getpid()}-{next(_NUMBERS)}"
        self.client.create_bucket(Bucket=self.bucket)

    def objects(self):
        """Return the content of each object by key."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {one["Key"]: self.read(one["Key"]) for one in listed}

    def read(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def table(self):
        """Return the rows of all Parquet objects, in the order of their keys."""
        tables = [pq.read_table(io.BytesIO(body)) for _, body in sorted(self.objects().items())]
        return pa.concat_tables(tables)

    def uploads(self):
        return self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])


def instant(text):
    return datetime.fromisoformat(text)


class Event(SimpleNamespace):
    """Airflow's accessor for the event of an outlet."""

    def __init__(self):
        super().__init__(extra={}, added=[], partition_keys=set())

    def add(self, asset, extra):
        self.added.append((asset, extra))

    def add_partitions(self, key):
        self.partition_keys.add(key)


class Events:
    """The event of each outlet, by name, because Airflow 3.0 cannot hash an asset."""

    def __init__(self):
        self._events = {}

    def __getitem__(self, outlet):
        return self._events.setdefault(getattr(outlet, "uri", None) or outlet.name, Event())


def run_context(start=None, end=None, **more):
    """Return the context of a run, with a data interval or without."""
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


class OfMappedTasks(Sequence[Any]):
    """What mapped tasks returned, as Airflow presents it; it logs an error for an item that does not exist."""

    def __init__(self, returned):
        self.returned = returned

    def __len__(self):
        return len(self.returned)

    def __getitem__(self, key):
        assert isinstance(key, slice) or key < len(self), "XCom not found"
        return self.returned[key]


def expected_rows(sim, sites, types, resolution, start, end):
    """Return the rows of a wall time [start, end) from the simulator's values."""
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


def expected_table(sim, sites, types, resolution, start, end):
    """Return the rows of :func:`expected_rows` as a table in the landing schema, for millions of rows."""
    first = int(instant(start).timestamp()) // resolution * resolution + resolution
    last = int(instant(end).timestamp()) // resolution * resolution
    view = sim.fleet.view(resolution, instant("2100-01-01T00:00Z").timestamp())
    ids, names, ends, values, nulls = [], [], [], [], []
    for site_id in sorted(sites):
        has = sorted(set(types) & set(sim.fleet.site(site_id).stream_start_times))
        for stream_type, shown in sim.fleet.rows(site_id, has, resolution, first, last, view).items() if has else ():
            ids.append(pa.repeat(site_id, len(shown.ends)))
            names.append(pa.repeat(stream_type, len(shown.ends)))
            ends.append(shown.ends)
            values.append(shown.values)
            nulls.append(shown.nulls)
    seconds = np.concatenate(ends)
    columns = [
        pa.chunked_array(ids),
        pa.chunked_array(names),
        pa.repeat(pa.scalar(resolution, pa.int32()), len(seconds)),
        *(pa.array(edge * 1_000_000).cast(pa.timestamp("us", "UTC")) for edge in (seconds - resolution, seconds)),
        pa.array(np.concatenate(values), pa.float64(), mask=np.concatenate(nulls)),
    ]
    return pa.table(columns, schema=LANDING_SCHEMA).combine_chunks()


def landed_rows(table):
    """Return a table's rows in the form of :func:`expected_rows`."""
    seconds = [
        table[name].cast(pa.timestamp("s", "UTC")).cast(pa.int64()) for name in ("interval_start", "interval_end")
    ]
    columns = [table["site_id"], table["stream_type"], table["resolution"], *seconds, table["kw_total_avg"]]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))
