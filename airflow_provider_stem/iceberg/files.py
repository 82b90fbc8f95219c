"""Data files of the Iceberg table: partitions, bounds and names, reading and writing. For the load."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.io.pyarrow import (
    ArrowScan,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import partition_record_value
from pyiceberg.table import FileScanTask, Table
from pyiceberg.typedef import Record
from pyiceberg.types import PrimitiveType

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.iceberg.tables import COLUMNS
from airflow_provider_stem.streams.formats.parquet import PORTABLE, ROW_GROUP_ROWS, parquet_writer, smallest_encodings
from airflow_provider_stem.streams.tables import KEY

Partition = tuple[Any, ...]
"""The values of a partition's fields."""

Box = tuple[tuple[Any, Any], ...]
"""The lowest and the highest value of each column of the key; ``None`` if unknown."""

_NAME = re.compile(r"(?P<object>[0-9a-f]{32})-(?P<part>\d+)-of-(?P<parts>\d+)-[0-9a-f]{32}\.parquet")
_ORDER = [(column, "ascending") for column in ("site_id", "stream_type", "interval_end", "resolution")]
_CODEC = "zstd"
_ALL = AlwaysTrue()


def live(table: Table, row_filter: str | BooleanExpression = _ALL) -> list[FileScanTask]:
    """
    Return the live data files that may have rows of a filter.

    :raises StemConfigError: another engine has deleted rows without rewriting their files.
    """
    try:
        tasks = list(table.scan(row_filter=row_filter).plan_files())
        if not any(task.delete_files for task in tasks):
            return tasks
        reason = next(one.file_path for task in tasks for one in task.delete_files)
    except ValueError as exc:
        # pyiceberg does not read tables with equality deletes.
        reason = str(exc)
    raise StemConfigError(
        "The table has files with deleted rows, which another engine has written. Rewrite its data files there (Spark: "
        f"CALL system.rewrite_data_files) [{one_line(reason)}]"
    )


def split(table: Table, rows: pa.Table) -> Iterator[tuple[Partition, pa.Table]]:
    """Iterate over the partitions of rows, by the table's current partition spec, and their rows in the same order."""
    codes = pa.array([0], pa.int64()).take(pa.array([0] * rows.num_rows, pa.int8()))
    values: list[list[Any]] = []
    for field in table.spec().fields:
        source = table.schema().find_field(field.source_id)
        column = rows.column(source.name).combine_chunks().dictionary_encode()
        transform = field.transform.pyarrow_transform(source.field_type)
        encoded = transform(column.dictionary).take(column.indices).dictionary_encode(null_encoding="encode")
        of_field = encoded.dictionary.to_pylist()
        codes = pc.add(pc.multiply(codes, len(of_field)), encoded.indices.cast(pa.int64()))
        values.append([partition_record_value(field, value, table.schema()) for value in of_field])
    ordered = rows.take(pc.sort_indices(codes))  # a stable sort
    begin = 0
    for count in sorted(pc.value_counts(codes).to_pylist(), key=lambda one: one["values"]):
        code, partition = count["values"], []
        for of_field in reversed(values):
            code, position = divmod(code, len(of_field))
            partition.append(of_field[position])
        yield tuple(reversed(partition)), ordered.slice(begin, count["counts"])
        begin += count["counts"]


def box_of_rows(rows: pa.Table) -> Box:
    """Return the bounds of rows."""
    bounds = (pc.min_max(_comparable(rows.column(name))).as_py() for name in KEY)
    return tuple((one["min"], one["max"]) for one in bounds)


def may_overlap(one: Box, other: Box) -> bool:
    """Return whether two boxes may have a key in common."""
    return all(
        (low is None or other_high is None or low <= other_high)
        and (other_low is None or high is None or other_low <= high)
        for (low, high), (other_low, other_high) in zip(one, other, strict=True)
    )


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # pyiceberg reads the bounds of instants as microseconds.
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


class DataFiles:
    """
    Reads and writes data files of a table. What they have in common is derived once.

    :param table: the table, at any snapshot.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._iceberg = table.schema()
        others = schema_to_pyarrow(self._iceberg)
        # Fields with parts, which others may have added, have the ids of their parts too.
        own = [one.with_metadata({**(one.metadata or {}), **others.field(one.name).metadata}) for one in COLUMNS]
        self.schema = pa.schema([*own, *(one for one in others if one.name not in COLUMNS.names)])
        """The columns that a load writes, then those that others have added, with Iceberg's ids."""
        self._statistics = (
            compute_statistics_plan(self._iceberg, table.properties),
            parquet_path_to_id_mapping(self._iceberg),
        )

    def box(self, file: DataFile) -> Box:
        """Return the bounds of a data file, by its entry in the manifest."""
        box = []
        for name in KEY:
            column = self._iceberg.find_field(name)
            bounds = [(of or {}).get(column.field_id) for of in (file.lower_bounds, file.upper_bounds)]
            box.append([bound and from_bytes(cast(PrimitiveType, column.field_type), bound) for bound in bounds])
        return tuple((low, high) for low, high in box)

    def read(self, task: FileScanTask) -> pa.Table:
        """Return the rows of a data file, in :attr:`schema`."""
        scan = ArrowScan(self.table.metadata, self.table.io, self._iceberg, _ALL)
        return scan.to_table([task]).select(self.schema.names).cast(self.schema)

    def write(self, partition: Partition, rows: pa.Table, name: str) -> DataFile:
        """
        Write rows to a new data file, sorted, and return its entry for a manifest.

        :param rows: rows of this partition, in :attr:`schema`.
        :param name: name of the file, which is never used again.
        """
        rows = rows.sort_by(_ORDER)
        sink = pa.BufferOutputStream()
        footers: list[Any] = []
        encodings = smallest_encodings(rows, _CODEC, PORTABLE)
        with parquet_writer(sink, self.schema, _CODEC, encodings, metadata_collector=footers) as writer:
            writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        content = sink.getvalue()
        record = Record(*partition)
        folder = self.table.spec().partition_to_path(record, self._iceberg)
        path = self.table.location_provider().new_data_location(f"{folder}/{name}" if folder else name)
        # The name is new, so no request is needed to find out whether it exists.
        with self.table.io.new_output(path).create(overwrite=True) as stream:
            stream.write(content)
        statistics = data_file_statistics_from_parquet_metadata(footers[0], *self._statistics)
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=record,
            file_size_in_bytes=content.size,
            sort_order_id=None,
            spec_id=self.table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


def object_id(uri: str, sha256: str) -> str:
    """Return the identifier of one version of a landed object in the names of data files."""
    return hashlib.sha256(f"{uri}\n{sha256}".encode(errors="backslashreplace")).hexdigest()[:32]


def name_of_part(identifier: str, part: int, parts: int) -> str:
    """
    Return a new name for a file with all rows of an object in one partition, and no others.

    :param identifier: :func:`object_id` of the object.
    :param part: number of the partition among the ``parts`` partitions of the object.
    """
    return f"{identifier}-{part}-of-{parts}-{uuid4().hex}.parquet"


def name_of_merged() -> str:
    """Return a new name for a file with other rows."""
    return f"merged-{uuid4().hex}.parquet"


def whole_objects(files: Iterable[DataFile]) -> dict[str, int]:
    """Return the number of rows of each object whose rows are all in the files, by :func:`object_id`."""
    rows: dict[tuple[str, int], dict[int, int]] = {}
    for file in files:
        if match := _NAME.fullmatch(file.file_path.rpartition("/")[2]):
            rows.setdefault((match["object"], int(match["parts"])), {})[int(match["part"])] = file.record_count
    return {identifier: sum(found.values()) for (identifier, parts), found in rows.items() if len(found) == parts}
