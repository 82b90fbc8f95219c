"""A DuckDB file as a warehouse; for the connections."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.warehouse.session import Session

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

# Between processes the file's lock does this. Within one, DuckDB lets two in, and the later one to commit fails.
_IN_THIS_PROCESS = threading.Lock()
_LONGEST_PAUSE = 1.0


class DuckDBSession(Session):
    """
    One connection to a DuckDB file.

    :param connect: opens it.
    :raises StemTransportError: the file cannot be opened, or another process has it open for longer than the time-out.
    """

    engine = "duckdb"

    def __init__(self, connect: Callable[[], DuckDBPyConnection], schema: str, lock_timeout: float) -> None:
        super().__init__(schema, lock_timeout)
        deadline = time.monotonic() + lock_timeout
        if not _IN_THIS_PROCESS.acquire(timeout=lock_timeout):
            raise StemTransportError(f"Another load of this process has DuckDB for {lock_timeout:g} s: try again.")
        try:
            self._connection = _opened(connect, deadline, lock_timeout)
        except BaseException:
            _IN_THIS_PROCESS.release()
            raise

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement and give its rows."""
        return self._connection.execute(self.filled_in(sql), list(parameters)).fetchall()

    def change(self, sql: str, *parameters: Any) -> int:
        """Run a statement and tell how many rows it inserted or updated."""
        [(count,)] = self.execute(sql, *parameters)
        return int(count)

    def append(self, table: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows to a temporary table, straight from Arrow's memory."""
        for batch in batches:
            self._connection.from_arrow(pa.Table.from_batches([batch])).insert_into(table)

    def lock(self, table: str) -> None:
        """Do nothing: who has the file open is alone."""

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.begin()

    def end(self, *, commit: bool) -> None:
        """End the transaction."""
        if commit:
            self._connection.commit()
        else:
            self._connection.rollback()

    def close(self) -> None:
        """Close the file, so that others can open it."""
        try:
            self._connection.close()
        finally:
            _IN_THIS_PROCESS.release()

    def create_schema(self) -> None:
        """Create the schema where it is not there."""
        self.execute("CREATE SCHEMA IF NOT EXISTS {{ params.schema }}")


def _opened(connect: Callable[[], DuckDBPyConnection], deadline: float, lock_timeout: float) -> DuckDBPyConnection:
    """Open the file once no other process has it open: DuckDB itself does not wait."""
    pause = 0.05
    told = False
    while True:
        try:
            return connect()
        except duckdb.IOException as exc:
            # Whole, since the message also holds the file's path.
            if "Could not set lock on file" not in str(exc):
                raise StemTransportError(
                    f"The DuckDB file cannot be opened ({one_line(str(exc))}): give, as Host of the connection, a path "
                    "whose folder is there and can be written by the worker."
                ) from exc
            if time.monotonic() + pause > deadline:
                raise StemTransportError(
                    f"Another process has the DuckDB file open for {lock_timeout:g} s: end it, or try again later. "
                    f"One process at a time can write it, and none can read it meanwhile. ({exc})"
                ) from None
        if not told:
            log.info("Waiting for another process that has the DuckDB file open")
            told = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
