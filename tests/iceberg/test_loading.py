"""Loads into an Iceberg table: one commit, files, old snapshots, conflicts, and tables that others have changed."""

from __future__ import annotations

import resource
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan
from pyiceberg.transforms import BucketTransform, IdentityTransform, MonthTransform
from pyiceberg.types import (
    DoubleType,
    FloatType,
    IntegerType,
    ListType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
)

from airflow_provider_stem._disk import WorkerError
from airflow_provider_stem.errors import StemConfigError, StemDataError, StemTransportError
from airflow_provider_stem.iceberg import commits, files, loading
from airflow_provider_stem.iceberg.catalogs import catalog_errors
from airflow_provider_stem.iceberg.maintenance import compact, expire_snapshots, remove_unused_files
from airflow_provider_stem.iceberg.tables import COLUMNS
from tests.servers.catalogs import CATALOGS, SOME_CATALOGS
from tests.warehouse.helpers import at

from .helpers import KEY, Target

pytestmark = pytest.mark.s3

DAY = "01T00:00", "02T00:00"


@pytest.fixture
def target(catalog):
    return Target()


def land(target, name, values, sites=("site-a",), period=DAY):
    return target.bucket.land(name, {(site, "MONITOR"): values for site in sites}, *period)


def counts_of(counts, *names):
    return tuple(counts[name] for name in names)


def end(number):
    return at("01T00:00") + timedelta(minutes=15 * number)


# --- what a load does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("catalog", CATALOGS, indirect=True)
def test_a_load_inserts_changes_and_leaves_rows_in_one_commit(target):
    first = land(target, "x", [1.0, None, 3.0])
    assert target.load(first) == {
        "objects": 1,
        "replaced": 0,
        "rows": 3,
        "added_files": 1,
        "removed_files": 0,
        "inserted": 3,
        "changed": 0,
        "unchanged": 0,
        "outdated": 0,
        "snapshot_id": target.snapshots()[0],
    }
    again = target.load(first)
    assert counts_of(again, "rows", "unchanged", "added_files", "snapshot_id") == (3, 3, 0, target.snapshots()[0])
    old = target.rows()
    second = land(target, "x", [1.0, 2.0, None, 4.0])
    restated = target.load(second)
    assert counts_of(restated, "inserted", "changed", "unchanged", "added_files", "removed_files") == (1, 2, 1, 1, 1)
    assert list(target.values().values()) == [1.0, 2.0, None, 4.0]
    [before, after] = target.table.metadata.snapshots
    assert (before.snapshot_id, after.snapshot_id) == (again["snapshot_id"], restated["snapshot_id"])
    assert target.rows(before.snapshot_id) == old
    found = after.summary.additional_properties
    assert {name: value for name, value in found.items() if name.startswith("stem.") and name != loading.LOAD_ID} == {
        "stem.dag-id": "dag",
        "stem.run-id": "run",
        "stem.window-start": "2025-07-01T00:00:00Z",
        "stem.window-end": "2025-07-02T00:00:00Z",
        "stem.inserted": "1",
        "stem.changed": "2",
        "stem.unchanged": "1",
        "stem.outdated": "0",
    }
    assert str(before.summary.operation) == "Operation.APPEND"
    assert str(after.summary.operation) == "Operation.OVERWRITE"
    # Also the rows of an object that the table has already are counted in the snapshot.
    counts = target.load(second, land(target, "other", [5.0], sites=["other"]))
    found = target.table.current_snapshot().summary.additional_properties
    assert (counts["inserted"], counts["unchanged"]) == (1, 4)
    assert (found["stem.inserted"], found["stem.unchanged"]) == ("1", "4")


def test_a_value_that_comes_back_is_a_new_file_and_old_snapshots_stay_readable(target):
    loads = [target.load(land(target, "x", [value])) for value in (1.0, 2.0, 1.0)]
    assert [list(target.values(one["snapshot_id"]).values()) for one in loads] == [[1.0], [2.0], [1.0]]
    paths = {
        path
        for one in loads
        for path in target.table.inspect.files(snapshot_id=one["snapshot_id"])["file_path"].to_pylist()
    }
    assert len(paths) == 3


def test_the_columns_are_the_landing_schemas_with_units_and_the_object(target):
    receipt = land(target, "x", [1.0])
    target.load(receipt)
    schema = target.table.schema()
    assert [field.name for field in schema.fields] == COLUMNS.names
    assert [field.name for field in schema.fields if not field.required] == ["kw_total_avg"]
    assert schema.identifier_field_names() == set(KEY)
    assert "unit: kW; sign: MONITOR: positive is import" in schema.find_field("kw_total_avg").doc
    [row] = target.table.scan().to_arrow().to_pylist()
    assert row == {
        "site_id": "site-a",
        "stream_type": "MONITOR",
        "resolution": 900,
        "interval_start": end(0),
        "interval_end": end(1),
        "kw_total_avg": 1.0,
        "read_at": at("03T00:00"),
        "uri": "s3://lake/x",
    }
    [field] = [one for one in target.table.spec().fields if one.name == "site_id_bucket"]
    assert field.transform == BucketTransform(4)


def test_only_files_of_the_restated_batch_are_touched(target):
    sites = [f"site-{number:02}" for number in range(40)]
    buckets = {site: BucketTransform(4).transform(StringType())(site) for site in sites}
    batches = [[site for site in sites if buckets[site] == bucket] for bucket in range(4)]
    receipts = [land(target, f"batch-{n}", [1.0] * 96, batch) for n, batch in enumerate(batches)]
    assert target.load(*receipts)["added_files"] == 4
    before = target.files()
    restated = land(target, "batch-2", [1.0] * 95 + [2.0], batches[2])
    counts = target.load(*receipts[:2], restated, receipts[3])
    assert counts_of(counts, "added_files", "removed_files", "changed") == (1, 1, len(batches[2]))
    after = target.files()
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1
    assert all("site_id_bucket=2/" in path for path in before.keys() ^ after.keys())


def test_objects_of_other_sites_in_the_same_bucket_keep_their_files(target):
    receipts = [land(target, name, [1.0] * 4, sites) for name, sites in [("x", ["a", "c"]), ("y", ["b", "d"])]]
    target.load(*receipts, buckets=1)
    before = target.files()
    assert len(before) == 2
    target.load(land(target, "x", [2.0] * 4, ["a", "c"]))
    assert len(before.keys() & target.files().keys()) == 1


def test_an_object_that_the_table_has_is_not_fetched_again(target):
    receipts = [land(target, name, [1.0] * 96, [name]) for name in "abcdef"]
    target.load(*receipts)
    heads = []

    def head(uri):
        heads.append(uri)
        return target.bucket.versions[uri]

    def fetch(*_):
        raise AssertionError("an object was fetched")

    counts = target.load(*receipts, fetch=fetch, head=head)
    assert counts_of(counts, "objects", "rows", "unchanged", "added_files") == (6, 576, 576, 0)
    assert sorted(heads) == sorted(target.bucket.versions)


def test_an_object_that_was_rewritten_since_its_receipt_is_loaded_as_it_is(target):
    receipt = land(target, "x", [1.0])
    target.load(receipt)
    land(target, "x", [2.0])
    counts = target.load(receipt)
    assert counts_of(counts, "replaced", "changed") == (1, 1)
    assert list(target.values().values()) == [2.0]


def test_an_object_without_rows_changes_nothing(target):
    counts = target.load(land(target, "x", []))
    assert counts_of(counts, "objects", "rows", "added_files", "snapshot_id") == (1, 0, 0, None)


def test_nothing_is_loaded_if_an_object_is_damaged(target):
    good, bad = land(target, "x", [1.0]), land(target, "y", [1.0], ["site-b"])
    target.bucket.bodies["s3://lake/y"] += b" "
    with pytest.raises(StemDataError, match="The object is damaged"):
        target.load(good, bad)
    assert target.snapshots() == []


def test_many_rows_are_split_in_pieces(target, monkeypatch):
    monkeypatch.setattr(loading, "_SPLIT_ROWS", 100)
    receipt = land(target, "x", [float(n) for n in range(192)], ["a", "b", "c"], ("01T00:00", "03T00:00"))
    assert target.load(receipt)["added_files"] == len(target.files())
    assert sorted(target.values().values()) == sorted([float(n) for n in range(192)] * 3)


# --- which value wins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["old first", "new first"])
def test_of_two_objects_with_a_key_the_one_that_was_read_later_wins_in_any_order(order, target):
    """Also if they are loaded together."""
    old, new = land(target, "z", [1.0, 1.0, None]), land(target, "a", [2.0, 1.0, 3.0])
    for one in (old, new) if order == "old first" else (new, old):
        target.load(one)
    assert {(value, uri) for value, _, uri in target.rows().values()} == {(v, "s3://lake/a") for v in (2.0, 1.0, 3.0)}
    other = Target("stem.other", target.bucket)
    other.load(*([old, new] if order == "old first" else [new, old]))
    assert other.rows() == target.rows()


def test_of_two_objects_that_were_read_at_the_same_time_the_greater_uri_wins_in_any_order(target):
    receipts = []
    for name, value in [("a", 1.0), ("b", 2.0)]:
        target.bucket.age = timedelta()
        receipts.append(land(target, name, [value]))
    other = Target("stem.other", target.bucket)
    for one, order in [(target, receipts), (other, receipts[::-1])]:
        for receipt in order:
            one.load(receipt, head=lambda _: None)  # also if the objects are no longer in the lake
        assert list(one.values().values()) == [2.0]


def test_a_value_that_another_object_confirmed_later_stays(target):
    """a: 1 at first; late: 2 then; b: 1 last. Loaded in the order a, b, late."""
    a, late, b = (land(target, name, [value]) for name, value in [("a", 1.0), ("late", 2.0), ("b", 1.0)])
    assert counts_of(target.load(a), "inserted", "added_files") == (1, 1)
    assert counts_of(target.load(b), "unchanged", "added_files", "removed_files") == (1, 1, 1)
    assert counts_of(target.load(b), "unchanged", "added_files") == (1, 0)
    assert counts_of(target.load(late), "outdated", "added_files") == (1, 0)
    assert list(target.values().values()) == [1.0]


def test_a_value_stays_if_its_object_was_read_again_later_with_the_same_bytes(target):
    a, late = land(target, "a", [1.0]), land(target, "late", [2.0])
    target.load(a)
    again = land(target, "a", [1.0])
    snapshot = target.load(again)
    assert counts_of(snapshot, "unchanged", "added_files") == (1, 0)
    assert counts_of(target.load(late), "outdated", "added_files") == (1, 0)
    # Only the object says when it was read last.
    del target.bucket.versions["s3://lake/a"]
    assert target.load(late)["changed"] == 1


def test_a_row_that_an_object_no_longer_has_stays(target):
    target.load(land(target, "x", [1.0, 2.0]))
    assert counts_of(target.load(land(target, "x", [..., 2.0])), "unchanged", "added_files") == (1, 0)
    assert list(target.values().values()) == [1.0, 2.0]


def test_an_object_that_is_landed_again_with_old_values_during_a_commit_wins(target, monkeypatch):
    """Its load has nothing to commit, so the commit is not a conflict."""
    target.load(land(target, "x", [1.0]))
    restated = land(target, "x", [2.0])
    commit = loading._Load._commit
    landed: list[Any] = []

    def interrupted(load, *arguments):
        if not landed:
            landed.append(land(target, "x", [1.0]))
            assert target.load(*landed)["added_files"] == 0
        return commit(load, *arguments)

    monkeypatch.setattr(loading._Load, "_commit", interrupted)
    counts = target.load(restated)
    assert counts_of(counts, "changed", "added_files", "removed_files") == (1, 2, 2)
    assert list(target.values().values()) == [1.0]
    assert counts["snapshot_id"] == target.snapshots()[-1]
    assert target.load(*landed)["added_files"] == 0


# --- commits ----------------------------------------------------------------------------------------------------------


def around_commits(target, commits=1, before=lambda: None, after=lambda: None):
    """Do something before and after the first commits to a catalog, for example lose the answer."""
    commit = target.catalog.commit_table
    made: list[Any] = []

    def commit_table(*arguments):
        if len(made) == commits:
            return commit(*arguments)
        made.append(arguments)
        before()
        response = commit(*arguments)
        after()
        return response

    target.catalog.commit_table = commit_table
    return made


def raising(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("catalog", SOME_CATALOGS, indirect=True)
@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "not empty"])
def test_a_load_is_planned_again_if_another_one_has_committed(is_empty, target):
    """Also the first one of a table, which has no snapshot that could have changed."""
    other = Target(target.name, target.bucket)
    target.load(land(target, "w", [] if is_empty else [0.0, 0.0]))
    old = land(target, "y", [1.0, 1.0], period=("01T00:00", "01T12:00"))
    new = land(target, "x", [2.0])
    made = around_commits(target, before=lambda: other.load(new))
    counts = target.load(old)
    assert len(made) == 1
    assert counts_of(counts, "outdated", "inserted", "changed") == (1, int(is_empty), int(not is_empty))
    assert list(target.values().values()) == [2.0, 1.0]
    assert target.load(old, new)["added_files"] == 0


@pytest.mark.parametrize("catalog", SOME_CATALOGS, indirect=True)
@pytest.mark.parametrize(
    "error", [CommitStateUnknownException("504"), TimeoutError("lost"), CommitFailedException("a proxy repeated it")]
)
def test_a_commit_whose_answer_is_lost_is_found(error, target):
    made = around_commits(target, after=raising(error))
    counts = target.load(land(target, "x", [1.0]))
    assert len(made) == 1
    assert counts_of(counts, "inserted", "added_files") == (1, 1)
    assert target.snapshots() == [counts["snapshot_id"]]
    assert list(target.values().values()) == [1.0]


def test_a_commit_that_failed_without_an_answer_is_repeated_and_no_file_is_written_again(target, monkeypatch):
    written = []
    write = files.DataFiles.write

    def counted(*arguments):
        written.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(files.DataFiles, "write", counted)
    around_commits(target, 2, before=raising(TimeoutError("lost")))
    target.load(land(target, "x", [1.0]))
    assert len(written) == 1
    around_commits(target, 3, before=raising(TimeoutError("the third one")))
    with pytest.raises(TimeoutError, match="the third one"):
        target.load(land(target, "y", [1.0], ["site-b"]))


def test_a_load_gives_up_after_many_conflicts(target, monkeypatch):
    monkeypatch.setattr(commits, "_LONGEST_WAIT", timedelta())
    around_commits(target, 20, before=raising(CommitFailedException("changed")))
    with pytest.raises(StemTransportError, match="The commit failed 20 times. Try again later"):
        target.load(land(target, "x", [1.0]))
    assert target.load(land(target, "x", [1.0]))["inserted"] == 1


def lost(target, lake, path):
    """Delete a file of the table, and return the message of the load that needs it."""
    place = urlsplit(path)
    lake.client.delete_object(Bucket=place.netloc, Key=place.path.strip("/"))
    restated = land(target, "x", [2.0])
    with (
        pytest.raises(StemConfigError, match="The store lacks a file .*, and a retry does not help. Restore") as error,
        catalog_errors("stem_iceberg", target.catalog.properties),
    ):
        target.load(restated)
    assert place.path.strip("/") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("catalog", ["sqlite", "rest"], indirect=True)
@pytest.mark.parametrize("kind", ["data", "manifest", "list"])
def test_a_lost_file_of_the_table_is_named_and_the_table_is_rolled_back(kind, target, lake):
    other = land(target, "other", [7.0], period=("02T00:00", "03T00:00"))
    first = target.load(other)["snapshot_id"]
    target.load(land(target, "x", [1.0]))
    snapshot = target.table.current_snapshot()
    [manifest] = [one for one in snapshot.manifests(target.table.io) if one.added_snapshot_id != first]
    [data] = [path for path in target.files() if "interval_start_day=2025-07-01" in path]
    lost(target, lake, {"data": data, "manifest": manifest.manifest_path, "list": snapshot.manifest_list}[kind])
    target.table.manage_snapshots().rollback_to_snapshot(first).commit()
    assert counts_of(target.load(other, land(target, "x", [3.0])), "unchanged", "inserted") == (1, 1)
    assert sorted(target.values().values()) == [3.0, 7.0]


@pytest.mark.parametrize("catalog", ["sqlite", "glue"], indirect=True)
def test_a_lost_metadata_file_of_the_table_is_named_and_the_one_before_is_registered(target, lake):
    target.load(land(target, "other", [7.0], period=("02T00:00", "03T00:00")))
    target.load(land(target, "x", [1.0]))
    table = target.table
    lost(target, lake, table.metadata_location)
    target.catalog.drop_table(target.name)
    target.catalog.register_table(target.name, table.metadata.metadata_log[-1].metadata_file)
    assert target.load(land(target, "x", [3.0]))["inserted"] == 1
    assert sorted(target.values().values()) == [3.0, 7.0]


def test_a_load_of_whose_snapshot_maintenance_removes_the_files_is_planned_again(target, monkeypatch):
    target.load(land(target, "x", [1.0, 1.0], ("site-a", "site-b")), buckets=1)
    target.load(land(target, "y", [1.0], ("site-c",)))
    maintained: list[Any] = []
    read = files.DataFiles.read

    def read_late(data, task):
        if not maintained:
            later = at("2999-01-01T00:00")
            maintained.append("compaction reads, too")
            counts = compact(target.table, later, {})
            expire_snapshots(target.table, later, 1)
            maintained[:] = counts["compacted_files"], remove_unused_files(target.table, later)["removed_files"] > 2
        return read(data, task)

    restated = land(target, "x", [2.0, 1.0], ("site-a", "site-b"))
    monkeypatch.setattr(files.DataFiles, "read", read_late)
    counts = target.load(restated)
    assert maintained == [2, True]
    assert counts_of(counts, "changed", "unchanged", "removed_files") == (2, 2, 1)
    assert sorted(target.values().values()) == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_a_full_disk_of_the_worker_is_not_blamed_on_the_catalog(target):
    receipt = land(
        target, "x", [n / 7 for n in range(96 * 8)], [f"site-{n}" for n in range(9)], ("01T00:00", "09T00:00")
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fetch(uri, file):
        version = target.bucket.fetch(uri, file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        return version

    try:
        with (
            pytest.raises(WorkerError, match="could not be stored on this worker: File too large. Free space"),
            catalog_errors("stem_iceberg", target.catalog.properties),
        ):
            target.load(receipt, fetch=fetch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- tables of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evolve", ["spec", "unpartitioned"])
def test_a_table_with_another_partition_spec_stays_exact(evolve, target):
    sites = [f"site-{number}" for number in range(6)]
    period = ("01T00:00", "03T00:00")
    target.load(land(target, "x", [float(n) for n in range(192)], sites, period))
    old = target.rows()
    with target.table.update_spec() as update:
        update.remove_field("interval_start_day")
        update.remove_field("site_id_bucket")
        if evolve == "spec":
            update.add_field("interval_start", MonthTransform(), "month")
            update.add_field("stream_type", IdentityTransform(), "type")
    assert counts_of(target.load(land(target, "x", [float(n) for n in range(192)], sites, period)), "added_files") == (
        0,
    )
    restated = land(target, "x", [-1.0, *(float(n) for n in range(1, 192))], sites, period)
    counts = target.load(restated)
    assert counts_of(counts, "changed", "unchanged") == (6, 6 * 191)
    assert {key: value for key, value in target.values().items() if value >= 0} == {
        key: value for key, (value, *_) in old.items() if value
    }
    assert target.load(restated)["added_files"] == 0
    assert target.rows(target.snapshots()[0]) == old


@pytest.mark.parametrize("column", ["kw_total_avg", "read_at", "uri"])
def test_a_partitioning_by_what_a_restatement_changes_is_rejected(column, target):
    """The value that a load replaces would be in another partition than the new one."""
    target.load(land(target, "x", [1.0, 2.0]))
    with target.table.update_spec() as update:
        update.add_field(column, IdentityTransform(), "wrong")
    rows = target.rows()
    with pytest.raises(StemConfigError, match=f"it is partitioned by '{column}', whose value may differ for the same"):
        target.load(land(target, "y", [3.0, 2.0]))
    assert target.rows() == rows


def test_more_columns_keep_their_values(target):
    receipt = land(target, "x", [1.0, 2.0])
    target.load(receipt)
    with target.table.update_schema() as update:
        update.add_column("note", StringType())
    rows = target.table.scan().to_arrow()
    notes = pa.array(["one", "two"], pa.large_string())
    target.table.overwrite(rows.set_column(rows.schema.get_field_index("note"), "note", notes))
    target.load(land(target, "x", [1.0, 3.0, 4.0]))
    found = target.table.scan().to_arrow().sort_by("interval_end")
    assert found["note"].to_pylist() == ["one", "two", None]
    assert found["kw_total_avg"].to_pylist() == [1.0, 3.0, 4.0]


REQUIRED = {"site_id": StringType(), "stream_type": StringType(), "resolution": IntegerType()}
REQUIRED |= dict.fromkeys(["interval_start", "interval_end"], TimestamptzType())
REQUIRED |= {"kw_total_avg": DoubleType(), "read_at": TimestamptzType(), "uri": StringType()}


@pytest.mark.parametrize(
    ("columns", "required", "message"),
    [
        ({**REQUIRED, "kw_total_avg": FloatType()}, False, "column 'kw_total_avg' has type float, expected double"),
        ({k: v for k, v in REQUIRED.items() if k != "uri"}, False, "has no column 'uri'. Add it with type string"),
        ({**REQUIRED, "more": StringType()}, True, "column 'more' is required, and a load has no value for it"),
    ],
)
def test_a_table_with_other_columns_is_rejected(columns, required, message, target):
    fields = [NestedField(n, name, kind, required=required) for n, (name, kind) in enumerate(columns.items(), 1)]
    target.catalog.create_namespace("stem")
    target.catalog.create_table(target.name, Schema(*fields))
    with pytest.raises(StemConfigError, match=f"Invalid table 'stem.streams': its? .*{message}"):
        target.load(land(target, "x", [1.0]))


@pytest.mark.parametrize("kind", ["position", "equality"])
def test_a_file_with_deleted_rows_is_rejected(kind, target, monkeypatch):
    """pyiceberg lists position deletes of a file, and refuses equality deletes."""
    target.load(land(target, "x", [1.0]))
    plan = DataScan.plan_files

    def with_deletes(scan):
        if kind == "equality":
            raise ValueError("PyIceberg does not yet support equality deletes")
        for task in (tasks := list(plan(scan))):
            task.delete_files = {task.file}
        return tasks

    monkeypatch.setattr(DataScan, "plan_files", with_deletes)
    for act in (lambda: target.load(land(target, "x", [2.0])), lambda: compact(target.table, at("09T00:00"), {})):
        with pytest.raises(
            StemConfigError, match=r"has files with deleted rows.*rewrite_data_files\) \[.*(parquet|equal)"
        ):
            act()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (MapType(10, StringType(), 11, DoubleType(), value_required=False), [("a", 1.0), ("b", None)]),
        (ListType(10, StringType(), element_required=False), ["a", None]),
        (StructType(NestedField(10, "x", DoubleType(), required=False)), {"x": 1.0}),
    ],
    ids=["map", "list", "struct"],
)
def test_columns_with_parts_keep_their_values(kind, value, target):
    target.load(land(target, "x", [1.0]))
    with target.table.update_schema() as update:
        update.add_column("tags", kind)
    target.load(land(target, "y", [2.0], sites=("site-b",)))
    table = target.table
    rows = table.scan().to_arrow()
    assert rows["tags"].to_pylist() == [None, None]
    is_b = pc.equal(rows["site_id"], "site-b")
    tags = pa.array([value if one else None for one in is_b.to_pylist()], rows.schema.field("tags").type)
    table.overwrite(rows.set_column(rows.schema.get_field_index("tags"), rows.schema.field("tags"), tags))
    # The rows are read, merged and written with the other column.
    assert target.load(land(target, "y", [3.0, 4.0], sites=("site-b",)))["changed"] == 1
    rows = target.table.scan().to_arrow().sort_by([("site_id", "ascending"), ("interval_end", "ascending")])
    assert rows["kw_total_avg"].to_pylist() == [1.0, 3.0, 4.0]
    assert rows["tags"].to_pylist() == [None, value, None]


def test_rows_that_another_program_has_doubled_are_an_error(target):
    target.load(land(target, "x", [1.0, 2.0]))
    target.table.append(target.table.scan().to_arrow())
    before = target.snapshots()
    for values in ([1.0, 2.0, 3.0], [1.0, 5.0], [1.0]):
        with pytest.raises(StemDataError, match="stem.streams holds a key twice"):
            target.load(land(target, "y", values))
    assert target.snapshots() == before


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_boxes_overlap_if_all_columns_do_and_unknown_bounds_overlap():
    box: Any = (("b", "d"), ("M", "M"), (900, 900), (10, 20))
    assert files.may_overlap(box, box)
    for column, bounds in enumerate([("e", "f"), ("N", "O"), (1800, 1800), (21, 30)]):
        other = (*box[:column], bounds, *box[column + 1 :])
        assert not files.may_overlap(box, other)
        assert not files.may_overlap(other, box)
        for unknown in [(None, None), (None, bounds[1]), (box[column][0], None)]:
            assert files.may_overlap(box, (*box[:column], unknown, *box[column + 1 :]))


def test_the_bounds_of_a_file_are_those_of_its_rows(target):
    target.load(land(target, "x", [1.0, 2.0], [f"{'a-long-name' * 5}-{n}" for n in range(3)]), buckets=1)
    [task] = target.table.scan().plan_files()
    data = files.DataFiles(target.table)
    box = data.box(task.file)
    assert box == files.box_of_rows(data.read(task))
    without: Any = SimpleNamespace(lower_bounds=None, upper_bounds=None)
    assert data.box(without) == ((None, None),) * 4
