"""Reading of landed objects: Parquet, CSV or JSON Lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from airflow_provider_stem._text import one_line
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import RESOLUTIONS, STREAM_TYPES

# To limit memory, batches are small and decoded in this thread only, since each thread would keep megabytes of Arrow's
# pool. Unused memory of the pool is released after each row group or chunk.
_BATCH_ROWS = 2**14
_CHUNK_BYTES = 2**21
_KEY = ("site_id", "stream_type", "interval_end", "resolution")
_INSTANTS = ("interval_start", "interval_end")
# Instants are read as strings and then cast, so that pyarrow does not infer their type.
_TEXT_SCHEMA = pa.schema(
    [pa.field(field.name, pa.string() if field.name in _INSTANTS else field.type) for field in LANDING_SCHEMA]
)


def read_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """
    Iterate over the verified rows of an object as record batches in the landing schema.

    Format and compression are detected from the first bytes, so the key needs no extension. Parquet from another
    program may have the columns in another order, nullable, or in a type that converts without loss, such as a
    dictionary.

    :param file: seekable binary file, positioned at its start.
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
    for batch in _read_parquet(file) if _head(file, 4) == b"PAR1" else _read_text(file):
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
    yield "it contains a stream type that the API does not have", pc.is_in(stream_types, pa.array(STREAM_TYPES))
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


def _read_parquet(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with pyarrow.parquet.ParquetFile(file) as parquet:
        if sorted(parquet.schema_arrow.names) != sorted(LANDING_SCHEMA.names) or any(
            # A time without a zone is ambiguous.
            pa.types.is_timestamp(field.type) and field.type.tz is None
            for field in parquet.schema_arrow
        ):
            raise ValueError(f"its columns are {_columns(parquet.schema_arrow)}")
        for group in range(parquet.num_row_groups):
            missing = parquet.metadata.row_group(group).num_rows
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
                missing -= batch.num_rows
                yield batch.select(LANDING_SCHEMA.names)
            if missing:  # pyarrow may end a row group at a damaged page without an error
                raise ValueError(f"row group {group} lacks {missing:,} rows")
            pa.default_memory_pool().release_unused()


def _read_text(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with _uncompressed(file) as source:
        first = source.peek(1)[:1]
        if first == b"{":
            yield from _read_jsonl(source)
        elif first:
            yield from _read_csv(source)
        # An empty file is JSON Lines without rows.


def _read_csv(source: io.BufferedReader) -> Iterator[pa.RecordBatch]:
    names = None
    for chunk in _chunks(source, quoted=True):
        table = pyarrow.csv.read_csv(
            io.BytesIO(chunk),
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(chunk) + 1, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            # An empty field is null in a number column only; in a string column it is the empty string.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=_TEXT_SCHEMA, null_values=[""], strings_can_be_null=False, check_utf8=True
            ),
        )
        names = table.schema.names
        if names != LANDING_SCHEMA.names:
            raise ValueError(f"its columns are {_columns(table.schema)}")
        yield from table.to_batches(_BATCH_ROWS)
        pa.default_memory_pool().release_unused()


def _read_jsonl(source: io.BufferedReader) -> Iterator[pa.RecordBatch]:
    for chunk in _chunks(source, quoted=False):
        table = pyarrow.json.read_json(
            io.BytesIO(chunk),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=_TEXT_SCHEMA, unexpected_field_behavior="error"),
        )
        yield from table.select(_TEXT_SCHEMA.names).to_batches(_BATCH_ROWS)
        pa.default_memory_pool().release_unused()


def _chunks(source: io.BufferedReader, *, quoted: bool) -> Iterator[bytes]:
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


def _uncompressed(file: BinaryIO) -> io.BufferedReader:
    head = _head(file, 4)
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file, mode="rb")))
    if head == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(cast(Any, pa.CompressedInputStream(file, "zstd")))
    return io.BufferedReader(cast(Any, file))


def _head(file: BinaryIO, size: int) -> bytes:
    head = file.read(size)
    file.seek(0)
    return head


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:300]
