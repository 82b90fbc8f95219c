"""Operators that load landed objects into an Apache Iceberg table, and maintain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_stem._arguments import check_connection_id, check_count, check_duration, checked, optional
from airflow_provider_stem._loads import (
    CheckedLoad,
    check_objects,
    check_store_conn_id,
    final_errors,
    objects_of,
    run_id_of,
)
from airflow_provider_stem._text import list_counts
from airflow_provider_stem.errors import StemConfigError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage
    from pyiceberg.catalog import Catalog

__all__ = ["StemIcebergMaintenanceOperator", "StemObjectsToIcebergOperator"]

_LEAST_AGE = timedelta(days=1)
"""How long the files of a commit that is running are safe."""

_MOST_BUCKETS = 2**31 - 1
"""A bucket is a number of 32 bits."""


def _check_table(argument: str, value: object) -> None:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) < 2 or not all(part and part == part.strip() and part.isprintable() for part in parts):
        raise StemConfigError(
            f"{argument} must be the name of a table with its namespace, such as 'stem.streams', got {value!r}."
        )


def _check_age(argument: str, value: timedelta) -> None:
    check_duration(argument, value)
    if value < _LEAST_AGE:
        raise StemConfigError(
            f"{argument} must be {_LEAST_AGE.days} day or more, got {value!r}: a running load could lose its files."
        )


class StemObjectsToIcebergOperator(CheckedLoad, BaseOperator):
    """
    Load landed objects into an Iceberg table in one commit: exactly those that the receipts list, all or none.

    Each object is verified first. The table has each ``site_id, stream_type, resolution, interval_end`` once, with the
    value that was read last, in whichever order objects are loaded. Loading an object again changes nothing and adds no
    snapshot. No row is ever deleted.

    :param objects: what :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` returned, a list of that, or
        entries of its ``objects``. Default: the objects of the asset events that triggered the run.
    :param table: namespace and name of the table, which are created if they do not exist.
    :param catalog_conn_id: connection to the catalog, of any type; its Extra contains pyiceberg's properties.
    :param aws_conn_id: connection of type ``aws`` for the objects and, unless the catalog has its own credentials, for
        the table; ``None`` for boto3's own credentials.
    :param store_conn_id: connection of the other stores that objects are in, such as of type ``wasb`` for ``abfs://``;
        default: that of :class:`~airflow_provider_stem.operators.StemStreamsToObjectStorageOperator`.
    :param buckets: number of buckets of site ids in a new table, 1 to 2,147,483,647. If it divides the number of
        batches of :class:`~airflow_provider_stem.operators.StemSiteListOperator`, a batch is one data file for each
        day.
    :return: counts. Of ``objects``, ``replaced`` were rewritten since their receipt. Of ``rows``, some are
        ``inserted``, ``changed`` or ``unchanged``; ``outdated`` ones have another value than the table, which was read
        later. ``added_files`` and ``removed_files`` count data files. ``snapshot_id`` is the table's current snapshot,
        or ``None`` for a table without rows.
    :raises StemConfigError: an argument is invalid.
    :raises AirflowFailException: from ``execute``: an argument is invalid after rendering; a connection is missing or
        cannot be used; or the table has other columns, rows that another engine has deleted without rewriting their
        files, or a file that the store lacks. The task is not retried.
    :raises AirflowSkipException: from ``execute``: no object was landed.
    :raises StemDataError: from ``execute``: an object does not match its receipt. Nothing is loaded.
    :raises StemTransportError: from ``execute``: S3 or the catalog cannot be used, or other tasks committed during
        every attempt.
    """

    template_fields: Sequence[str] = ("objects", "table", "catalog_conn_id", "aws_conn_id", "store_conn_id")
    template_fields_renderers = {"objects": "json"}  # noqa: RUF012 - declared so by the base class
    _checks = {  # noqa: RUF012 - declared so by the base class
        "objects": check_objects,
        "table": _check_table,
        "catalog_conn_id": check_connection_id,
        "aws_conn_id": check_store_conn_id,
        "store_conn_id": check_store_conn_id,
        "buckets": lambda argument, value: check_count(argument, value, _MOST_BUCKETS),
    }

    @checked
    def __init__(
        self,
        *,
        objects: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        table: str = "stem.streams",
        catalog_conn_id: str = "stem_iceberg",
        aws_conn_id: str | None = "aws_default",
        store_conn_id: str | None = None,
        buckets: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objects = objects
        self.table = table
        self.catalog_conn_id = catalog_conn_id
        self.aws_conn_id = aws_conn_id
        self.store_conn_id = store_conn_id
        self.buckets = buckets
        self._load: Any = None

    def execute(self, context: Context) -> dict[str, int | None]:
        """Fetch and verify the objects, merge their rows, and return the counts."""
        from airflow_provider_stem._stores import StoredObjects
        from airflow_provider_stem.iceberg.catalogs import catalog_errors, catalog_from

        with final_errors():
            self._check_rendered()
            objects = objects_of(self.objects, context)
            catalog = catalog_from(self.catalog_conn_id, self.aws_conn_id)
            from airflow_provider_stem.iceberg.loading import load_objects

            lake = StoredObjects(self.aws_conn_id, self.store_conn_id)
            with catalog_errors(self.catalog_conn_id, catalog.properties):
                load = load_objects(
                    objects,
                    lake.get,
                    lake.head,
                    catalog,
                    self.table,
                    buckets=self.buckets,
                    dag_id=self.dag_id,
                    run_id=run_id_of(context),
                )
        self._load = objects, load
        return load.counts

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Return the OpenLineage metadata of the load; empty if it did not finish."""
        from airflow_provider_stem.iceberg.lineage import load_lineage

        return load_lineage(self._load)


class StemIcebergMaintenanceOperator(CheckedLoad, BaseOperator):
    """
    Compact an Iceberg table, remove its old snapshots, and delete files that no snapshot needs. No row changes.

    The steps run in this order; set the argument of one to ``None`` to leave it out. The operator may run beside loads,
    and may be repeated after a failure. An expired snapshot can neither be read nor be compared with others, see
    :func:`~airflow_provider_stem.iceberg.changes.changes`.

    :param table: namespace and name of the table.
    :param catalog_conn_id: connection to the catalog, as of :class:`StemObjectsToIcebergOperator`.
    :param aws_conn_id: connection of type ``aws`` for the table, unless the catalog has its own credentials; ``None``
        for boto3's own credentials.
    :param compact_after: compact files whose intervals all ended at least so long ago. Choose more than the look-back,
        so that files are not rewritten that a load replaces soon.
    :param expire_after: remove snapshots that were committed at least so long ago, except branches and tags.
    :param keep_snapshots: how many of the newest snapshots to keep in any case, 1 or more.
    :param remove_after: delete files of the table that no snapshot refers to and that were written at least so long
        ago; one day or more, because a running load has such files.
    :return: counts: ``compacted_files`` and the ``written_files`` that replace them; ``expired_snapshots``;
        ``removed_files`` and ``removed_bytes``; ``snapshot_id``, the table's current snapshot.
    :raises StemConfigError: an argument is invalid.
    :raises AirflowFailException: from ``execute``: an argument is invalid after rendering; a connection is missing or
        cannot be used; the table does not exist; another engine has deleted rows without rewriting their files; or the
        store lacks a file of the table. The task is not retried.
    :raises StemDataError: from ``execute``: the table holds a key twice.
    :raises StemTransportError: from ``execute``: the store or the catalog cannot be used, or other tasks committed
        during every attempt.
    """

    template_fields: Sequence[str] = ("table", "catalog_conn_id", "aws_conn_id")
    _checks = {  # noqa: RUF012 - declared so by the base class
        "table": _check_table,
        "catalog_conn_id": check_connection_id,
        "aws_conn_id": check_store_conn_id,
        "compact_after": optional(check_duration),
        "expire_after": optional(check_duration),
        "keep_snapshots": check_count,
        "remove_after": optional(_check_age),
    }

    @checked
    def __init__(
        self,
        *,
        table: str = "stem.streams",
        catalog_conn_id: str = "stem_iceberg",
        aws_conn_id: str | None = "aws_default",
        compact_after: timedelta | None = timedelta(days=7),
        expire_after: timedelta | None = timedelta(days=30),
        keep_snapshots: int = 10,
        remove_after: timedelta | None = timedelta(days=3),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.catalog_conn_id = catalog_conn_id
        self.aws_conn_id = aws_conn_id
        self.compact_after = compact_after
        self.expire_after = expire_after
        self.keep_snapshots = keep_snapshots
        self.remove_after = remove_after

    def execute(self, context: Context) -> dict[str, int | None]:
        """Compact, remove snapshots, delete files, and return the counts."""
        from airflow_provider_stem.iceberg.catalogs import catalog_errors, catalog_from

        with final_errors():
            self._check_rendered()
            catalog = catalog_from(self.catalog_conn_id, self.aws_conn_id)
            with catalog_errors(self.catalog_conn_id, catalog.properties):
                return self._maintain(catalog, context)

    def _maintain(self, catalog: Catalog, context: Context) -> dict[str, int | None]:
        from pyiceberg.exceptions import NoSuchTableError

        from airflow_provider_stem.iceberg.maintenance import compact, expire_snapshots, remove_unused_files
        from airflow_provider_stem.iceberg.tables import check_table

        try:
            table = catalog.load_table(self.table)
        except NoSuchTableError:
            raise StemConfigError(
                f"Invalid table {self.table!r}: the catalog of {self.catalog_conn_id!r} has no such table. Correct the "
                "name, or load objects first."
            ) from None
        check_table(table, self.table)
        now = datetime.now(UTC)
        counts: dict[str, int | None] = {}
        if self.compact_after is not None:
            properties = {"stem.dag-id": self.dag_id, "stem.run-id": str(run_id_of(context))}
            counts |= compact(table, now - self.compact_after, properties)
        if self.expire_after is not None:
            counts["expired_snapshots"] = expire_snapshots(table, now - self.expire_after, self.keep_snapshots)
        if self.remove_after is not None:
            counts |= remove_unused_files(table, now - self.remove_after)
        self.log.info("Maintained %s: %s", self.table, list_counts(counts))
        return {**counts, "snapshot_id": table.metadata.current_snapshot_id}
