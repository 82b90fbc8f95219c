"""
What a file format consists of.

Neither this module nor those of the formats import pyarrow at the top, since DAGs are parsed with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar

if TYPE_CHECKING:
    import io

    import pyarrow as pa

    from airflow_provider_stem.streams.formats.columns import IsoText, Line

_EXTENSIONS = {"gzip": ".gz", "zstd": ".zst", "none": ""}


class FileFormat(ABC):
    """
    A file format. Equal rows become equal bytes, however they are split into record batches.

    ``name`` is its name in ``file_format`` and its extension, ``compressions`` lists the default first.
    """

    name: ClassVar[str]
    compressions: ClassVar[tuple[str, ...]]

    def extension(self, compression: str) -> str:  # noqa: ARG002 - a format may compress inside its files
        """Return the file name extension, without the leading dot."""
        return self.name

    @abstractmethod
    def write(self, batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str, parquet_encoding: str) -> int:
        """
        Write record batches to a file and return the number of rows.

        :param batches: sorted rows in :data:`~airflow_provider_stem.streams.tables.LANDING_SCHEMA`; a batch may contain
            several streams and resolutions.
        :param file: binary file; it is written sequentially and not closed.
        :param compression: one of ``compressions``.
        :param parquet_encoding: one of :data:`~airflow_provider_stem.streams.formats.ParquetEncoding`; other formats
            ignore it.
        """

    @abstractmethod
    def recognizes(self, head: bytes) -> bool:
        """
        Return whether a file has the format.

        :param head: its first 64 bytes, decompressed if the whole file is compressed with gzip or zstd; fewer if it is
            shorter.
        """

    @abstractmethod
    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        """
        Iterate over the rows of a file; :func:`~airflow_provider_stem.streams.file_reading.read_batches` verifies them.

        :param file: seekable binary file, positioned at its start; it is not closed.
        :return: the columns of the landing schema, each in a type that converts to the schema's. To limit memory,
            batches are small and decoded in this thread only.
        :raises ValueError: the file is damaged, or has other columns.
        """


class TextFormat(FileFormat):
    """A text format with one line per row, which is compressed as a whole."""

    compressions = tuple(_EXTENSIONS)
    header: ClassVar[bytes] = b""

    def extension(self, compression: str) -> str:
        return self.name + _EXTENSIONS[compression]

    def write(self, batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str, parquet_encoding: str) -> int:  # noqa: ARG002
        from airflow_provider_stem.streams.formats import columns

        instants = columns.IsoText()
        rows = 0
        with columns.compressed(file, compression) as sink:
            sink.write(self.header)
            for group in columns.regrouped(batches, columns.TEXT_ROWS):
                [batch] = group.combine_chunks().to_batches()
                columns.write_lines(sink, self.line(batch, instants))
                rows += batch.num_rows
        return rows

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from airflow_provider_stem.streams.formats import columns

        with columns.uncompressed(file) as source:
            for table in self.tables(source):
                yield from table.to_batches(columns.BATCH_ROWS)
                pa.default_memory_pool().release_unused()

    @abstractmethod
    def line(self, batch: pa.RecordBatch, instants: IsoText) -> Line:
        """Return the parts of each row's line."""

    @abstractmethod
    def tables(self, source: io.BufferedReader) -> Iterator[pa.Table]:
        """Iterate over the rows of decompressed text; instants may be ISO 8601 strings."""
