"""Airflow's connections as what the loads need: a session of a warehouse, objects from S3; for the operators."""

from __future__ import annotations

import shutil
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_stem.errors import StemConfigError, StemDataError, StemTransportError
from airflow_provider_stem.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_stem.warehouse.session import Session

_ATTEMPTS = 4
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


class S3Objects:
    """
    Gets objects from S3.

    :param aws_conn_id: connection of type ``aws``.
    """

    def __init__(self, aws_conn_id: str | None) -> None:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        self._aws_conn_id = aws_conn_id
        self._client: Any = S3Hook(aws_conn_id=aws_conn_id).get_conn()

    def fetch(self, uri: str, file: BinaryIO) -> str | None:
        """
        Write an object into a file.

        :return: the SHA-256 that it was landed with, where it tells one.
        :raises StemDataError: the object is not there any more.
        :raises StemTransportError: S3 did not give it, in as many attempts as the connection allows, or not whole.
        """
        import tenacity
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )
        from urllib3.exceptions import HTTPError

        from airflow_provider_stem.storage import DIGEST

        bucket, _, key = uri.removeprefix("s3://").partition("/")

        # The client itself asks again where no answer begins, and not where one breaks off.
        @tenacity.retry(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            retry=tenacity.retry_if_exception_type((IncompleteReadError, ReadTimeoutError, ResponseStreamingError)),
            reraise=True,
        )
        def copy() -> Any:
            file.seek(0)
            file.truncate()
            answer = self._client.get_object(Bucket=bucket, Key=key)
            shutil.copyfileobj(answer["Body"], file, 2**20)
            return answer

        try:
            answer = copy()
        except (BotoCoreError, ClientError, HTTPError) as exc:
            status = (getattr(exc, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 404:
                raise StemDataError(f"{one_line(uri)} is not there any more: land it again.") from None
            raise StemTransportError(
                f"{one_line(uri)} cannot be read through connection {self._aws_conn_id!r}: {one_line(str(exc))}"
            ) from exc
        digest: str | None = answer["Metadata"].get(DIGEST)
        return digest
