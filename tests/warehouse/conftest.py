"""Both engines that the loads are run on, each as an Airflow connection and as plain SQL."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import psycopg2  # type: ignore[import-untyped]
import pytest
from processes import Guarded, free_port

from tests.support import until

INITDB = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


class Engine:
    """
    One warehouse of a test's own.

    :param connect: opens it, as Airflow's hook does.
    :param program: gives the same in a process of its own; ``sys.argv[1]`` is the address.
    """

    def __init__(self, name, address, connect, program, connection):
        self.name, self.address, self.connect, self.program = name, address, connect, program
        self.connection = json.dumps(connection)

    def session(self, schema="stem", lock_timeout=60.0):
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
def postgres_server():
    if INITDB is None:
        pytest.skip("PostgreSQL's server is not installed")
    # It refuses to run as root, and then needs a folder that is its own.
    user = "postgres" if os.geteuid() == 0 else ""
    as_user: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with tempfile.TemporaryDirectory(prefix="stem-warehouse-") as name:
        folder, password, port = Path(name), secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        for path in (folder, folder / "password") if user else ():
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        data = str(folder / "data")
        subprocess.run(
            [INITDB, "--pgdata", data, "--username=stem", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256",
             "--encoding=UTF8", "--locale=C", "--no-sync"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, **as_user,
        )  # fmt: skip
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
        }
        server = Guarded(
            [str(Path(INITDB).with_name("postgres")), "-D", data, *(f"--{k}={v}" for k, v in settings.items())],
            log=folder / "log",
            environment=os.environ,
            folder=folder,
            user=user,
        )
        dsn = f"host=127.0.0.1 port={port} user=stem password={password}"
        try:
            until(lambda: _answers(f"{dsn} dbname=postgres"))
            yield dsn
        finally:
            server.stop()


def _answers(dsn):
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


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


def _postgres(dsn):
    name = f"w{secrets.token_hex(6)}"
    admin = psycopg2.connect(f"{dsn} dbname=postgres")
    admin.autocommit = True
    admin.cursor().execute(f"CREATE DATABASE {name}")
    admin.close()
    parts = dict(part.split("=") for part in dsn.split())
    program = (
        "import psycopg2, sys\nfrom airflow_provider_stem.warehouse.on_postgres import PostgresSession as Session\n"
        "connect = lambda: psycopg2.connect(sys.argv[1])\n"
    )
    connection = {
        "conn_type": "postgres",
        "host": parts["host"],
        "port": int(parts["port"]),
        "login": parts["user"],
        "password": parts["password"],
        "schema": name,
    }
    address = f"{dsn} dbname={name}"
    return Engine("postgres", address, lambda: psycopg2.connect(address), program, connection)
