"""Fixtures of the servers that tests share. ``tests/conftest.py`` loads this module as a plugin."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.servers.catalogs import HAS_SQL, WITHOUT_SQL, GlueServer, glue_catalog, rest_catalog, sql_catalog
from tests.servers.postgres import PostgresServer, postgres_program
from tests.servers.s3 import S3Server
from tests.support import Lake


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def lake(s3_server, monkeypatch):
    """An empty bucket. The connection ``aws_default`` is the S3 server."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.connection)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Lake(s3_server)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    try:
        postgres_program("initdb")
    except RuntimeError as exc:
        pytest.skip(str(exc))
    with PostgresServer(tmp_path_factory.mktemp("postgres") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def glue_server(tmp_path_factory):
    with GlueServer(tmp_path_factory.mktemp("glue") / "log") as server:
        yield server


@pytest.fixture(params=["sqlite" if HAS_SQL else "rest"])
def catalog(request, lake, tmp_path, monkeypatch):
    """
    An empty Iceberg catalog in the S3 server. It is the connection ``stem_iceberg``.

    ``@pytest.mark.parametrize("catalog", CATALOGS, indirect=True)`` runs a test with other kinds.
    """
    if request.param in ("sqlite", "postgres") and not HAS_SQL:
        pytest.skip(WITHOUT_SQL)
    s3 = lake.server
    if request.param == "sqlite":
        connection = sql_catalog(f"sqlite:///{tmp_path}/catalog.db", s3)
    elif request.param == "postgres":
        server, name = request.getfixturevalue("postgres_server"), f"c{secrets.token_hex(6)}"
        server.create(name)
        connection = sql_catalog(f"postgresql+psycopg2://{server.address(name)}", s3)
    elif request.param == "rest":
        connection = rest_catalog(s3)
    else:
        connection = glue_catalog(request.getfixturevalue("glue_server"), s3)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_ICEBERG", json.dumps(connection))
    return connection


@pytest.fixture
def stem(stem_simulator, monkeypatch):
    """The simulator. It is the connection ``stem_default``."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    return stem_simulator
