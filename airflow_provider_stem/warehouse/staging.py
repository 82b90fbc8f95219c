"""
Landed objects to verified rows on disk, before any warehouse is touched; for the load.

An object that is not as it was landed ends the load here, with the warehouse as it was.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast
from zlib import error as ZlibError  # noqa: N812 - it is a class

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.objects import Version
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import RESOLUTIONS
from airflow_provider_stem.text import one_line
from airflow_provider_stem.warehouse.objects import LandedObject

log = logging.getLogger(__name__)

Fetch = Callable[[str, ScratchFile], Version | None]
"""Copies the object of an address into a file, and returns its version; ``None`` where there is no object."""

_KEYS = ("site_id", "stream_type", "interval_end")


@dataclass(frozen=True, slots=True)
class StagedObject:
    """
    One object whose rows were verified.

    :param rows: how many it holds.
    :param resolution: of its rows, else as its receipt tells.
    :param batches: numbers of its record batches in the :class:`Staging`.
    :param replaced: whether a later run has rewritten it since its receipt.
    """

    landed: LandedObject
    rows: int
    resolution: int | None
    batches: range
    replaced: bool


class Staging:
    """Verified rows of many objects, in a file without a name: the kernel removes it however the process ends."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._file = tempfile.TemporaryFile(prefix="stem-staging-")  # noqa: SIM115
        self._writer = pa.ipc.new_file(self._file, LANDING_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._written = 0

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        self._writer.close()
        return pa.ipc.open_file(self._file)

    def add(self, landed: LandedObject) -> StagedObject:
        """
        Fetch and verify an object, and store its rows.

        An object that a later run has rewritten since its receipt is read as it is now: a load that waited for a day
        would otherwise fail for good, together with all other objects.

        :raises StemDataError: it is not as it was landed.
        """
        first, rows, resolution = self._written, 0, landed.resolution
        with ScratchFile() as file:
            replaced = self._is_replaced(landed, file)
            file.seek(0)
            try:
                for batch in _verified(read_batches(cast(BinaryIO, file)), landed):
                    self._writer.write_batch(batch)
                    self._written += 1
                    rows += batch.num_rows
                    resolution = batch.column("resolution")[0].as_py()
            except (ValueError, OSError, EOFError, ZlibError, pa.ArrowException) as exc:
                raise StemDataError(
                    f"{one_line(landed.uri)} is not as it was landed: {one_line(str(exc))}. Land it again."
                ) from exc
        if rows != landed.rows and not replaced:
            raise StemDataError(
                f"The object holds {rows:,} rows and its receipt lists {landed.rows:,}. Use the receipt as it was "
                f"returned [{one_line(landed.uri)}]"
            )
        return StagedObject(landed, rows, resolution, range(first, self._written), replaced=replaced)

    def _is_replaced(self, landed: LandedObject, file: ScratchFile) -> bool:
        """Fetch an object and check it against its receipt; return whether a later run has rewritten it."""
        uri = one_line(landed.uri)
        version = self._fetch(landed.uri, file)
        if version is None:
            raise StemDataError(f"The object does not exist any more. Land it again [{uri}]")
        if version.sha256 is None:
            raise StemDataError(f"The object has no SHA-256 in its metadata. Land it again [{uri}]")
        if version.sha256 != file.sha256:
            raise StemDataError(
                f"The object is damaged: the SHA-256 of its bytes is {file.sha256}, its metadata say "
                f"{one_line(version.sha256)}. Land it again [{uri}]"
            )
        if version.sha256 == landed.sha256:
            return False
        if version.read_at is None or version.read_at <= landed.read_at:
            raise StemDataError(
                "The object is not the one of its receipt, and was not read later. Load it with its own receipt, or "
                f"land it again [{uri}]"
            )
        log.warning("%s was rewritten since its receipt, and is loaded as it is now", uri)
        return True

    def batches(self, staged: StagedObject) -> Iterator[pa.RecordBatch]:
        """Give an object's rows, once all objects were added."""
        for number in staged.batches:
            yield self._reader.get_batch(number)

    def close(self) -> None:
        """Let go of the disk space."""
        self._file.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _verified(batches: Iterator[pa.RecordBatch], landed: LandedObject) -> Iterator[pa.RecordBatch]:
    """Give the batches that have rows, each held to the landing schema and to the one before it."""
    resolution = landed.resolution
    last: pa.Table | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        resolution = _check_intervals(batch, landed, resolution)
        keys = pa.Table.from_batches([batch]).select(_KEYS)
        _check_order(keys if last is None else pa.concat_tables([last, keys]))
        last = keys.slice(keys.num_rows - 1)
        yield batch


def _check_intervals(rows: pa.RecordBatch, landed: LandedObject, resolution: int | None) -> int:
    seconds = rows.column("resolution")
    found: int = seconds[0].as_py()
    if found not in RESOLUTIONS or found != (resolution or found) or not _all(pc.equal(seconds, found)):
        raise ValueError(f"it holds intervals of another resolution than {resolution or found} s")
    step = pa.scalar(found, pa.duration("s"))
    ends = rows.column("interval_end")
    if not _all(pc.equal(pc.add(rows.column("interval_start"), step), ends)):
        raise ValueError(f"it holds an interval that is not {found} s wide")
    epochs = ends.cast(pa.int64())
    width = found * 1_000_000
    if not _all(pc.equal(pc.multiply(pc.divide(epochs, width), width), epochs)):
        raise ValueError(f"it holds an interval off the grid of {found} s")
    if not _all(pc.is_finite(rows.column("kw_total_avg"))):
        raise ValueError("it holds a value that is not a finite number")
    bounds = pc.min_max(ends).as_py()
    if not landed.start < bounds["min"] <= bounds["max"] <= landed.end:
        raise ValueError(
            f"it holds intervals that end from {bounds['min'].isoformat()} to {bounds['max'].isoformat()}, outside its "
            f"period {landed.start.isoformat()} to {landed.end.isoformat()}"
        )
    return found


def _check_order(keys: pa.Table) -> None:
    """Refuse rows that do not ascend; those that do hold no key twice."""
    keys = keys.combine_chunks()
    before, after = keys.slice(0, keys.num_rows - 1), keys.slice(1)
    ascends = pc.less(before["interval_end"], after["interval_end"])
    for name in ("stream_type", "site_id"):
        same = pc.equal(before[name], after[name])
        ascends = pc.or_(pc.less(before[name], after[name]), pc.and_(same, ascends))
    if not _all(ascends):
        site_id, stream_type, end = (after[name][pc.index(ascends, False).as_py()].as_py() for name in _KEYS)
        raise ValueError(
            f"it holds a key twice or out of order: {stream_type} of site {one_line(site_id)} for the interval that "
            f"ends at {end.isoformat()}"
        )


def _all(values: Any) -> bool:
    return pc.all(values).as_py() is not False  # of no value at all it is null
