"""Maintenance of a table: no row changes, kept snapshots stay readable, and nothing unused stays in the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pyiceberg.types import StringType

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.iceberg import files, maintenance
from airflow_provider_stem.iceberg.changes import changes
from airflow_provider_stem.iceberg.maintenance import compact, expire_snapshots, remove_unused_files
from airflow_provider_stem.iceberg.operators import StemIcebergMaintenanceOperator
from tests.iceberg.helpers import Target
from tests.servers.catalogs import CATALOGS, HAS_SQL
from tests.servers.processes import HUNG_AFTER
from tests.support import IS_FULL, full_depth_only

pytestmark = pytest.mark.s3

SITES = ("site-a", "site-b", "site-c")
LATER = datetime.now(UTC) + timedelta(days=1)
"""After anything that a test writes."""


def land(bucket, hour, *, kw=1.0, name=None):
    """Land one hour of all sites, and return the receipt."""
    values = {(site, "MONITOR"): [kw, kw + 1, None, -kw] for site in SITES}
    return bucket.land(name or f"hour-{hour:02}", values, f"01T{hour:02}:00", f"01T{hour + 1:02}:00")


@pytest.fixture
def target(catalog):
    """A table of six hours, each loaded by a run of its own, the first one restated."""
    target = Target()
    for hour in range(6):
        target.load(land(target.bucket, hour))
    target.load(land(target.bucket, 0, kw=5.0))
    return target


def stored(lake, table):
    """Return the keys of all objects in the folder of a table."""
    place = urlsplit(table.location())
    pages = lake.client.get_paginator("list_objects_v2").paginate(
        Bucket=place.netloc, Prefix=f"{place.path.strip('/')}/"
    )
    keys = {one["Key"] for page in pages for one in page.get("Contents", [])}
    return {key for key in keys if not key.endswith("/")}


def all_rows(target):
    """Return the rows of each snapshot."""
    return {one: target.rows(one) for one in target.snapshots()}


def maintain(target, keep=2):
    """Run all steps with no age at all, but for the newest snapshots."""
    table = target.table
    counts = compact(table, LATER, {"stem.run-id": "weekly"})
    return {**counts, "expired": expire_snapshots(table, LATER, keep), **remove_unused_files(table, LATER)}


@pytest.mark.parametrize("catalog", CATALOGS if IS_FULL else ["sqlite" if HAS_SQL else "rest"], indirect=True)
def test_all_steps_keep_the_rows_and_the_kept_snapshots_and_remove_the_rest(target, lake):
    rows, before = target.rows(), all_rows(target)
    counts = maintain(target)
    assert target.rows() == rows
    kept = target.snapshots()
    assert len(kept) == 2
    assert counts["expired"] == len(before) + 1 - 2
    assert all_rows(target) == {kept[0]: before[kept[0]], kept[1]: rows}
    for snapshot in before.keys() - {*kept}:
        with pytest.raises(ValueError, match=f"Snapshot not found: {snapshot}"):
            target.rows(snapshot)
    assert counts["removed_files"] > 0
    table = target.table
    used = {urlsplit(one.file_path).path.strip("/") for one in live_in(table, kept)}
    assert {key for key in stored(lake, table) if key.endswith(".parquet")} == used
    # The log of changes reaches back to the oldest snapshot, and a compaction is no change.
    assert changes(table, kept[0]).num_rows == 0
    assert maintain(target) == {
        "compacted_files": 0, "written_files": 0, "expired": 0, "removed_files": 0, "removed_bytes": 0,
    }  # fmt: skip
    assert target.load(land(target.bucket, 7))["inserted"] == 12


def live_in(table, snapshots):
    return {task.file for one in snapshots for task in table.scan(snapshot_id=one).plan_files()}


def test_small_files_of_a_partition_become_one_sorted_file_in_one_commit(target):
    before, snapshots, rows = target.files(), target.snapshots(), target.table.scan().to_arrow()
    partitions = {path.rpartition("/")[0] for path in before}
    assert len(before) > len(partitions)
    counts = compact(target.table, LATER, {"stem.run-id": "weekly"})
    after = target.files()
    assert len(after) == len(partitions)
    assert counts == {"compacted_files": len(before), "written_files": len(after)}
    assert target.snapshots()[:-1] == snapshots
    assert target.table.current_snapshot().summary["stem.run-id"] == "weekly"
    for task in target.table.scan().plan_files():
        with target.table.io.new_input(task.file.file_path).open() as file:
            found = pq.read_table(file)
        order = [(name, "ascending") for name in ("site_id", "stream_type", "interval_end")]
        assert found.equals(found.sort_by(order))
    key = [(name, "ascending") for name in rows.column_names]
    assert target.table.scan().to_arrow().sort_by(key).equals(rows.sort_by(key))


def test_recent_and_large_files_and_those_of_other_specs_are_not_compacted(target, monkeypatch):
    first_end = datetime(2025, 7, 1, 1, tzinfo=UTC)
    assert compact(target.table, first_end, {})["compacted_files"] == 0
    with monkeypatch.context() as changed:
        changed.setattr(maintenance, "_SMALL_BYTES", 1)
        assert compact(target.table, LATER, {})["compacted_files"] == 0
    with target.table.update_spec() as update:
        update.remove_field("site_id_bucket")
    assert compact(target.table, LATER, {})["compacted_files"] == 0


def test_a_compacted_file_has_a_limited_size(target, monkeypatch):
    sizes = [task.file.file_size_in_bytes for task in target.table.scan().plan_files()]
    monkeypatch.setattr(maintenance, "_TARGET_BYTES", 2 * max(sizes))
    rows = target.rows()
    counts = compact(target.table, LATER, {})
    assert 1 < counts["written_files"] < counts["compacted_files"] <= len(sizes)
    assert target.rows() == rows


def test_columns_that_others_added_stay(target):
    with target.table.update_schema() as update:
        update.add_column("note", StringType())
    rows = target.rows()
    assert compact(target.table, LATER, {})["compacted_files"] > 0
    assert target.rows() == rows
    assert "note" in target.table.scan().to_arrow().column_names


def test_a_key_that_is_there_twice_is_not_compacted(target):
    table = target.table
    table.append(table.scan().to_arrow())
    snapshots = target.snapshots()
    with pytest.raises(StemDataError, match="The table holds .* Find the program that writes it"):
        compact(target.table, LATER, {})
    assert target.snapshots() == snapshots


def test_a_commit_of_another_task_makes_the_compaction_plan_again(target, monkeypatch):
    write = maintenance._together
    receipts = iter([land(target.bucket, 0, kw=9.0), land(target.bucket, 8)])

    def write_after_a_load(table, group):
        if receipt := next(receipts, None):
            target.load(receipt)
        return write(table, group)

    monkeypatch.setattr(maintenance, "_together", write_after_a_load)
    assert compact(target.table, LATER, {})["compacted_files"] > 0
    values = {key[3].hour: value for key, value in target.values().items() if key[3].minute == 15}
    assert values == {0: 9.0, **dict.fromkeys(range(1, 6), 1.0), 8: 1.0}


def test_two_maintenance_tasks_at_the_same_time_keep_each_row(target, monkeypatch):
    """The second one removes the files that the first one reads."""
    rows = target.rows()
    others: list[Any] = []
    read = files.DataFiles.read

    def read_late(data, task):
        if not others:
            others.append("compaction reads, too")
            others.append(maintain(target, keep=1))
        return read(data, task)

    monkeypatch.setattr(files.DataFiles, "read", read_late)
    assert compact(target.table, LATER, {}) == {"compacted_files": 0, "written_files": 0}
    assert others[1]["compacted_files"] > 0
    assert others[1]["removed_files"] > 0
    assert target.rows() == rows


def test_a_commit_of_another_task_makes_the_removal_of_snapshots_plan_again(target):
    table = target.table
    kept = target.snapshots()[-1]
    target.load(land(target.bucket, 9))
    assert expire_snapshots(table, LATER, 2) == 6
    assert target.snapshots()[0] == kept
    assert len(target.snapshots()) == 2


def test_the_age_the_number_and_tags_decide_which_snapshots_are_kept(target):
    snapshots = target.snapshots()
    target.table.manage_snapshots().create_tag(snapshots[1], "billed").commit()
    third = target.table.snapshot_by_id(snapshots[3])
    assert expire_snapshots(target.table, datetime.fromtimestamp(third.timestamp_ms / 1000, UTC), 1) == 2
    assert target.snapshots() == [snapshots[1], *snapshots[3:]]
    assert expire_snapshots(target.table, LATER, 1) == 3
    assert target.snapshots() == [snapshots[1], snapshots[-1]]
    remove_unused_files(target.table, LATER)
    assert len(target.rows(snapshots[1])) == 2 * 4 * len(SITES)


# SeaweedFS accepts no other files in the folders of its REST catalog.
@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
def test_only_old_files_that_iceberg_wrote_are_removed(target, lake):
    table = target.table
    location = urlsplit(table.location())
    folder = location.path.strip("/")
    unused = {f"{folder}/data/x/a.parquet", f"{folder}/metadata/b-m0.avro", f"{folder}/metadata/c.metadata.json"}
    other = {f"{folder}/data/notes.txt", f"{folder}/metadata/version-hint.text", f"{folder}/another.parquet"}
    for key in unused | other:
        lake.client.put_object(Bucket=location.netloc, Key=key, Body=b"x")
    before = stored(lake, table)
    young = datetime.now(UTC) - timedelta(hours=1)
    assert remove_unused_files(table, young) == {"removed_files": 0, "removed_bytes": 0}
    counts = remove_unused_files(table, LATER)
    assert before - stored(lake, table) >= unused
    assert stored(lake, table) >= other
    assert counts["removed_files"] == len(before - stored(lake, table))


def test_nothing_is_removed_if_the_store_lacks_a_file_of_the_table(target, lake):
    table = target.table
    place = urlsplit(min(target.files()))
    lake.client.delete_object(Bucket=place.netloc, Key=place.path.strip("/"))
    expire_snapshots(table, LATER, 1)
    before = stored(lake, table)
    with pytest.raises(
        StemConfigError, match="The store lacks 1 files that the table refers to, so nothing was deleted"
    ):
        remove_unused_files(table, LATER)
    assert stored(lake, table) == before


LOADED = (2, 8, 9, 10)  # hours, of which the table has the first already


@full_depth_only
def test_loads_and_maintenance_at_the_same_time_keep_each_row(target, tmp_path):
    old = datetime.now(UTC) - timedelta(days=1)  # files of running loads are younger
    receipts = [land(target.bucket, hour, kw=float(hour)) for hour in LOADED]
    loads = [target.start(tmp_path, receipt) for receipt in receipts]
    table = target.table
    for load in loads:
        assert load.stdout.readline() == "ready\n"
        load.stdin.write("go\n")
        load.stdin.flush()
    while any(load.poll() is None for load in loads):
        table.refresh()
        compact(table, LATER, {})
        expire_snapshots(table, LATER, 2)
        remove_unused_files(table, old)
    assert [json.loads(load.communicate()[0].splitlines()[-1])["rows"] for load in loads] == [12] * len(LOADED)
    values = {key[3].hour: value for key, value in target.values().items() if key[3].minute == 15}
    before = {0: 5.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
    assert values == before | {hour: float(hour) for hour in LOADED}


KILLED = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from airflow_provider_stem.iceberg import maintenance
from airflow_provider_stem.iceberg.catalogs import catalog_from
left = int(sys.argv[1])
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
catalog = catalog_from("stem_iceberg", "aws_default")
table = catalog.load_table("stem.streams")
PyArrowFile.create = counted(PyArrowFile.create)
type(catalog).commit_table = counted(type(catalog).commit_table)
maintenance._path = counted(maintenance._path)
maintenance._file_system = counted(maintenance._file_system)
later = datetime.now(UTC) + timedelta(days=1)
maintenance.compact(table, later, {})
maintenance.expire_snapshots(table, later, 2)
maintenance.remove_unused_files(table, later)
print("done")
"""


@full_depth_only
@pytest.mark.parametrize("steps", range(1, 61, 12))
def test_maintenance_that_is_killed_is_completed_by_the_next_one(target, lake, steps):
    rows = target.rows()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(steps)], env=os.environ, capture_output=True, timeout=HUNG_AFTER, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert target.rows() == rows
    maintain(target)
    assert target.rows() == rows
    table = target.table
    used = {urlsplit(one.file_path).path.strip("/") for one in live_in(table, target.snapshots())}
    assert {key for key in stored(lake, table) if key.endswith(".parquet")} == used


def operator(**arguments):
    return StemIcebergMaintenanceOperator(task_id="maintain", **arguments)


def test_the_operator_runs_the_steps_and_returns_the_counts(target):
    rows = target.rows()
    moment = timedelta(microseconds=1)
    counts = operator(compact_after=moment, expire_after=moment, keep_snapshots=1).execute({"run_id": "r1"})
    assert target.rows() == rows
    assert counts == {
        "compacted_files": counts["compacted_files"],
        "written_files": len(target.files()),
        "expired_snapshots": 7,
        "removed_files": 0,
        "removed_bytes": 0,
        "snapshot_id": target.snapshots()[0],
    }
    assert json.loads(json.dumps(counts)) == counts
    nothing = operator(compact_after=None, expire_after=None, remove_after=None)
    assert nothing.execute({}) == {"snapshot_id": target.snapshots()[0]}


def test_a_missing_table_fails_at_once(catalog):
    with pytest.raises(AirflowFailException, match="Invalid table 'stem.stream': the catalog of 'stem_iceberg' has no"):
        operator(table="stem.stream").execute({})


def test_a_table_of_others_fails_at_once(target):
    with target.table.update_schema() as update:
        update.delete_column("uri")
    snapshots = target.snapshots()
    with pytest.raises(AirflowFailException, match="Invalid table 'stem.streams': it has no column 'uri'"):
        operator().execute({})
    assert target.snapshots() == snapshots


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"remove_after": timedelta(hours=23)}, "remove_after must be 1 day or more, got .* a running load could lose"),
        ({"remove_after": 3}, "remove_after must be a timedelta above zero"),
        ({"compact_after": timedelta(0)}, "compact_after must be a timedelta above zero"),
        ({"expire_after": "30d"}, "expire_after must be a timedelta above zero"),
        ({"keep_snapshots": 0}, "keep_snapshots must be an integer >= 1, got 0"),
        ({"table": "streams"}, "table must be the name of a table with its namespace"),
        ({"catalog_conn_id": ""}, "catalog_conn_id must be the id of a connection"),
    ],
)
def test_a_wrong_argument_is_an_error_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(StemConfigError, match=message):
        operator(**arguments)
