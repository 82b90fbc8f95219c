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
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.objects import Version
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

log = logging.getLogger(__name__)

Fetch = Callable[[str, ScratchFile], Version | None]
"""Copies the object of an address into a file, and returns its version; ``None`` where there is no object."""


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
                for batch in _of_period(read_batches(cast(BinaryIO, file)), landed):
                    self._writer.write_batch(batch)
                    self._written += 1
                    rows += batch.num_rows
                    resolution = batch.column("resolution")[0].as_py()
            except ValueError as exc:
                raise StemDataError(f"{one_line(landed.uri)} is not as it was landed: {exc}. Land it again.") from exc
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
        """Iterate over an object's rows, once all objects were added."""
        for number in staged.batches:
            yield self._reader.get_batch(number)

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _of_period(batches: Iterator[pa.RecordBatch], landed: LandedObject) -> Iterator[pa.RecordBatch]:
    """Check that all rows are of one resolution and belong to the object's period."""
    resolution = landed.resolution
    for batch in batches:
        found = pc.unique(batch.column("resolution")).to_pylist()
        resolution = resolution or found[0]
        if found != [resolution]:
            raise ValueError(f"it holds intervals of another resolution than {resolution} s")
        bounds = pc.min_max(batch.column("interval_end")).as_py()
        if not landed.start < bounds["min"] <= bounds["max"] <= landed.end:
            raise ValueError(
                f"it holds intervals that end from {bounds['min'].isoformat()} to {bounds['max'].isoformat()}, outside "
                f"its period {landed.start.isoformat()} to {landed.end.isoformat()}"
            )
        yield batch
