"""Which intervals a requested range selects, under each reading of the guide.

All instants are whole seconds since 1970 in UTC. An interval of resolution R seconds is named by its
end ``k``, a multiple of R; it covers ``(k - R, k]`` and is shown as ``k - R + 1 s`` to ``k``.
"""

from __future__ import annotations

from typing import Literal

RESOLUTIONS = (900, 1800, 3600)
MAX_RANGE = 365 * 86_400

Rounding = Literal["half_up", "half_even", "floor", "ceil"]
Reading = Literal["A", "B"]


def round_to_grid(instant: int, resolution: int, rounding: Rounding) -> int:
    """Round ``instant`` to a multiple of ``resolution``."""
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
    """The first and the last interval end that a range selects; the first is later where there is none.

    Reading A takes the instants as the interval's begin: ``start <= k - R < end``. Reading B follows the
    guide's subtraction to the letter: the shown start is at or after ``start - R + 1 s`` and the shown
    end at or before ``end - R``.
    """
    first = round_to_grid(start, resolution, rounding)
    last = round_to_grid(end, resolution, rounding)
    if reading == "A":
        return first + resolution, last
    return first, last - resolution


def first_interval(stream_start: int, resolution: int) -> int:
    """The end of the first interval whose shown start is not before ``stream_start``."""
    return -((1 - resolution - stream_start) // resolution) * resolution
