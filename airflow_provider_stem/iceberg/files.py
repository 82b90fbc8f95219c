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
from pyiceberg.expressions import AlwaysTrue
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

from airflow_provider_stem.iceberg.tables import COLUMNS, KEY
from airflow_provider_stem.streams.formats.parquet import PORTABLE, ROW_GROUP_ROWS, parquet_writer, smallest_encodings

Partition = tuple[Any, ...]
"""The values of a partition's fields."""

Box = tuple[tuple[Any, Any], ...]
"""The lowest and the highest value of each column of the key; ``None`` if unknown."""

_NAME = re.compile(r"(?P<object>[0-9a-f]{32})-(?P<part>\d+)-of-(?P<parts>\d+)-[0-9a-f]{32}\.parquet")
_ORDER = [(column, "ascending") for column in ("site_id", "stream_type", "interval_end", "resolution")]
_CODEC = "zstd"


def rows_schema(table: Table) -> pa.Schema:
    """Return the Arrow schema of a table's rows: the columns that a load writes, then those that others have added."""
    fields = schema_to_pyarrow(table.schema(), include_field_ids=False)
    return pa.schema([*COLUMNS, *(field for field in fields if field.name not in COLUMNS.names)])


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


def box_of_file(table: Table, file: DataFile) -> Box:
    """Return the bounds of a data file, by its entry in the manifest."""
    box = []
    for name in KEY:
        column = table.schema().find_field(name)
        bounds = [(of or {}).get(column.field_id) for of in (file.lower_bounds, file.upper_bounds)]
        box.append([bound and from_bytes(cast(PrimitiveType, column.field_type), bound) for bound in bounds])
    return tuple((low, high) for low, high in box)


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


def read(table: Table, task: FileScanTask) -> pa.Table:
    """Return the rows of a data file, as in :func:`rows_schema`."""
    schema = rows_schema(table)
    scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
    return scan.to_table([task]).select(schema.names).cast(schema)


def write(table: Table, partition: Partition, rows: pa.Table, name: str) -> DataFile:
    """
    Write rows to a new data file, sorted, and return its entry for a manifest.

    :param rows: rows of this partition, as in :func:`rows_schema`.
    :param name: name of the file, which is never used again.
    """
    # Fields with parts, which others may have added, need the ids of their parts too.
    with_ids = schema_to_pyarrow(table.schema())
    schema = pa.schema(
        [
            one.with_metadata({**(one.metadata or {}), **with_ids.field(one.name).metadata})
            if one.name in COLUMNS.names
            else with_ids.field(one.name)
            for one in rows.schema
        ]
    )
    rows = rows.sort_by(_ORDER).cast(schema)
    sink = pa.BufferOutputStream()
    footers: list[Any] = []
    encodings = smallest_encodings(rows, _CODEC, PORTABLE)
    with parquet_writer(sink, schema, _CODEC, encodings, metadata_collector=footers) as writer:
        writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
    content = sink.getvalue()
    record = Record(*partition)
    folder = table.spec().partition_to_path(record, table.schema())
    path = table.location_provider().new_data_location(f"{folder}/{name}" if folder else name)
    # The name is new, so no request is needed to find out whether it exists.
    with table.io.new_output(path).create(overwrite=True) as stream:
        stream.write(content)
    statistics = data_file_statistics_from_parquet_metadata(
        footers[0],
        compute_statistics_plan(table.schema(), table.properties),
        parquet_path_to_id_mapping(table.schema()),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=record,
        file_size_in_bytes=content.size,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
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
    """Return the objects of which the files have every row: the number of rows by :func:`object_id`."""
    rows: dict[tuple[str, int], dict[int, int]] = {}
    for file in files:
        if match := _NAME.fullmatch(file.file_path.rpartition("/")[2]):
            rows.setdefault((match["object"], int(match["parts"])), {})[int(match["part"])] = file.record_count
    return {identifier: sum(found.values()) for (identifier, parts), found in rows.items() if len(found) == parts}
