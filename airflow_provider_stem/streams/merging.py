"""Rows that an object holds and rows that were read, united as sorted streams; for the writing of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.streams.tables import LANDING_SCHEMA

Stream = tuple[tuple[str, str], pa.RecordBatch]
"""A site id and a stream type, and their rows in the landing schema."""


@dataclass(slots=True)
class Merge:
    """
    Unites held and read rows by site, stream type, resolution and interval; of a key in both the read value holds.

    Both sides are sorted by ``site_id, stream_type, interval_end``, so memory holds one stream of each at a time.

    :param inserted: how many keys were read and not held.
    :param changed: how many were both, with another value; null differs from a number.
    :param unchanged: how many were both, with the same value.
    :param kept: how many were held and not read.
    :param keeps: whether these are in the union; they are not counted otherwise.
    """

    inserted: int = 0
    changed: int = 0
    unchanged: int = 0
    kept: int = 0
    keeps: bool = True

    def united(self, held: Iterable[pa.RecordBatch], read: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """
        Iterate over the union, one stream at a time; the counts are complete at its end.

        :param held: batches in the landing schema, as
            :func:`~airflow_provider_stem.streams.file_reading.read_batches` iterates over them.
        :param read: the same; all rows are of one resolution.
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
        Return the counts against what was held before an earlier attempt of the same run.

        Rows that the earlier attempt wrote are unchanged when they are read again.
        """
        if earlier is None:
            return self
        inserted = min(earlier.inserted, self.unchanged)
        changed = min(earlier.changed, self.unchanged - inserted)
        unchanged = self.unchanged - inserted - changed
        return Merge(self.inserted + inserted, self.changed + changed, unchanged, self.kept)

    def _union(self, held: pa.RecordBatch, read: pa.RecordBatch) -> pa.RecordBatch:
        if held.num_rows == read.num_rows and all(
            held.column(name).equals(read.column(name)) for name in ("interval_end", "resolution")
        ):
            self._compare(held.column("kw_total_avg"), read.column("kw_total_avg"))
            return read
        position = pc.index_in(held.column("interval_end"), read.column("interval_end"))
        # Rows of another resolution are other keys, whatever their interval ends at.
        same_resolution = pc.equal(held.column("resolution"), read.column("resolution")[0])
        position = pc.if_else(same_resolution, position, pa.scalar(None, pa.int32()))
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
        # A comparison with a null is null: equal where both are.
        same = pc.if_else(pc.is_valid(held), pc.fill_null(pc.equal(held, read), False), pc.is_null(read))
        unchanged = pc.sum(same).as_py() or 0
        self.unchanged += unchanged
        self.changed += len(held) - unchanged


def _streams(batches: Iterable[pa.RecordBatch]) -> Iterator[Stream]:
    """Iterate over the streams of batches that may be split anywhere."""
    for key, pieces in groupby(_pieces(batches), lambda piece: piece[0]):
        yield key, _joined([rows for _, rows in pieces])


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[Stream]:
    for batch in batches:
        sites, types = batch.column("site_id"), batch.column("stream_type")
        edges: list[int] = []
        if batch.num_rows:
            changes = pc.or_(*(pc.not_equal(c.slice(1), c.slice(0, len(c) - 1)) for c in (sites, types)))
            edges = [0, *(edge + 1 for edge in pc.indices_nonzero(changes).to_pylist()), batch.num_rows]
        for begin, end in pairwise(edges):
            yield (sites[begin].as_py(), types[begin].as_py()), batch.slice(begin, end - begin)


def _paired(held: Iterator[Stream], read: Iterator[Stream]) -> Iterator[tuple[Any, Any]]:
    """Join by key: the rows of one stream on both sides, ``None`` where a side has none."""
    of_held, of_read = next(held, None), next(read, None)
    while of_held or of_read:
        if of_read is None or (of_held and of_held[0] < of_read[0]):
            yield of_held[1] if of_held else None, None
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
    return pa.Table.from_batches(batches, LANDING_SCHEMA).combine_chunks().to_batches()[0]
