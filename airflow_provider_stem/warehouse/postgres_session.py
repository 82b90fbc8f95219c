"""Session of a PostgreSQL database, with psycopg 2 or 3, whichever Airflow's hook uses. For the connections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.tables import INSTANT
from airflow_provider_stem.warehouse.postgres_copy import binary_copy
from airflow_provider_stem.warehouse.session import Session
from airflow_provider_stem.warehouse.sql import SCHEMA

_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE PRECISION",
    pa.date32(): "DATE",
    INSTANT: "TIMESTAMP WITH TIME ZONE",
}
_LOCK_NOT_AVAILABLE = "55P03"
_INSUFFICIENT_PRIVILEGE = "42501"
_READ_ONLY = "25006"
# PostgreSQL has no NUL in strings, and a database in another encoding than UTF8 lacks other characters.
_ENCODING = ("22021", "22P05")
# Features, data, constraints, authorization, databases, schemas, and names and types in statements.
_FINAL_CLASSES = ("0A", "22", "23", "28", "3D", "3F", "42")
# Another session has just written the same key, or created the same table.
_RACES = ("23505", "42P06", "42P07", "42710")
# psycopg 2 has no codes for errors of the connection. PgBouncer has texts of its own.
_WRONG_LOGIN = re.compile(
    "([Pp]assword|[Pp]eer|[Ii]dent|[Cc]ertificate|SASL) authentication failed|no password supplied"
    "|(database|role) .* does not exist|no such (database|user)|no pg_hba.conf entry|permission denied for database"
    "|is not permitted to log in"
)
_WRONG_OPTION = re.compile(
    "does not support SSL|certificate (verify failed|for .* does not match|file .* does not exist)"
    "|invalid (\\w+ value|port number|connection option)|invalid value for parameter"
    "|unrecognized configuration parameter|unsupported startup parameter"
)
_SELECT_COLUMNS = """
SELECT pg_class.relname, pg_attribute.attname, format_type(pg_attribute.atttypid, pg_attribute.atttypmod)
FROM pg_attribute
JOIN pg_class ON pg_class.oid = pg_attribute.attrelid
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = ? AND pg_attribute.attnum > 0 AND NOT pg_attribute.attisdropped
"""


_AFTER = timedelta(microseconds=1)
_SELECT_PARTITION = """
SELECT parent.relkind = 'p', child.oid IS NOT NULL, pg_inherits.inhrelid IS NOT NULL
FROM pg_namespace
JOIN pg_class AS parent ON parent.relnamespace = pg_namespace.oid AND parent.relname = 'streams'
LEFT JOIN pg_class AS child ON child.relnamespace = pg_namespace.oid AND child.relname = ?
LEFT JOIN pg_inherits ON pg_inherits.inhrelid = child.oid AND pg_inherits.inhparent = parent.oid
WHERE pg_namespace.nspname = ?
"""


class _Pieces:
    """A file for psycopg 2, which reads a few kilobytes at a time."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        read, self._rest = self._rest[:size], self._rest[size:]
        return bytes(read)


class PostgresSession(Session):
    """
    One connection to PostgreSQL.

    :param connect: opens the connection.
    :param schema: schema of the tables and views.
    :param lock_timeout: seconds to wait for other writers.
    :raises StemConfigError: the server rejects the connection, and a retry would not help. Each call that runs a
        statement raises it for the same reason.
    :raises StemTransportError: the server cannot be reached, or the connection is lost; the same for each call.
    """

    engine = "postgres"

    def __init__(self, connect: Callable[[], Any], schema: str, lock_timeout: float) -> None:
        super().__init__(schema, lock_timeout)
        with self._errors():
            self._connection = connect()
            # COPY's binary format has text in the client's encoding, which a role or a database may set to another. The
            # Extra of a connection may choose cursors whose rows are dicts, which lose columns of the same name.
            if hasattr(self._connection, "set_client_encoding"):  # psycopg 2
                self._connection.set_client_encoding("UTF8")
                self._connection.cursor_factory = None
            else:
                from psycopg.rows import tuple_row

                self._connection.row_factory = tuple_row
                self._connection.execute("SET client_encoding TO 'UTF8'")
                self._connection.commit()

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """
        Run a statement and return its rows.

        :raises StemTransportError: the wait for a lock exceeded ``lock_timeout``.
        """
        with self._errors(), self._connection.cursor() as cursor:
            cursor.execute(self.with_schema(sql).replace("?", "%s"), parameters or None)
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return rows

    def change(self, sql: str, *parameters: Any) -> int:
        """
        Run a statement and return the number of rows that it inserted or updated.

        :raises StemTransportError: the wait for a lock exceeded ``lock_timeout``.
        """
        with self._errors(), self._connection.cursor() as cursor:
            cursor.execute(self.with_schema(sql).replace("?", "%s"), parameters or None)
            return int(cursor.rowcount)

    def append(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Insert rows with COPY."""
        copy = f"COPY {self.with_schema(table)} ({', '.join(schema.names)}) FROM STDIN WITH (FORMAT binary)"
        with self._errors(), self._connection.cursor() as cursor:
            rows = binary_copy(batches)
            if hasattr(cursor, "copy_expert"):
                cursor.copy_expert(copy, _Pieces(rows))
            else:
                with cursor.copy(copy) as sink:
                    for piece in rows:
                        sink.write(piece)

    def stage(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Provide rows as a temporary table with the planner's statistics."""
        columns = ", ".join(f"{field.name} {_TYPES[field.type]}" for field in schema)
        self.execute(f"CREATE TEMPORARY TABLE {table} ({columns})")
        self.append(table, schema, batches)
        self.execute(f"ANALYZE {table}")

    def stage_query(self, table: str, sql: str, *parameters: Any) -> int:
        """Provide the rows of a query as a temporary table, and return their number."""
        return self.change(f"CREATE TEMPORARY TABLE {table} AS {sql}", *parameters)

    def drop(self, table: str) -> None:
        """Drop a temporary table."""
        self.execute(f"DROP TABLE {table}")

    def prepare(self, start: datetime, end: datetime) -> None:
        """
        Create the partitions of the months of a period, if the table of streams is partitioned and they do not exist.

        :raises StemConfigError: a table with the partition's name is not a partition.
        """
        first, last = (12 * one.year + one.month - 1 for one in (start.astimezone(UTC), end.astimezone(UTC) - _AFTER))
        for month in range(first, last + 1):
            self._create_partition(f"streams_{month // 12}_{month % 12 + 1:02}", _begin_of(month), _begin_of(month + 1))

    def _create_partition(self, name: str, first: str, end: str) -> None:
        [(is_partitioned, is_table, is_partition)] = self.execute(_SELECT_PARTITION, name, self.schema)
        if not is_partitioned or is_partition:
            return
        if is_table:
            raise StemConfigError(
                f"Table {self.schema}.{name} exists, but is not a partition of {self.schema}.streams. Attach it, "
                "rename it, or drop it."
            )
        # CREATE TABLE ... PARTITION OF waits for all readers, ATTACH PARTITION does not.
        partition = f'{SCHEMA}."{name}"'
        self.execute(f"CREATE TABLE {partition} (LIKE {SCHEMA}.streams INCLUDING ALL)")
        self.execute(
            f"ALTER TABLE {SCHEMA}.streams ATTACH PARTITION {partition} FOR VALUES FROM ('{first}') TO ('{end}')"
        )

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
            with self._errors():
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

    def columns(self) -> list[tuple[str, str, str]]:
        """Return the columns of the schema's tables: table, column, and type with its parameters."""
        return [(table, column, kind) for table, column, kind in self.execute(_SELECT_COLUMNS, self.schema)]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            code = getattr(exc, "sqlstate", getattr(exc, "pgcode", None)) or ""
            text = one_line(str(exc).partition("\n")[0])
            if code == _LOCK_NOT_AVAILABLE:
                raise StemTransportError(
                    f"Another session has locked schema {self.schema!r} for {self._lock_timeout:g} s. Try again later."
                ) from None
            if fix := _fix(code, text):
                raise StemConfigError(f"PostgreSQL rejects the load: {text}. {fix}.") from exc
            if not code and {"InterfaceError", "OperationalError"} & {kind.__name__ for kind in type(exc).__mro__}:
                raise StemTransportError(
                    f"PostgreSQL cannot be reached: {text}. Start its server, or correct Host and Port of the "
                    "connection."
                ) from exc
            if not code:
                raise
            # Such as a shutdown, a deadlock, a full disk, or a limit of the role.
            raise StemTransportError(
                f"PostgreSQL ended the load: {text}. Try again later; if it happens again, change the server's limit."
            ) from exc


def _begin_of(month: int) -> str:
    """
    Return the first end of an interval of a month. One that ends at midnight on the first began in the month before.

    :param month: months since the year 0. As a string, since December 9999 ends in a year that Python does not have.
    """
    return f"{month // 12}-{month % 12 + 1:02}-01T00:00:00.000001+00:00"


def _fix(code: str, text: str) -> str:
    """
    Return what to do about an error, or an empty string if a retry may help.

    :param code: its SQLSTATE, if it has one.
    :param text: the first line of its message.
    """
    if code == _INSUFFICIENT_PRIVILEGE and "temporary" in text:
        return "Grant TEMPORARY on the database to the role of the connection"
    if code == _INSUFFICIENT_PRIVILEGE and "for database" in text:
        return "Grant CREATE on the database to the role of the connection, or create the schema with another role"
    if code == _INSUFFICIENT_PRIVILEGE:
        return (
            "Grant the role of the connection USAGE and CREATE on the schema, and SELECT, INSERT and UPDATE on its "
            "tables; only the owner of table streams can create its partitions"
        )
    if code in _ENCODING:
        return (
            "A site's id or name has a character that the database cannot store. Leave the site out, or load into "
            "another database"
        )
    if code == _READ_ONLY:
        return "Use a connection to the primary server, with a role that may write"
    if not code and _WRONG_LOGIN.search(text):
        return "Correct Login, Password and Schema (the database) of the connection"
    if not code and _WRONG_OPTION.search(text):
        return "Correct Port and Extra of the connection, such as sslmode"
    if code[:2] in _FINAL_CLASSES and code not in _RACES:
        return "Compare the tables with those of an empty schema, or use another schema"
    return ""
