"""Heat map of completeness, sites by UTC days, in one self-contained HTML page. For DAGs that publish it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import IO, Any

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import check_resolution

__all__ = ["COLUMNS", "CONTENT_TYPE", "STATUSES", "Summary", "share_of", "write_page"]

COLUMNS = ("site_id", "stream_type", "resolution", "day", "expected", "received", "late", "status")
"""Columns of the rows, in this order. There is one row for each stream and UTC day."""

STATUSES = ("complete", "late", "missing", "not expected")
"""Values of the column ``status``."""

CONTENT_TYPE = "text/html; charset=utf-8"
"""MIME type of the page."""

_MAX_DAYS = 3660
_WORST = 20
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


def write_page(
    rows: Iterable[Sequence[Any]], file: IO[bytes], *, first_day: date, last_day: date, made: datetime
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
    :return: the totals that the page shows.
    :raises StemConfigError: a row, a day or a time is invalid, or two rows have the same stream and day.
    """
    days = _days(first_day, last_day)
    if getattr(made, "tzinfo", None) is None:
        raise StemConfigError(f"made must be a datetime with a time zone, got {made!r}.")
    kinds: dict[tuple[str, int], int] = {}
    cells: dict[str, dict[int, bytearray]] = {}
    for row in rows:
        try:
            _add_row(row, days, kinds, cells)
        except (TypeError, ArithmeticError):
            raise _invalid_row(row) from None

    sites = sorted((_Site.of(site_id, lines) for site_id, lines in cells.items()), key=_Site.worst_first)
    summary = Summary(
        sites=len(sites),
        streams=sum(map(len, cells.values())),
        expected=sum(site.expected for site in sites),
        received=sum(site.received for site in sites),
        missing=sum(site.missing for site in sites),
        late=sum(site.late for site in sites),
    )
    order = sorted(kinds, key=lambda kind: (kind[0], kind[1]))
    head = {
        "first": first_day.isoformat(),
        "days": len(days),
        "kinds": [[_escaped(stream_type), resolution] for stream_type, resolution in order],
        "sites": [_escaped(site.site_id) for site in sites],
        "lines": [[at for at, kind in enumerate(order) if kinds[kind] in cells[site.site_id]] for site in sites],
    }

    def data() -> Iterator[bytes | bytearray]:
        packed_head = json.dumps(head, separators=(",", ":")).encode()
        yield len(packed_head).to_bytes(4, "little")
        yield packed_head
        for site in sites:
            lines = cells[site.site_id]
            yield from (lines[kinds[kind]] for kind in order if kinds[kind] in lines)

    _write(file, _parts(summary, sites, first_day, last_day, made), data())
    return summary


def _days(first_day: date, last_day: date) -> dict[date, int]:
    bounds: dict[str, Any] = {"first_day": first_day, "last_day": last_day}
    for name, day in bounds.items():
        if not isinstance(day, date) or isinstance(day, datetime):
            raise StemConfigError(f"{name} must be a date, got {day!r}.")
    number = (last_day - first_day).days + 1
    if not 1 <= number <= _MAX_DAYS:
        raise StemConfigError(
            f"Invalid first_day {first_day} and last_day {last_day}: {number:,} days. Use 1 to {_MAX_DAYS:,} days."
        )
    return {first_day + timedelta(index): index for index in range(number)}


def _add_row(
    row: Sequence[Any],
    days: Mapping[date, int],
    kinds: dict[tuple[str, int], int],
    cells: dict[str, dict[int, bytearray]],
) -> None:
    if len(row) != len(COLUMNS):
        raise _invalid_row(row)
    site_id, stream_type, resolution, day, expected, received, late, status = row
    kind = kinds.get((stream_type, resolution))
    if kind is None:
        _check_text("stream_type", stream_type)
        check_resolution(resolution)
        kind = kinds[stream_type, resolution] = len(kinds)
    lines = cells.get(site_id)
    if lines is None:
        _check_text("site_id", site_id)
        lines = cells[site_id] = {}
    line = lines.get(kind)
    if line is None:
        line = lines[kind] = bytearray(len(_NO_ROW) * len(days))
    number = days.get(day)
    if number is None:
        raise StemConfigError(
            f"Invalid day {day!r} in a row of site {_escaped(site_id):.200}. Use dates from first_day to last_day."
        )
    at = slice(len(_NO_ROW) * number, len(_NO_ROW) * (number + 1))
    if line[at] != _NO_ROW:
        raise StemConfigError(
            f"Duplicate row in rows: site {_escaped(site_id):.200}, {_escaped(stream_type):.50}, {resolution}, {day}. "
            "Use one row for each stream and day."
        )
    line[at] = _cell(status, expected, received, late)


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


def _escaped(text: str) -> str:
    """Return text with characters that are not printable escaped, such as line breaks and bidirectional marks."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True, slots=True)
class _Site:
    """Totals of one site, over all of its streams and days."""

    site_id: str
    expected: int
    received: int
    missing: int
    late: int
    days_with_missing: int

    @classmethod
    def of(cls, site_id: str, lines: Mapping[int, bytearray]) -> _Site:
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
        return -self.missing, -self.late, self.site_id


def _parts(summary: Summary, sites: Sequence[_Site], first_day: date, last_day: date, made: datetime) -> dict[str, str]:
    """Return the values of the template's placeholders, except the data."""
    style, script = (files(__name__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    share = f"{share_of(summary.missing, summary.expected)} of {summary.expected:,} expected intervals are missing"
    worst = [site for site in sites[:_WORST] if site.missing or site.late]
    numbers: tuple[Callable[[_Site], str], ...] = (
        lambda site: f"{site.expected:,}",
        lambda site: f"{site.received:,}",
        lambda site: f"{site.missing:,}",
        lambda site: share_of(site.missing, site.expected),
        lambda site: f"{site.late:,}",
        lambda site: f"{site.days_with_missing:,}",
    )
    return {
        "days": f"{first_day} to {last_day} (UTC days)",
        "made": f"{made.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "sum": f"{_count(summary.sites, 'site')}, {_count(summary.streams, 'stream')}. "
        f"{share}, {summary.late:,} came late.",
        "worst": "".join(
            f'<tr><th scope="row"><bdi>{html.escape(_escaped(site.site_id))}</bdi></th>'
            f"{''.join(f'<td>{number(site)}</td>' for number in numbers)}</tr>\n"
            for site in worst
        )
        or '<tr><td colspan="7">Nothing is missing, and nothing came late.</td></tr>\n',
        "style": style,
        "script": script,
        # Only the page's own style and script are allowed, and it cannot load or send anything.
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share_of(part: int, whole: int) -> str:
    """
    Return a percentage that is rounded to 0 or 100 only if it is exactly that.

    :param part: a number of intervals.
    :param whole: a number of intervals, not below ``part``.
    """
    if not whole:
        return "0 %"
    rounded = f"{100 * part / whole:.2f}"
    if rounded == "0.00" and part:
        return "under 0.01 %"
    return "over 99.99 %" if rounded == "100.00" and part < whole else f"{rounded.rstrip('0').rstrip('.')} %"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _write(file: IO[bytes], parts: Mapping[str, str], data: Iterable[bytes | bytearray]) -> None:
    template = files(__name__).joinpath("page.html").read_text("utf-8")
    before, after = (
        # All placeholders are replaced in one pass, so that a value cannot contain another placeholder.
        re.sub(r"\{\{(\w+)\}\}", lambda placeholder: parts[placeholder[1]], piece).encode()
        for piece in template.split("{{data}}")
    )
    file.write(before)
    packer = zlib.compressobj(9)
    pending = b""
    for piece in data:
        pending += packer.compress(piece)
        whole = len(pending) // 3 * 3  # base64 encodes groups of three bytes
        file.write(base64.b64encode(pending[:whole]))
        pending = pending[whole:]
    file.write(base64.b64encode(pending + packer.flush()))
    file.write(after)
