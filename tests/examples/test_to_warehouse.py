from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace

import duckdb
import pytest

from tests.examples.loading import START, load, loading
from tests.support import run_context

__all__ = ["loading"]

pytestmark = [pytest.mark.s3]
DAY = timedelta(days=1)
ROWS = (
    "SELECT site_id, stream_type, resolution, CAST(epoch(interval_start) AS BIGINT), "
    "CAST(epoch(interval_end) AS BIGINT), kw_total_avg FROM stem.streams"
)


class Warehouse:
    """A DuckDB file, and the example DAG that loads into it."""

    def __init__(self, path):
        self.path = path
        self.example = load("stem_to_warehouse")
        self.tasks = self.example.dag

    def load(self, *extras):
        """Run the tasks as for one run that was triggered by these events, and return the sum of the loads' counts."""
        events = [SimpleNamespace(extra=extra) for extra in extras]
        context = run_context(triggering_asset_events={"asset": events}, run_id="a-run")
        total: dict[str, int] = {}
        for objects in self.tasks.get_task("split_into_loads").python_callable(**context):
            for name, count in self.tasks.get_task("load_streams").unmap({"objects": objects}).execute(context).items():
                total[name] = total.get(name, 0) + count
        return total

    def query(self, sql):
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def values(self):
        """Return the values by key, and check that keys are unique."""
        rows = self.query(ROWS)
        found = {row[:5]: row[5] for row in rows}
        assert len(found) == len(rows)
        return found


@pytest.fixture
def warehouse(loading, tmp_path, monkeypatch):
    path = tmp_path / "telemetry.duckdb"
    monkeypatch.setenv("AIRFLOW_CONN_STEM_WAREHOUSE", json.dumps({"conn_type": "duckdb", "host": str(path)}))
    return Warehouse(path)


def values_of(loading):
    return {row[:5]: row[5] for row in loading.rows()}


def changes(before, after):
    """Return the expected counts of a load, from the rows of the lake before and after."""
    assert before.keys() <= after.keys()
    return {
        "inserted": len(after) - len(before),
        "changed": sum(after[key] != value for key, value in before.items()),
    }


# The last two hours of a day are available after its run, and values are provisional for two days.
@pytest.mark.stem_simulator(sites=200, settle=2 * 3600, restate=2 * 86_400)
def test_late_and_restated_values_of_the_lake_reach_the_warehouse_and_are_counted(loading, warehouse):
    before: dict[tuple[object, ...], float | None] = {}
    seen = {"inserted": 0, "changed": 0}
    for number in range(5):
        extra = loading.run_day(START + number * DAY)
        after = values_of(loading)
        expected = changes(before, after)
        counts = warehouse.load(extra)
        assert {name: counts[name] for name in expected} == expected
        assert counts["rows"] == extra["rows"] == sum(expected.values()) + counts["unchanged"]
        assert (counts["replaced"], counts["absent"]) == (0, 0)
        assert warehouse.values() == after

        again = warehouse.load(extra)
        assert again == {**counts, "inserted": 0, "changed": 0, "unchanged": counts["rows"]}
        before = after
        seen = {name: seen[name] + count for name, count in expected.items()}
    assert min(seen.values()) > 0
    assert warehouse.query("SELECT sum(inserted), sum(changed) FROM stem.loads") == [(*seen.values(),)]


@pytest.mark.stem_simulator(sites=200, settle=2 * 3600, restate=2 * 86_400)
def test_a_warehouse_that_was_down_for_days_can_load_events_separately_or_together(loading, warehouse):
    extras = [loading.run_day(START + number * DAY) for number in range(4)]
    first = warehouse.load(extras[0])
    assert first["replaced"] == first["objects"] == 1  # its last two hours have been added since
    for extra in extras[1:]:
        warehouse.load(extra)
    assert warehouse.values() == values_of(loading)
    counts = warehouse.load(*extras)
    assert (counts["inserted"], counts["changed"], counts["objects"]) == (0, 0, 4)


@pytest.mark.stem_simulator(sites=200)
def test_the_history_is_loaded_in_loads_of_limited_size(loading, warehouse, monkeypatch):
    extras = [loading.run_day(START + number * DAY) for number in range(3)]
    history = loading.run_history()
    extras += history
    most = max(one["rows"] for extra in extras for one in extra["objects"])
    split = warehouse.tasks.get_task("split_into_loads").python_callable
    monkeypatch.setattr(warehouse.example, "MAX_ROWS", most)
    loads = split(triggering_asset_events={"asset": [SimpleNamespace(extra=extra) for extra in extras]})
    assert len(loads) > 2
    assert all(sum(one["rows"] for one in load) <= most for load in loads)

    assert len(history) > 1
    assert warehouse.load(*extras)["inserted"] == len(loading.rows()) > len(loading.rows("stem/daily/"))
    assert warehouse.values() == values_of(loading)
