"""
Rows in the binary format of PostgreSQL's COPY, which needs a tenth of the CPU time of CSV. For the session.

The format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

# PostgreSQL counts from 2000-01-01.
_DAYS = 10_957
_MICROSECONDS = _DAYS * 86_400 * 1_000_000
_NULL = pa.scalar(b"\xff\xff\xff\xff", pa.binary())


def binary_copy(batches: Iterable[pa.RecordBatch]) -> Iterator[memoryview]:
    """
    Yield what COPY reads for the rows, in pieces.

    :param batches: rows with columns of strings, integers, floats, dates, and times in microseconds.
    """
    yield memoryview(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    for batch in batches:
        yield _rows(batch)
    yield memoryview(b"\xff\xff")


def _rows(batch: pa.RecordBatch) -> memoryview:
    head = pa.scalar(struct.pack(">h", batch.num_columns), pa.binary())
    parts: list[pa.Scalar | pa.Array] = [head]
    for is_fixed, group in groupby(batch.columns, lambda one: not pa.types.is_string(one.type) and not one.null_count):
        columns = list(group)
        parts += [_fixed(columns)] if is_fixed else map(_field, columns)
    rows = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary()))
    _, offsets, data = rows.buffers()
    bounds = memoryview(offsets).cast("i")
    return memoryview(data)[bounds[0] : bounds[len(rows)]]


def _field(column: pa.Array) -> pa.BinaryArray:
    """Return the field of each row: its length and its bytes, or -1 for null."""
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        texts = [text.encode() for text in encoded.dictionary.to_pylist()]
        fields = pa.array([struct.pack(">i", len(text)) + text for text in texts], pa.binary()).take(encoded.indices)
    else:
        fields = _fixed([column.fill_null(pa.scalar(0, pa.int64()).cast(column.type))])
    return pc.if_else(column.is_null(), _NULL, fields)


def _fixed(columns: list[pa.Array]) -> pa.BinaryArray:
    """Return the fields of columns without nulls, joined by row."""
    template = b""
    places = []
    for column in columns:
        width = column.type.bit_width // 8
        places.append((len(template) + 4, width, _as_postgres(column)))
        template += struct.pack(">i", width) + bytes(width)
    count = len(columns[0])
    rows = bytearray(template * count)
    for at, width, column in places:
        values = memoryview(column.buffers()[1])[column.offset * width :][: count * width]
        for byte in range(width):
            rows[at + byte :: len(template)] = values[width - 1 - byte :: width]
    width = len(template)
    return pa.Array.from_buffers(pa.binary(width), count, [None, pa.py_buffer(rows)]).cast(pa.binary())


def _as_postgres(column: pa.Array) -> pa.Array:
    """Return times and dates as numbers from PostgreSQL's epoch."""
    if pa.types.is_timestamp(column.type):
        return pc.subtract(column.cast(pa.int64()), _MICROSECONDS)
    if pa.types.is_date32(column.type):
        return pc.subtract(column.cast(pa.int32()), pa.scalar(_DAYS, pa.int32()))
    return column
