"""Interface of a warehouse session, and what all engines have in common. For the loads."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.warehouse.sql import SCHEMA, VIEWS, statements, views

if TYPE_CHECKING:
    import pyarrow as pa

RELATIONS = (
    *("streams", "restatements", "loaded_streams", "stream_days", "covered_days", "loads", "sites"),
    *VIEWS,
)

_SELECT_RELATIONS = """
SELECT pg_class.relname
FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = ?
"""
# Other names of the types in tables.sql.
_TYPE_NAMES = {"CHARACTER VARYING": "VARCHAR", "TEXT": "VARCHAR", "DOUBLE": "DOUBLE PRECISION"}
_COLUMN = re.compile(r"^    ([a-z_]+) ([A-Z ]+?)(?: NOT NULL)?,?$", re.MULTILINE)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Session(ABC):
    """
    One connection to a warehouse.

    :param schema: schema of the tables and views.
    :param lock_timeout: seconds to wait for other writers.
    """

    engine: ClassVar[str]

    def __init__(self, schema: str, lock_timeout: float) -> None:
        self.schema = schema
        self._lock_timeout = lock_timeout

    @abstractmethod
    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows. Each ``?`` is replaced by a parameter."""

    @abstractmethod
    def change(self, sql: str, *parameters: Any) -> int:
        """Run a statement and return the number of rows that it inserted or updated."""

    @abstractmethod
    def append(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Insert rows into the columns of a table that the schema names, in bulk."""

    @abstractmethod
    def stage(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Provide rows as a temporary table, until it is dropped."""

    @abstractmethod
    def stage_query(self, table: str, sql: str, *parameters: Any) -> int:
        """Provide the rows of a query as a temporary table, until it is dropped, and return their number."""

    @abstractmethod
    def drop(self, table: str) -> None:
        """Drop a temporary table."""

    @abstractmethod
    def lock(self, table: str) -> None:
        """Lock a table against other writers until the transaction ends. Readers are not blocked."""

    @abstractmethod
    def prepare(self, start: datetime, end: datetime) -> None:
        """Create what the table of streams needs for intervals of a period."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a transaction."""

    @abstractmethod
    def end(self, *, commit: bool) -> None:
        """End the transaction."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def create_schema(self) -> None:
        """Create the schema if it does not exist, safely also from concurrent sessions."""

    @abstractmethod
    def columns(self) -> list[tuple[str, str, str]]:
        """Return the columns of the schema's tables: table, column, and type with its parameters."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction: commit at its end, roll back if it raises."""
        self.begin()
        try:
            yield
        except BaseException:
            self.end(commit=False)
            raise
        self.end(commit=True)

    def create_missing(self) -> None:
        """
        Create missing tables and views. A role without the privilege to create can load if none is missing.

        :raises StemConfigError: a column of a table is missing or has another type.
        """
        # The information schema lists only what the role has privileges on.
        existing = self.execute(_SELECT_RELATIONS, self.schema)
        is_complete = set(RELATIONS) <= {name for (name,) in existing}
        tables = statements(self.engine, "tables")
        if not is_complete:
            self.create_schema()
            for statement in tables:
                self.execute(statement)
        found = {(table, column): kind for table, column, kind in self.columns()}
        for statement in tables:
            table = statement.partition("(")[0].rpartition(".")[2].strip()
            for column, kind in _COLUMN.findall(statement):
                stored = found.get((table, column))
                if stored is None:
                    raise StemConfigError(
                        f"Table {self.schema}.{table} has no column {column}. Add it with type {kind}, or use another "
                        "schema."
                    )
                if _TYPE_NAMES.get(stored.upper(), stored.upper()) != kind:
                    raise StemConfigError(
                        f"Column {column} of table {self.schema}.{table} has type {stored}. Change it to {kind}, or "
                        "use another schema."
                    )
        if not is_complete:
            for statement in views(self.engine):
                self.execute(statement)

    def with_schema(self, sql: str) -> str:
        """Return a statement with the placeholder replaced by the schema's name."""
        return sql.replace(SCHEMA, f'"{self.schema}"')

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_schema(argument: str, value: object) -> None:
    """
    Raise unless a value is a plain name of a schema.

    :raises StemConfigError: it has other characters than letters, digits and underscores, or the engines reserve it.
    """
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise StemConfigError(
            f"Invalid {argument} {value!r}: not a plain name. Use up to 63 letters, digits and underscores, not "
            "beginning with a digit, such as 'stem'."
        )
    if value.lower() == "information_schema" or value.lower().startswith("pg_"):
        raise StemConfigError(
            f"Invalid {argument} {value!r}: a database reserves this name. Use another, such as 'stem'."
        )
