"""Heat map of completeness, sites by UTC days, in one self-contained HTML page. For DAGs that publish it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import IO, Any

from airflow_provider_stem.completeness.cells import COLUMNS, STATUSES, Cells, Summary
from airflow_provider_stem.completeness.page import share_of, write_heat_map

__all__ = ["COLUMNS", "STATUSES", "Summary", "share_of", "write_page"]


def write_page(
    rows: Iterable[Sequence[Any]],
    file: IO[bytes],
    *,
    first_day: date,
    last_day: date,
    made: datetime,
    names: Mapping[str, str | None] | None = None,
) -> Summary:
    """
    Write the page, and return its totals.

    Memory use is four bytes for each stream and day, and does not grow with the number of rows, so they can come from a
    cursor. They can be in any order. The same rows and times result in the same bytes.

    :param rows: sequences of :data:`COLUMNS`. ``expected``, ``received`` and ``late`` are numbers of intervals.
    :param file: binary file that the page is written to.
    :param first_day: first UTC day of the page.
    :param last_day: last UTC day of the page, inclusive; at most 3,660 days.
    :param made: when the rows were read, with a time zone.
    :param names: names of sites by id; default: the page shows ids only.
    :return: the totals that the page shows.
    :raises StemConfigError: a row, a day or a time is invalid, or two rows have the same stream and day.
    """
    cells = Cells(first_day, last_day)
    for row in rows:
        cells.add_row(row)
    return write_heat_map(cells, file, names=names or {}, made=made, root=None)
