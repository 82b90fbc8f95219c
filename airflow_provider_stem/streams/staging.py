"""
Verify landed objects and store their rows on disk. For the loads into a warehouse and into an Iceberg table.

An object that does not match its receipt fails the load here, before any of its rows is loaded.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import repeat
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem._disk import own_disk
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import Version
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

log = logging.getLogger(__name__)

Fetch = Callable[[str, ScratchFile], Version | None]
"""Copies the object of a URI into a file, and returns its version, or ``None`` if there is no object."""

Split = Callable[[Iterable[pa.RecordBatch]], Iterable[tuple[Hashable, pa.RecordBatch]]]
"""Splits the rows of an object into parts; a part may come in several batches."""


@dataclass(frozen=True, slots=True)
class StagedObject:
    """
    One object whose rows were verified.

    :param landed: its entry in the receipt.
    :param rows: number of its rows.
    :param resolution: of its rows in seconds; for an object without rows, the one in its receipt.
    :param parts: numbers of its record batches in the :class:`Staging`, by part; ``None`` is the only part without a
        split.
    :param sha256: SHA-256 of the bytes that were read, in hexadecimal.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock.
    :param replaced: whether a later run has rewritten it since its receipt.
    """

    landed: LandedObject
    rows: int
    resolution: int | None
    parts: Mapping[Hashable, list[int]]
    sha256: str
    read_at: datetime
    replaced: bool


class Staging:
    """
    Verified rows of many objects, in an anonymous temporary file, which the kernel removes however the process ends.

    :param fetch: copies an object into a file.
    :param split: splits the rows of each object into parts; default: all rows are part ``None``.
    """

    def __init__(self, fetch: Fetch, split: Split | None = None) -> None:
        self._fetch = fetch
        self._split = split or (lambda batches: zip(repeat(None), batches))
        self._lock = threading.Lock()
        with own_disk():
            self._file = tempfile.TemporaryFile(prefix="stem-staging-")  # noqa: SIM115
        self._writer = pa.ipc.new_file(self._file, LANDING_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._written = 0

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        with own_disk():
            self._writer.close()
            return pa.ipc.open_file(self._file)

    def add(self, landed: LandedObject) -> StagedObject:
        """
        Fetch and verify an object, and store its rows.

        An object that a later run has rewritten since its receipt is read as it is now. Otherwise a load that was
        delayed by a day could never succeed.

        :raises StemDataError: the object is missing, damaged, or does not match its receipt.
        """
        rows, resolution = 0, landed.resolution
        parts: dict[Hashable, list[int]] = {}
        with ScratchFile() as file:
            version = self._fetch_verified(landed, file)
            replaced = version.sha256 != landed.sha256
            file.seek(0)
            try:
                for part, batch in self._split(_checked(read_batches(cast(BinaryIO, file)), landed)):
                    with own_disk():
                        self._writer.write_batch(batch)
                    parts.setdefault(part, []).append(self._written)
                    self._written += 1
                    rows += batch.num_rows
                    resolution = batch.column("resolution")[0].as_py()
            except ValueError as exc:
                raise StemDataError(f"The object is invalid: {exc}. Land it again [{one_line(landed.uri)}]") from exc
        if rows != landed.rows and not replaced:
            raise StemDataError(
                f"The object has {rows:,} rows and its receipt lists {landed.rows:,}. Pass the receipt unchanged "
                f"[{one_line(landed.uri)}]"
            )
        # An object that was written again with the same bytes was read later than its receipt says.
        read_at = max(landed.read_at, version.read_at or landed.read_at)
        return StagedObject(landed, rows, resolution, parts, file.sha256, read_at, replaced=replaced)

    def _fetch_verified(self, landed: LandedObject, file: ScratchFile) -> Version:
        """Fetch an object, check it against its receipt, and return its version."""
        uri = one_line(landed.uri)
        version = self._fetch(landed.uri, file)
        if version is None:
            raise StemDataError(f"The object no longer exists. Land it again [{uri}]")
        if version.sha256 is None:
            raise StemDataError(f"The object has no SHA-256 in its metadata. Land it again [{uri}]")
        if version.sha256 != file.sha256:
            raise StemDataError(
                f"The object is damaged: its SHA-256 is {file.sha256}, expected {one_line(version.sha256)} from its "
                f"metadata. Land it again [{uri}]"
            )
        if version.sha256 == landed.sha256:
            return version
        if version.read_at is None or version.read_at <= landed.read_at:
            raise StemDataError(
                "The object is not the one in its receipt, and was not read later. Load it with its own receipt, or "
                f"land it again [{uri}]"
            )
        log.warning("%s was rewritten since its receipt, and is loaded in its current version", uri)
        return version

    def batches(self, staged: StagedObject, part: Any = None) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows of a part of an object; thread-safe. After the first call no object can be added."""
        for number in staged.parts.get(part, ()):
            with self._lock:
                batch = self._reader.get_batch(number)
            yield batch

    def close(self) -> None:
        """Close the file, which frees its disk space."""
        with own_disk():  # it has a buffer
            self._file.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _checked(batches: Iterator[pa.RecordBatch], landed: LandedObject) -> Iterator[pa.RecordBatch]:
    """Yield batches, and raise ``ValueError`` unless all rows have one resolution and lie in the object's period."""
    resolution = landed.resolution
    for batch in batches:
        found = pc.unique(batch.column("resolution")).to_pylist()
        resolution = resolution or found[0]
        if found != [resolution]:
            raise ValueError(f"it has intervals of another resolution than {resolution} s")
        bounds = pc.min_max(batch.column("interval_end")).as_py()
        if not landed.start < bounds["min"] <= bounds["max"] <= landed.end:
            raise ValueError(
                f"it has intervals that end from {bounds['min'].isoformat()} to {bounds['max'].isoformat()}, outside "
                f"its period {landed.start.isoformat()} to {landed.end.isoformat()}"
            )
        yield batch
