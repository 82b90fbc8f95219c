"""Selection of the intervals of a requested range, under each reading of the guide.

All times are integer seconds since 1970 in UTC. An interval of resolution R seconds is identified by its end ``k``, a
multiple of R. It covers ``(k - R, k]``, and the API lists it as ``k - R + 1 s`` to ``k``.
"""

from __future__ import annotations

from typing import Literal

RESOLUTIONS = (900, 1800, 3600)
MAX_RANGE = 365 * 86_400

Rounding = Literal["half_up", "half_even", "floor", "ceil"]
Reading = Literal["A", "B"]


def round_to_grid(instant: int, resolution: int, rounding: Rounding) -> int:
    """Return ``instant`` rounded to a multiple of ``resolution``, both in seconds."""
    steps, rest = divmod(instant, resolution)
    if rounding == "ceil":
        up = rest > 0
    elif rounding == "floor":
        up = False
    else:
        up = 2 * rest > resolution or (2 * rest == resolution and (rounding == "half_up" or steps % 2 == 1))
    return (steps + up) * resolution


def select(
    start: int, end: int, resolution: int, *, reading: Reading = "A", rounding: Rounding = "half_up"
) -> tuple[int, int]:
    """Return the first and the last interval end of a range. If it selects no interval, the first is later.

    Reading A applies the range to the beginning of intervals: ``start <= k - R < end``. Reading B follows the guide's
    subtraction literally: the listed start is at or after ``start - R + 1 s``, and the listed end at or before
    ``end - R``.
    """
    first = round_to_grid(start, resolution, rounding)
    last = round_to_grid(end, resolution, rounding)
    if reading == "A":
        return first + resolution, last
    return first, last - resolution


def first_interval(stream_start: int, resolution: int) -> int:
    """Return the end of the first interval whose listed start is at or after ``stream_start``."""
    return -((1 - resolution - stream_start) // resolution) * resolution
