"""Commits to an Iceberg table on exactly the snapshot that they were planned on. For loads and maintenance."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

from airflow_provider_stem._text import one_line

ATTEMPTS = 20
"""How often a commit is planned before the task fails."""

_WAIT = timedelta(seconds=0.1)  # before the second attempt; twice as long before each further one
_LONGEST_WAIT = timedelta(seconds=5)


class Conflict(Exception):  # noqa: N818 - the caller plans again
    """Another task has committed since a commit was planned."""


class _ExactCatalog:
    """
    A catalog that raises :class:`Conflict`, so that pyiceberg does not handle conflicts.

    pyiceberg would commit the plan on another snapshot than the one that it was made for. Or it would delete the
    manifests of a commit that succeeded, if the response was lost and a proxy repeated the request.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)

    def commit_table(self, *arguments: Any) -> Any:
        try:
            return self._catalog.commit_table(*arguments)
        except CommitFailedException as exc:
            raise Conflict(one_line(str(exc))) from None


def exact(table: Table) -> Table:
    """Return a table whose transactions raise :class:`Conflict` if another task has committed since it was loaded."""
    catalog: Any = _ExactCatalog(table.catalog)
    return Table(table.name(), table.metadata, table.metadata_location, table.io, catalog, table.config)


@contextmanager
def planning(table: Table) -> Iterator[None]:
    """Raise :class:`Conflict` if a file is missing since maintenance has removed the snapshot of the table."""
    try:
        yield
    except FileNotFoundError as exc:
        current = table.catalog.load_table(table.name()).metadata.current_snapshot_id
        if current == table.metadata.current_snapshot_id:
            raise
        raise Conflict(one_line(str(exc))) from None


def attempts() -> Iterator[int]:
    """Iterate over the numbers of attempts, from 0. Wait for a random time before each but the first."""
    wait = _WAIT
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0, wait.total_seconds()))  # noqa: S311  # nosec B311
            wait = min(2 * wait, _LONGEST_WAIT)
        yield attempt
