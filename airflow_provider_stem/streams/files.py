"""
Writing of rows in the landing schema as Parquet, CSV or JSON Lines.

Equal rows become equal bytes, however they are split into record batches, so writing them again changes nothing.
"""

from __future__ import annotations

import gzip
import inspect
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from airflow_provider_stem.streams.tables import INSTANT, LANDING_SCHEMA

ROW_GROUP_ROWS = 2**17
"""
Rows in a Parquet row group: almost four years of one stream.

With larger groups, files are smaller, since zstd compresses instants that repeat between streams, but need more memory.
"""

_TEXT_ROWS = 2**14
_TRIAL_ROWS = 2**16
_ZSTD_LEVEL = 3
_INSTANTS = ("interval_start", "interval_end")
_VALUES = "kw_total_avg"
# The encodings that are tried for each column. All common readers support the first two, but not the others.
_Candidates = dict[str, tuple[str, ...]]
_PORTABLE: _Candidates = dict.fromkeys((*_INSTANTS, _VALUES), ("PLAIN", "RLE_DICTIONARY"))
_SMALLEST: _Candidates = {
    **dict.fromkeys(_INSTANTS, ("PLAIN", "RLE_DICTIONARY", "DELTA_BINARY_PACKED")),
    _VALUES: ("PLAIN", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"),
}
# One page for each column of a row group: pages are compressed separately, and instants repeat at long distances.
# Older versions of pyarrow limit pages by their size only.
_ONE_PAGE = {"data_page_size": 2**30} | (
    {"max_rows_per_page": 2**30}
    if "max_rows_per_page" in inspect.signature(pyarrow.parquet.write_table).parameters
    else {}
)


def write_file(
    batches: Iterable[pa.RecordBatch], file: BinaryIO, file_format: str, compression: str, parquet_encoding: str
) -> int:
    """
    Write record batches to a file and return the number of rows.

    :param batches: sorted rows in :data:`~airflow_provider_stem.streams.tables.LANDING_SCHEMA`; a batch may contain
        several streams and resolutions.
    :param file: binary file; it is written sequentially and not closed.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: as :func:`~airflow_provider_stem.streams.formats.resolve_compression` returned it.
    :param parquet_encoding: ``portable`` or ``smallest``, see
        :data:`~airflow_provider_stem.streams.formats.ParquetEncoding`.
    """
    if file_format == "parquet":
        return _write_parquet(batches, file, compression, _SMALLEST if parquet_encoding == "smallest" else _PORTABLE)
    with _compressed(file, compression) as sink:
        return _write_csv(batches, sink) if file_format == "csv" else _write_jsonl(batches, sink)


def _write_parquet(batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str, candidates: _Candidates) -> int:
    groups = _regrouped(batches, ROW_GROUP_ROWS)
    group = next(groups, None)
    encodings = (
        dict.fromkeys(candidates, "PLAIN") if group is None else _smallest_encodings(group, compression, candidates)
    )
    rows = 0
    with _parquet_writer(file, LANDING_SCHEMA, compression, encodings) as writer:
        while group is not None:
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rows += group.num_rows
            group = next(groups, None)
    return rows


def _smallest_encodings(group: pa.Table, compression: str, candidates: _Candidates) -> dict[str, str]:
    """
    Return the encoding of each column that is smallest for a sample of a row group.

    The best one depends on the meter: a dictionary for few distinct values, byte stream split for whole numbers, and
    plain if all digits vary.
    """
    sample = group.select(list(candidates)).slice(0, _TRIAL_ROWS)
    sizes: dict[str, dict[str, int]] = {name: {} for name in candidates}
    for choice in zip(*candidates.values(), strict=True):
        encodings = dict(zip(candidates, choice, strict=True))
        written: list[pyarrow.parquet.FileMetaData] = []
        sink = pa.MockOutputStream()
        with _parquet_writer(sink, sample.schema, compression, encodings, metadata_collector=written) as writer:
            writer.write_table(sample)
        for number, (name, encoding) in enumerate(encodings.items()):
            sizes[name][encoding] = written[0].row_group(0).column(number).total_compressed_size
    return {name: min(of, key=of.__getitem__) for name, of in sizes.items()}


def _parquet_writer(
    sink: Any, schema: pa.Schema, compression: str, encodings: dict[str, str], **options: Any
) -> pyarrow.parquet.ParquetWriter:
    return pyarrow.parquet.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression=compression,
        compression_level=_ZSTD_LEVEL if compression == "zstd" else None,
        # No limit: the row at which a writer gives up a large dictionary depends on how the rows are split.
        dictionary_pagesize_limit=2**30,
        use_dictionary=[name for name in schema.names if encodings.get(name, "RLE_DICTIONARY") == "RLE_DICTIONARY"],
        column_encoding={name: encoding for name, encoding in encodings.items() if encoding != "RLE_DICTIONARY"},
        **_ONE_PAGE,
        **options,
    )


def _regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
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


def _write_csv(batches: Iterable[pa.RecordBatch], sink: BinaryIO) -> int:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    sink.write((",".join(map(quoted, LANDING_SCHEMA.names)) + "\n").encode())
    instants = _IsoText()
    rows = 0
    for [batch] in (group.combine_chunks().to_batches() for group in _regrouped(batches, _TEXT_ROWS)):
        site_ids, stream_types, resolutions, starts, ends, values = batch.columns
        lines = [_texts(site_ids, quoted), ",", _texts(stream_types, quoted), ",", _texts(resolutions, str)]
        lines += [
            ',"',
            instants.of(starts),
            'Z","',
            instants.of(ends),
            'Z",',
            _as_floats(values, exponent=False).fill_null(""),
            "\n",
        ]
        _write_lines(sink, lines)
        rows += batch.num_rows
    return rows


def _write_jsonl(batches: Iterable[pa.RecordBatch], sink: BinaryIO) -> int:
    instants = _IsoText()
    rows = 0
    for [batch] in (group.combine_chunks().to_batches() for group in _regrouped(batches, _TEXT_ROWS)):
        lines: list[pa.Array | str] = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            lines.append(f'{"," if lines else "{"}"{name}":')
            if name in _INSTANTS:
                lines += ['"', instants.of(column), 'Z"']
            else:
                lines.append(
                    _as_floats(column, exponent=True).fill_null("null")
                    if name == _VALUES
                    else _texts(column, json.dumps)
                )
        _write_lines(sink, [*lines, "}\n"])
        rows += batch.num_rows
    return rows


def _write_lines(sink: BinaryIO, parts: Iterable[pa.Array | str]) -> None:
    """Write the parts of each row as one line; a string is the same in each line."""
    joined: list[pa.Array | str] = []
    for part in parts:
        # Joining takes time for each part and line, so adjacent constants are joined first.
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    lines = pc.binary_join_element_wise(*joined, "")
    # The characters of a string array are contiguous, so its buffer is the text of the file.
    sink.write(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])


def _texts(column: pa.Array, text_of: Callable[[Any], str]) -> pa.Array | str:
    """Return each value as a string, or a single string if all values are equal."""
    if pc.all(pc.equal(column, column[0])).as_py():
        return text_of(column[0].as_py())
    encoded = column.dictionary_encode()
    return pa.array(map(text_of, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


def _as_floats(values: pa.Array, *, exponent: bool) -> pa.Array:
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


class _IsoText:
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
                return _as_iso(instants)
            self._known, self._texts = grid, _as_iso(pa.array(grid, pa.int64()).cast(INSTANT))
        passed = pc.subtract(micros, self._known[0])
        position = pc.divide(passed, self._STEP)
        if not pc.all(pc.equal(pc.multiply(position, self._STEP), passed)).as_py():
            return _as_iso(instants)
        return self._texts.take(position)


def _as_iso(instants: pa.Array) -> pa.Array:
    # Without a zone: strftime and a cast with a zone take forty times as long.
    texts = instants.cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("s")).cast(pa.string())
    return pc.binary_replace_slice(texts, 10, 11, "T")


@contextmanager
def _compressed(file: BinaryIO, compression: str) -> Iterator[Any]:
    if compression == "gzip":
        # No time or name in the header, so that equal data is equal bytes.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as sink:
            yield sink
    elif compression == "zstd":
        # Closing the stream would close the file, which is read later.
        with pa.CompressedOutputStream(_Unclosed(file), "zstd") as sink:
            yield sink
    else:
        yield file


class _Unclosed(io.RawIOBase):
    """Write to a file, and do not close it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)
