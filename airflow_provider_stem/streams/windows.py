"""
The resolution rules as pure functions: which intervals a window covers, and which requests fetch them.

The grid of a resolution R is the UTC epoch multiples of R. A stream is one interval ``(k - R, k]`` with k on the
grid; the API shows it as ``start_datetime = k - R + 1 s``, ``end_datetime = k`` (guide: "Response output").
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import pendulum

from airflow_provider_stem.errors import StemConfigError

if TYPE_CHECKING:
    from airflow_provider_stem.streams.records import WindowRecord

RESOLUTIONS = (900, 1800, 3600)
"""Seconds (guide: "resolution", possible values)."""

STREAM_TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
"""Guide: "stream Types"."""

MAX_RANGE = timedelta(days=365)
"""The guide's "1 year", taken at its shortest."""

_FIRST_YEAR = 1000

Partition = Literal["interval", "hour", "day", "month"]
PARTITIONS: tuple[Partition, ...] = ("interval", "hour", "day", "month")


@dataclass(frozen=True, slots=True)
class Window:
    """
    The intervals with ``start < k <= end``: what a period of wall time is billed on.

    Windows that follow each other tile: every interval lies in exactly one.

    :param start: aware UTC, on the grid.
    :param end: aware UTC, on the grid, not before ``start``.
    :param resolution: seconds.
    """

    start: datetime
    end: datetime
    resolution: int

    @classmethod
    def covering(cls, start: datetime, end: datetime, resolution: int) -> Window:
        """
        Give the window of the wall time ``[start, end)``: both ends go down to the grid.

        So an interval belongs to the window in which it ends, and is never read before it is over.

        :raises StemConfigError: a naive bound, a year before 1000 or after 9999, ``end <= start``, or an unknown
            resolution.
        """
        check_resolution(resolution)
        for name, value in (("start", start), ("end", end)):
            if value.tzinfo is None or value.utcoffset() is None:
                raise StemConfigError(
                    f"{name} is {value.isoformat()}, which has no time zone: add an offset such as Z."
                )
            in_utc(name, value)
        check_order(start, end)
        return cls(_floor(start, resolution), _floor(end, resolution), resolution)

    @property
    def step(self) -> timedelta:
        """Give the resolution as a duration."""
        return timedelta(seconds=self.resolution)

    @property
    def intervals(self) -> int:
        """Count the intervals; 0 where no grid point lies inside."""
        return (self.end - self.start) // self.step

    @property
    def first_end(self) -> int:
        """Give the first interval's end, in epoch seconds."""
        return epoch(self.start) + self.resolution

    @property
    def last_end(self) -> int:
        """Give the last interval's end, in epoch seconds."""
        return epoch(self.end)

    def __str__(self) -> str:
        return f"{iso(self.start)}/{iso(self.end)}"

    def as_json(self) -> WindowRecord:
        """Give the window as plain JSON, as receipts and asset events carry it."""
        return {"start": iso(self.start), "end": iso(self.end), "resolution": self.resolution}

    def chunks(self, needed_from: int | None = None) -> Iterator[Window]:
        """
        Cut the window into the fewest pieces that one request each can fetch.

        :param needed_from: epoch seconds; intervals that end earlier are not expected. They are left out only as
            far as that saves requests: rows that do exist, against expectation, are then still delivered.
        """
        capacity = (MAX_RANGE - 2 * self.step) // self.step
        first = max(self.first_end, needed_from) if needed_from is not None else self.first_end
        needed = (self.last_end - first) // self.resolution + 1
        if needed <= 0:
            return
        pieces = -(-needed // capacity)
        total = min(self.intervals, pieces * capacity)
        edge = self.end - total * self.step
        for piece in range(pieces):
            upto = self.end - (total - total * (piece + 1) // pieces) * self.step
            yield Window(edge, upto, self.resolution)
            edge = upto

    def padded(self, *, until: datetime | None = None) -> Window:
        """
        Widen the window by one interval on each side: the range to ask for.

        The guide can be read as selecting by an interval's begin, or by its shown start and end. The second reading
        delivers one interval less at the end; with a padded range either delivers at least the window.

        :param until: leave out the interval on the right, and what of the window is not over by then.
        """
        end = self.end + self.step if until is None else max(self.start, min(self.end, _floor(until, self.resolution)))
        return Window(self.start - self.step, end, self.resolution)

    def moved_back(self, lookback: timedelta | None, partition: Partition) -> Window:
        """
        Start earlier by ``lookback``, and at a boundary of the partition's periods.

        :raises StemConfigError: the window's end is on no such boundary, so that its last period would be
            written in part; or a look-back that would write objects of shifting extent.
        """
        check_lookback(lookback, partition)
        if partition == "interval":
            return self
        if _period_start(self.end, partition) != self.end:
            fits = [p for p in ("month", "day", "hour") if _period_start(self.end, p) == self.end]
            raise StemConfigError(
                f"partition={partition!r} writes whole UTC {partition}s, but the window ends at {iso(self.end)}, "
                f"inside one: partition={(fits or ['interval'])[0]!r} fits this end."
            )
        start = _period_start(in_utc("start - lookback", self.start - (lookback or timedelta())), partition)
        return Window(start, self.end, self.resolution)

    def periods(self, partition: Partition) -> Iterator[Window]:
        """Cut the window at the boundaries of UTC hours, days or months; ``interval`` keeps it whole."""
        if partition == "interval":
            yield self
            return
        edge = self.start
        while edge < self.end:
            following = min(_period_end(edge, partition), self.end)
            yield Window(edge, following, self.resolution)
            edge = following


def check_order(start: datetime, end: datetime) -> None:
    """Refuse a time that ends before it begins."""
    # In UTC: Python compares two times of one zone by the clock on the wall, which goes back once a year.
    if end.astimezone(UTC) <= start.astimezone(UTC):
        raise StemConfigError(
            f"end {end.isoformat()} is not after start {start.isoformat()}: give an end later than the start."
        )


def check_lookback(lookback: timedelta | None, partition: str) -> None:
    """Refuse a look-back that would write objects of shifting extent."""
    if lookback and partition == "interval":
        raise StemConfigError(
            f"lookback={lookback} needs whole periods to rewrite: set partition to 'hour', 'day' or 'month'."
        )


def check_resolution(resolution: object) -> None:
    """Refuse what is no resolution of the API."""
    if type(resolution) is not int or resolution not in RESOLUTIONS:
        raise StemConfigError(
            f"resolution is {resolution!r}: the API knows {', '.join(map(str, RESOLUTIONS))} seconds."
        )


def check_stream_types(stream_types: object) -> tuple[str, ...]:
    """Give the stream types, each once and sorted; refuse what is none of the API's."""
    given = (stream_types,) if isinstance(stream_types, str) else stream_types
    if not isinstance(given, (list, tuple, set, frozenset)) or not given:
        raise StemConfigError(f"stream_types is {stream_types!r}: give one or more of {', '.join(STREAM_TYPES)}.")
    if unknown := [one for one in given if one not in STREAM_TYPES]:
        raise StemConfigError(f"stream_types has {unknown[0]!r}: the API knows {', '.join(STREAM_TYPES)}.")
    return tuple(sorted(set(given)))


def check_end(end: datetime, resolution: int, now: datetime | None = None) -> None:
    """Refuse a window that is not over; one resolution is allowed, since clocks differ."""
    now = now or datetime.now(UTC)
    if end > now + timedelta(seconds=resolution):
        raise StemConfigError(
            f"end {end.isoformat()} lies in the future (it is {iso(now)}): run after the window is over, "
            "or wait for it with StemStreamsSensor."
        )


def parse_instant(name: str, value: object) -> datetime:
    """
    Read an aware ``datetime``, or an ISO 8601 string with an offset, as UTC.

    :raises StemConfigError: names the argument, the value and the remedy; a naive time is one.
    """
    instant = value
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value.strip())
        except ValueError:
            raise StemConfigError(
                f"{name} is {value!r}: give an ISO 8601 time with an offset, such as 2025-07-01T00:00:00Z."
            ) from None
    if not isinstance(instant, datetime):
        raise StemConfigError(f"{name} is {value!r}: give an aware datetime or an ISO 8601 string with an offset.")
    if instant.utcoffset() is None:
        raise StemConfigError(f"{name} is {value!s}, which has no time zone: add an offset such as Z.")
    return in_utc(name, instant)


def in_utc(name: str, instant: datetime) -> datetime:
    """
    Return an aware instant in UTC.

    :raises StemConfigError: its year has not four digits there, as the API's times have.
    """
    try:
        in_range = instant.astimezone(UTC)
    except OverflowError:
        in_range = None
    if in_range is None or in_range.year < _FIRST_YEAR:
        raise StemConfigError(f"{name} is {instant!s}: give a time in the years {_FIRST_YEAR} to 9999, in UTC.")
    return in_range


def first_expected_end(stream_start: datetime, resolution: int) -> int:
    """
    Give the end of the first interval that a stream should have, in epoch seconds.

    :param stream_start: from ``stream_start_times``, which holds a shown start such as ``16:15:01``: the first
        interval is the one whose own shown start, ``k - resolution + 1 s``, is not before it.
    """
    start = epoch(stream_start) + (stream_start.microsecond > 0)
    return -(-(start + resolution - 1) // resolution) * resolution


def epoch(instant: datetime) -> int:
    """Give the whole seconds since 1970-01-01T00:00:00Z."""
    # Not by subtraction: Airflow hands in pendulum's instants, whose differences cannot be divided this way.
    return calendar.timegm(instant.utctimetuple())


def from_epoch(seconds: int) -> datetime:
    """Give the UTC instant of an epoch second."""
    return _EPOCH + timedelta(seconds=seconds)


def iso(instant: datetime) -> str:
    """Give a UTC instant in the API's own format, ``YYYY-MM-DDTHH:MM:SSZ``."""
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _floor(instant: datetime, resolution: int) -> datetime:
    return from_epoch(epoch(instant) // resolution * resolution)


def _period_start(instant: datetime, partition: Partition) -> datetime:
    return _plain(pendulum.instance(instant).start_of(partition))


def _period_end(instant: datetime, partition: Partition) -> datetime:
    return _plain(pendulum.instance(instant).start_of(partition).add(**{f"{partition}s": 1}))


def _plain(instant: pendulum.DateTime) -> datetime:
    return from_epoch(epoch(instant))
