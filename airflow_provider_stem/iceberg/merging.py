"""Merging of landed rows with the live data files of the same partitions. For the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask

from airflow_provider_stem.iceberg import files
from airflow_provider_stem.iceberg.tables import doubled
from airflow_provider_stem.streams.tables import INSTANT, KEY

LastRead = Callable[[str], datetime | None]
"""Returns when the object of a URI was read last; ``None`` if that is unknown, or there is no such object."""


@dataclass(frozen=True, slots=True)
class Source:
    """
    The object that rows come from.

    :param uri: its URI.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock.
    :param identifier: its :func:`~airflow_provider_stem.iceberg.files.object_id`.
    :param parts: number of its partitions.
    """

    uri: str
    read_at: datetime
    identifier: str
    parts: int


@dataclass(slots=True)
class Counts:
    """
    Number of the rows that were read, by what the load did with them.

    :param inserted: with a key that the table did not have.
    :param changed: with another value than the table's.
    :param unchanged: with the value that the table has.
    :param outdated: with another value than the table's, which was read later.
    """

    inserted: int = 0
    changed: int = 0
    unchanged: int = 0
    outdated: int = 0


@dataclass(slots=True)
class Piece:
    """
    Rows of one data file, which is live or to be written.

    :param box: bounds of its rows.
    :param task: the live file; ``None`` for rows that are to be written.
    :param rows: ``None`` if the file has not been read.
    :param sites: the distinct sites of the rows, once they are needed.
    """

    box: files.Box
    task: FileScanTask | None
    rows: pa.Table | None = None
    sites: pa.Array | None = None

    def has_any(self, sites: pa.Array) -> bool:
        """Return whether the rows have one of the sites, which is much cheaper to find out than common keys."""
        if self.sites is None:
            self.sites = pc.unique(self.rows.column("site_id"))  # type: ignore[union-attr]
        return bool(pc.any(pc.is_in(sites, self.sites)).as_py())


@dataclass(slots=True)
class Merge:
    """
    Merge the rows of one object after another into the rows of some partitions.

    Of two values of a key, the one that was read later is kept; of two that were read at the same time, the one of the
    greater URI. So the result does not depend on the order of the loads.

    :param data: the data files of the table, at the snapshot to merge with.
    :param live: those of them that may have rows of these partitions.
    :param last_read: called for objects whose rows would be replaced.
    """

    data: files.DataFiles
    live: Sequence[FileScanTask]
    last_read: LastRead
    counts: Counts = field(default_factory=Counts)
    removed: list[DataFile] = field(default_factory=list)
    _pieces: list[Piece] = field(init=False)
    _sources: dict[str, tuple[Source, Mapping[files.Partition, tuple[int, int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pieces = [Piece(self.data.box(task.file), task) for task in self.live]

    def add(self, source: Source, parts: Mapping[files.Partition, tuple[int, int]], rows: pa.Table) -> None:
        """
        Merge the rows of one object.

        :param parts: number of each of these partitions among those of the object, and how many rows it has there.
        :param rows: its rows in these partitions, in the landing schema.
        :raises StemDataError: the table holds a key of these rows twice.
        """
        self._sources[source.uri] = source, parts
        rows = self._with_source(source, rows)
        box = files.box_of_rows(rows)
        sites = pc.unique(rows.column("site_id"))
        is_new = pa.repeat(True, rows.num_rows)
        united: list[tuple[Piece, pa.Table]] = []
        is_changed = False
        held_rows = 0
        for piece in self._pieces:
            if not files.may_overlap(piece.box, box):
                continue
            if piece.rows is None:
                piece.rows = self.data.read(piece.task)  # type: ignore[arg-type]
            if not piece.has_any(sites):
                continue
            held_keys, keys = _keys(piece.rows, rows)
            position = pc.index_in(held_keys, keys)
            held_rows += len(position) - position.null_count
            if position.null_count < len(position):
                is_new = pc.and_(is_new, pc.invert(pc.is_in(keys, held_keys)))
                union, has_changed = self._union(piece.rows, rows.take(position), source)
                united.append((piece, union))
                is_changed = is_changed or has_changed
        inserted = rows.filter(is_new)
        if held_rows != rows.num_rows - inserted.num_rows:
            raise doubled(self.data.table)
        self.counts.inserted += inserted.num_rows
        if is_changed or inserted.num_rows:
            replaced = [piece for piece, _ in united]
            self.removed += [piece.task.file for piece in replaced if piece.task]
            self._pieces = [piece for piece in self._pieces if piece not in replaced]
            together = pa.concat_tables([*(union for _, union in united), inserted])
            self._pieces.append(Piece(files.box_of_rows(together), None, together))

    def write(self) -> list[DataFile]:
        """Write the rows that are new or replace others to data files, and return these."""
        return [
            self.data.write(partition, rows, self._name(partition, rows))
            for piece in self._pieces
            if not piece.task
            for partition, rows in files.split(self.data.table, piece.rows)
        ]

    def _with_source(self, source: Source, rows: pa.Table) -> pa.Table:
        columns = {
            **{name: rows.column(name) for name in rows.schema.names},
            "read_at": pa.repeat(pa.scalar(source.read_at, INSTANT), rows.num_rows),
            "uri": pa.repeat(source.uri, rows.num_rows),
        }
        schema = self.data.schema
        return pa.table([columns.get(one.name, pa.nulls(rows.num_rows, one.type)) for one in schema], schema=schema)

    def _union(self, held: pa.Table, read: pa.Table, source: Source) -> tuple[pa.Table, bool]:
        """
        Unite held rows with the rows of an object that have the same keys.

        :param read: a row for each held row; of nulls if the object has no such key.
        :return: the rows, and whether they must be written.
        """
        is_common = pc.is_valid(read.column("site_id"))
        before, after = held.column("kw_total_avg"), read.column("kw_total_avg")
        is_same = pc.if_else(pc.is_valid(before), pc.fill_null(pc.equal(before, after), False), pc.is_null(after))
        is_same = pc.and_(is_same, is_common)
        uris, read_at = held.column("uri"), pa.scalar(source.read_at, INSTANT)
        is_older = pc.or_(
            pc.less(held.column("read_at"), read_at),
            pc.and_(pc.equal(held.column("read_at"), read_at), pc.less(uris, source.uri)),
        )
        is_older = pc.and_(is_older, is_common)
        # A row of the same object with the same value need not be written, since the object's metadata have the time at
        # which it was read last.
        gives_way = pc.and_(is_older, pc.or_(pc.invert(is_same), pc.not_equal(uris, source.uri)))
        if newer := [uri for uri in pc.unique(uris.filter(gives_way)).to_pylist() if self._is_newer(uri, source)]:
            is_older = pc.and_(is_older, pc.invert(pc.is_in(uris, pa.array(newer))))
            gives_way = pc.and_(gives_way, is_older)
        changed = _count(pc.and_(gives_way, pc.invert(is_same)))
        self.counts.changed += changed
        self.counts.unchanged += _count(is_same)
        self.counts.outdated += _count(is_common) - _count(is_same) - changed
        for name in ("kw_total_avg", "read_at", "uri"):
            column = pc.if_else(is_older, read.column(name), held.column(name))
            held = held.set_column(held.schema.get_field_index(name), held.schema.field(name), column)
        return held, _count(gives_way) > 0

    def _is_newer(self, uri: str, source: Source) -> bool:
        """Return whether the object of a held row was read again later than the object with another row."""
        last = self.last_read(uri)
        return last is not None and (last, uri) > (source.read_at, source.uri)

    def _name(self, partition: files.Partition, rows: pa.Table) -> str:
        origins = rows.select(["uri", "read_at"]).group_by(["uri", "read_at"]).aggregate([]).to_pylist()
        source, parts = self._sources.get(origins[0]["uri"], (None, {}))
        number, expected = parts.get(partition, (0, 0))
        if source is None or len(origins) > 1 or (rows.num_rows, origins[0]["read_at"]) != (expected, source.read_at):
            return files.name_of_merged()
        return files.name_of_part(source.identifier, number, source.parts)


def _keys(one: pa.Table, other: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Return the key of each row of two tables as an integer, which is equal for equal keys."""
    keys = pa.repeat(pa.scalar(0, pa.int64()), one.num_rows + other.num_rows)
    for name in KEY:
        encoded = pa.concat_arrays([*one.column(name).chunks, *other.column(name).chunks]).dictionary_encode()
        keys = pc.add(pc.multiply_checked(keys, len(encoded.dictionary)), encoded.indices.cast(pa.int64()))
    return keys.slice(0, one.num_rows), keys.slice(one.num_rows)


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0
