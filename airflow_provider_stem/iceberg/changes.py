"""The log of changes between two snapshots of an Iceberg table of streams. For users' own code."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.tables import INSTANT, KEY, LANDING_SCHEMA

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot

__all__ = ["CHANGES_SCHEMA", "changes"]

_VALUES = ["kw_total_avg", "read_at", "uri"]

CHANGES_SCHEMA = pa.schema(
    [
        *(LANDING_SCHEMA.field(name) for name in KEY),
        pa.field("kind", pa.string(), nullable=False, metadata={"description": "inserted, changed or removed"}),
        pa.field("old_kw", pa.float64(), metadata={"unit": "kW"}),
        pa.field("new_kw", pa.float64(), metadata={"unit": "kW"}),
        pa.field("old_read_at", INSTANT),
        pa.field("new_read_at", INSTANT),
        pa.field(
            "uri", pa.string(), nullable=False, metadata={"description": "object of new_kw; if removed, of old_kw"}
        ),
        pa.field("snapshot_id", pa.int64(), nullable=False, metadata={"description": "the snapshot with the change"}),
        pa.field("changed_at", INSTANT, nullable=False, metadata={"description": "when it was committed"}),
        pa.field(
            "dag_id", pa.string(), metadata={"description": "DAG of the load; null if snapshots in between expired"}
        ),
        pa.field("run_id", pa.string(), metadata={"description": "run of the load; null like dag_id"}),
    ]
)
"""One row per changed interval and snapshot, sorted by snapshot, ``site_id, stream_type, resolution, interval_end``."""


def changes(table: Table, since: int, until: int | None = None) -> pa.Table:
    """
    Return the intervals that each snapshot after ``since`` inserted, changed or removed.

    An interval whose value stays the same is not listed, also where its file was rewritten. Only data files that were
    added or removed in between are read. If snapshots in between have expired or were rolled back, their changes are
    listed with the next one, without DAG and run.

    :param table: the table, as pyiceberg's catalog loads it.
    :param since: id of the snapshot whose content is the starting point.
    :param until: id of the last snapshot; default: the current one.
    :return: rows in :data:`CHANGES_SCHEMA`: powers in kW, times in UTC.
    :raises StemConfigError: a snapshot has expired or never existed, ``until`` does not come after ``since``, or
        another engine has deleted rows without rewriting their files.
    :raises StemDataError: the table holds a key twice.
    """
    found = [CHANGES_SCHEMA.empty_table()]
    for before, after in _steps(table.metadata, since, until):
        partitions = _by_partition(*_difference(table, before, after))
        compared = [_compare(_rows(table, removed), _rows(table, added)) for removed, added in partitions]
        if compared:
            load = after if after.parent_snapshot_id == before.snapshot_id else None
            found.append(_in_schema(pa.concat_tables(compared), after, load))
    return pa.concat_tables(found)


def _steps(metadata: TableMetadata, since: int, until: int | None) -> list[tuple[Snapshot, Snapshot]]:
    """Return the pairs of consecutive snapshots from one snapshot to another, the oldest pair first."""
    first = _snapshot(metadata, "since", since)
    last = metadata.current_snapshot() if until is None else _snapshot(metadata, "until", until)
    chain = [last or first]
    # Without until, the current snapshot may be an older one, to which the table was rolled back.
    if until is not None and chain[0] != first and _sequence(chain[0]) <= _sequence(first):
        raise StemConfigError(
            f"until={chain[0].snapshot_id} is older than since={since}. Exchange them, or choose other snapshots of "
            "table.snapshots()."
        )
    while chain[-1] != first:
        parent = metadata.snapshot_by_id(chain[-1].parent_snapshot_id or -1)
        # Without a parent, the snapshots in between have expired. With an older one, the first was rolled back.
        chain.append(parent if parent and _sequence(parent) > _sequence(first) else first)
    return list(itertools.pairwise(reversed(chain)))


def _snapshot(metadata: TableMetadata, argument: str, snapshot_id: int) -> Snapshot:
    snapshot = metadata.snapshot_by_id(snapshot_id)
    if snapshot is None:
        oldest = min(metadata.snapshots, key=lambda one: one.timestamp_ms, default=None)
        remedy = (
            f"The oldest that is kept is {oldest.snapshot_id} of {_instant(oldest).isoformat()}: use it, or keep "
            "snapshots longer (StemIcebergMaintenanceOperator)."
            if oldest
            else "The table has no snapshot yet: load something first."
        )
        raise StemConfigError(
            f"Invalid {argument} {snapshot_id!r}: this snapshot has expired or never existed. {remedy}"
        )
    return snapshot


def _sequence(snapshot: Snapshot) -> int:
    return snapshot.sequence_number or 0


def _difference(table: Table, before: Snapshot, after: Snapshot) -> tuple[list[DataFile], list[DataFile]]:
    """Return the live data files that only the earlier snapshot has, and those that only the later one has."""
    from pyiceberg.manifest import ManifestContent
    from pyiceberg.utils.concurrent import ExecutorFactory

    manifests = [{one.manifest_path: one for one in snapshot.manifests(table.io)} for snapshot in (before, after)]
    if any(one.content == ManifestContent.DELETES for each in manifests for one in each.values()):
        raise StemConfigError(
            f"Another engine has deleted rows of {'.'.join(table.name())} without rewriting their files, which is not "
            "supported. Rewrite its data files with that engine, and choose a later snapshot as since."
        )
    live: list[dict[str, DataFile]] = []
    for own, other in (manifests, manifests[::-1]):
        entries = ExecutorFactory.get_or_create().map(
            lambda one: one.fetch_manifest_entry(table.io), [own[path] for path in own.keys() - other.keys()]
        )
        live.append({entry.data_file.file_path: entry.data_file for each in entries for entry in each})
    removed, added = live
    return (
        [removed[path] for path in sorted(removed.keys() - added.keys())],
        [added[path] for path in sorted(added.keys() - removed.keys())],
    )


def _by_partition(removed: list[DataFile], added: list[DataFile]) -> Iterator[tuple[list[DataFile], list[DataFile]]]:
    """Iterate over the removed and the added files of each partition, so that only one is in memory."""
    files = [*removed, *added]
    if len({one.spec_id for one in files}) > 1:
        yield removed, added
        return
    groups: dict[Any, tuple[list[DataFile], list[DataFile]]] = defaultdict(lambda: ([], []))
    for place, listed in enumerate((removed, added)):
        for one in listed:
            groups[one.partition][place].append(one)
    yield from groups.values()


def _rows(table: Table, files: Iterable[DataFile]) -> pa.Table:
    """Return the key and the values of all rows of some data files."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan
    from pyiceberg.table import FileScanTask

    from airflow_provider_stem.iceberg.tables import doubled

    scan = ArrowScan(table.metadata, table.io, table.schema().select(*KEY, *_VALUES), AlwaysTrue())
    rows = scan.to_table([FileScanTask(one) for one in files])
    rows = pa.table(
        [
            *(rows[name].cast(LANDING_SCHEMA.field(name).type) for name in KEY),
            *(rows[name].cast(kind) for name, kind in zip(_VALUES, (pa.float64(), INSTANT, pa.string()), strict=True)),
        ],
        names=[*KEY, *_VALUES],
    )
    if rows.group_by([*KEY]).aggregate([]).num_rows != rows.num_rows:
        raise doubled(table)
    return rows


def _compare(old: pa.Table, new: pa.Table) -> pa.Table:
    """Return the intervals whose old and new values differ, or that only one side has."""
    joined = old.rename_columns([*KEY, *(f"old_{name}" for name in _VALUES)]).join(
        new.rename_columns([*KEY, *(f"new_{name}" for name in _VALUES)]), [*KEY], join_type="full outer"
    )
    old_kw, new_kw = joined["old_kw_total_avg"], joined["new_kw_total_avg"]
    # Each row has a time of reading.
    is_new, is_gone = joined["old_read_at"].is_null(), joined["new_read_at"].is_null()
    differs = pc.or_(
        pc.fill_null(pc.not_equal(old_kw, new_kw), fill_value=False), pc.xor(old_kw.is_null(), new_kw.is_null())
    )
    kind = pc.if_else(is_new, "inserted", pc.if_else(is_gone, "removed", "changed"))
    return joined.append_column("kind", kind).filter(pc.or_(pc.or_(is_new, is_gone), differs))


def _in_schema(compared: pa.Table, snapshot: Snapshot, load: Snapshot | None) -> pa.Table:
    properties = load.summary.additional_properties if load and load.summary else {}
    constants = {
        "snapshot_id": snapshot.snapshot_id,
        "changed_at": _instant(snapshot),
        "dag_id": properties.get("stem.dag-id"),
        "run_id": properties.get("stem.run-id"),
    }
    columns = {
        **{name: compared[name] for name in (*KEY, "kind", "old_read_at", "new_read_at")},
        "old_kw": compared["old_kw_total_avg"],
        "new_kw": compared["new_kw_total_avg"],
        "uri": pc.coalesce(compared["new_uri"], compared["old_uri"]),
    }
    for name, value in constants.items():
        columns[name] = pa.repeat(pa.scalar(value, CHANGES_SCHEMA.field(name).type), compared.num_rows)
    found = pa.table([columns[name] for name in CHANGES_SCHEMA.names], schema=CHANGES_SCHEMA)
    return found.sort_by([(name, "ascending") for name in KEY])


def _instant(snapshot: Snapshot) -> datetime:
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)
