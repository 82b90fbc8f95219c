"""Airflow connections turned into warehouse sessions. For the operators."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duckdb import DuckDBPyConnection

    from airflow_provider_stem.warehouse.session import Session

_ENGINES = ("duckdb", "postgres")
"""Types of connections. The extra that installs the hook has the same name."""

_STATEMENT_TIMEOUT = 120
"""Seconds after which PostgreSQL ends a query of a session that only reads."""

_DUCKDB_RESERVED = ("system", "temp")


def session_factory(
    sql_conn_id: str, schema: str, lock_timeout: float, *, read_only: bool = False
) -> Callable[[], Session]:
    """
    Return a function that opens a session of the warehouse.

    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: schema of the tables and views.
    :param lock_timeout: seconds to wait for other writers.
    :param read_only: whether the sessions only read. Then the database rejects every write.
    :raises StemConfigError: the connection has another type, its hook is not installed, or its DuckDB database cannot
        be used.
    """
    connection = BaseHook.get_connection(sql_conn_id)
    conn_type = connection.conn_type
    if conn_type not in _ENGINES:
        raise StemConfigError(
            f"Invalid sql_conn_id {sql_conn_id!r}: its type is {conn_type!r}. Use a connection of type "
            f"{' or '.join(map(repr, _ENGINES))}. For other engines, load an Iceberg table with "
            "StemObjectsToIcebergOperator."
        )
    try:
        hook = connection.get_hook()  # type: ignore[no-untyped-call]
        if conn_type == "duckdb":
            from airflow_provider_stem.warehouse.duckdb_session import DuckDBSession as Engine
        else:
            from airflow_provider_stem.warehouse.postgres_session import PostgresSession as Engine  # type: ignore[assignment]
    except Exception as exc:
        # Airflow versions raise different exceptions for a hook that is not installed.
        raise StemConfigError(
            f"Invalid sql_conn_id {sql_conn_id!r}: its hook cannot be loaded ({one_line(str(exc))}). Install "
            f"airflow-provider-stem[{conn_type}]."
        ) from exc
    if conn_type == "duckdb" and (connection.password or str(connection.host).startswith(("md:", "motherduck:"))):
        raise StemConfigError(
            f"Invalid sql_conn_id {sql_conn_id!r}: concurrent loads could duplicate rows in MotherDuck. Set Host to "
            "the path of a DuckDB file, and leave Password empty."
        )
    if conn_type == "duckdb" and (connection.host or ":memory:") == ":memory:":
        raise StemConfigError(
            f"Invalid sql_conn_id {sql_conn_id!r}: an in-memory DuckDB is lost when the task ends. Set Host to the "
            "path of a file."
        )
    if conn_type == "duckdb" and schema.lower() in _DUCKDB_RESERVED:
        raise StemConfigError(
            f"Invalid schema {schema!r}: DuckDB reserves this name for a database. Use another, such as 'stem'."
        )
    # DuckDB cannot resolve "stem.streams" where both the database and the schema are called "stem".
    path = PurePath(connection.host or "")
    if conn_type == "duckdb" and duckdb_database_name(path).lower() == schema.lower():
        raise StemConfigError(
            f"Invalid sql_conn_id {sql_conn_id!r}: DuckDB cannot distinguish its file {path.name!r} from schema "
            f"{schema!r}. Rename the file, for example to 'telemetry.duckdb', or use another schema."
        )
    connect = hook.get_conn
    if read_only:
        connect = (
            (lambda: _read_duckdb(str(connection.host))) if conn_type == "duckdb" else lambda: _read_postgres(hook)
        )
    return lambda: Engine(connect, schema, lock_timeout)


def _read_duckdb(path: str) -> DuckDBPyConnection:
    import duckdb

    # Many processes can read the file at the same time, and no query can read another file.
    return duckdb.connect(path, read_only=True, config={"enable_external_access": "false"})


def _read_postgres(hook: Any) -> Any:
    connection = hook.get_conn()
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        cursor.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT * 1000}")
    connection.commit()
    return connection


def duckdb_database_name(path: PurePath) -> str:
    """Return DuckDB's name of the database in a file: the file's name up to its first dot."""
    return path.name.strip(".").partition(".")[0]
