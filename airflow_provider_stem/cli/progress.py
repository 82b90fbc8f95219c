"""Progress bars on the standard error stream, where that is a terminal; for commands that take long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def progress(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """
    Iterate over items, and show how many of them are done.

    :param items: what is worked on, one after another.
    :param what: the work, for the bar.
    :param total: number of items; ``None`` if it is not known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield from bar.track(items, total=total)
