"""Cells of the heat map, four bytes for each stream and day, and the totals of sites. For the pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import check_resolution

COLUMNS = ("site_id", "stream_type", "resolution", "day", "expected", "received", "late", "status")
STATUSES = ("complete", "late", "missing", "not expected")
RECORD = 6
"""Bytes of a cell in :meth:`Cells.add_stream`: the number of the day in two bytes, and the four of the cell."""

MAX_DAYS = 3660
_NO_ROW = b"\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Summary:
    """
    Totals of a page.

    :param sites: number of sites.
    :param streams: number of streams; a stream is a site's data of one type and resolution.
    :param expected: number of expected intervals.
    :param received: number of received intervals.
    :param missing: number of expected intervals that were not received.
    :param late: number of intervals that were received late.
    """

    sites: int
    streams: int
    expected: int
    received: int
    missing: int
    late: int

    def as_json(self) -> dict[str, int]:
        """Return the totals as a dict for XCom."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Site:
    """Totals of one site, over all of its streams and days."""

    site_id: str
    expected: int
    received: int
    missing: int
    late: int
    days_with_missing: int

    @classmethod
    def of(cls, site_id: str, lines: Mapping[int, bytearray]) -> Site:
        """
        Return the totals of a site.

        :param site_id: its id.
        :param lines: its cells, by kind of stream.
        """
        missing = [
            [max(0, expected - received) for expected, received in zip(line[1::4], line[2::4], strict=True)]
            for line in lines.values()
        ]
        return cls(
            site_id=site_id,
            expected=sum(sum(line[1::4]) for line in lines.values()),
            received=sum(sum(line[2::4]) for line in lines.values()),
            missing=sum(map(sum, missing)),
            late=sum(sum(line[3::4]) for line in lines.values()),
            days_with_missing=sum(map(any, zip(*missing, strict=True))),
        )

    def worst_first(self) -> tuple[int, int, str]:
        """Return the sort key: most missing, then most late, then by id."""
        return -self.missing, -self.late, self.site_id


class Cells:
    """
    Cells of all streams and days. Memory use is four bytes for each, and does not grow with the number of rows.

    :param first_day: first UTC day.
    :param last_day: last UTC day, inclusive; at most 3,660 days.
    :raises StemConfigError: a day is invalid.
    """

    def __init__(self, first_day: date, last_day: date) -> None:
        self.first_day, self.last_day = first_day, last_day
        self._days = _days(first_day, last_day)
        self._kinds: dict[tuple[str, int], int] = {}
        self._cells: dict[str, dict[int, bytearray]] = {}
        self._numbers = b"".join(number.to_bytes(2, "big") for number in range(len(self._days)))

    def add_row(self, row: Sequence[Any]) -> None:
        """
        Add the cell of one row.

        :param row: a sequence of :data:`COLUMNS`.
        :raises StemConfigError: it is invalid, or there is another row of the same stream and day.
        """
        try:
            self._add_row(row)
        except (TypeError, ArithmeticError):
            raise _invalid_row(row) from None

    def _add_row(self, row: Sequence[Any]) -> None:
        if len(row) != len(COLUMNS):
            raise _invalid_row(row)
        site_id, stream_type, resolution, day, expected, received, late, status = row
        line = self._line(site_id, stream_type, resolution)
        number = self._days.get(day)
        if number is None:
            raise StemConfigError(
                f"Invalid day {day!r} in a row of site {escaped(site_id):.200}. Use dates from first_day to last_day."
            )
        at = slice(len(_NO_ROW) * number, len(_NO_ROW) * (number + 1))
        if line[at] != _NO_ROW:
            raise StemConfigError(
                f"Duplicate row in rows: site {escaped(site_id):.200}, {escaped(stream_type):.50}, {resolution}, "
                f"{day}. Use one row for each stream and day."
            )
        line[at] = _cell(status, expected, received, late)

    def add_stream(self, site_id: str, stream_type: str, resolution: int, records: bytes) -> None:
        """
        Add all cells of a stream, which is much faster than row by row.

        :param site_id: id of the site.
        :param stream_type: type of the stream.
        :param resolution: in seconds.
        :param records: :data:`RECORD` bytes for each day that has a row, in any order: the number of the day from 0,
            big-endian, the position in :data:`STATUSES` from 1, expected, received and late.
        """
        line = self._line(site_id, stream_type, resolution)
        numbers = bytearray(len(records) // RECORD * 2)
        numbers[0::2], numbers[1::2] = records[0::RECORD], records[1::RECORD]
        first = int.from_bytes(numbers[:2], "big")
        if numbers == self._numbers[2 * first : 2 * first + len(numbers)]:
            for channel in range(4):
                line[4 * first + channel : 4 * first + 2 * len(numbers) : 4] = records[channel + 2 :: RECORD]
            return
        for begin in range(0, len(records), RECORD):
            at = 4 * int.from_bytes(records[begin : begin + 2], "big")
            line[at : at + 4] = records[begin + 2 : begin + RECORD]

    def _line(self, site_id: str, stream_type: str, resolution: int) -> bytearray:
        kind = self._kinds.get((stream_type, resolution))
        if kind is None:
            _check_text("stream_type", stream_type)
            check_resolution(resolution)
            kind = self._kinds[stream_type, resolution] = len(self._kinds)
        lines = self._cells.get(site_id)
        if lines is None:
            _check_text("site_id", site_id)
            lines = self._cells[site_id] = {}
        line = lines.get(kind)
        if line is None:
            line = lines[kind] = bytearray(len(_NO_ROW) * len(self._days))
        return line

    def sites(self) -> list[Site]:
        """Return the totals of each site, the worst first."""
        return sorted((Site.of(site_id, lines) for site_id, lines in self._cells.items()), key=Site.worst_first)

    def summary(self, sites: Sequence[Site]) -> Summary:
        """
        Return the totals of all sites.

        :param sites: what :meth:`sites` returned.
        """
        return Summary(
            sites=len(sites),
            streams=sum(map(len, self._cells.values())),
            expected=sum(site.expected for site in sites),
            received=sum(site.received for site in sites),
            missing=sum(site.missing for site in sites),
            late=sum(site.late for site in sites),
        )

    def packed(self, sites: Sequence[Site], names: Mapping[str, str | None]) -> Iterator[bytes | bytearray]:
        """
        Iterate over what the script of the page reads: the length of a head, the head as JSON, and the cells.

        :param sites: what :meth:`sites` returned.
        :param names: names of sites by id.
        """
        order = sorted(self._kinds)
        kinds = [self._kinds[kind] for kind in order]
        lines = [self._cells[site.site_id] for site in sites]
        head = {
            "first": self.first_day.isoformat(),
            "days": len(self._days),
            "kinds": [[escaped(stream_type), resolution] for stream_type, resolution in order],
            "sites": [escaped(site.site_id) for site in sites],
            "names": [escaped(names.get(site.site_id) or "") for site in sites],
            "lines": [[at for at, kind in enumerate(kinds) if kind in own] for own in lines],
        }
        packed_head = json.dumps(head, separators=(",", ":")).encode()
        yield len(packed_head).to_bytes(4, "little")
        yield packed_head
        for own in lines:
            yield from (own[kind] for kind in kinds if kind in own)


def _days(first_day: date, last_day: date) -> dict[date, int]:
    bounds: dict[str, Any] = {"first_day": first_day, "last_day": last_day}
    for name, day in bounds.items():
        if not isinstance(day, date) or isinstance(day, datetime):
            raise StemConfigError(f"{name} must be a date, got {day!r}.")
    number = (last_day - first_day).days + 1
    if not 1 <= number <= MAX_DAYS:
        raise StemConfigError(
            f"Invalid first_day {first_day} and last_day {last_day}: {number:,} days. Use 1 to {MAX_DAYS:,} days."
        )
    return {first_day + timedelta(index): index for index in range(number)}


def _invalid_row(row: object) -> StemConfigError:
    return StemConfigError(f"Invalid row in rows: {row!r:.200}. Use {', '.join(COLUMNS)}.")


@lru_cache(maxsize=65536)
def _cell(status: Any, *counts: Any) -> bytes:
    """Return the four bytes of a row's cell. Cached, since most rows have the same values."""
    if status not in STATUSES:
        raise StemConfigError(f"status must be one of {', '.join(STATUSES)}, got {status!r:.200}.")
    for name, count in zip(("expected", "received", "late"), counts, strict=True):
        # Some databases return the sum of integers as a decimal. A day has at most 96 intervals, so a byte is enough.
        if isinstance(count, (str, bytes, type(None))) or not 0 <= count <= 255 or count != int(count):
            raise StemConfigError(f"{name} must be a number of intervals from 0 to 255, got {count!r:.200}.")
    return bytes([STATUSES.index(status) + 1, *map(int, counts)])


def _check_text(column: str, value: object) -> None:
    if not isinstance(value, str):
        raise StemConfigError(f"{column} must be a string, got {value!r:.200}.")


def escaped(text: str) -> str:
    """Return text with characters that are not printable escaped, such as line breaks and bidirectional marks."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
