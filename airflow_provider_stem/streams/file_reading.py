"""Reading of landed objects in any format, with verified rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem._text import one_line
from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.formats.columns import head_of
from airflow_provider_stem.streams.stream_types import STREAM_TYPES
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import RESOLUTIONS

_KEY = ("site_id", "stream_type", "interval_end", "resolution")


def read_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """
    Iterate over the verified rows of an object as record batches in the landing schema.

    Format and compression are detected from the first bytes, so the key needs no extension.

    :param file: seekable binary file, positioned at its start; it is not closed.
    :return: batches of one row or more, split anywhere. Rows are sorted by site id, stream type, interval end and
        resolution, without duplicate keys, and each is a row that the API could return.
    :raises ValueError: the file is damaged or truncated, or has other content; the message is one line.
    :raises OSError: the worker's disk failed.
    """
    try:
        yield from _verified(file)
    except (ValueError, OSError, EOFError, zlib.error, pa.ArrowException) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        raise ValueError(one_line(str(exc))) from None


def _verified(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    last: tuple[Any, ...] | None = None
    head = head_of(file)
    file_format = next((one for one in FORMATS.values() if one.recognizes(head)), None)
    if file_format is None:
        raise ValueError(f"it begins with {head!r}, which is no known format")
    for batch in file_format.read(file):
        if not batch.num_rows:
            continue
        columns = []
        for field, column in zip(LANDING_SCHEMA, batch.columns, strict=True):
            if column.null_count and not field.nullable:
                raise ValueError(f"{field.name} contains a null")
            columns.append(column.cast(field.type))
        rows = pa.RecordBatch.from_arrays(columns, schema=LANDING_SCHEMA)
        for problem, is_right in _checks(rows):
            if pc.all(is_right).as_py() is False:  # null if all values are null
                raise ValueError(problem)
        last = _last_key(rows, last)
        yield rows


def _checks(rows: pa.RecordBatch) -> Iterator[tuple[str, pa.BooleanArray]]:
    """Iterate over possible problems, each with a mask of the rows that do not have it."""
    site_ids, stream_types, resolutions, starts, ends, values = rows.columns
    yield (
        "it contains a resolution that the API does not have",
        pc.is_in(resolutions, pa.array(RESOLUTIONS, pa.int32())),
    )
    step = pc.multiply(resolutions.cast(pa.int64()), 1_000_000)
    micros = ends.cast(pa.int64())
    yield "it contains an interval off the grid", pc.equal(pc.multiply(pc.divide(micros, step), step), micros)
    yield "it contains an interval of another width", pc.equal(pc.add(starts.cast(pa.int64()), step), micros)
    yield "it contains a stream type that the API does not have", pc.is_in(stream_types, pa.array(tuple(STREAM_TYPES)))
    yield "it contains an empty site id", pc.not_equal(site_ids, "")
    yield "it contains a value that is not a finite number", pc.is_finite(values)


def _last_key(rows: pa.RecordBatch, last: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """
    Return the last key of some rows.

    :param last: the last key of the previous batch.
    :raises ValueError: a key is not greater than the one before it.
    """

    def key(row: int) -> tuple[Any, ...]:
        return tuple(rows.column(name)[row].as_py() for name in _KEY)

    ascends: Any = False
    for name in reversed(_KEY):
        before, after = (rows.column(name).slice(begin, rows.num_rows - 1) for begin in (0, 1))
        ascends = pc.or_(pc.less(before, after), pc.and_(pc.equal(before, after), ascends))
    position = 0 if last and key(0) <= last else pc.index(ascends, False).as_py() + 1 or None
    if position is not None:
        site_id, stream_type, end, _ = key(position)
        raise ValueError(
            f"it contains a key twice or out of order: {stream_type} of site {one_line(site_id)} for the interval that "
            f"ends at {end.isoformat()}"
        )
    return key(rows.num_rows - 1)
