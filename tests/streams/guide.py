"""
A server as the guide describes it, in arithmetic only.

It shows intervals that are not over yet, so that code that does not drop them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, TypeVar, cast

from airflow_provider_stem.api.client import StemClient

from .helpers import DAY, answer, encoded, row, seconds

Reading = Literal["A", "B"]
READINGS: tuple[Reading, ...] = ("A", "B")
Rounding = Literal["half_up", "half_even", "floor", "ceil"]
ROUNDINGS: tuple[Rounding, ...] = ("half_up", "half_even", "floor", "ceil")

T = TypeVar("T")


class GuideError(Exception):
    """The guide does not allow this request."""


def to_grid(instant: int, resolution: int, rounding: str) -> int:
    """ "Rounded to nearest stream", with the given rounding."""
    below = instant - instant % resolution
    above = below + resolution
    if below == instant or rounding == "floor":
        return below
    if rounding == "ceil":
        return above
    if instant - below != above - instant:
        return below if instant - below < above - instant else above
    if rounding == "half_up":
        return above
    return below if (below // resolution) % 2 == 0 else above


def selected(start: int, end: int, resolution: int, reading: Reading, rounding: str) -> range:
    """Return the ends of the intervals in the server's response to a range."""
    if end - start < resolution:
        raise GuideError("The minimum range that can be requested for this API call is the resolution passed.")
    if end - start > 365 * DAY:
        raise GuideError("The maximum range that can be requested for this API call is 1 year.")
    if reading == "A":
        # Intervals that begin in the range.
        first_begin, past_begin = (to_grid(bound, resolution, rounding) for bound in (start, end))
        return range(first_begin + resolution, past_begin + resolution, resolution)
    # "Assumes this is an end time so stream seconds is subtracted. Time is rounded to the nearest stream and 1
    # second will be added": no shown start before this one.
    first_shown_start = to_grid(start - resolution, resolution, rounding) + 1
    # "Rounded to nearest stream and stream seconds is subtracted": no shown end after this one.
    last_shown_end = to_grid(end, resolution, rounding) - resolution
    return range(first_shown_start - 1 + resolution, last_shown_end + 1, resolution)


class GuideClient:
    """A client whose server is :func:`selected`; every interval exists, and its value is its end."""

    base_url = "http://127.0.0.1/api/v1/"
    columnar_decoding = True

    def __init__(self, reading: Reading, rounding: str) -> None:
        self._reading = reading
        self._rounding = rounding
        self.requests = 0

    def as_client(self) -> StemClient:
        return cast(StemClient, self)

    def redact(self, text: str) -> str:
        return text

    def get_streams(
        self,
        site_id: str,
        start: datetime,
        end: datetime,
        stream_types: Sequence[str],
        resolution: int,
        parse: Callable[[bytes], T],
    ) -> T:
        self.requests += 1
        assert start.microsecond == end.microsecond == 0
        assert seconds(start) % resolution == seconds(end) % resolution == 0, "only instants on the grid are sent"
        ends = selected(seconds(start), seconds(end), resolution, self._reading, self._rounding)
        rows = [row(k, resolution, float(k)) for k in ends]
        return parse(encoded(answer(dict.fromkeys(stream_types, rows), site_id)))
