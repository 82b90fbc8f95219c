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
from typing import BinaryIO, Literal, Protocol, cast

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.files import write_file
from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.spool import ScratchFile

log = logging.getLogger(__name__)

IfExists = Literal["merge", "replace", "fail"]

Rows = Callable[[], Iterable[pa.RecordBatch]]
"""Returns an iterator over sorted rows in the landing schema; each call starts at the first row."""

_MAX_WRITES = 20  # a write is repeated only if another task has written the object in the meantime
_MAX_DAMAGES = 3
_CLOCK_SKEW = timedelta(seconds=60)
"""The store's times are in whole seconds and come from several servers, whose clocks may differ or be set back."""


@dataclass(frozen=True, slots=True)
class Version:
    """
    One version of a stored object.

    :param etag: the store's identifier of its content.
    :param sha256: SHA-256 of its content in hexadecimal; ``None`` if its metadata does not contain it.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock; ``None`` if its metadata does
        not contain it.
    """

    etag: str
    sha256: str | None
    read_at: datetime | None


class ObjectStore(Protocol):
    """A store of objects; see :class:`~airflow_provider_stem._s3.S3Store`."""

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """Return an object's version, ``None`` if it does not exist, and the store's time in UTC."""

    def keys(self, prefix: str, *, required: bool) -> Iterable[str]:
        """Iterate over the keys with a prefix; ``required`` raises an error if listing is forbidden."""

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """Copy an object into a file and return its version; ``None`` if it does not exist."""

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """
        Store a file.

        :param read_at: time for the metadata, UTC.
        :param replaces: the version to replace; ``None`` if the object must not exist.
        :raises ObjectChangedError: the object is no longer the version ``replaces``.
        :raises DamagedObjectError: the store has other bytes than were sent.
        """

    def uri(self, key: str) -> str:
        """Return the URI of a key."""


class ObjectChangedError(Exception):
    """Another task has written the object since it was read."""


class DamagedObjectError(Exception):
    """The store has other bytes than were sent to it."""


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
    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: as :func:`~airflow_provider_stem.streams.formats.resolve_compression` returns it.
    :param parquet_encoding: see :data:`~airflow_provider_stem.streams.formats.PARQUET_ENCODINGS`.
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
        return write_file(
            iter(batches), cast(BinaryIO, file), self.file_format, self.compression, self.parquet_encoding
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
        written: Written | None = None
        with ScratchFile() as copy, ScratchFile() as scratch:
            file, damages, exists = scratch, 0, seen is not None
            etags = set()
            for _ in range(_MAX_WRITES):
                current = self.store.get(key, copy) if exists else None
                if current and written and (current.sha256, current.read_at) == (written.sha256, written.read_at):
                    if copy.sha256 == written.sha256:
                        return written  # the response to the PUT was lost
                    # The object of this attempt is damaged. Write it again instead of merging with it.
                elif current and self.if_exists == "fail":
                    return self._compared(_Held(uri, current, copy), scratch, read)
                elif current and current != seen and self._may_be_later(current):
                    raise OvertakenError(uri)
                else:
                    if current:
                        file, (rows, merge) = scratch, self._united(_Held(uri, current, copy), scratch, read)
                    else:
                        file, rows = prepared or (scratch, self.write_file(scratch, read()))
                        merge = Merge(inserted=rows)
                    read_at = self.read_at
                    if current and current.read_at:
                        # Each version has a later time than the version that it replaces, even within one second.
                        read_at = max(read_at, current.read_at + timedelta(microseconds=1))
                    written = Written(rows, file.size, file.sha256, read_at, merge)
                etags.add(current and current.etag)
                try:
                    self.store.put(key, file, written.read_at, current)
                except ObjectChangedError:
                    exists = True
                except DamagedObjectError:
                    exists, damages = True, damages + 1
                    if damages == _MAX_DAMAGES:
                        raise StemTransportError(
                            "The store keeps other bytes than were sent to it. Check the store and the network, then "
                            f"delete the object, or land it with if_exists='replace' [{uri}]"
                        ) from None
                else:
                    return written
        if len(etags) == 1:
            raise StemTransportError(
                f"The store rejected {_MAX_WRITES} writes of an object that did not change. Check whether the store or "
                f"a proxy rewrites ETags [{uri}]"
            )
        raise StemTransportError(f"Other tasks changed the object {_MAX_WRITES} times. Try again later [{uri}]")

    def _may_be_later(self, current: Version) -> bool:
        return current.read_at is None or current.read_at >= self.read_at - _CLOCK_SKEW

    def _compared(self, held: _Held, scratch: ScratchFile, read: Rows) -> Written:
        rows = self.write_file(scratch, read())
        if scratch.sha256 != held.file.sha256:
            raise StemConfigError(
                "The object exists with other content and is not changed (if_exists='fail'). Use if_exists='merge' or "
                f"'replace', or delete it [{held.uri}]"
            )
        log.info("%s exists with the same content", held.uri)
        read_at = held.version.read_at or self.read_at
        return Written(rows, scratch.size, scratch.sha256, read_at, Merge(unchanged=rows))

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
            raise _NotMergeableError(
                f"its SHA-256 is {self.file.sha256} instead of {self.version.sha256}, as in its metadata"
            )
        self.file.seek(0)
        try:
            yield from read_batches(cast(BinaryIO, self.file))
        except ValueError as exc:
            raise _NotMergeableError(str(exc)) from None
