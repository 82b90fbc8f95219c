"""The two DAGs that load a fleet, executed task by task against the simulator and the S3 server."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pendulum
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import OfMappedTasks, expected_rows, landed_rows, run_context

ROOT = Path(__file__).parents[2]
TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
START = date(2023, 3, 3)
# Their streams begin within the previous year, in the middle of months and of intervals, some after the daily load.
DAYS = ("start", "end")
SITES = ["site-00047", "site-00126", "site-00190"]
LATE = "site-00079"
_DAY = timedelta(days=1)


class Loading:
    """
    The example DAGs, and a fleet whose list of sites can be changed.

    :param sim: a simulator of 200 sites or more. Its API lists only those in :attr:`listed`.
    """

    def __init__(self, sim, lake, monkeypatch):
        self.sim = sim
        self.lake = lake
        self.listed = list(SITES)
        sim.rewrite = self._rewrite
        for name, value in {"LAKE": f"s3://{lake.bucket}/stem", "START": START.isoformat(), "BATCHES": "1"}.items():
            monkeypatch.setenv(f"STEM_{name}", value)
        self.daily, self.history = load("stem_daily"), load("stem_history")

    def _rewrite(self, _, payload):
        if isinstance(payload, dict) and "sites" in payload:
            payload["sites"] = [site for site in payload["sites"] or () if site["id"] in self.listed]
            payload.pop("total", None)  # it counts sites that are not listed
        return payload

    def begin_day(self, day, run_type="scheduled"):
        """Run the tasks of a daily run that come before `land_streams`, and return its arguments."""
        context = context_of(day, run_type)
        due = datetime.fromisoformat(f"{day + _DAY}T01:00:00+00:00")
        self.sim.now = max(due, self.sim.now or due)
        tasks = self.daily.dag
        days = tasks.get_task("find_days").python_callable(**context)
        return [{**batch, **days} for batch in tasks.get_task("list_sites").execute(context)]

    def land(self, module, piece):
        """Run one of the mapped tasks, and return its receipt."""
        mapped = {name: value for name, value in piece.items() if name not in DAYS or module is self.history}
        task = module.dag.get_task("land_streams").unmap(mapped)
        for name in DAYS:
            setattr(task, name, piece[name])
        return task.execute(run_context())

    def enter(self, module, pieces, receipts):
        """Run the task `enter`, and return the extra of its asset event."""
        context = run_context()
        module.dag.get_task("enter").python_callable(pieces, OfMappedTasks(receipts), **context)
        return context["outlet_events"][self.daily.TELEMETRY if module is self.daily else self.history.HISTORY].extra

    def run_day(self, day, run_type="scheduled"):
        """Run all tasks of a daily run, and return the extra of its asset event."""
        pieces = self.begin_day(day, run_type)
        return self.enter(self.daily, pieces, [self.land(self.daily, piece) for piece in pieces])

    def find_history(self):
        """Run the history's tasks that come before `land_streams`, and return its arguments."""
        tasks = self.history.dag
        return tasks.get_task("find_history").python_callable(tasks.get_task("list_sites").execute(run_context()))

    def run_history(self):
        """Run the history until its events start no more runs, and return the extras of the events."""
        extras = []
        while pieces := self.find_history():
            extras.append(self.enter(self.history, pieces, [self.land(self.history, piece) for piece in pieces]))
        return extras

    def count_requests(self):
        """Return the number of requests for streams since the last call."""
        count = sum(request.path.endswith("/streams") for request in self.sim.requests)
        self.sim.reset_requests()
        return count

    def rows(self, prefix="stem/"):
        """Return all rows of the Parquet objects below a prefix."""
        tables = [
            pq.read_table(io.BytesIO(self.lake.read(key))) for key in self.keys(prefix) if key.endswith(".parquet")
        ]
        return landed_rows(pa.concat_tables(tables))

    def keys(self, prefix):
        pages = self.lake.client.get_paginator("list_objects_v2").paginate(Bucket=self.lake.bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def check(self, end, sites=None, start=date(2022, 1, 1)):
        """Check that the lake has exactly the simulator's rows until the end of a day, each once; return the number."""
        expected = expected_rows(
            self.sim, sites or self.listed, TYPES, 900, f"{start}T00:00:00+00:00", f"{end + _DAY}T00:00:00+00:00"
        )
        found = Counter(self.rows())
        assert [row for row, times in found.items() if times > 1] == []
        assert found.keys() == set(expected)
        return len(expected)


def context_of(day, run_type="scheduled"):
    # Airflow passes pendulum datetimes, whose arithmetic differs from Python's.
    start, end = (pendulum.datetime(at.year, at.month, at.day) for at in (day, day + _DAY))
    dag_run = SimpleNamespace(run_after=None, run_type=run_type)
    return run_context(data_interval_start=start, data_interval_end=end, dag_run=dag_run)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "example_dags" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loading(stem, lake, monkeypatch):
    return Loading(stem, lake, monkeypatch)
