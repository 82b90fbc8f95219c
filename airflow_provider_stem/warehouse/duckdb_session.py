"""Session of a DuckDB file. For the connections."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.warehouse.session import Session

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

# The file's own lock excludes other processes only. Of two loads in one process, the later commit would fail.
_PROCESS_LOCK = threading.Lock()
_LONGEST_PAUSE = 1.0
_STAGED = ("stem_days", "stem_known", "stem_staged", "stem_changed", "stem_listed")
_FINAL = (duckdb.ProgrammingError, duckdb.DataError, duckdb.IntegrityError, duckdb.NotSupportedError)
_NO_RETRY = re.compile(
    "No such file or directory|Is a directory|Permission denied|Read-only file system|read-only mode"
    "|not a valid DuckDB database file|database file with version number|required extension"
)


class DuckDBSession(Session):
    """
    One connection to a DuckDB file.

    :param connect: opens the connection.
    :param schema: schema of the tables and views.
    :param lock_timeout: seconds to wait for other loads.
    :raises StemConfigError: the file cannot be opened, and a retry would not help.
    :raises StemTransportError: the file cannot be opened, or another load has it open for longer than
        ``lock_timeout``.
    """

    engine = "duckdb"

    def __init__(self, connect: Callable[[], DuckDBPyConnection], schema: str, lock_timeout: float) -> None:
        super().__init__(schema, lock_timeout)
        self._staged: dict[str, pa.Table] = {}
        deadline = time.monotonic() + lock_timeout
        if not _PROCESS_LOCK.acquire(timeout=lock_timeout):
            raise StemTransportError(
                f"Another load of this process has used DuckDB for {lock_timeout:g} s. Try again later."
            )
        try:
            self._connection = _open(connect, deadline, lock_timeout)
        except BaseException:
            _PROCESS_LOCK.release()
            raise

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """
        Run a statement and return its rows.

        :raises StemConfigError: the database is read-only, or has other tables.
        """
        rows: list[tuple[Any, ...]] = self._run(sql, parameters)
        return rows

    def change(self, sql: str, *parameters: Any) -> int:
        """Run a statement and return the number of rows that it inserted or updated."""
        [(count,)] = self.execute(sql, *parameters)
        return int(count)

    def append(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Insert rows directly from Arrow memory."""
        columns = ", ".join(schema.names)
        self._connection.register("stem_rows", pa.RecordBatchReader.from_batches(schema, batches))
        self.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM stem_rows")  # nosec B608 # noqa: S608 - names of this package
        self._connection.unregister("stem_rows")

    def stage(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Provide rows as an Arrow table."""
        self._staged[table] = pa.Table.from_batches(batches, schema)

    def stage_query(self, table: str, sql: str, *parameters: Any) -> int:
        """Provide the rows of a query as an Arrow table, and return their number."""
        self._staged[table] = self._run(sql, parameters, as_arrow=True)
        return int(self._staged[table].num_rows)

    def drop(self, table: str) -> None:
        """Free a staged table."""
        del self._staged[table]

    def _run(self, sql: str, parameters: tuple[Any, ...], *, as_arrow: bool = False) -> Any:
        # DuckDB finds the staged tables by the names of local variables. It would hold registered ones, like those of
        # its own that are dropped, until the transaction ends.
        stem_days, stem_known, stem_staged, stem_changed, stem_listed = map(self._staged.get, _STAGED)  # noqa: RUF059
        text = self.with_schema(sql)
        with _errors():
            if as_arrow:
                return self._connection.sql(text, params=list(parameters)).to_arrow_table()
            return self._connection.execute(text, list(parameters)).fetchall()

    def lock(self, table: str) -> None:
        """Do nothing, since only one load at a time can have the file open."""

    def prepare(self, start: datetime, end: datetime) -> None:
        """Do nothing, since the table of streams has no partitions."""

    def columns(self) -> list[tuple[str, str, str]]:
        """Return the columns of the schema's tables: table, column, and type with its parameters."""
        sql = (
            "SELECT table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE lower(schema_name) = lower(?) AND database_name = current_database()"
        )
        return [(table, column, kind) for table, column, kind in self.execute(sql, self.schema)]

    def begin(self) -> None:
        """Begin a transaction."""
        with _errors():
            self._connection.begin()

    def end(self, *, commit: bool) -> None:
        """End the transaction."""
        with _errors():
            if commit:
                self._connection.commit()
            else:
                self._connection.rollback()

    def close(self) -> None:
        """Close the file, so that other loads can open it."""
        try:
            self._connection.close()
        finally:
            _PROCESS_LOCK.release()

    def create_schema(self) -> None:
        """Create the schema if it does not exist."""
        self.execute("CREATE SCHEMA IF NOT EXISTS {{ params.schema }}")


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except _FINAL as exc:
        if "read-only" in str(exc):
            raise StemConfigError("The DuckDB file is open for reading only. Remove read_only.") from exc
        raise StemConfigError(
            f"DuckDB rejects the load: {one_line(str(exc))}. Compare the tables with those of an empty schema, or "
            "use another schema."
        ) from exc
    except duckdb.Error as exc:
        text = one_line(str(exc).partition("\n")[0])
        raise StemTransportError(
            f"DuckDB ended the load: {text}. Free memory or disk space of the worker, or try again later."
        ) from exc


def _open(connect: Callable[[], DuckDBPyConnection], deadline: float, lock_timeout: float) -> DuckDBPyConnection:
    """Open the file as soon as no other process has it open. DuckDB itself does not wait."""
    pause = 0.05
    logged = False
    while True:
        try:
            return connect()
        except duckdb.Error as exc:
            # The whole phrase, since the message also contains the file's path.
            if "Could not set lock on file" not in str(exc):
                message = (
                    f"The DuckDB file cannot be opened ({one_line(str(exc))}). Set the connection's Host to the path "
                    "of a DuckDB file in an existing folder that the worker can write."
                )
                raise (StemConfigError if _NO_RETRY.search(str(exc)) else StemTransportError)(message) from exc
            if time.monotonic() + pause > deadline:
                raise StemTransportError(
                    f"Another process has had the DuckDB file open for {lock_timeout:g} s. End it, or try again later; "
                    f"while one process writes the file, no other can read or write it. ({one_line(str(exc))})"
                ) from None
        if not logged:
            log.info("Waiting for another process that has the DuckDB file open")
            logged = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
