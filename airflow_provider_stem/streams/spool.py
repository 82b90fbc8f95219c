"""Rows and files on local disk, in unnamed files, which the kernel removes when the process ends."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from typing import NamedTuple

import pyarrow as pa

from airflow_provider_stem._disk import own_disk
from airflow_provider_stem.streams.tables import STREAM_SCHEMA


class Piece(NamedTuple):
    """Position of some rows in a :class:`Spool`; bytes."""

    offset: int
    size: int


class Spool:
    """
    Store rows on disk until they are written to an object.

    Thread-safe.
    """

    def __init__(self) -> None:
        with own_disk():
            self._file = tempfile.TemporaryFile(prefix="stem-spool-")  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def append(self, stream: pa.RecordBatch) -> Piece:
        """Store some rows of one stream in ``STREAM_SCHEMA``, and return their position."""
        # Not from Arrow's pool, in which each calling thread would keep megabytes.
        data = stream.serialize(memory_pool=pa.system_memory_pool())
        with self._lock:
            piece = Piece(self._end, len(data))
            self._end += len(data)
        _write_at(self._file.fileno(), data, piece.offset)
        return piece

    def read(self, piece: Piece) -> pa.RecordBatch:
        """Return the rows at a position."""
        return pa.ipc.read_record_batch(_read_at(self._file.fileno(), piece.size, piece.offset), STREAM_SCHEMA)

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ScratchFile(io.RawIOBase):
    """An unnamed file that is written sequentially and read anywhere; computes the SHA-256 of its content."""

    def __init__(self) -> None:
        with own_disk():
            self._file = tempfile.TemporaryFile(prefix="stem-file-")  # noqa: SIM115
        self.clear()

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return self._hash.hexdigest()

    def clear(self) -> None:
        """Remove the content."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self._position = 0
        self.size = 0

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()
        super().close()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self._position != self.size:
            raise io.UnsupportedOperation("a scratch file must be written sequentially")
        view = memoryview(data)
        _write_at(self._file.fileno(), view, self.size)
        self._hash.update(view)
        self.size += view.nbytes
        self._position = self.size
        return view.nbytes

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self._position))
        data = _read_at(self._file.fileno(), wanted, self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _write_at(descriptor: int, data: bytes | memoryview | pa.Buffer, offset: int) -> None:
    view = memoryview(data).cast("B")
    with own_disk():
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError("a spool file is shorter than what was written to it")
        data += more
    return data
