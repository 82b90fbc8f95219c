"""
Windows of time: which intervals a window covers, and which requests fetch them.

The grid of a resolution R is the multiples of R since the UTC epoch. An interval is ``(k - R, k]`` with k on the grid;
the API shows it as ``start_datetime = k - R + 1 s``, ``end_datetime = k`` (guide: "Response output").
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypedDict

import pendulum

from airflow_provider_stem.errors import StemConfigError

RESOLUTIONS = (900, 1800, 3600)
"""Seconds (guide: "resolution", possible values)."""

MAX_RANGE = timedelta(days=365)
"""Longest range of a request: the guide's "1 year", without a leap day."""

_FIRST_YEAR = 1000

Partition = Literal["interval", "hour", "day", "month"]


class WindowRecord(TypedDict):
    """
    A window of wall time, aligned to its resolution.

    :param start: ISO 8601, UTC, exclusive: intervals end after it. ``end`` is inclusive: the last interval ends there.
    :param resolution: seconds.
    """

    start: str
    end: str
    resolution: int


@dataclass(frozen=True, slots=True)
class Window:
    """
    The intervals that end at k with ``start < k <= end``, as they are billed.

    Each interval lies in exactly one of several consecutive windows.

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
        Return the window of the wall time ``[start, end)``; both bounds are rounded down to the grid.

        An interval belongs to the window in which it ends, so it is never read before it is over.

        :param start: aware instant, inclusive.
        :param end: aware instant, exclusive.
        :param resolution: seconds: 900, 1800 or 3600.
        :raises StemConfigError: a bound is naive or not in the years 1000 to 9999, ``end <= start``, or the API does
            not have the resolution.
        """
        check_resolution(resolution)
        for name, value in (("start", start), ("end", end)):
            if value.utcoffset() is None:
                raise _naive(name, value.isoformat())
            in_utc(name, value)
        check_order(start, end)
        return cls(_floor(start, resolution), _floor(end, resolution), resolution)

    @property
    def step(self) -> timedelta:
        """The resolution as a duration."""
        return timedelta(seconds=self.resolution)

    @property
    def intervals(self) -> int:
        """The number of intervals; may be 0."""
        return (self.end - self.start) // self.step

    @property
    def first_end(self) -> int:
        """End of the first interval, in epoch seconds."""
        return epoch(self.start) + self.resolution

    @property
    def last_end(self) -> int:
        """End of the last interval, in epoch seconds."""
        return epoch(self.end)

    def __str__(self) -> str:
        return f"{iso(self.start)}/{iso(self.end)}"

    def as_json(self) -> WindowRecord:
        """Return the window as the JSON object in receipts and asset events."""
        return {"start": iso(self.start), "end": iso(self.end), "resolution": self.resolution}

    def parts(self, needed_from: int | None = None) -> Iterator[Window]:
        """
        Iterate over the fewest consecutive windows that one request each can fetch.

        :param needed_from: epoch seconds; intervals that end earlier are not expected to exist. They are omitted only
            if that saves requests, so that rows that exist nevertheless are usually fetched.
        """
        capacity = (MAX_RANGE - 2 * self.step) // self.step
        first = max(self.first_end, needed_from) if needed_from is not None else self.first_end
        needed = (self.last_end - first) // self.resolution + 1  # negative if the stream begins after the window
        pieces = -(-needed // capacity)
        total = min(self.intervals, pieces * capacity)
        edge = self.end - total * self.step
        for piece in range(pieces):
            upto = self.end - (total - total * (piece + 1) // pieces) * self.step
            yield Window(edge, upto, self.resolution)
            edge = upto

    def padded(self, *, until: datetime | None = None) -> Window:
        """
        Return the range to request: the window and one interval on each side.

        The guide may mean that intervals are selected by their begin, or by their shown start and end. The latter
        returns one interval fewer at the end. With a padded range, both return at least the window.

        :param until: aware instant; omit the interval on the right, and intervals that end after this instant.
        """
        end = self.end + self.step if until is None else max(self.start, min(self.end, _floor(until, self.resolution)))
        return Window(self.start - self.step, end, self.resolution)

    def with_lookback(self, lookback: timedelta | None, partition: Partition) -> Window:
        """
        Return the window with a start that is ``lookback`` earlier, rounded down to a period of the partition.

        :param lookback: extra time to read; ``None`` adds none.
        :param partition: length of the periods in UTC.
        :raises StemConfigError: the window does not end at the end of a period, so that its last period would be
            incomplete; or there is a lookback with ``partition="interval"``.
        """
        check_lookback(lookback, partition)
        if partition == "interval":
            return self
        if _period_start(self.end, partition) != self.end:
            fits = [shorter for shorter in ("day", "hour") if _period_start(self.end, shorter) == self.end]
            raise StemConfigError(
                f"partition={partition!r} writes whole UTC {partition}s, but the window ends at {iso(self.end)}, "
                f"inside one. Use partition={(fits or ['interval'])[0]!r}."
            )
        start = _period_start(in_utc("start - lookback", self.start - (lookback or timedelta())), partition)
        return Window(start, self.end, self.resolution)

    def periods(self, partition: Partition) -> Iterator[Window]:
        """Iterate over the window split into UTC hours, days or months; ``interval`` does not split it."""
        if partition == "interval":
            yield self
            return
        edge = self.start
        while edge < self.end:
            following = min(_period_end(edge, partition), self.end)
            yield Window(edge, following, self.resolution)
            edge = following


def check_order(start: datetime, end: datetime) -> None:
    """Raise `StemConfigError` unless ``end`` is after ``start``; both are aware."""
    # In UTC: Python compares two times of one zone by wall clock time, which repeats when summer time ends.
    if end.astimezone(UTC) <= start.astimezone(UTC):
        raise StemConfigError(
            f"end {end.isoformat()} is not after start {start.isoformat()}. Use an end later than the start."
        )


def check_lookback(lookback: timedelta | None, partition: str) -> None:
    """Raise `StemConfigError` for a lookback with ``partition="interval"``: its objects would overlap."""
    if lookback and partition == "interval":
        raise StemConfigError(
            f"lookback={lookback} needs whole periods to rewrite. Set partition to 'hour', 'day' or 'month'."
        )


def check_resolution(resolution: object) -> None:
    """Raise `StemConfigError` unless the API has the resolution (guide: "resolution")."""
    if type(resolution) is not int or resolution not in RESOLUTIONS:
        raise StemConfigError(f"Invalid resolution {resolution!r}. Use one of {', '.join(map(str, RESOLUTIONS))} s.")


def check_end(end: datetime, resolution: int, now: datetime | None = None) -> None:
    """
    Raise `StemConfigError` unless a window is over; one resolution of tolerance is allowed, since clocks differ.

    :param end: aware instant.
    :param resolution: seconds.
    :param now: aware instant; the default is the current time.
    """
    now = now or datetime.now(UTC)
    if end > now + timedelta(seconds=resolution):
        raise StemConfigError(
            f"end {end.isoformat()} is in the future (now: {iso(now)}). Run after the window is over, "
            "or wait for it with StemStreamsSensor."
        )


def parse_instant(name: str, value: object) -> datetime:
    """
    Return an aware ``datetime``, or an ISO 8601 string with a UTC offset, as a UTC ``datetime``.

    :param name: name of the argument, for the message.
    :param value: the argument.
    :raises StemConfigError: the value is naive, not a time, or not in the years 1000 to 9999.
    """
    instant = value
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value.strip())
        except ValueError:
            raise StemConfigError(
                f"Invalid {name} {value!r}. Use an ISO 8601 time with a UTC offset, such as '2025-07-01T00:00Z'."
            ) from None
    if not isinstance(instant, datetime):
        raise StemConfigError(
            f"Invalid {name} {value!r}. Use an aware datetime, or an ISO 8601 string with a UTC offset."
        )
    if instant.utcoffset() is None:
        raise _naive(name, str(value))
    return in_utc(name, instant)


def _naive(name: str, value: str) -> StemConfigError:
    return StemConfigError(f"Invalid {name} {value!r}: no UTC offset. Use one, such as '2025-07-01T00:00Z'.")


def in_utc(name: str, instant: datetime) -> datetime:
    """
    Return an aware instant in UTC.

    :param name: name of the argument, for the message.
    :raises StemConfigError: its year in UTC is not in 1000 to 9999; the API's times have four digits.
    """
    try:
        in_range = instant.astimezone(UTC)
    except OverflowError:
        in_range = None
    if in_range is None or in_range.year < _FIRST_YEAR:
        raise StemConfigError(f"Invalid {name} '{instant!s}'. Use a time in the years {_FIRST_YEAR} to 9999, in UTC.")
    return in_range


def first_expected_end(stream_start: datetime, resolution: int) -> int:
    """
    Return the end of the first interval that a stream should have, in epoch seconds.

    :param stream_start: aware instant from ``stream_start_times``, a shown start such as ``16:15:01``. The first
        interval is the first one whose shown start, ``k - resolution + 1 s``, is not earlier.
    :param resolution: seconds.
    """
    start = epoch(stream_start) + (stream_start.microsecond > 0)
    return -(-(start + resolution - 1) // resolution) * resolution


def epoch(instant: datetime) -> int:
    """Return the whole seconds since 1970-01-01T00:00:00Z; the instant is aware."""
    # Not by subtraction: Airflow passes pendulum instants, whose differences cannot be divided by a timedelta.
    return calendar.timegm(instant.utctimetuple())


def from_epoch(seconds: int) -> datetime:
    """Return the UTC instant of an epoch second."""
    return _EPOCH + timedelta(seconds=seconds)


def iso(instant: datetime) -> str:
    """Return an aware instant in the API's format, ``YYYY-MM-DDTHH:MM:SSZ``, in UTC."""
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def iso_exact(instant: datetime) -> str:
    """Return an aware instant in the same format, with the fraction of its second if there is one."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _floor(instant: datetime, resolution: int) -> datetime:
    return from_epoch(epoch(instant) // resolution * resolution)


def _period_start(instant: datetime, partition: Partition) -> datetime:
    return _plain(pendulum.instance(instant).start_of(partition))


def _period_end(instant: datetime, partition: Partition) -> datetime:
    return _plain(pendulum.instance(instant).start_of(partition).add(**{f"{partition}s": 1}))


def _plain(instant: pendulum.DateTime) -> datetime:
    return from_epoch(epoch(instant))
