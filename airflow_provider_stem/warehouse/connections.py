"""Airflow's connections as what the loads need: a session of a warehouse, objects from S3; for the operators."""

from __future__ import annotations

from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.keys import split_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_stem._s3 import S3Store
    from airflow_provider_stem.streams.objects import Version
    from airflow_provider_stem.streams.spool import ScratchFile
    from airflow_provider_stem.warehouse.session import Session
    from airflow_provider_stem.warehouse.staging import Fetch

_EXTRAS = {"duckdb": "duckdb", "postgres": "postgres"}
"""The extra that brings the hook, by the connection's type."""


def warehouse_of(sql_conn_id: str, schema: str, lock_timeout: float) -> Callable[[], Session]:
    """
    Find what opens a warehouse, by its connection's type.

    :raises StemConfigError: nothing loads into a connection of this type, its hook is not installed, or the file
        cannot be used.
    """
    connection = BaseHook.get_connection(sql_conn_id)
    conn_type = connection.conn_type
    if conn_type not in _EXTRAS:
        raise StemConfigError(
            f"sql_conn_id is {sql_conn_id!r}, a connection of type {conn_type!r}: give one of type "
            f"{' or '.join(map(repr, _EXTRAS))}. For Redshift, Snowflake, BigQuery and Athena there is SQL in "
            "airflow_provider_stem/warehouse/sql, to be run with their own operators."
        )
    try:
        hook = connection.get_hook()  # type: ignore[no-untyped-call]
        if conn_type == "duckdb":
            from airflow_provider_stem.warehouse.on_duckdb import DuckDBSession as Engine
        else:
            from airflow_provider_stem.warehouse.on_postgres import PostgresSession as Engine  # type: ignore[assignment]
    except Exception as exc:
        # Each Airflow tells in a way of its own that a hook is not there.
        raise StemConfigError(
            f"sql_conn_id is {sql_conn_id!r}, whose hook cannot be used ({one_line(str(exc))}): install "
            f"airflow-provider-stem[{_EXTRAS[conn_type]}]."
        ) from exc
    if conn_type == "duckdb" and (connection.password or str(connection.host).startswith(("md:", "motherduck:"))):
        raise StemConfigError(
            f"sql_conn_id is {sql_conn_id!r}, a database of MotherDuck, where two loads at once could double rows: "
            "give the path of a file as Host, and no Password."
        )
    if conn_type == "duckdb" and (connection.host or ":memory:") == ":memory:":
        raise StemConfigError(
            f"sql_conn_id is {sql_conn_id!r}, a DuckDB in memory, gone with the task: give the path of a file as Host."
        )
    # DuckDB takes "stem.streams" for a table in the database or in the schema of this name.
    path = PurePath(connection.host or "")
    if conn_type == "duckdb" and database_of_file(path).lower() == schema.lower():
        raise StemConfigError(
            f"sql_conn_id is {sql_conn_id!r}, a DuckDB file {path.name!r}, which DuckDB cannot tell from schema "
            f"{schema!r}: rename the file, such as to 'telemetry.duckdb', or give another schema."
        )
    return lambda: Engine(hook.get_conn, schema, lock_timeout)


def database_of_file(path: PurePath) -> str:
    """Give the name that DuckDB calls a file's database by: the file's own, up to its first dot."""
    return path.name.strip(".").partition(".")[0]


def fetch_from_s3(aws_conn_id: str | None) -> Fetch:
    """
    Return a function that copies objects from S3.

    :param aws_conn_id: connection of type ``aws``.
    """
    from airflow_provider_stem import _s3

    @cache
    def store(bucket: str) -> S3Store:
        return _s3.S3Store(aws_conn_id, bucket)

    def fetch(uri: str, file: ScratchFile) -> Version | None:
        bucket, key = split_uri(uri)
        return store(bucket).get(key, file)

    return fetch
