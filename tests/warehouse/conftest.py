"""Both engines that the loads are run on, each as an Airflow connection and as plain SQL."""

from __future__ import annotations

import json
import secrets

import duckdb
import psycopg2  # type: ignore[import-untyped]
import pytest
from postgres_server import PostgresServer, postgres_program
from processes import HUNG_AFTER


class Engine:
    """
    One warehouse of a test's own.

    :param connect: opens it, as Airflow's hook does.
    :param program: gives the same in a process of its own; ``sys.argv[1]`` is the address.
    """

    def __init__(self, name, address, connect, program, connection):
        self.name, self.address, self.connect, self.program = name, address, connect, program
        self.connection = json.dumps(connection)

    def session(self, schema="stem", lock_timeout=HUNG_AFTER):
        """What opens a session, as the operators get it from the connection."""
        from airflow_provider_stem.warehouse.on_duckdb import DuckDBSession
        from airflow_provider_stem.warehouse.on_postgres import PostgresSession

        made = {"duckdb": DuckDBSession, "postgres": PostgresSession}[self.name]
        return lambda: made(self.connect, schema, lock_timeout)

    def rows(self, sql):
        """Run a query in a connection of its own; instants come as text in UTC, so that engines compare."""
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


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    try:
        postgres_program("initdb")
    except RuntimeError as exc:
        pytest.skip(str(exc))
    with PostgresServer(tmp_path_factory.mktemp("postgres") / "log") as server:
        yield server


@pytest.fixture(params=["duckdb", "postgres"])
def engine(request, tmp_path, monkeypatch):
    """An empty warehouse, also as the connection ``warehouse``."""
    made = _duckdb(tmp_path) if request.param == "duckdb" else _postgres(request.getfixturevalue("postgres_server"))
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", made.connection)
    return made


def _duckdb(folder):
    path = str(folder / "warehouse.duckdb")
    program = (
        "import duckdb, sys\nfrom airflow_provider_stem.warehouse.on_duckdb import DuckDBSession as Session\n"
        "connect = lambda: duckdb.connect(sys.argv[1])\n"
    )
    return Engine("duckdb", path, lambda: duckdb.connect(path), program, {"conn_type": "duckdb", "host": path})


def _postgres(server):
    name = f"w{secrets.token_hex(6)}"
    server.create(name)
    address = f"postgresql://{server.address(name)}"
    program = (
        "import psycopg2, sys\nfrom airflow_provider_stem.warehouse.on_postgres import PostgresSession as Session\n"
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
