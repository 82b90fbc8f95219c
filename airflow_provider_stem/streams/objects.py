"""
Writing of one object in a store, merged with the rows that it has; used by the landing.

Several tasks, or attempts of one task, may write the same object. It is therefore written only if it is still the
version that was read, and its metadata contains the time when the reading of its newest rows began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO, Literal, cast

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import ObjectStore, Update, Version, update_object

log = logging.getLogger(__name__)

IfExists = Literal["merge", "replace", "fail"]

Rows = Callable[[], Iterable[pa.RecordBatch]]
"""Returns an iterator over sorted rows in the landing schema; each call starts at the first row."""

_CLOCK_SKEW = timedelta(seconds=60)
"""The store's times are in whole seconds and come from several servers, whose clocks may differ or be set back."""


class OvertakenError(Exception):
    """The object contains rows that were read later than those to be written, so the window must be read again."""


@dataclass(frozen=True, slots=True)
class Written:
    """
    One object as it was written.

    :param rows: number of rows.
    :param size: bytes.
    :param sha256: SHA-256 of its bytes, in hexadecimal.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock.
    :param merge: counts of the rows that were read, compared with the rows that it had before.
    """

    rows: int
    size: int
    sha256: str
    read_at: datetime
    merge: Merge


@dataclass(frozen=True, slots=True)
class ObjectWriter:
    """
    Write the objects of one attempt.

    :param store: where to write.
    :param file_format: one of :data:`~airflow_provider_stem.streams.formats.FORMATS`.
    :param compression: as :func:`~airflow_provider_stem.streams.formats.resolve_compression` returns it.
    :param parquet_encoding: see :data:`~airflow_provider_stem.streams.formats.ParquetEncoding`.
    :param if_exists: ``merge`` writes the union of the rows in the object and the rows that were read; ``replace``
        writes the rows that were read; ``fail`` raises an error if the object has other content.
    :param read_at: when the attempt began to read, UTC, by the store's clock.
    """

    store: ObjectStore
    file_format: str
    compression: str
    parquet_encoding: str
    if_exists: IfExists
    read_at: datetime

    def write_file(self, file: ScratchFile, batches: Iterable[pa.RecordBatch]) -> int:
        """Write rows in the landing schema to a file, and return their number."""
        file.clear()
        return FORMATS[self.file_format].write(
            iter(batches), cast(BinaryIO, file), self.compression, self.parquet_encoding
        )

    def write(
        self,
        key: str,
        seen: Version | None,
        read: Rows,
        prepared: tuple[ScratchFile, int] | None = None,
    ) -> Written:
        """
        Write one object.

        :param key: its key in the store.
        :param seen: its version before the attempt began to read; ``None`` if it did not exist.
        :param read: the rows that were read.
        :param prepared: the file with only these rows, and their number, if it is written already.
        :raises OvertakenError: the object contains rows that were read later.
        :raises StemConfigError: it has other content with ``if_exists="fail"``, or its content is not rows that can be
            merged.
        :raises StemTransportError: the store failed, or other tasks wrote the object during every attempt.
        """
        uri = one_line(self.store.uri(key))
        with ScratchFile() as copy, ScratchFile() as scratch:

            def prepare(current: Version | None) -> Update[Written]:
                if current is None:
                    file, rows = prepared or (scratch, self.write_file(scratch, read()))
                    return _update(file, rows, self.read_at, Merge(inserted=rows))
                held = _Held(uri, current, copy)
                if self.if_exists == "fail":
                    return self._compared(held, scratch, read)
                if current != seen and self._may_be_later(current):
                    raise OvertakenError(uri)
                rows, merge = self._united(held, scratch, read)
                read_at = self.read_at
                if current.read_at:
                    # Each version has a later time than the version that it replaces, even within one second.
                    read_at = max(read_at, current.read_at + timedelta(microseconds=1))
                return _update(scratch, rows, read_at, merge)

            return update_object(self.store, key, copy, prepare, exists=seen is not None)

    def _may_be_later(self, current: Version) -> bool:
        return current.read_at is None or current.read_at >= self.read_at - _CLOCK_SKEW

    def _compared(self, held: _Held, scratch: ScratchFile, read: Rows) -> Update[Written]:
        rows = self.write_file(scratch, read())
        if scratch.sha256 != held.file.sha256:
            raise StemConfigError(
                "The object exists with other content and is not changed (if_exists='fail'). Use if_exists='merge' or "
                f"'replace', or delete it [{held.uri}]"
            )
        log.info("%s exists with the same content", held.uri)
        read_at = held.version.read_at or self.read_at
        written = Written(rows, scratch.size, scratch.sha256, read_at, Merge(unchanged=rows))
        return Update(None, read_at, written)

    def _united(self, held: _Held, scratch: ScratchFile, read: Rows) -> tuple[int, Merge]:
        """Write the file that replaces an object; return its number of rows and the counts."""
        merge = Merge(keeps=self.if_exists == "merge")
        try:
            return self.write_file(scratch, merge.merged(held.rows(), read())), merge
        except _NotMergeableError as exc:
            message = f"The object cannot be merged with, since its content is not valid rows: {exc}"
            if self.if_exists == "merge":
                raise StemConfigError(
                    f"{message}. Restore or delete it, or use if_exists='replace' [{held.uri}]"
                ) from None
            log.warning("%s [%s]", message, held.uri)
            rows = self.write_file(scratch, read())
            return rows, Merge(inserted=rows)


def _update(file: ScratchFile, rows: int, read_at: datetime, merge: Merge) -> Update[Written]:
    return Update(file, read_at, Written(rows, file.size, file.sha256, read_at, merge))


class _NotMergeableError(Exception):
    """The content of an object is not what this package writes."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An existing object and the local copy of its content."""

    uri: str
    version: Version
    file: ScratchFile

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Iterate over its verified rows in the landing schema."""
        if self.version.sha256 not in (None, self.file.sha256):
            file = self.version.metadata_file
            raise _NotMergeableError(
                f"its SHA-256 is {self.file.sha256} instead of {self.version.sha256}, as in its metadata"
                f"{f'. To merge with it as it is, delete {one_line(file)}' if file else ''}"
            )
        self.file.seek(0)
        try:
            yield from read_batches(cast(BinaryIO, self.file))
        except ValueError as exc:
            raise _NotMergeableError(str(exc)) from None
