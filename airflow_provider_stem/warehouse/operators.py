"""Operators: landed objects and site records to a SQL warehouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowNotFoundException,
    AirflowSkipException,
    BaseOperator,
)

from airflow_provider_stem._arguments import check_connection_id, check_duration, check_templated, checked, is_known
from airflow_provider_stem._mapping import CheckedWhenParsed
from airflow_provider_stem.assets import event_extras
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.failures import final_error
from airflow_provider_stem.streams.records import LandedObject, read_objects
from airflow_provider_stem.warehouse.session import check_schema
from airflow_provider_stem.warehouse.sites import read_records

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["StemObjectsToSqlOperator", "StemSitesToSqlOperator"]

_RENDERED: dict[str, Callable[[str, Any], object]] = {
    "objects": lambda _, value: None if value is None else read_objects(value),
    "sites": lambda _, value: read_records(value),
    "sql_conn_id": check_connection_id,
    "schema": check_schema,
    "aws_conn_id": lambda name, value: check_templated(**{name: value}),
}


class _ToSql(CheckedWhenParsed):
    """What both operators take and check. No operator: Airflow 3.3 would lose the defaults of mapped ones."""

    template_fields: Sequence[str]

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if name == "lock_timeout":
                check_duration(name, value)
            elif name in _RENDERED and name in cls.template_fields and is_known(value):
                _RENDERED[name](name, value)


class StemObjectsToSqlOperator(_ToSql, BaseOperator):
    """
    Load landed objects into a warehouse: exactly those that receipts tell of, all of them or none.

    Each object is verified first. Rows are merged by ``site_id, stream_type, resolution, interval_end``, so
    that loading again changes nothing, and a restated value replaces the older one. No row is ever deleted.

    :param objects: what :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` returned, a list of it, or
        entries of its ``objects``; default: the objects that the run's triggering asset events tell of.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: where the tables and views are; created where they are not there.
    :param lock_timeout: how long to wait for others that write to the warehouse.
    :param aws_conn_id: connection of type ``aws``.
    :return: how many ``objects``, and of these ``replaced``, which were landed anew since their receipt; how many
        ``rows``, and of these ``inserted``, ``changed``, ``unchanged``; ``absent`` rows are in the warehouse and not in
        the object any more.
    """

    template_fields: Sequence[str] = ("objects", "sql_conn_id", "schema", "aws_conn_id")
    template_fields_renderers = {"objects": "json"}  # noqa: RUF012 - the base class's own way

    @checked
    def __init__(
        self,
        *,
        objects: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        sql_conn_id: str,
        schema: str = "stem",
        lock_timeout: timedelta = timedelta(minutes=10),
        aws_conn_id: str | None = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objects = objects
        self.sql_conn_id = sql_conn_id
        self.schema = schema
        self.lock_timeout = lock_timeout
        self.aws_conn_id = aws_conn_id
        self._loaded: tuple[list[LandedObject], dict[str, int]] | None = None

    def execute(self, context: Context) -> dict[str, int]:
        """Fetch, verify, merge."""
        from airflow_provider_stem.warehouse.connections import fetch_from_s3, warehouse_of
        from airflow_provider_stem.warehouse.loading import load_objects

        with _final_errors():
            check_connection_id("sql_conn_id", self.sql_conn_id)
            check_schema("schema", self.schema)
            check_templated(aws_conn_id=self.aws_conn_id)
            objects = self._objects(context)
            if not objects:
                raise AirflowSkipException("No object was landed: nothing to load.")
            counts = load_objects(
                objects,
                fetch_from_s3(self.aws_conn_id),
                warehouse_of(self.sql_conn_id, self.schema, self.lock_timeout.total_seconds()),
                dag_id=self.dag_id,
                run_id=context.get("run_id"),
            )
        self._loaded = objects, counts
        return counts

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Tell OpenLineage what was loaded into which table; nothing where it did not get that far."""
        from airflow_provider_stem.warehouse.lineage import objects_loaded

        return objects_loaded(self._loaded, self.sql_conn_id, self.schema)

    def _objects(self, context: Context) -> list[LandedObject]:
        if self.objects is not None:
            return read_objects(self.objects)
        extras = [extra for extra in event_extras(context) if "objects" in extra]
        if not extras:
            raise StemConfigError(
                "objects is None, and no asset event that tells of objects triggered this run: give what "
                "StemStreamsToS3Operator returned, or schedule the DAG on its asset."
            )
        # The oldest event first, so that of two objects with one key the younger one holds.
        return read_objects(extras)


class StemSitesToSqlOperator(_ToSql, BaseOperator):
    """
    Load site records into a table with history: a version of each site for every state that was listed.

    A site that a listing lacks is neither deleted nor closed; ``last_listed_at`` tells when it was listed last.

    :param sites: what :class:`~airflow_provider_stem.operators.StemSiteListOperator` returned: records, or batches.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: where the tables and views are; created where they are not there.
    :param lock_timeout: how long to wait for others that write to the warehouse.
    :return: how many ``sites``, and of these ``added``, ``changed`` and ``unchanged``.
    """

    template_fields: Sequence[str] = ("sites", "sql_conn_id", "schema")
    template_fields_renderers = {"sites": "json"}  # noqa: RUF012 - the base class's own way

    @checked
    def __init__(
        self,
        *,
        sites: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        sql_conn_id: str,
        schema: str = "stem",
        lock_timeout: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.sql_conn_id = sql_conn_id
        self.schema = schema
        self.lock_timeout = lock_timeout
        self._counts: dict[str, int] | None = None

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002
        """Compare with what is there, close what changed, open what is new."""
        from airflow_provider_stem.warehouse.connections import warehouse_of
        from airflow_provider_stem.warehouse.sites import load_sites

        with _final_errors():
            check_connection_id("sql_conn_id", self.sql_conn_id)
            check_schema("schema", self.schema)
            self._counts = load_sites(
                read_records(self.sites),
                warehouse_of(self.sql_conn_id, self.schema, self.lock_timeout.total_seconds()),
            )
        return self._counts

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Tell OpenLineage how the table of sites changed; nothing where it did not get that far."""
        from airflow_provider_stem.warehouse.lineage import sites_loaded

        return sites_loaded(self._counts, self.sql_conn_id, self.schema)


@contextmanager
def _final_errors() -> Iterator[None]:
    """Fail without retries where another attempt cannot help."""
    try:
        yield
    except AirflowNotFoundException as exc:
        raise final_error(exc, f"{str(exc).rstrip('.')}. Create the connection, or name another.") from exc
    except StemConfigError as exc:
        raise final_error(exc, str(exc)) from exc
