"""Iceberg catalogs on real servers: SQLite, PostgreSQL, SeaweedFS's REST catalog, and Glue as moto answers."""

from __future__ import annotations

import os
import secrets
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from tests.servers.processes import HUNG_AFTER, ServerProcess, free_ports, retry_on_other_ports
from tests.servers.s3 import S3Server
from tests.support import IS_FULL

HAS_SQL = not version("sqlalchemy").startswith("1.")
WITHOUT_SQL = "pyiceberg's SQL catalogs need SQLAlchemy 2"
CATALOGS = ("sqlite", "postgres", "rest", "glue")
SOME_CATALOGS = CATALOGS if IS_FULL else CATALOGS[::2]


class GlueServer:
    """
    moto's stand-in for AWS Glue, as a context manager.

    :param log: file to which the output is appended.
    """

    def __init__(self, log: Path) -> None:
        self.url = ""
        self._log = log
        self._server: ServerProcess | None = None

    def __enter__(self) -> GlueServer:
        self._server = retry_on_other_ports(self._start)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.stop()

    def _start(self) -> ServerProcess:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        server = ServerProcess(
            [sys.executable, "-m", "moto.server", "--host=127.0.0.1", f"--port={port}"],
            log=self._log,
            environment=os.environ,
            folder=self._log.parent,
        )
        server.wait_until_ready([port])
        return server


def sql_catalog(uri: str, s3: S3Server) -> dict[str, Any]:
    """Return the Airflow connection of a catalog in a database, with its tables in a new bucket."""
    bucket = _new_name()
    s3.client().create_bucket(Bucket=bucket)
    return {"conn_type": "generic", "extra": {"type": "sql", "uri": uri, "warehouse": f"s3://{bucket}/iceberg"}}


def rest_catalog(s3: S3Server) -> dict[str, Any]:
    """Return the Airflow connection of SeaweedFS's REST catalog, with its tables in a new table bucket."""
    import boto3

    bucket = _new_name()
    boto3.client(
        "s3tables",
        endpoint_url=s3.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    ).create_table_bucket(name=bucket)
    return {
        "conn_type": "iceberg",
        "host": s3.iceberg_url,
        "login": s3.access_key,
        "password": s3.secret_key,
        "extra": {"warehouse": f"s3://{bucket}"},
    }


def glue_catalog(glue: GlueServer, s3: S3Server) -> dict[str, Any]:
    """Return the Airflow connection of an empty Glue catalog, with its tables in a new bucket."""
    bucket = _new_name()
    s3.client().create_bucket(Bucket=bucket)
    requests.post(f"{glue.url}/moto-api/reset", timeout=HUNG_AFTER).raise_for_status()
    extra = {"type": "glue", "glue.endpoint": glue.url, "warehouse": f"s3://{bucket}/iceberg"}
    return {"conn_type": "iceberg_catalog", "extra": extra}


def _new_name() -> str:
    return f"iceberg-{secrets.token_hex(6)}"
