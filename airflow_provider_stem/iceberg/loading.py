"""
Load verified objects into an Iceberg table in one commit. For the operator.

A load is planned on one snapshot and committed on exactly that one. If another task has committed since, the load is
planned again, and only what that changes is written again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table

from airflow_provider_stem._text import list_counts, number_of, one_line
from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.iceberg import files
from airflow_provider_stem.iceberg.commits import ATTEMPTS, Conflict, attempts, exact, planning
from airflow_provider_stem.iceberg.merging import Counts, Merge, Source
from airflow_provider_stem.iceberg.tables import open_table
from airflow_provider_stem.streams.formats.columns import regrouped
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.staging import Fetch, StagedObject, Staging
from airflow_provider_stem.streams.store import Version
from airflow_provider_stem.streams.windows import iso

log = logging.getLogger(__name__)

Head = Callable[[str], Version | None]
"""Returns the version of the object of a URI; ``None`` if there is no such object, or it may not be read."""

LOAD_ID = "stem.load-id"
"""Property of a snapshot that names the attempt to commit it."""

_EARLIEST, _LATEST = datetime(1000, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_SPLIT_ROWS = 2**20  # that are split into partitions at a time
_UNKNOWN_OUTCOMES = 3  # commits without an answer, whose outcome is looked up in the table
_THREADS = 4


class Load(NamedTuple):
    """
    A load that is done.

    :param counts: see :func:`load_objects`.
    :param location: where the table's files are.
    """

    counts: dict[str, int | None]
    location: str


def load_objects(
    objects: Sequence[LandedObject],
    fetch: Fetch,
    head: Head,
    catalog: Catalog,
    name: str,
    *,
    buckets: int = 16,
    dag_id: str | None = None,
    run_id: str | None = None,
) -> Load:
    """
    Load objects, all or none.

    :param objects: what to load. Of two values of a key, the one that was read later is kept.
    :param fetch: copies an object into a file.
    :param head: returns the version of an object.
    :param catalog: catalog of the table.
    :param name: namespace and table, which are created if they do not exist.
    :param buckets: number of buckets of site ids, for a new table only.
    :param dag_id: property of the snapshot.
    :param run_id: property of the snapshot.
    :return: counts: ``objects``; ``replaced``: how many of them a later run has rewritten since their receipt;
        ``rows``, the sum of ``inserted``, ``changed``, ``unchanged`` and ``outdated``, as in
        :class:`~airflow_provider_stem.iceberg.merging.Counts`; ``added_files`` and ``removed_files``; ``snapshot_id``:
        the current snapshot, ``None`` for an empty table.
    :raises StemConfigError: the table has other columns, or files that cannot be merged with.
    :raises StemDataError: an object does not match its receipt. Nothing is loaded.
    :raises StemTransportError: an object cannot be fetched, or other tasks committed during every attempt.
    :raises Exception: of pyiceberg: the catalog, or the store of the table's files, failed.
    """
    reopen = partial(open_table, catalog, name, buckets)
    table = reopen()
    present = _present(table, objects, head)
    with Staging(fetch, partial(_split, table)) as staging:
        staged = [staging.add(landed) for landed in objects if landed.uri not in present]
        properties = {
            "stem.dag-id": dag_id,
            "stem.run-id": run_id,
            "stem.window-start": iso(min(landed.start for landed in objects)),
            "stem.window-end": iso(max(landed.end for landed in objects)),
        }
        load = _Load(staging, [one for one in staged if one.rows], sum(present.values()), head, properties)
        outcome, snapshot_id = load.run(table, reopen)
    counts = outcome.counts
    result = {
        "objects": len(objects),
        "replaced": sum(one.replaced for one in staged),
        "rows": sum(asdict(counts).values()),
        "added_files": len(outcome.added),
        "removed_files": len(outcome.removed),
        **asdict(counts),
    }
    log.info("Loaded %s", list_counts(result))
    counts_and_snapshot: dict[str, int | None] = {**result, "snapshot_id": snapshot_id}
    if overtaken := _overtaken(outcome.last_read, head) if outcome.added else []:
        log.info("Loading %s that landed again during the commit", number_of(len(overtaken), "object"))
        more = load_objects(overtaken, fetch, head, catalog, name, dag_id=dag_id, run_id=run_id).counts
        counts_and_snapshot["snapshot_id"] = more["snapshot_id"]
        for what in ("added_files", "removed_files"):
            counts_and_snapshot[what] = result[what] + (more[what] or 0)
    return Load(counts_and_snapshot, table.location())


def _overtaken(last_read: Mapping[str, datetime | None], head: Head) -> list[LandedObject]:
    """
    Return the objects that landed again between the plan of a load and its commit, and must be loaded again.

    If such an object has the values that the table had before, its own load found nothing to commit, although this load
    was about to replace them.
    """
    versions = {uri: head(uri) for uri in last_read}
    return [
        # Without a SHA-256, so that it is loaded as it is.
        LandedObject(uri, 0, 0, "", last_read[uri] or _EARLIEST, _EARLIEST, _LATEST)
        for uri, version in versions.items()
        if version and version.read_at and version.read_at > (last_read[uri] or _EARLIEST)
    ]


def _present(table: Table, objects: Iterable[LandedObject], head: Head) -> dict[str, int]:
    """
    Return the objects that the table has as they are in the lake, by the names of its data files.

    :return: number of rows by URI.
    """
    if table.current_snapshot() is None:
        return {}
    start, end = min(landed.start for landed in objects), max(landed.end for landed in objects)
    whole = files.whole_objects(task.file for task in _live(table, start, end))
    known = {landed: files.object_id(landed.uri, landed.sha256) for landed in objects}
    known = {landed: identifier for landed, identifier in known.items() if identifier in whole}
    with ThreadPoolExecutor(_THREADS) as pool:
        versions = pool.map(lambda landed: head(landed.uri), known)
        return {
            landed.uri: whole[identifier]
            for (landed, identifier), version in zip(known.items(), versions, strict=True)
            if version is not None and version.sha256 == landed.sha256
        }


def _live(table: Table, start: datetime, end: datetime) -> list[FileScanTask]:
    """Return the data files that may have intervals of a period. An interval ends up to an hour after it begins."""
    first = start - timedelta(days=1)
    return files.live(table, f"interval_start >= '{first.isoformat()}' and interval_start < '{end.isoformat()}'")


def _split(table: Table, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Hashable, pa.RecordBatch]]:
    for rows in regrouped(batches, _SPLIT_ROWS):
        for partition, of_partition in files.split(table, rows):
            for batch in of_partition.combine_chunks().to_batches():
                yield partition, batch


@dataclass(slots=True)
class _Outcome:
    """
    What a load does to some partitions, or to all.

    :param live: paths of the live files that it was planned on.
    :param last_read: when each object whose rows would be replaced was read last, by URI.
    :param added: files that it has written.
    :param removed: files that these replace.
    """

    live: frozenset[str] = frozenset()
    last_read: dict[str, datetime | None] = field(default_factory=dict)
    added: list[DataFile] = field(default_factory=list)
    removed: list[DataFile] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class _Load:
    """
    One load.

    :param staged: objects with rows, split into partitions.
    :param present: number of rows of the objects that the table has already.
    :param properties: properties of the snapshot; those that are ``None`` are left out.
    """

    def __init__(
        self,
        staging: Staging,
        staged: Sequence[StagedObject],
        present: int,
        head: Head,
        properties: Mapping[str, str | None],
    ) -> None:
        self._staging = staging
        self._staged = staged
        self._present = present
        self._head = head
        self._properties = {name: value for name, value in properties.items() if value is not None}
        self._groups: dict[tuple[files.Partition, ...], _Outcome] = {}
        self._attempts: dict[str, _Outcome] = {}

    def run(self, table: Table, reopen: Callable[[], Table]) -> tuple[_Outcome, int | None]:
        """Plan and commit until no other task has committed in between. Return what was done, and the snapshot."""
        spec = table.spec()
        failure: Exception | None = None
        unknown = 0
        for attempt in attempts():
            if attempt:
                table = reopen()
                if committed := self._committed(table):
                    return committed
                if table.spec() != spec:
                    raise StemTransportError("The partition spec of the table changed during the load. Try again.")
            try:
                with planning(table):
                    outcome = self._plan(table)
            except Conflict as exc:
                failure = exc
                continue
            if not outcome.added:
                return outcome, table.metadata.current_snapshot_id
            attempt_id = uuid4().hex
            self._attempts[attempt_id] = outcome
            try:
                return outcome, self._commit(table, outcome, attempt_id)
            except Conflict as exc:
                log.info("Another task has committed to the table. Planning again (%s)", exc)
                failure = exc
            except Exception as exc:
                unknown += 1
                if unknown == _UNKNOWN_OUTCOMES:
                    raise
                log.warning("The commit may have failed (%s). Checking the table", type(exc).__name__)
                failure = exc
        raise StemTransportError(
            f"The commit failed {ATTEMPTS} times. Try again later, with fewer tasks that load at the same time: "
            f"{one_line(str(failure))}"
        )

    def _committed(self, table: Table) -> tuple[_Outcome, int] | None:
        """Return the attempt that the table has, and its snapshot: the answer to a commit may have been lost."""
        for snapshot in table.metadata.snapshots:
            summary = snapshot.summary.additional_properties if snapshot.summary else {}
            if found := self._attempts.get(summary.get(LOAD_ID, "")):
                return found, snapshot.snapshot_id
        return None

    def _commit(self, table: Table, outcome: _Outcome, attempt_id: str) -> int:
        counts = {f"stem.{name}": str(count) for name, count in asdict(outcome.counts).items()}
        with exact(table).transaction() as transaction:
            update = transaction.update_snapshot({**self._properties, **counts, LOAD_ID: attempt_id})
            with update.overwrite() if outcome.removed else update.fast_append() as snapshot:
                for file in outcome.removed:
                    snapshot.delete_data_file(file)
                for file in outcome.added:
                    snapshot.append_data_file(file)
        return int(snapshot.snapshot_id)

    def _plan(self, table: Table) -> _Outcome:
        """Merge the objects with the table, and write the data files for that."""
        groups = self._grouped(table)
        data = files.DataFiles(table)
        with ThreadPoolExecutor(_THREADS) as pool:
            merged = list(pool.map(lambda group: self._merged(data, *group), groups.items()))
        self._groups = dict(zip(groups, merged, strict=True))
        total = _Outcome(counts=Counts(unchanged=self._present))
        for one in merged:
            total.added += one.added
            total.removed += one.removed
            total.last_read |= one.last_read
            for name, count in asdict(one.counts).items():
                setattr(total.counts, name, getattr(total.counts, name) + count)
        return total

    def _grouped(self, table: Table) -> dict[tuple[files.Partition, ...], list[FileScanTask]]:
        """Return the live files of the objects' partitions, by partition."""
        partitions: list[Any] = sorted({partition for one in self._staged for partition in one.parts}, key=repr)
        if not partitions:
            return {}
        live: list[FileScanTask] = []
        if table.current_snapshot() is not None:
            start, end = min(one.landed.start for one in self._staged), max(one.landed.end for one in self._staged)
            live = _live(table, start, end)
        if any(task.file.spec_id != table.metadata.default_spec_id for task in live):
            # A file of another spec may have rows of several partitions, so these are merged together.
            return {tuple(partitions): live}
        of_partition: dict[files.Partition, list[FileScanTask]] = {}
        for task in live:
            record = task.file.partition
            of_partition.setdefault(tuple(record[position] for position in range(len(record))), []).append(task)
        return {(partition,): of_partition.get(partition, []) for partition in partitions}

    def _merged(
        self, data: files.DataFiles, partitions: tuple[files.Partition, ...], live: list[FileScanTask]
    ) -> _Outcome:
        """Merge the objects with the live files of some partitions; reuse the last attempt if nothing changed there."""
        outcome = _Outcome(frozenset(task.file.file_path for task in live))
        before = self._groups.get(partitions)
        if before and before.live == outcome.live and before.last_read == self._last_reads(before.last_read):
            return before

        def last_read(uri: str) -> datetime | None:
            if uri not in outcome.last_read:
                outcome.last_read |= self._last_reads([uri])
            return outcome.last_read[uri]

        merge = Merge(data, live, last_read)
        for one in self._staged:
            if mine := [partition for partition in partitions if partition in one.parts]:
                landed = one.landed
                identifier = files.object_id(landed.uri, one.sha256)
                numbers = {partition: number for number, partition in enumerate(one.parts, 1)}
                batches = {partition: list(self._staging.batches(one, partition)) for partition in mine}
                merge.add(
                    Source(landed.uri, one.read_at, identifier, len(one.parts)),
                    {part: (numbers[part], sum(batch.num_rows for batch in of)) for part, of in batches.items()},
                    pa.Table.from_batches([batch for of in batches.values() for batch in of]),
                )
        outcome.added, outcome.removed, outcome.counts = merge.write(), merge.removed, merge.counts
        return outcome

    def _last_reads(self, uris: Iterable[str]) -> dict[str, datetime | None]:
        versions = {uri: self._head(uri) for uri in uris}
        return {uri: version.read_at if version else None for uri, version in versions.items()}
