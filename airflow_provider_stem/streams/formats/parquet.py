"""Parquet files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from airflow_provider_stem.streams.formats.base import FileFormat

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

ParquetEncoding = Literal["portable", "smallest"]
"""
Encodings of Parquet files.

``portable`` uses PLAIN and RLE_DICTIONARY only, which all common readers support. ``smallest`` may also use
DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT, which some readers do not support.
"""

ROW_GROUP_ROWS = 2**17
"""
Rows in a Parquet row group: almost four years of one stream.

With larger groups, files are smaller, since zstd compresses instants that repeat between streams, but need more memory.
"""

_TRIAL_ROWS = 2**16
_ZSTD_LEVEL = 3
_INSTANTS = ("interval_start", "interval_end")
_VALUES = "kw_total_avg"
# The encodings that are tried for each column. All common readers support the first two, but not the others.
_Candidates = dict[str, tuple[str, ...]]
PORTABLE: _Candidates = dict.fromkeys((*_INSTANTS, _VALUES), ("PLAIN", "RLE_DICTIONARY"))
"""The encodings that ``portable`` allows, by column."""
_SMALLEST: _Candidates = {
    **dict.fromkeys(_INSTANTS, ("PLAIN", "RLE_DICTIONARY", "DELTA_BINARY_PACKED")),
    _VALUES: ("PLAIN", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"),
}


class Parquet(FileFormat):
    """Parquet, with the smallest of the allowed encodings in each column."""

    name = "parquet"
    compressions = ("zstd", "gzip", "snappy", "none")

    def write(self, batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str, parquet_encoding: str) -> int:
        from airflow_provider_stem.streams.formats.columns import regrouped
        from airflow_provider_stem.streams.tables import LANDING_SCHEMA

        candidates = _SMALLEST if parquet_encoding == "smallest" else PORTABLE
        groups = regrouped(batches, ROW_GROUP_ROWS)
        group = next(groups, None)
        encodings = (
            dict.fromkeys(candidates, "PLAIN") if group is None else smallest_encodings(group, compression, candidates)
        )
        rows = 0
        with parquet_writer(file, LANDING_SCHEMA, compression, encodings) as writer:
            while group is not None:
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
                rows += group.num_rows
                group = next(groups, None)
        return rows

    def recognizes(self, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        """
        Iterate over the rows of a file.

        Parquet from another program may have the columns in another order, nullable, or in a type that converts without
        loss, such as a dictionary.
        """
        import pyarrow as pa
        import pyarrow.parquet

        from airflow_provider_stem.streams.formats import columns
        from airflow_provider_stem.streams.tables import LANDING_SCHEMA

        with pyarrow.parquet.ParquetFile(file) as parquet:
            if sorted(parquet.schema_arrow.names) != sorted(LANDING_SCHEMA.names) or any(
                # A time without a zone is ambiguous.
                pa.types.is_timestamp(field.type) and field.type.tz is None
                for field in parquet.schema_arrow
            ):
                raise columns.wrong_columns(parquet.schema_arrow)
            for group in range(parquet.num_row_groups):
                missing = parquet.metadata.row_group(group).num_rows
                for batch in parquet.iter_batches(columns.BATCH_ROWS, row_groups=[group], use_threads=False):
                    missing -= batch.num_rows
                    yield batch.select(LANDING_SCHEMA.names)
                if missing:  # pyarrow may end a row group at a damaged page without an error
                    raise ValueError(f"row group {group} lacks {missing:,} rows")
                pa.default_memory_pool().release_unused()


def smallest_encodings(group: pa.Table, compression: str, candidates: _Candidates) -> dict[str, str]:
    """
    Return the encoding of each column that is smallest for a sample of a row group.

    The best one depends on the meter: a dictionary for few distinct values, byte stream split for whole numbers, and
    plain if all digits vary.
    """
    import pyarrow as pa

    sample = group.select(list(candidates)).slice(0, _TRIAL_ROWS)
    sizes: dict[str, dict[str, int]] = {name: {} for name in candidates}
    for choice in zip(*candidates.values(), strict=True):
        encodings = dict(zip(candidates, choice, strict=True))
        written: list[pyarrow.parquet.FileMetaData] = []
        sink = pa.MockOutputStream()
        with parquet_writer(sink, sample.schema, compression, encodings, metadata_collector=written) as writer:
            writer.write_table(sample)
        for number, (name, encoding) in enumerate(encodings.items()):
            sizes[name][encoding] = written[0].row_group(0).column(number).total_compressed_size
    return {name: min(of, key=of.__getitem__) for name, of in sizes.items()}


def parquet_writer(
    sink: Any, schema: pa.Schema, compression: str, encodings: dict[str, str], **options: Any
) -> pyarrow.parquet.ParquetWriter:
    """
    Return a writer of a Parquet file.

    :param encodings: encoding by column; a dictionary for other columns.
    :param options: more arguments of pyarrow's ``ParquetWriter``.
    """
    import pyarrow.parquet

    return pyarrow.parquet.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression=compression,
        compression_level=_ZSTD_LEVEL if compression == "zstd" else None,
        # No limit: the row at which a writer abandons a large dictionary depends on how the rows are split.
        dictionary_pagesize_limit=2**30,
        use_dictionary=[name for name in schema.names if encodings.get(name, "RLE_DICTIONARY") == "RLE_DICTIONARY"],
        column_encoding={name: encoding for name, encoding in encodings.items() if encoding != "RLE_DICTIONARY"},
        **_one_page(),
        **options,
    )


@cache
def _one_page() -> dict[str, int]:
    """
    Return the options for one page in each column of a row group.

    Pages are compressed separately, and instants repeat at long distances.
    """
    import pyarrow.parquet

    # Older versions of pyarrow limit pages by their size only.
    names = ("data_page_size", "max_rows_per_page")
    known = inspect.signature(pyarrow.parquet.write_table).parameters
    return {name: 2**30 for name in names if name in known}
