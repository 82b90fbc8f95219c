"""The Iceberg table of streams: its schema, its creation, and the check of an existing table. For the load."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError, ServerError, TableAlreadyExistsError
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform
from pyiceberg.types import DoubleType, IcebergType, IntegerType, NestedField, StringType, TimestamptzType
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.tables import INSTANT, KEY, LANDING_SCHEMA, description_of

COLUMNS = pa.schema(
    [
        *LANDING_SCHEMA,
        pa.field(
            "read_at",
            INSTANT,
            nullable=False,
            metadata={"description": "when the reading of the object with this value began, by the store's clock"},
        ),
        pa.field(
            "uri", pa.string(), nullable=False, metadata={"description": "landed object that the value came from"}
        ),
    ]
)
"""The columns that a load writes."""

_TYPES: dict[pa.DataType, IcebergType] = {
    pa.string(): StringType(),
    pa.int32(): IntegerType(),
    pa.float64(): DoubleType(),
    INSTANT: TimestamptzType(),
}
_ATTEMPTS = 6
_PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    # By default the bounds of strings are cut off, so that files with similar long ids would seem to overlap.
    "write.metadata.metrics.column.site_id": "full",
    # Each commit writes a metadata file; so many are kept beside the current one.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
}


# A REST catalog may fail while another task creates the same namespace or table.
@retry(
    retry=retry_if_exception_type(ServerError),
    stop=stop_after_attempt(_ATTEMPTS),
    wait=wait_random_exponential(0.1, max=5),
    reraise=True,
)
def open_table(catalog: Catalog, name: str, buckets: int) -> Table:
    """
    Return a table, which is created if it does not exist, also by several tasks at once.

    :param name: namespace and table.
    :param buckets: number of buckets of site ids, for a new table only.
    :raises StemConfigError: the table has other columns than a load needs.
    """
    try:
        table = catalog.load_table(name)
    except NoSuchTableError:
        table = _created(catalog, name, buckets)
    check_table(table, name)
    return table


def doubled(table: Table) -> StemDataError:
    """Return the error for a table that holds a key twice."""
    return StemDataError(
        f"{'.'.join(table.name())} holds a key twice. Find the program that writes it besides this package's "
        "operators, and remove the duplicates."
    )


def check_table(table: Table, name: str) -> None:
    """Raise ``StemConfigError`` unless a table has the columns that a load writes, and partitions by an interval."""
    found = {field.name: field for field in table.schema().fields}
    for column in COLUMNS:
        expected = _TYPES[column.type]
        if column.name not in found:
            raise StemConfigError(
                f"Invalid table {name!r}: it has no column {column.name!r}. Add it with type {expected}, or use "
                "another table."
            )
        if found[column.name].field_type != expected:
            raise StemConfigError(
                f"Invalid table {name!r}: its column {column.name!r} has type {found[column.name].field_type}, "
                f"expected {expected}. Change the type, or use another table."
            )
    for field in found.values():
        if field.required and field.name not in COLUMNS.names:
            raise StemConfigError(
                f"Invalid table {name!r}: its column {field.name!r} is required, and a load has no value for it. Make "
                "it optional, or use another table."
            )
    for partition in table.spec().fields:
        # All values of an interval must be in one partition, or a load would not find the one that it replaces.
        if (source := table.schema().find_column_name(partition.source_id)) not in (*KEY, "interval_start"):
            raise StemConfigError(
                f"Invalid table {name!r}: it is partitioned by {source!r}, whose value may differ for the same "
                f"interval. Partition it by {', '.join(KEY)} or interval_start, or use another table."
            )


def _created(catalog: Catalog, name: str, buckets: int) -> Table:
    namespace = catalog.namespace_from(name)
    try:
        catalog.create_namespace_if_not_exists(namespace)
    except Exception:
        # Not every catalog reports a namespace that another task has just created as such.
        if not catalog.namespace_exists(namespace):
            raise
    numbers = {field.name: number for number, field in enumerate(COLUMNS, 1)}
    schema = Schema(
        *(
            NestedField(
                numbers[field.name],
                field.name,
                _TYPES[field.type],
                required=not field.nullable,
                doc=description_of(field),
            )
            for field in COLUMNS
        ),
        identifier_field_ids=[numbers[column] for column in KEY],
    )
    spec = PartitionSpec(
        PartitionField(numbers["interval_start"], 1000, DayTransform(), "interval_start_day"),
        PartitionField(numbers["site_id"], 1001, BucketTransform(buckets), "site_id_bucket"),
    )
    order = SortOrder(
        *(SortField(numbers[column], IdentityTransform()) for column in ("site_id", "stream_type", "interval_end"))
    )
    try:
        return catalog.create_table(name, schema, partition_spec=spec, sort_order=order, properties=_PROPERTIES)
    except TableAlreadyExistsError:
        return catalog.load_table(name)
