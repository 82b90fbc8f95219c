"""
Rows in the landing schema to bytes: Parquet, CSV or JSON lines; for the landing.

The same rows give the same bytes, so writing them again changes nothing.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import Window

ROW_GROUP_ROWS = 2**16
"""Almost two years of one stream: readers that look for a site skip the others, and a group takes little memory."""

_ZSTD_LEVEL = 3
_VALUES = "kw_total_avg"


def write_file(
    batches: Iterable[pa.RecordBatch], file: BinaryIO, file_format: str, compression: str, period: Window
) -> int:
    """
    Write rows in the landing schema.

    :param batches: sorted as :data:`~airflow_provider_stem.streams.tables.LANDING_SCHEMA` says.
    :param file: takes the bytes, from front to end.
    :param period: holds all rows.
    :return: how many rows were written.
    """
    if file_format == "parquet":
        return _write_parquet(batches, file, compression)
    with _compressed(file, compression) as sink:
        if file_format == "csv":
            return _write_csv(batches, sink, period)
        return _write_jsonl(batches, sink, period)


def _write_parquet(batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str) -> int:
    groups = _grouped(batches)
    group = next(groups, None)
    encoding = _value_encoding(group, compression) if group else "PLAIN"
    rows = 0
    with _parquet_writer(file, LANDING_SCHEMA, compression, encoding) as writer:
        while group:
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rows += group.num_rows
            group = next(groups, None)
    return rows


def _value_encoding(group: pa.Table, compression: str) -> str:
    """
    Give the encoding in which a row group's values are smallest.

    No one suits all meters: few distinct values ask for a dictionary, whole numbers for splitting the bytes, and what
    varies in every digit is best left alone.
    """
    values = group.select([_VALUES])
    sizes = {}
    for encoding in ("PLAIN", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"):
        tried = pa.MockOutputStream()
        with _parquet_writer(tried, values.schema, compression, encoding) as writer:
            writer.write_table(values)
        sizes[encoding] = tried.size()
    return min(sizes, key=sizes.__getitem__)


def _parquet_writer(sink: Any, schema: pa.Schema, compression: str, encoding: str) -> pyarrow.parquet.ParquetWriter:
    """Make a writer of the landing schema, or of some of its columns; the encoding is that of the values."""
    dictionaries = ["site_id", "stream_type", "resolution"]
    encodings = {"interval_start": "DELTA_BINARY_PACKED", "interval_end": "DELTA_BINARY_PACKED"}
    if encoding == "RLE_DICTIONARY":
        dictionaries.append(_VALUES)
    else:
        encodings[_VALUES] = encoding
    return pyarrow.parquet.ParquetWriter(
        sink,
        schema,
        compression=compression,
        compression_level=_ZSTD_LEVEL if compression == "zstd" else None,
        use_dictionary=[name for name in dictionaries if name in schema.names],
        column_encoding={name: how for name, how in encodings.items() if name in schema.names},
    )


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather batches to full row groups, so that small sites share one."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + batch.num_rows >= ROW_GROUP_ROWS:
            head = ROW_GROUP_ROWS - rows
            yield pa.Table.from_batches([*waiting, batch.slice(0, head)], LANDING_SCHEMA)
            batch = batch.slice(head)  # noqa: PLW2901
            waiting, rows = [], 0
        if batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting, LANDING_SCHEMA)


def _write_csv(batches: Iterable[pa.RecordBatch], sink: BinaryIO, period: Window) -> int:
    rows = 0
    shown = _ShownInstants(period)
    schema = pa.schema(
        [field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in LANDING_SCHEMA]
    )
    with pyarrow.csv.CSVWriter(sink, schema) as writer:
        for batch in batches:
            starts, ends = shown.of(batch)
            columns = [*batch.columns[:3], starts, ends, batch.column("kw_total_avg")]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += batch.num_rows
    return rows


def _write_jsonl(batches: Iterable[pa.RecordBatch], sink: BinaryIO, period: Window) -> int:
    rows = 0
    shown = _ShownInstants(period)
    for batch in batches:
        if not batch.num_rows:
            continue
        starts, ends = shown.of(batch)
        # One stream of one site to a batch, so all but instants and values is the same in every line.
        head = {name: batch.column(name)[0].as_py() for name in ("site_id", "stream_type", "resolution")}
        lines = pc.binary_join_element_wise(
            json.dumps(head, separators=(",", ":"))[:-1] + ',"interval_start":"',
            starts,
            '","interval_end":"',
            ends,
            '","kw_total_avg":',
            batch.column("kw_total_avg").cast(pa.string()).fill_null("null"),
            "}\n",
            "",
        )
        # The characters of a string array lie behind each other, so they are the file's text already.
        sink.write(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])
        rows += batch.num_rows
    return rows


class _ShownInstants:
    """Instants of a period as ISO 8601 text: formatted once, then looked up, since formatting is slow."""

    def __init__(self, period: Window) -> None:
        self._resolution = period.resolution
        self._first = period.first_end - period.resolution
        edges = pa.array(range(self._first, period.last_end + 1, period.resolution), pa.int64())
        self._text = pc.strftime(edges.cast(pa.timestamp("s", "UTC")), "%Y-%m-%dT%H:%M:%SZ")

    def of(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
        """Give a batch's interval starts and ends."""
        ends = batch.column("interval_end").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
        position = pc.divide(pc.subtract(ends, self._first), self._resolution)
        return self._text.take(pc.subtract(position, 1)), self._text.take(position)


@contextmanager
def _compressed(file: BinaryIO, compression: str) -> Iterator[Any]:
    if compression == "gzip":
        # Neither a time nor a name in the header: they would make equal data differ.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as sink:
            yield sink
    elif compression == "zstd":
        # Closing the stream closes what lies below, but the file is still to be read.
        with pa.CompressedOutputStream(_Unclosed(file), "zstd") as sink:
            yield sink
    else:
        yield file


class _Unclosed(io.RawIOBase):
    """Writes through, and leaves the file open when closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)
