"""Merging of the rows in an object with rows that were read, as sorted streams; used by the writing of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Stream = tuple[tuple[str, str], pa.RecordBatch]
"""A site id and a stream type, and their rows in the landing schema."""


@dataclass(slots=True)
class Merge:
    """
    Merge held and read rows by site, stream type, resolution and interval. For a key in both, the read value is used.

    Both sides are sorted by ``site_id, stream_type, interval_end``, so only one stream of each is in memory.

    :param inserted: number of keys that were read and not held.
    :param changed: number of keys in both with different values; null differs from a number.
    :param unchanged: number of keys in both with the same value.
    :param kept: number of keys that were held and not read.
    :param keeps: whether the merged rows include these; otherwise they are not counted.
    """

    inserted: int = 0
    changed: int = 0
    unchanged: int = 0
    kept: int = 0
    keeps: bool = True

    def merged(self, held: Iterable[pa.RecordBatch], read: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """
        Iterate over the merged rows, one stream at a time. The counts are complete at the end.

        :param held: sorted batches in the landing schema, as from
            :func:`~airflow_provider_stem.streams.file_reading.read_batches`.
        :param read: sorted batches in the landing schema; all rows have the same resolution.
        """
        for held_rows, read_rows in _paired(_streams(held), _streams(read)):
            if held_rows is None:
                self.inserted += read_rows.num_rows
                yield read_rows
            elif read_rows is None:
                if self.keeps:
                    self.kept += held_rows.num_rows
                    yield held_rows
            else:
                yield self._union(held_rows, read_rows)

    def after(self, earlier: Merge | None) -> Merge:
        """
        Return the counts compared with the rows before an earlier attempt of the same run.

        Rows that the earlier attempt wrote are unchanged when they are read again.

        :param earlier: the counts of that attempt; ``None`` if there was none.
        """
        if earlier is None:
            return self
        inserted = min(earlier.inserted, self.unchanged)
        changed = min(earlier.changed, self.unchanged - inserted)
        unchanged = self.unchanged - inserted - changed
        return Merge(self.inserted + inserted, self.changed + changed, unchanged, self.kept)

    def _union(self, held: pa.RecordBatch, read: pa.RecordBatch) -> pa.RecordBatch:
        if all(held.column(name).equals(read.column(name)) for name in ("interval_end", "resolution")):
            self._compare(held.column("kw_total_avg"), read.column("kw_total_avg"))
            return read
        position = pc.index_in(held.column("interval_end"), read.column("interval_end"))
        # Rows of another resolution have other keys, even with the same interval end.
        same_resolution = pc.equal(held.column("resolution"), read.column("resolution")[0])
        position = pc.if_else(same_resolution, position, None)
        common = pc.is_valid(position)
        self._compare(
            held.column("kw_total_avg").filter(common), read.column("kw_total_avg").take(position.drop_null())
        )
        kept = held.filter(pc.invert(common))
        self.inserted += read.num_rows + kept.num_rows - held.num_rows
        if not self.keeps:
            return read
        self.kept += kept.num_rows
        union = _joined([read, kept])
        order = pc.sort_indices(union, [("interval_end", "ascending"), ("resolution", "ascending")])
        return union.take(order)

    def _compare(self, held: pa.DoubleArray, read: pa.DoubleArray) -> None:
        # Two nulls are equal. A comparison of a number with a null is null, which the sum omits.
        same = pc.if_else(pc.is_valid(held), pc.equal(held, read), pc.is_null(read))
        unchanged = pc.sum(same).as_py() or 0
        self.unchanged += unchanged
        self.changed += len(held) - unchanged


def _streams(batches: Iterable[pa.RecordBatch]) -> Iterator[Stream]:
    """Iterate over the streams in batches that may be split anywhere."""
    for key, pieces in groupby(_pieces(batches), lambda piece: piece[0]):
        yield key, _joined([rows for _, rows in pieces])


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[Stream]:
    for batch in batches:
        sites, types = batch.column("site_id"), batch.column("stream_type")
        edges: list[int] = []
        if batch.num_rows:
            changes = pc.or_(_changes(sites), _changes(types))
            edges = [0, *(edge + 1 for edge in pc.indices_nonzero(changes).to_pylist()), batch.num_rows]
        for begin, end in pairwise(edges):
            yield (sites[begin].as_py(), types[begin].as_py()), batch.slice(begin, end - begin)


def _changes(column: pa.Array) -> pa.BooleanArray:
    """Return for each value but the first whether it differs from the one before it."""
    return pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))


def _paired(held: Iterator[Stream], read: Iterator[Stream]) -> Iterator[tuple[Any, Any]]:
    """Iterate over the rows of each stream on both sides; ``None`` if a side lacks the stream."""
    of_held: Any = next(held, None)
    of_read: Any = next(read, None)
    while of_held or of_read:
        if of_read is None or (of_held and of_held[0] < of_read[0]):
            yield of_held[1], None
            of_held = next(held, None)
        elif of_held is None or of_read[0] < of_held[0]:
            yield None, of_read[1]
            of_read = next(read, None)
        else:
            yield of_held[1], of_read[1]
            of_held, of_read = next(held, None), next(read, None)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
