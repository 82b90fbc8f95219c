"""Fixtures of both engines that the tests load into, each as an Airflow connection and for plain SQL."""

from __future__ import annotations

import json
import secrets

import duckdb
import psycopg2  # type: ignore[import-untyped]
import pytest

from tests.servers.processes import HUNG_AFTER


class Engine:
    """
    One warehouse, used by one test only.

    :param name: ``duckdb`` or ``postgres``.
    :param address: path of the DuckDB file, or URL of the database.
    :param connect: opens a connection, as Airflow's hook does.
    :param program: source code that defines ``connect`` and ``Session`` in a separate process, which gets the address
        as ``sys.argv[1]``.
    :param connection: the Airflow connection.
    """

    def __init__(self, name, address, connect, program, connection):
        self.name, self.address, self.connect, self.program = name, address, connect, program
        self.connection = json.dumps(connection)

    def session(self, schema="stem", lock_timeout=HUNG_AFTER):
        """Return a function that opens a session, as the operators get it from the connection."""
        from airflow_provider_stem.warehouse.duckdb_session import DuckDBSession
        from airflow_provider_stem.warehouse.postgres_session import PostgresSession

        cls = {"duckdb": DuckDBSession, "postgres": PostgresSession}[self.name]
        return lambda: cls(self.connect, schema, lock_timeout)

    def rows(self, sql):
        """Run a query in a new connection, and return its rows, with times as ISO 8601 strings in UTC."""
        connection = self.connect()
        try:
            cursor = connection.cursor()
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute(sql)
            return [tuple(map(_plain, row)) for row in cursor.fetchall()]
        finally:
            connection.close()


def _plain(value):
    return value.isoformat() if hasattr(value, "isoformat") else value


@pytest.fixture(params=["duckdb", "postgres"])
def engine(request, tmp_path, monkeypatch):
    """Return an empty warehouse, which is also the connection ``warehouse``."""
    engine = _duckdb(tmp_path) if request.param == "duckdb" else _postgres(request.getfixturevalue("postgres_server"))
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", engine.connection)
    return engine


def _duckdb(folder):
    path = str(folder / "warehouse.duckdb")
    program = (
        "import duckdb, sys\nfrom airflow_provider_stem.warehouse.duckdb_session import DuckDBSession as Session\n"
        "connect = lambda: duckdb.connect(sys.argv[1])\n"
    )
    return Engine("duckdb", path, lambda: duckdb.connect(path), program, {"conn_type": "duckdb", "host": path})


def _postgres(server):
    name = f"w{secrets.token_hex(6)}"
    server.create(name)
    address = f"postgresql://{server.address(name)}"
    program = (
        "import psycopg2, sys\n"
        "from airflow_provider_stem.warehouse.postgres_session import PostgresSession as Session\n"
        "connect = lambda: psycopg2.connect(sys.argv[1])\n"
    )
    connection = {
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": server.port,
        "login": server.user,
        "password": server.password,
        "schema": name,
    }
    return Engine("postgres", address, lambda: psycopg2.connect(address), program, connection)
