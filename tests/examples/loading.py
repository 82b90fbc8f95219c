"""The two DAGs that load a fleet, run task by task on the simulator and the S3 server."""

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

from tests.support import expected_rows, landed_rows, run_context

ROOT = Path(__file__).parents[2]
TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
START = date(2023, 3, 3)
# Their streams begin within the year before, in the middle of months and of intervals, some after the daily load.
DAYS = ("start", "end")
SITES = ["site-00047", "site-00126", "site-00190"]
LATE = "site-00079"
_DAY = timedelta(days=1)


class Loading:
    """
    The example DAGs, and a fleet whose list of sites can be changed.

    :param sim: a simulator of 200 sites or more, of which only :attr:`listed` are listed.
    """

    def __init__(self, sim, lake, monkeypatch):
        self.sim = sim
        self.lake = lake
        self.listed = list(SITES)
        sim.rewrite = self._rewrite
        for name, value in {"BUCKET": lake.bucket, "START": START.isoformat(), "BATCHES": "1"}.items():
            monkeypatch.setenv(f"STEM_{name}", value)
        self.daily, self.history = load("stem_daily"), load("stem_history")

    def _rewrite(self, _, payload):
        if isinstance(payload, dict) and "sites" in payload:
            payload["sites"] = [site for site in payload["sites"] or () if site["id"] in self.listed]
            payload.pop("total", None)  # of sites that are not listed here
        return payload

    def begin_day(self, day, run_type="scheduled"):
        """Run the tasks of a daily run up to those that read; return what these read."""
        context = context_of(day, run_type)
        due = datetime.fromisoformat(f"{day + _DAY}T01:00:00+00:00")
        self.sim.now = max(due, self.sim.now or due)
        tasks = self.daily.dag
        days = tasks.get_task("find_days").python_callable(**context)
        return [{**batch, **days} for batch in tasks.get_task("list_sites").execute(context)]

    def land(self, module, piece):
        """Run one of the mapped tasks."""
        mapped = {name: value for name, value in piece.items() if name not in DAYS or module is self.history}
        task = module.dag.get_task("land_streams").unmap(mapped)
        for name in DAYS:
            setattr(task, name, piece[name])
        return task.execute(run_context())

    def enter(self, module, pieces, receipts):
        """Run the last tasks; return the extra of the run's event."""
        context = run_context()
        module.dag.get_task("enter").python_callable(pieces, receipts, **context)
        return context["outlet_events"][self.daily.TELEMETRY if module is self.daily else self.history.HISTORY].extra

    def run_day(self, day, run_type="scheduled"):
        """Run all of a daily run; return its event's extra."""
        pieces = self.begin_day(day, run_type)
        return self.enter(self.daily, pieces, [self.land(self.daily, piece) for piece in pieces])

    def lacking(self):
        """Run the history's tasks up to those that read; return what these are mapped over."""
        tasks = self.history.dag
        return tasks.get_task("find_history").python_callable(tasks.get_task("list_sites").execute(run_context()))

    def run_history(self):
        """Run the history as often as its events start it; return the events' extras."""
        extras = []
        while pieces := self.lacking():
            extras.append(self.enter(self.history, pieces, [self.land(self.history, piece) for piece in pieces]))
        return extras

    def asked(self):
        """Count the requests for streams since the last look."""
        count = sum(request.path.endswith("/streams") for request in self.sim.requests)
        self.sim.reset_requests()
        return count

    def rows(self, prefix="stem/"):
        """Give every row that a reader of the lake finds."""
        tables = [
            pq.read_table(io.BytesIO(self.lake.read(key))) for key in self.keys(prefix) if key.endswith(".parquet")
        ]
        return landed_rows(pa.concat_tables(tables))

    def keys(self, prefix):
        pages = self.lake.client.get_paginator("list_objects_v2").paginate(Bucket=self.lake.bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def check(self, end, sites=None, start=date(2022, 1, 1)):
        """Hold the lake against what the simulator has up to the end of a day: every row once, and no other."""
        expected = expected_rows(
            self.sim, sites or self.listed, TYPES, 900, f"{start}T00:00:00+00:00", f"{end + _DAY}T00:00:00+00:00"
        )
        found = Counter(self.rows())
        assert [row for row, times in found.items() if times > 1] == []
        assert found.keys() == set(expected)
        return len(expected)


def context_of(day, run_type="scheduled"):
    # Airflow's are pendulum's, whose arithmetic is not that of Python's.
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
