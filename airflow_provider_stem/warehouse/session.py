"""One connection to a warehouse and what every engine does alike; for the loads. The engines are beside this file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_stem.errors import StemConfigError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "{{ params.schema }}"
"""Stands for the schema in all SQL; Airflow's own operators fill it in as Jinja."""

RELATIONS = ("streams", "loads", "sites", "energy", "demand_peaks", "completeness")

_RELATIONS_THERE = """
SELECT pg_class.relname
FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = ?
"""
_OF_THE_ENGINES = ("information_schema", "system", "temp")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Session(ABC):
    """
    One connection to a warehouse.

    :param schema: where the tables and views are.
    :param lock_timeout: how many seconds to wait for others that write.
    """

    engine: ClassVar[str]

    def __init__(self, schema: str, lock_timeout: float) -> None:
        self.schema = schema
        self._lock_timeout = lock_timeout

    @abstractmethod
    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement and give its rows; each ``?`` stands for a parameter."""

    @abstractmethod
    def change(self, sql: str, *parameters: Any) -> int:
        """Run a statement and tell how many rows it inserted or updated."""

    @abstractmethod
    def append(self, table: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows to a temporary table, in bulk."""

    @abstractmethod
    def lock(self, table: str) -> None:
        """Keep others from writing a table until the transaction ends; they may read it."""

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
        """Create the schema where it is not there, alone among those that want to."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all or nothing."""
        self.begin()
        try:
            yield
        except BaseException:
            self.end(commit=False)
            raise
        self.end(commit=True)

    def create_missing(self) -> None:
        """Create the tables and views that are not there. Who may not create can load where all of them are."""
        # Not from the information schema, which shows a role only what it has a right to.
        there = self.execute(_RELATIONS_THERE, self.schema)
        if set(RELATIONS) <= {name for (name,) in there}:
            return
        self.create_schema()
        for script in ("tables", "views"):
            for statement in statements(self.engine, script):
                self.execute(statement)

    def filled_in(self, sql: str) -> str:
        """Give a statement with the schema's name in it."""
        return sql.replace(SCHEMA, f'"{self.schema}"')

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_schema(argument: str, value: object) -> None:
    """Refuse what is no plain name of a schema."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise StemConfigError(
            f"{argument} is {value!r}: give a name of letters, digits and underscores that begins with no digit, "
            "such as 'stem'."
        )
    if value.lower() in _OF_THE_ENGINES or value.lower().startswith("pg_"):
        raise StemConfigError(
            f"{argument} is {value!r}, which engines keep for themselves: give a name of your own, such as 'stem'."
        )


@cache
def statements(engine: str, script: str) -> tuple[str, ...]:
    """Give the statements of one of the engine's SQL files."""
    text = files("airflow_provider_stem.warehouse").joinpath("sql", engine, f"{script}.sql").read_text("utf-8")
    return tuple(one.strip() for one in re.split(r";\s*(?:\n|$)", text) if one.strip())
