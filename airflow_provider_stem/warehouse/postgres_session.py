"""Session of a PostgreSQL database, with psycopg 2 or 3, whichever Airflow's hook uses. For the connections."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv

from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.warehouse.session import Session

_LOCK_NOT_AVAILABLE = "55P03"


class PostgresSession(Session):
    """
    One connection to PostgreSQL.

    :param connect: opens the connection.
    :param schema: schema of the tables and views.
    :param lock_timeout: seconds to wait for other writers.
    """

    engine = "postgres"

    def __init__(self, connect: Callable[[], Any], schema: str, lock_timeout: float) -> None:
        super().__init__(schema, lock_timeout)
        self._connection = connect()

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """
        Run a statement and return its rows.

        :raises StemTransportError: the wait for a lock exceeded ``lock_timeout``.
        """
        with self._connection.cursor() as cursor:
            self._run(cursor, sql, parameters)
            rows = cursor.fetchall() if cursor.description else []
        # A connection may be configured with cursors whose rows are dicts.
        return [tuple(row.values() if isinstance(row, Mapping) else row) for row in rows]

    def change(self, sql: str, *parameters: Any) -> int:
        """
        Run a statement and return the number of rows that it inserted or updated.

        :raises StemTransportError: the wait for a lock exceeded ``lock_timeout``.
        """
        with self._connection.cursor() as cursor:
            self._run(cursor, sql, parameters)
            return int(cursor.rowcount)

    def append(self, table: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Insert rows into a temporary table with COPY. Floats are written as the shortest text that round-trips."""
        copy = f"COPY {table} FROM STDIN WITH (FORMAT csv, ENCODING 'UTF8')"
        with self._connection.cursor() as cursor:
            for batch in batches:
                text = io.BytesIO()
                pyarrow.csv.write_csv(batch, text, pyarrow.csv.WriteOptions(include_header=False))
                if hasattr(cursor, "copy_expert"):
                    text.seek(0)
                    cursor.copy_expert(copy, text)
                else:
                    with cursor.copy(copy) as target:
                        target.write(text.getbuffer())
            cursor.execute(f"ANALYZE {table}")

    def lock(self, table: str) -> None:
        """
        Lock a table against other writers until the transaction ends. Readers are not blocked.

        Loads therefore run one after another, which prevents deadlocks and wrong counts.

        :raises StemTransportError: the wait for the lock exceeded ``lock_timeout``.
        """
        self.execute(f"LOCK TABLE {{{{ params.schema }}}}.{table} IN SHARE ROW EXCLUSIVE MODE")

    def begin(self) -> None:
        """Begin a transaction that sees what was committed before it acquired its locks."""
        self.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        # PostgreSQL waits without limit at 0, and rejects more than 24 days.
        milliseconds = min(max(round(self._lock_timeout * 1000), 1), 2**31 - 1)
        self.execute("SELECT set_config('lock_timeout', ?, true)", f"{milliseconds}ms")

    def end(self, *, commit: bool) -> None:
        """End the transaction."""
        if commit:
            self._connection.commit()
        elif not self._connection.closed:
            self._connection.rollback()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def create_schema(self) -> None:
        """Create the schema if it does not exist."""
        # Two sessions that create a schema at the same time would collide in PostgreSQL's catalog.
        self.execute("SELECT pg_advisory_xact_lock(hashtext(?))", f"airflow_provider_stem {self.schema}")
        # CREATE SCHEMA IF NOT EXISTS needs a privilege on the database even if the schema exists.
        if not self.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", self.schema):
            self.execute("CREATE SCHEMA {{ params.schema }}")

    def _run(self, cursor: Any, sql: str, parameters: tuple[Any, ...]) -> None:
        try:
            cursor.execute(self.with_schema(sql).replace("?", "%s"), parameters or None)
        except Exception as exc:
            if getattr(exc, "sqlstate", getattr(exc, "pgcode", None)) == _LOCK_NOT_AVAILABLE:
                raise StemTransportError(
                    f"Another session has locked schema {self.schema!r} for {self._lock_timeout:g} s. Try again later."
                ) from None
            raise
