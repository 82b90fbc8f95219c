"""The example DAGs that load an Iceberg table and maintain it: task by task over days, and run by Airflow."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow.compute as pc
import pytest

from airflow_provider_stem.iceberg.catalogs import catalog_from
from airflow_provider_stem.iceberg.changes import changes
from tests.examples.loading import ROOT, START, TYPES, load, loading
from tests.examples.test_warehouse import RUN
from tests.servers.airflow_server import AirflowServer
from tests.support import Lake, expected_rows, landed_rows, run_context

__all__ = ["loading"]

pytestmark = [pytest.mark.s3]
DAY = timedelta(days=1)


class Table:
    """The table ``stem.streams`` of the connection ``stem_iceberg``, and the example DAG that loads into it."""

    def __init__(self):
        self.example = load("stem_to_iceberg")
        self.tasks = self.example.dag

    def load(self, *extras):
        """Run the tasks as for one run that was triggered by these events, and return the counts of each load."""
        events = [SimpleNamespace(extra=extra) for extra in extras]
        context = run_context(triggering_asset_events={"asset": events}, run_id="a-run")
        loads = self.tasks.get_task("split_into_loads").python_callable(**context)
        task = self.tasks.get_task("load_streams")
        return [task.unmap({"objects": objects}).execute(context) for objects in loads]

    def open(self):
        return catalog_from("stem_iceberg", "aws_default").load_table("stem.streams")

    def rows(self, snapshot_id=None):
        return sorted(landed_rows(self.open().scan(snapshot_id=snapshot_id).to_arrow()), key=lambda row: row[:5])


@pytest.fixture
def table(catalog, loading):
    return Table()


def rows_of(loading):
    return sorted(loading.rows(), key=lambda row: row[:5])


# The last two hours of a day are available after its run, and values are provisional for two days.
@pytest.mark.stem_simulator(sites=200, settle=2 * 3600, restate=2 * 86_400)
def test_each_run_is_one_commit_with_the_late_and_restated_values_of_the_lake(loading, table):
    seen: list[tuple[int, list[tuple[object, ...]]]] = []
    for number in range(4):
        extra = loading.run_day(START + number * DAY)
        [counts] = table.load(extra)
        after = rows_of(loading)
        assert counts["rows"] == extra["rows"]
        assert table.rows() == after
        assert len(table.open().snapshots()) == number + 1
        [again] = table.load(extra)
        assert (again["unchanged"], again["snapshot_id"]) == (counts["rows"], counts["snapshot_id"])
        seen.append((counts["snapshot_id"], after))
    for snapshot_id, rows in seen:
        assert table.rows(snapshot_id) == rows
    first, last = ({row[:5]: row[5] for row in rows} for _, rows in (seen[0], seen[-1]))
    restated = changes(table.open(), seen[0][0]).filter(pc.field("kind") == "changed")
    assert 0 < sum(last[key] != value for key, value in first.items()) <= restated.num_rows
    assert {*restated["dag_id"].to_pylist()} == {"stem_to_iceberg"}


@pytest.mark.stem_simulator(sites=200)
def test_the_history_is_loaded_in_commits_of_limited_size(loading, table, monkeypatch):
    extras = [loading.run_day(START + number * DAY) for number in range(3)]
    extras += loading.run_history()
    monkeypatch.setattr(table.example, "MAX_ROWS", max(one["rows"] for extra in extras for one in extra["objects"]))
    counts = table.load(*extras)
    assert len(table.open().snapshots()) == len(counts) > 2
    assert all(one["rows"] <= table.example.MAX_ROWS for one in counts)
    assert table.rows() == rows_of(loading)


@pytest.mark.airflow
def test_airflow_loads_what_a_day_has_landed_and_maintains_the_table(
    catalog, s3_server, stem_simulator_factory, tmp_path
):
    sim = stem_simulator_factory(sites=4, clients=1)
    lake = Lake(s3_server)
    dags = tmp_path / "dags"
    dags.mkdir()
    for name in ("stem_daily", "stem_to_iceberg"):
        (dags / f"{name}.py").symlink_to(ROOT / "example_dags" / f"{name}.py")
    yesterday = datetime.now(UTC).date() - DAY
    environment = {
        "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
        "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
        "AIRFLOW_CONN_STEM_ICEBERG": os.environ["AIRFLOW_CONN_STEM_ICEBERG"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "STEM_LAKE": f"s3://{lake.bucket}/stem",
        "STEM_START": yesterday.isoformat(),
        "STEM_BATCHES": "3",
        "STEM_POOL": "default_pool",
    }
    with AirflowServer(tmp_path / "airflow", dags, environment=environment) as airflow:
        airflow.wait_for_dags("stem_daily", "stem_to_iceberg")

        def first_run():
            runs = airflow.runs("stem_to_iceberg")
            return runs and runs[0]["state"] in ("success", "failed") and runs[0]

        run = airflow.wait_until(first_run, "a run of stem_to_iceberg")
        assert run["state"] == "success"
        [counts] = [airflow.xcom("stem_to_iceberg", run["dag_run_id"], "load_streams", map_index=0)]
    table = Table()
    expected = expected_rows(sim, sim.fleet.site_ids, TYPES, 900, f"{yesterday}T00:00Z", f"{yesterday + DAY}T00:00Z")
    assert table.rows(counts["snapshot_id"]) == sorted(expected, key=lambda row: row[:5])
    assert counts["inserted"] == len(expected) > 0

    rows = table.rows()
    dag = ROOT / "example_dags" / "stem_iceberg_maintenance.py"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(dag), ""],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path / "maintenance"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dag.parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "Maintained stem.streams: 0 compacted files" in done.stdout + done.stderr
    assert table.rows() == rows
