"""
OpenLineage metadata of a load: landed objects as inputs, the warehouse table as output. For the operators.

Imported only when the OpenLineage provider calls the operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_stem._lineage import load_facets, object_loaded, table_written
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.tables import INSTANT
from airflow_provider_stem.warehouse.connections import duckdb_database_name
from airflow_provider_stem.warehouse.loading import STREAMS_SCHEMA
from airflow_provider_stem.warehouse.sites import listing_schema

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset
    from airflow.providers.openlineage.extractors import OperatorLineage

_SITES = [*listing_schema(), *(pa.field(name, INSTANT) for name in ("valid_from", "valid_to", "last_listed_at"))]


def objects_lineage(
    load: tuple[Sequence[LandedObject], Mapping[str, int]] | None, sql_conn_id: str, schema: str
) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a load of objects.

    :param load: the objects and the counts of :func:`~airflow_provider_stem.warehouse.loading.load_objects`, or
        ``None`` if the load did not finish.
    :param sql_conn_id: connection of the warehouse.
    :param schema: schema of its tables.
    :return: one input per object and the table ``streams`` as output; empty if the load did not finish.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    if load is None:
        return OperatorLineage()
    objects, counts = load
    written = counts["inserted"] + counts["changed"]
    return OperatorLineage(
        # The receipt of an object that was rewritten has an outdated row count; the table of loads has the right one.
        inputs=[object_loaded(landed, with_rows=not counts["replaced"]) for landed in objects],
        outputs=[_table(sql_conn_id, schema, "streams", STREAMS_SCHEMA, written)],
        run_facets=load_facets(counts),
    )


def sites_lineage(counts: Mapping[str, int] | None, sql_conn_id: str, schema: str) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a load of sites. It has no inputs, since the records do not name their source.

    :param counts: what :func:`~airflow_provider_stem.warehouse.sites.load_sites` returned, or ``None`` if the load did
        not finish.
    :param sql_conn_id: connection of the warehouse.
    :param schema: schema of its tables.
    :return: the table ``sites`` as output; empty if the load did not finish.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    if counts is None:
        return OperatorLineage()
    written = counts["added"] + counts["changed"]
    return OperatorLineage(
        outputs=[_table(sql_conn_id, schema, "sites", _SITES, written)], run_facets=load_facets(counts)
    )


def _table(sql_conn_id: str, schema: str, name: str, fields: Iterable[pa.Field], rows: int) -> OutputDataset:
    namespace, database = _database(sql_conn_id)
    return table_written(namespace, f"{database}.{schema}.{name}", fields, rows)


def _database(sql_conn_id: str) -> tuple[str, str]:
    """Return a warehouse's namespace and database name, in the form that other OpenLineage producers use."""
    from airflow.providers.openlineage.sqlparser import SQLParser

    connection = BaseHook.get_connection(sql_conn_id)
    if connection.conn_type == "duckdb":
        return f"duckdb://{connection.host}", duckdb_database_name(PurePath(connection.host or ""))
    info = connection.get_hook().get_openlineage_database_info(connection)  # type: ignore[no-untyped-call]
    # PostgreSQL's default database has the name of the user.
    return SQLParser.create_namespace(info), info.database or connection.login or ""
