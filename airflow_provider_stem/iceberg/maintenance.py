"""
Maintenance of an Iceberg table: compaction, and the removal of old snapshots and unused files. For the operator.

Each step can be repeated, interrupted, and run beside loads. No step changes a row.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update import AssertRefSnapshotId, AssertTableUUID, RemoveSnapshotsUpdate

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemDataError, StemTransportError
from airflow_provider_stem.iceberg import files
from airflow_provider_stem.iceberg.commits import ATTEMPTS, Conflict, attempts, exact, planning
from airflow_provider_stem.streams.tables import KEY

log = logging.getLogger(__name__)

_TARGET_BYTES = 128 * 2**20  # of a compacted file
_SMALL_BYTES = _TARGET_BYTES // 2  # a file of this size or more is not compacted
_THREADS = 4
# Only files that Iceberg's writers make. A catalog may keep others beside them.
_ENDINGS = (".parquet", ".avro", ".orc", ".puffin", ".stats", ".metadata.json")


def compact(table: Table, older_than: datetime, properties: Mapping[str, str]) -> dict[str, int]:
    """
    Rewrite the small files of each partition as one sorted file, in one commit. The rows stay the same.

    :param older_than: only files all of whose intervals ended at or before this time, with a time zone.
    :param properties: properties of the snapshot.
    :return: the numbers of ``compacted_files``, and of ``written_files``, which replace them.
    :raises StemConfigError: another engine has deleted rows without rewriting their files.
    :raises StemDataError: the table holds a key twice. Nothing is committed.
    :raises StemTransportError: other tasks committed during every attempt.
    """
    written: dict[frozenset[str], DataFile] = {}
    for attempt in attempts():
        if attempt:
            table.refresh()
        try:
            with planning(table):
                data = files.DataFiles(table)
                plan = {frozenset(one.file_path for one in group): group for group in _small_files(data, older_than)}
                if not plan:
                    return {"compacted_files": 0, "written_files": 0}
                for paths in plan.keys() - written.keys():
                    written[paths] = _together(data, plan[paths])
            removed = [file for group in plan.values() for file in group]
            with (
                exact(table).transaction() as transaction,
                transaction.update_snapshot(dict(properties)).overwrite() as snapshot,
            ):
                for file in removed:
                    snapshot.delete_data_file(file)
                for paths in plan:
                    snapshot.append_data_file(written[paths])
        except Conflict as exc:
            log.info("Another task has committed to the table. Planning again (%s)", exc)
            continue
        table.refresh()
        return {"compacted_files": len(removed), "written_files": len(plan)}
    raise _busy("The compaction")


def expire_snapshots(table: Table, older_than: datetime, keep: int) -> int:
    """
    Remove old snapshots from the table's metadata. Their files stay until :func:`remove_unused_files`.

    Branches and tags, and what they refer to, are kept.

    :param older_than: only snapshots that were committed before this time, with a time zone.
    :param keep: how many of the newest snapshots are kept in any case, 1 or more.
    :return: number of removed snapshots.
    :raises StemTransportError: other tasks committed during every attempt.
    """
    for attempt in attempts():
        if attempt:
            table.refresh()
        metadata = table.metadata
        history = [one.snapshot_id for one in ancestors_of(metadata.current_snapshot(), metadata)]
        kept = {*history[:keep], *(ref.snapshot_id for ref in metadata.refs.values())}
        limit = older_than.timestamp() * 1000
        expired = {one.snapshot_id for one in metadata.snapshots if one.timestamp_ms < limit} - kept
        if not expired:
            return 0
        # Without this requirement, another task could roll the table back to a snapshot that is removed here.
        is_current = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=metadata.current_snapshot_id)  # type: ignore[call-arg]
        try:
            table.catalog.commit_table(
                table,
                (AssertTableUUID(uuid=metadata.table_uuid), is_current),
                (RemoveSnapshotsUpdate(snapshot_ids=sorted(expired)),),  # type: ignore[call-arg]
            )
        except CommitFailedException as exc:
            log.info("Another task has committed to the table. Planning again (%s)", one_line(str(exc)))
            continue
        table.refresh()
        return len(expired)
    raise _busy("The removal of old snapshots")


def remove_unused_files(table: Table, older_than: datetime) -> dict[str, int]:
    """
    Delete files in the table's folders for data and metadata that no snapshot refers to.

    Those are the files of removed snapshots, and of commits that failed. Nothing is deleted if the store lacks a file
    of the table, since it may then list the others by different names.

    :param older_than: only files that were written before this time, with a time zone. Commits that began earlier must
        have ended.
    :return: ``removed_files`` and their ``removed_bytes``.
    :raises StemConfigError: the store lacks a file that the table refers to.
    """
    used = _UsedFiles(table)
    before = used.paths()
    listed = _listed(table)
    # A commit may have ended since the listing began, so what it refers to is collected after that.
    table.refresh()
    now = used.paths()
    folders = tuple(_folders(table))
    if missing := sorted(path for path in before & now if path.startswith(folders) and path not in listed):
        raise StemConfigError(
            f"The store lacks {len(missing):,} files that the table refers to, so nothing was deleted. Restore them, "
            f"or roll the table back to an older snapshot [{one_line(missing[0])}]"
        )
    now |= {_path(entry.metadata_file) for entry in table.metadata.metadata_log}
    unused = [
        info
        for path, info in listed.items()
        if path not in now and path.endswith(_ENDINGS) and info.mtime is not None and info.mtime < older_than
    ]

    def delete(info: FileInfo) -> None:
        # Another task may have deleted it.
        with suppress(FileNotFoundError):
            _file_system(table).delete_file(info.path)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(delete, unused))
    return {"removed_files": len(unused), "removed_bytes": sum(info.size for info in unused)}


class _UsedFiles:
    """The files that the snapshots of a table refer to. A manifest never changes, so each is read once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._of_manifest: dict[str, set[str]] = {}

    def paths(self) -> set[str]:
        """Return the paths for the current metadata of the table, without those of older metadata."""
        metadata = self._table.metadata
        statistics = [*metadata.statistics, *metadata.partition_statistics]
        found = {self._table.metadata_location, *(one.statistics_path for one in statistics)}
        manifests: dict[str, ManifestFile] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for each in pool.map(lambda snapshot: snapshot.manifests(self._table.io), metadata.snapshots):
                manifests |= {one.manifest_path: one for one in each}
            unread = [one for path, one in manifests.items() if path not in self._of_manifest]
            for one, paths in zip(unread, pool.map(self._read, unread), strict=True):
                self._of_manifest[one.manifest_path] = paths
        for path in manifests:
            found |= {path, *self._of_manifest[path]}
        found |= {snapshot.manifest_list for snapshot in metadata.snapshots}
        return {_path(uri) for uri in found}

    def _read(self, manifest: ManifestFile) -> set[str]:
        return {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(self._table.io)}


def _path(uri: str) -> str:
    """Return the path of a file in its file system."""
    return PyArrowFileIO.parse_location(uri)[2]


def _folders(table: Table) -> Iterator[str]:
    """
    Iterate over the folders in which only this table has files.

    Folders of ``write.data.path`` and ``write.metadata.path`` are left out, because tables may share them.
    """
    for name in ("data", "metadata"):
        yield f"{_path(table.location()).rstrip('/')}/{name}/"


def _file_system(table: Table) -> FileSystem:
    scheme, bucket, _ = PyArrowFileIO.parse_location(table.location())
    return PyArrowFileIO(table.io.properties).fs_by_scheme(scheme, bucket)


def _listed(table: Table) -> dict[str, FileInfo]:
    """Return the files in the table's folders by path."""
    found: dict[str, FileInfo] = {}
    for folder in _folders(table):
        selector = FileSelector(folder.rstrip("/"), recursive=True, allow_not_found=True)
        found |= {info.path: info for info in _file_system(table).get_file_info(selector) if info.is_file}
    return found


def _small_files(data: files.DataFiles, older_than: datetime) -> Iterator[list[DataFile]]:
    """Iterate over groups of small files of one partition that fit into one file."""
    partitions: dict[Any, list[DataFile]] = defaultdict(list)
    for task in files.live(data.table):
        file = task.file
        latest = data.box(file)[KEY.index("interval_end")][1]
        is_old = latest is not None and datetime.fromtimestamp(latest / 1e6, UTC) <= older_than
        # The partition of a file of another spec says nothing about the current partitions.
        if is_old and file.file_size_in_bytes < _SMALL_BYTES and file.spec_id == data.table.metadata.default_spec_id:
            partitions[file.partition].append(file)
    for found in partitions.values():
        group: list[DataFile] = []
        for file in sorted(found, key=lambda one: one.file_path):
            if group and sum(one.file_size_in_bytes for one in group) + file.file_size_in_bytes > _TARGET_BYTES:
                if len(group) > 1:
                    yield group
                group = []
            group.append(file)
        if len(group) > 1:
            yield group


def _together(data: files.DataFiles, group: list[DataFile]) -> DataFile:
    """Write the rows of several files of a partition to one file."""
    rows = pa.concat_tables([data.read(FileScanTask(file)) for file in group])
    expected = sum(file.record_count for file in group)
    found = rows.group_by(list(KEY)).aggregate([]).num_rows
    if not found == rows.num_rows == expected:
        raise StemDataError(
            f"The table holds {found:,} keys in {rows.num_rows:,} rows of {len(group)} files, which list {expected:,} "
            "rows. Find the program that writes it besides this package's operators, and remove the duplicates "
            f"[{one_line(group[0].file_path)}]"
        )
    record = group[0].partition
    partition = tuple(record[position] for position in range(len(record)))
    return data.write(partition, rows, files.name_of_merged())


def _busy(what: str) -> StemTransportError:
    return StemTransportError(
        f"{what} conflicted with other commits {ATTEMPTS} times. Try again later, with fewer tasks that load at the "
        "same time."
    )
