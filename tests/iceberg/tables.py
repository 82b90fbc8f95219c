"""A table of streams written by pyiceberg alone, with any rows in any files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.types import DoubleType, IntegerType, NestedField, StringType, TimestamptzType

from airflow_provider_stem.streams.tables import INSTANT, LANDING_SCHEMA

FIRST = datetime(2025, 7, 1, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
KEY = ("site_id", "stream_type", "resolution", "interval_end")
SCHEMA = Schema(
    NestedField(1, "site_id", StringType(), required=True),
    NestedField(2, "stream_type", StringType(), required=True),
    NestedField(3, "resolution", IntegerType(), required=True),
    NestedField(4, "interval_start", TimestamptzType(), required=True),
    NestedField(5, "interval_end", TimestamptzType(), required=True),
    NestedField(6, "kw_total_avg", DoubleType()),
    NestedField(7, "read_at", TimestamptzType(), required=True),
    NestedField(8, "uri", StringType(), required=True),
)
SPEC = PartitionSpec(
    PartitionField(4, 1000, DayTransform(), "day"), PartitionField(1, 1001, BucketTransform(2), "batch")
)
ROWS = pa.schema([*LANDING_SCHEMA, pa.field("read_at", INSTANT, nullable=False), pa.field("uri", pa.string(), False)])


def create(catalog, name="stem.streams"):
    """Create an empty table."""
    catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
    return catalog.create_table(name, SCHEMA, partition_spec=SPEC)


def row(site, number, kw, read_at=FIRST, uri="s3://lake/a"):
    """Return a row: its interval is the one with this number since 2025-07-01."""
    end = FIRST + QUARTER * (number + 1)
    return {
        "site_id": site,
        "stream_type": "MONITOR",
        "resolution": 900,
        "interval_start": end - QUARTER,
        "interval_end": end,
        "kw_total_avg": kw,
        "read_at": read_at,
        "uri": uri,
    }


def key(one):
    """Return the key of a row."""
    return tuple(one[name] for name in KEY)


def live(table):
    """Return the live data files by path."""
    return {task.file.file_path: task.file for task in table.scan().plan_files()}


def commit(table, *files, delete=(), **properties):
    """
    Commit a snapshot, and return its id.

    :param files: rows of each new file; a file for each of their partitions.
    :param delete: data files to remove.
    """
    table.refresh()
    with table.transaction() as transaction, transaction.update_snapshot(properties).overwrite() as update:
        for rows in files:
            frame = pa.Table.from_pylist(list(rows), ROWS)
            for file in _dataframe_to_data_files(table.metadata, frame, table.io):
                update.append_data_file(file)
        for file in delete:
            update.delete_data_file(file)
    table.refresh()
    return table.metadata.current_snapshot_id


def state(table, snapshot_id=None):
    """Return the rows of a snapshot by key; each key must be there once."""
    rows = table.scan(snapshot_id=snapshot_id).to_arrow().to_pylist()
    found = {key(one): one for one in rows}
    assert len(found) == len(rows)
    return found
