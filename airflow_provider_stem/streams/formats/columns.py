"""Columns as text and text as columns, for the formats. Their modules import this one when they read or write."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.streams.tables import INSTANT, LANDING_SCHEMA, iso_texts

Line = list[pa.Array | str]
"""The parts of each row's line: an array has a part for each row, a string is the same in each line."""

TEXT_ROWS = 2**14
"""Rows that are formatted at a time."""

BATCH_ROWS = 2**14
"""
Rows of a batch that is read.

Batches are small and decoded in one thread only, since each thread would keep megabytes of Arrow's pool. Unused memory
of the pool is released after each row group or chunk.
"""

INSTANTS = ("interval_start", "interval_end")

TEXT_SCHEMA = pa.schema(
    [pa.field(field.name, pa.string() if field.name in INSTANTS else field.type) for field in LANDING_SCHEMA]
)
"""Instants are read as strings and then cast, so that pyarrow does not infer their type."""

_CHUNK_BYTES = 2**21
_HEAD_BYTES = 64


def regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Iterate over the rows in tables of ``size`` rows; the last one may be smaller."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + batch.num_rows >= size:
            head = size - rows
            yield pa.Table.from_batches([*waiting, batch.slice(0, head)], LANDING_SCHEMA)
            batch = batch.slice(head)  # noqa: PLW2901
            waiting, rows = [], 0
        if batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting, LANDING_SCHEMA)


def write_lines(sink: BinaryIO, parts: Line) -> None:
    """Write one line for each row."""
    joined: Line = []
    for part in parts:
        # Joining takes time for each part and line, so adjacent constants are joined first.
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    lines = pc.binary_join_element_wise(*joined, "")
    # The characters of a string array are contiguous, so its buffer is the text of the file.
    sink.write(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])


def texts(column: pa.Array, text_of: Callable[[Any], str]) -> pa.Array | str:
    """Return each value as a string, or a single string if all values are equal."""
    if pc.all(pc.equal(column, column[0])).as_py():
        return text_of(column[0].as_py())
    encoded = column.dictionary_encode()
    return pa.array(map(text_of, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


def as_floats(values: pa.Array, *, exponent: bool) -> pa.Array:
    """
    Return each number as its shortest exact decimal string, with a decimal point.

    Readers that infer types read ``0`` as an integer.

    :param exponent: whether strings may have an exponent. Some CSV readers read such a number as a string. Some JSON
        readers fail at a number without exponent of more than twenty digits.
    """
    texts = values.cast(pa.string())
    exponents = pc.match_substring(texts, "e")
    if pc.any(exponents).as_py():
        odd = texts.filter(exponents).to_pylist()
        if exponent:
            odd = [text if "." in text else text.replace("e", ".0e") for text in odd]
        else:
            odd = [f"{Decimal(text):f}" for text in odd]
        texts = pc.replace_with_mask(texts, exponents, pa.array(odd, pa.string()))
    pointless = pc.invert(pc.match_substring(texts, "."))
    if pc.any(pointless).as_py():
        whole = pc.binary_join_element_wise(texts.filter(pointless), ".0", "")
        texts = pc.replace_with_mask(texts, pointless, whole)
    return texts


class IsoText:
    """
    Format UTC instants as ISO 8601 strings without the ``Z``.

    Caches the strings of instants on the grid, up to 7 years, since streams repeat them.
    """

    _STEP = 900_000_000  # us
    _MOST = 2**18

    def __init__(self) -> None:
        self._known = range(0)
        self._texts = pa.array([], pa.string())

    def of(self, instants: pa.Array) -> pa.Array:
        """Return each instant as a string."""
        micros = instants.cast(pa.int64())
        bounds = pc.min_max(micros).as_py()
        first, last = bounds["min"], bounds["max"]
        if not (self._known and self._known[0] <= first and last <= self._known[-1]):
            if self._known:
                first, last = min(first, self._known[0]), max(last, self._known[-1])
            grid = range(first - first % self._STEP, last + self._STEP, self._STEP)
            if len(grid) > self._MOST:
                return iso_texts(instants)
            self._known, self._texts = grid, iso_texts(pa.array(grid, pa.int64()).cast(INSTANT))
        passed = pc.subtract(micros, self._known[0])
        position = pc.divide(passed, self._STEP)
        if not pc.all(pc.equal(pc.multiply(position, self._STEP), passed)).as_py():
            return iso_texts(instants)
        return self._texts.take(position)


@contextmanager
def compressed(file: BinaryIO, compression: str) -> Iterator[Any]:
    """Open a file for text that is compressed with ``gzip``, ``zstd`` or ``none``. The file itself stays open."""
    if compression == "gzip":
        # No time or name in the header, so that equal data is equal bytes.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as sink:
            yield sink
    elif compression == "zstd":
        with pa.CompressedOutputStream(_Unclosed(file), "zstd") as sink:
            yield sink
    else:
        yield file


def uncompressed(file: BinaryIO) -> io.BufferedReader:
    """Open the decompressed content of a file, whose first bytes show its compression. The file itself stays open."""
    head = file.read(4)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file, mode="rb")))
    if head == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(cast(Any, pa.CompressedInputStream(_Unclosed(file), "zstd")))
    return io.BufferedReader(_Unclosed(file))


def head_of(file: BinaryIO) -> bytes:
    """Return the first 64 bytes of a file's decompressed content, and position the file at its start."""
    with uncompressed(file) as source:
        head = source.read(_HEAD_BYTES)
    file.seek(0)
    return head


def chunks(source: io.BufferedReader, *, quoted: bool) -> Iterator[bytes]:
    """
    Iterate over chunks of whole lines, so that pyarrow reads each as a single block.

    Only recent versions of pyarrow can stream JSON, and its CSV reader loses the second half of a quoted CR LF that is
    split between two blocks.

    :param quoted: whether a quoted value may contain a line break.
    :raises ValueError: the last line is incomplete.
    """
    while chunk := source.read(_CHUNK_BYTES):
        lines = [chunk, source.readline()]
        is_open = quoted and sum(line.count(b'"') for line in lines) % 2
        while is_open and (line := source.readline()):
            lines.append(line)
            is_open ^= line.count(b'"') % 2
        if not (lines[-1] or chunk).endswith(b"\n"):
            raise ValueError("the last line has no line break, so the file may be cut off")
        yield b"".join(lines)


class _Unclosed(io.RawIOBase):
    """Read or write a file, and do not close it: it is used again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]

    def write(self, data: Any) -> int:
        return self._file.write(data)


def wrong_columns(schema: pa.Schema) -> ValueError:
    """Return the error for a file with other columns than the landing schema."""
    return ValueError(f"its columns are {', '.join(f'{field.name} {field.type}' for field in schema)[:300]}")
