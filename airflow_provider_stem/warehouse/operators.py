"""Operators that load landed objects and site records into a SQL warehouse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_stem._arguments import check_connection_id, check_duration, checked
from airflow_provider_stem._loads import (
    CheckedLoad,
    check_objects,
    check_store_conn_id,
    final_errors,
    objects_of,
    run_id_of,
)
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.warehouse.session import check_schema
from airflow_provider_stem.warehouse.sites import check_time_zone, read_records

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["StemObjectsToSqlOperator", "StemSitesToSqlOperator"]


class _ToSql(CheckedLoad):
    _checks = {  # noqa: RUF012 - declared so by the base class
        "objects": check_objects,
        "sites": lambda _, value: read_records(value),
        "time_zone": check_time_zone,
        "sql_conn_id": check_connection_id,
        "schema": check_schema,
        "lock_timeout": check_duration,
        "aws_conn_id": check_store_conn_id,
        "store_conn_id": check_store_conn_id,
    }


class StemObjectsToSqlOperator(_ToSql, BaseOperator):
    """
    Load landed objects into a warehouse in one transaction: exactly those that the receipts list, all or none.

    Each object is verified first. Rows are merged by ``site_id, stream_type, resolution, interval_end``: loading an
    object again changes nothing, and a restated value replaces the older one. No row is ever deleted.

    :param objects: what :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` returned, a list of that, or
        entries of its ``objects``. Default: the objects of the asset events that triggered the run.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: schema of the tables and views, which are created if they do not exist.
    :param lock_timeout: how long to wait for other writers of the warehouse.
    :param aws_conn_id: connection of type ``aws``, or ``None`` for boto3's own credentials.
    :param store_conn_id: connection of the other stores that objects are in, such as of type ``wasb`` for ``abfs://``;
        default: that of :class:`~airflow_provider_stem.operators.StemStreamsToObjectStorageOperator`.
    :return: counts. Of ``objects``, ``replaced`` were rewritten since their receipt. Of ``rows``, some are
        ``inserted``, ``changed`` or ``unchanged``. ``absent`` rows are in the warehouse but no longer in the object.
    :raises StemConfigError: an argument is invalid.
    :raises AirflowFailException: from ``execute``: an argument is invalid after rendering, a connection is missing or
        wrong, or the warehouse lacks a privilege or a column. The task is not retried.
    :raises AirflowSkipException: from ``execute``: no object was landed.
    :raises StemDataError: from ``execute``: an object does not match its receipt. Nothing is loaded.
    :raises StemTransportError: from ``execute``: S3 or the warehouse cannot be used, or the warehouse stayed locked.
    """

    template_fields: Sequence[str] = ("objects", "sql_conn_id", "schema", "aws_conn_id", "store_conn_id")
    template_fields_renderers = {"objects": "json"}  # noqa: RUF012 - declared so by the base class

    @checked
    def __init__(
        self,
        *,
        objects: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        sql_conn_id: str,
        schema: str = "stem",
        lock_timeout: timedelta = timedelta(minutes=10),
        aws_conn_id: str | None = "aws_default",
        store_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objects = objects
        self.sql_conn_id = sql_conn_id
        self.schema = schema
        self.lock_timeout = lock_timeout
        self.aws_conn_id = aws_conn_id
        self.store_conn_id = store_conn_id
        self._loaded: tuple[list[LandedObject], dict[str, int]] | None = None

    def execute(self, context: Context) -> dict[str, int]:
        """Fetch and verify the objects, merge their rows, and return the counts."""
        from airflow_provider_stem._stores import StoredObjects
        from airflow_provider_stem.warehouse.connections import session_factory
        from airflow_provider_stem.warehouse.loading import load_objects

        with final_errors():
            self._check_rendered()
            objects = objects_of(self.objects, context)
            counts = load_objects(
                objects,
                StoredObjects(self.aws_conn_id, self.store_conn_id).get,
                session_factory(self.sql_conn_id, self.schema, self.lock_timeout.total_seconds()),
                dag_id=self.dag_id,
                run_id=run_id_of(context),
            )
        self._loaded = objects, counts
        return counts

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Return the OpenLineage metadata of the load; empty if it did not finish."""
        from airflow_provider_stem.warehouse.lineage import objects_lineage

        return objects_lineage(self._loaded, self.sql_conn_id, self.schema)


class StemSitesToSqlOperator(_ToSql, BaseOperator):
    """
    Load site records into a table with history, with one version of a site for each state that was listed.

    A site that a listing lacks is neither deleted nor closed; ``last_listed_at`` is the time of its last listing.

    :param sites: what :class:`~airflow_provider_stem.operators.StemSiteListOperator` returned: records, or batches.
    :param time_zone: zone of the sites, such as ``"America/Los_Angeles"``, or a dict of zones by site id, for the
        views by local day and month. Default: sites keep the zone that they have; UTC where there is none. A dict that
        lacks a listed site, and has one that was never listed, is an error.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: schema of the tables and views, which are created if they do not exist.
    :param lock_timeout: how long to wait for other writers of the warehouse.
    :return: counts: ``sites``, and how many of them were ``added``, ``changed`` or ``unchanged``.
    :raises StemConfigError: an argument is invalid.
    :raises AirflowFailException: from ``execute``: an argument is invalid after rendering, the connection is missing or
        wrong, or the warehouse lacks a privilege or a column. The task is not retried.
    :raises StemTransportError: from ``execute``: the warehouse cannot be used, or stayed locked.
    """

    template_fields: Sequence[str] = ("sites", "time_zone", "sql_conn_id", "schema")
    template_fields_renderers = {"sites": "json"}  # noqa: RUF012 - declared so by the base class

    @checked
    def __init__(
        self,
        *,
        sites: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        time_zone: str | Mapping[str, str] | None = None,
        sql_conn_id: str,
        schema: str = "stem",
        lock_timeout: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.time_zone = time_zone
        self.sql_conn_id = sql_conn_id
        self.schema = schema
        self.lock_timeout = lock_timeout
        self._counts: dict[str, int] | None = None

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002
        """Close the versions of changed sites, open new ones, and return the counts."""
        from airflow_provider_stem.warehouse.connections import session_factory
        from airflow_provider_stem.warehouse.sites import load_sites

        with final_errors():
            self._check_rendered()
            self._counts = load_sites(
                read_records(self.sites),
                session_factory(self.sql_conn_id, self.schema, self.lock_timeout.total_seconds()),
                time_zone=self.time_zone,
            )
        return self._counts

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Return the OpenLineage metadata of the load; empty if it did not finish."""
        from airflow_provider_stem.warehouse.lineage import sites_lineage

        return sites_lineage(self._counts, self.sql_conn_id, self.schema)
