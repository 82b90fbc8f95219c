"""
Rows to one object in a store, on top of what it holds; for the landing.

Several tasks, and paused attempts of one task, may write the same object. An object is therefore written on condition
that it is still the one that was read, and its metadata tell when the reading of its newest rows began.
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
"""Iterates over rows in the landing schema, sorted; again from the first with each call."""

_MAX_WRITES = 20  # each of them only where another task has written the object meanwhile
_MAX_DAMAGES = 3
_CLOCK_SKEW = timedelta(seconds=60)
"""The store's times have whole seconds and come from several servers, whose clocks may be set back."""


@dataclass(frozen=True, slots=True)
class Version:
    """
    One version of a stored object.

    :param etag: the store's identifier of its content.
    :param sha256: SHA-256 of its content in hexadecimal, where its metadata have it.
    :param read_at: when the reading of its newest rows began, in UTC by the store's clock, where its metadata have it.
    """

    etag: str
    sha256: str | None
    read_at: datetime | None


class ObjectStore(Protocol):
    """Where objects are kept; see :class:`~airflow_provider_stem._s3.S3Store`."""

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """Return an object's version, ``None`` where there is none, and the store's time."""

    def keys(self, prefix: str, *, required: bool) -> Iterable[str]:
        """Iterate over the keys below a prefix; ``required`` makes it an error where listing is forbidden."""

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """Copy an object into a file; ``None`` where there is none."""

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """
        Store a file.

        :raises ObjectChangedError: the object is not ``replaces`` any more.
        :raises DamagedObjectError: the store keeps something else.
        """

    def uri(self, key: str) -> str:
        """Return the address of a key."""


class ObjectChangedError(Exception):
    """Another task has written the object since it was looked up."""


class DamagedObjectError(Exception):
    """The store keeps other bytes than were sent to it."""


class OvertakenError(Exception):
    """The object holds rows that were read later than those at hand, so these must be read again."""


@dataclass(frozen=True, slots=True)
class Written:
    """
    One object as it was written.

    :param rows: how many it holds.
    :param size: bytes.
    :param sha256: of its bytes, in hexadecimal.
    :param read_at: when the reading of its newest rows began, in UTC by the store's clock.
    :param merge: counts of the rows that were read against what it held before.
    """

    rows: int
    size: int
    sha256: str
    read_at: datetime
    merge: Merge


@dataclass(frozen=True, slots=True)
class ObjectWriter:
    """
    Writes the objects of one attempt.

    :param compression: as :func:`~airflow_provider_stem.streams.formats.check_format` returns it.
    :param if_exists: ``merge``: the object becomes the union of what it held and what was read; ``replace``: it becomes
        what was read; ``fail``: other content is an error.
    :param read_at: when the attempt began to read, in UTC by the store's clock.
    """

    store: ObjectStore
    file_format: str
    compression: str
    parquet_encoding: str
    if_exists: IfExists
    read_at: datetime

    def write_file(self, file: ScratchFile, batches: Iterable[pa.RecordBatch]) -> int:
        """Write rows in the landing schema into a file, and return how many there are."""
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

        :param seen: its version before the attempt began to read; ``None`` where there was none.
        :param read: the rows that were read.
        :param prepared: the file of these rows alone and their number, where it is written already.
        :raises OvertakenError: the object holds rows that were read later.
        :raises StemConfigError: it holds other content, with ``if_exists="fail"``, or something that rows cannot be
            merged with.
        :raises StemTransportError: the store failed, or other tasks wrote the object again and again.
        """
        uri = one_line(self.store.uri(key))
        written: Written | None = None
        with ScratchFile() as copy, ScratchFile() as scratch:
            file, damages, look = scratch, 0, seen is not None
            etags = set()
            for _ in range(_MAX_WRITES):
                current = self.store.get(key, copy) if look else None
                if current and written and (current.sha256, current.read_at) == (written.sha256, written.read_at):
                    if copy.sha256 == written.sha256:
                        return written  # the answer to the PUT was lost
                    # It is damaged, and its rows are at hand: it is written again, not merged with.
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
                        # Each version has a later time than the one that it replaces, even within one second.
                        read_at = max(read_at, current.read_at + timedelta(microseconds=1))
                    written = Written(rows, file.size, file.sha256, read_at, merge)
                etags.add(current and current.etag)
                try:
                    self.store.put(key, file, written.read_at, current)
                except ObjectChangedError:
                    look = True
                except DamagedObjectError:
                    look, damages = True, damages + 1
                    if damages == _MAX_DAMAGES:
                        raise StemTransportError(
                            "The store keeps other bytes than were sent to it. Check the store and the network before "
                            f"it, then delete the object, or land it with if_exists='replace' [{uri}]"
                        ) from None
                else:
                    return written
        if len(etags) == 1:
            raise StemTransportError(
                f"The store refused {_MAX_WRITES} writes of an object that did not change. Check whether it or a proxy "
                f"before it rewrites ETags [{uri}]"
            )
        raise StemTransportError(f"Other tasks changed the object {_MAX_WRITES} times. Try again later [{uri}]")

    def _may_be_later(self, current: Version) -> bool:
        return current.read_at is None or current.read_at >= self.read_at - _CLOCK_SKEW

    def _compared(self, held: _Held, scratch: ScratchFile, read: Rows) -> Written:
        rows = self.write_file(scratch, read())
        if scratch.sha256 != held.file.sha256:
            raise StemConfigError(
                "The object exists with other content, and stays as it is (if_exists='fail'). Use if_exists='merge' or "
                f"'replace', or delete it [{held.uri}]"
            )
        log.info("%s exists with the same content", held.uri)
        read_at = held.version.read_at or self.read_at
        return Written(rows, scratch.size, scratch.sha256, read_at, Merge(unchanged=rows))

    def _united(self, held: _Held, scratch: ScratchFile, read: Rows) -> tuple[int, Merge]:
        """Write the file that replaces an object."""
        merge = Merge(keeps=self.if_exists == "merge")
        try:
            return self.write_file(scratch, merge.united(held.rows(), read())), merge
        except _NotMergeableError as exc:
            message = f"The object cannot be merged with, since it holds something else: {exc}"
            if self.if_exists == "merge":
                raise StemConfigError(
                    f"{message}. Restore or delete it, or use if_exists='replace' [{held.uri}]"
                ) from None
            log.warning("%s [%s]", message, held.uri)
            rows = self.write_file(scratch, read())
            return rows, Merge(inserted=rows)


class _NotMergeableError(Exception):
    """What an object holds is not what this package writes."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An object that exists, and the copy of its content."""

    uri: str
    version: Version
    file: ScratchFile

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Iterate over its verified rows."""
        if self.version.sha256 not in (None, self.file.sha256):
            raise _NotMergeableError(f"its SHA-256 is {self.file.sha256}, its metadata say {self.version.sha256}")
        self.file.seek(0)
        try:
            yield from read_batches(cast(BinaryIO, self.file))
        except ValueError as exc:
            raise _NotMergeableError(str(exc)) from None
