"""The stream types (guide: "stream Types"): what a site's streams contain, and when they start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

from airflow_provider_stem.simulator.curves import BASE, Ints, Series

_HOUR = 3600
_DAY = 86_400
# Sites below this index all have a CONVERTER stream, so that all sites of a small fleet are comparable.
_UNIFORM_SITES = 20


@dataclass(frozen=True, slots=True)
class StreamType:
    """A stream type.

    :param meaning: for the documentation of the API.
    :param values: returns its values in 10 mW from the curves of a site.
    :param start: returns its start time at a site in seconds since 1970 in UTC, or ``None`` if the site lacks it. The
        arguments are the site's index, the start of MONITOR, and the site's random numbers.
    """

    meaning: str
    values: Callable[[Series], Ints]
    start: Callable[[int, int, random.Random], int | None]


def has_battery(index: int) -> bool:
    """Return whether the site at ``index`` has a battery."""
    return index < _UNIFORM_SITES or index % 10 != 7


def _next_day(instant: int) -> int:
    return -(-instant // _DAY) * _DAY


STREAM_TYPES = {
    "MONITOR": StreamType(
        "the site with its storage (negative: export)", attrgetter("monitor"), lambda _index, monitor, _draw: monitor
    ),
    "CONVERTER": StreamType(
        "the storage alone (positive: charging)",
        attrgetter("converter"),
        lambda index, monitor, draw: _next_day(monitor) + draw.randrange(400) * _DAY if has_battery(index) else None,
    ),
    "INTERVAL_REVENUE": StreamType(
        "the revenue meter",
        attrgetter("revenue"),
        lambda index, monitor, draw: (
            _next_day(monitor) + draw.randrange(90) * _DAY + draw.choice((8, 7, 6, 5)) * _HOUR
            if index % 3 != 2
            else None
        ),
    ),
}


def start_times(index: int, draw: random.Random) -> dict[str, int]:
    """Return the start times of a site, between 2011 and 2023, in alphabetical order of the stream types.

    :param index: index of the site.
    :param draw: its random numbers.
    """
    begin = int(datetime(2011, 1, 1, tzinfo=UTC).timestamp())
    limit = int(datetime(2023, 12, 1, tzinfo=UTC).timestamp())
    monitor = begin + draw.randrange((limit - begin - 500 * _DAY) // BASE) * BASE + 1
    if draw.random() < 0.25:
        monitor += draw.randrange(1, BASE)
    starts = {name: one.start(index, monitor, draw) for name, one in STREAM_TYPES.items()}
    return {name: start for name, start in sorted(starts.items()) if start is not None}
