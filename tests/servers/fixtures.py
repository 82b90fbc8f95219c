"""Fixtures of the servers that tests share. ``tests/conftest.py`` loads this module as a plugin."""

from __future__ import annotations

import pytest

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


@pytest.fixture
def stem(stem_simulator, monkeypatch):
    """The simulator. It is the connection ``stem_default``."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    return stem_simulator
