"""Completeness as a picture: sites by UTC days in one HTML page that needs nothing else; for DAGs that publish it."""

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

__all__ = ["COLUMNS", "CONTENT_TYPE", "STATUSES", "Summary", "write_page"]

COLUMNS = ("site_id", "stream_type", "resolution", "day", "expected", "received", "late", "status")
"""Of the rows, in this order; one row for each stream and UTC day."""

STATUSES = ("complete", "late", "missing", "not expected")

CONTENT_TYPE = "text/html; charset=utf-8"

_MAX_DAYS = 3660
_WORST = 20
_NO_ROW = b"\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a page tells in sum: streams have a type and a resolution each, the others count intervals."""

    sites: int
    streams: int
    expected: int
    received: int
    missing: int
    late: int

    def as_json(self) -> dict[str, int]:
        """Give it as XCom can carry it."""
        return asdict(self)


def write_page(
    rows: Iterable[Sequence[Any]], file: IO[bytes], *, first_day: date, last_day: date, made: datetime
) -> Summary:
    """
    Write the page.

    Memory grows with streams times days, at four bytes each, and not with the rows: they may come from a cursor, in any
    order. The same rows and times give the same bytes.

    :param rows: of :data:`COLUMNS`. ``missing`` of a row is what it expected and did not receive.
    :param file: what the page is written to.
    :param first_day: of the page, in UTC.
    :param last_day: likewise; included.
    :param made: when the rows were read, aware.
    :raises StemConfigError: a row or a time is not what the page can show.
    """
    days = _days(first_day, last_day)
    if getattr(made, "tzinfo", None) is None:
        raise StemConfigError(f"made is {made!r}: give a datetime with a time zone.")
    kinds: dict[tuple[str, int], int] = {}
    cells: dict[str, dict[int, bytearray]] = {}
    for row in rows:
        try:
            _take(row, days, kinds, cells)
        except (TypeError, ArithmeticError):
            raise StemConfigError(f"rows holds {row!r:.200}: give {', '.join(COLUMNS)}.") from None

    sites = sorted((_Site.of(site_id, lines) for site_id, lines in cells.items()), key=_Site.badness)
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
        "kinds": [[_shown(stream_type), resolution] for stream_type, resolution in order],
        "sites": [_shown(site.site_id) for site in sites],
        "lines": [[n for n, kind in enumerate(order) if kinds[kind] in cells[site.site_id]] for site in sites],
    }

    def planes() -> Iterator[bytes | bytearray]:
        packed_head = json.dumps(head, separators=(",", ":")).encode()
        yield len(packed_head).to_bytes(4, "little")
        yield packed_head
        for site in sites:
            lines = cells[site.site_id]
            yield from (lines[kinds[kind]] for kind in order if kinds[kind] in lines)

    _write(file, _parts(summary, sites, first_day, last_day, made), planes())
    return summary


def _days(first_day: date, last_day: date) -> dict[date, int]:
    bounds: dict[str, Any] = {"first_day": first_day, "last_day": last_day}
    for name, day in bounds.items():
        if not isinstance(day, date) or isinstance(day, datetime):
            raise StemConfigError(f"{name} is {day!r}: give a date.")
    number = (last_day - first_day).days + 1
    if not 1 <= number <= _MAX_DAYS:
        raise StemConfigError(
            f"first_day is {first_day}, last_day is {last_day}, {number:,} days: give from 1 to {_MAX_DAYS:,} days."
        )
    return {first_day + timedelta(n): n for n in range(number)}


def _take(
    row: Sequence[Any],
    days: Mapping[date, int],
    kinds: dict[tuple[str, int], int],
    cells: dict[str, dict[int, bytearray]],
) -> None:
    if len(row) != len(COLUMNS):
        raise TypeError
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
            f"day is {day!r} in a row of site {_shown(site_id):.200}: give dates from first_day to last_day."
        )
    at = slice(len(_NO_ROW) * number, len(_NO_ROW) * (number + 1))
    if line[at] != _NO_ROW:
        raise StemConfigError(
            f"rows holds site {_shown(site_id):.200}, {_shown(stream_type):.50}, {resolution}, {day} twice: "
            "give one row for each."
        )
    line[at] = _cell(status, expected, received, late)


@lru_cache(maxsize=65536)
def _cell(status: Any, *counts: Any) -> bytes:
    """Check what a row tells of its day; most days tell the same."""
    if status not in STATUSES:
        raise StemConfigError(f"status is {status!r:.200}: give one of {', '.join(STATUSES)}.")
    for name, count in zip(("expected", "received", "late"), counts, strict=True):
        # A database may sum integers to a decimal. A day has 96 intervals at most, so one byte holds them.
        if isinstance(count, (str, bytes, type(None))) or not 0 <= count <= 255 or count != int(count):
            raise StemConfigError(f"{name} is {count!r:.200}: give the whole number of a day's intervals, 0 to 255.")
    return bytes([STATUSES.index(status) + 1, *map(int, counts)])


def _check_text(column: str, value: object) -> None:
    if not isinstance(value, str):
        raise StemConfigError(f"{column} is {value!r:.200}: give a text.")


def _shown(text: str) -> str:
    """Make foreign text visible: line breaks, escapes and what turns the direction of writing are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class _Site:
    """One site's sums over all of its streams and days."""

    site_id: str
    expected: int
    received: int
    missing: int
    late: int
    days_with_missing: int

    @classmethod
    def of(cls, site_id: str, lines: Mapping[int, bytearray]) -> _Site:
        lacking = [
            [max(0, expected - received) for expected, received in zip(line[1::4], line[2::4], strict=True)]
            for line in lines.values()
        ]
        return cls(
            site_id=site_id,
            expected=sum(sum(line[1::4]) for line in lines.values()),
            received=sum(sum(line[2::4]) for line in lines.values()),
            missing=sum(map(sum, lacking)),
            late=sum(sum(line[3::4]) for line in lines.values()),
            days_with_missing=sum(map(any, zip(*lacking, strict=True))),
        )

    def badness(self) -> tuple[int, int, str]:
        return -self.missing, -self.late, self.site_id


def _parts(summary: Summary, sites: Sequence[_Site], first_day: date, last_day: date, made: datetime) -> dict[str, str]:
    """Give what the template's marks stand for, all but the data."""
    style, script = (files(__name__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    share = f"{_share(summary.missing, summary.expected)} of {summary.expected:,} expected intervals are missing"
    worst = [site for site in sites[:_WORST] if site.missing or site.late]
    numbers: tuple[Callable[[_Site], str], ...] = (
        lambda site: f"{site.expected:,}",
        lambda site: f"{site.received:,}",
        lambda site: f"{site.missing:,}",
        lambda site: _share(site.missing, site.expected),
        lambda site: f"{site.late:,}",
        lambda site: f"{site.days_with_missing:,}",
    )
    return {
        "days": f"{first_day} to {last_day} (UTC days)",
        "made": f"{made.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "sum": f"{_count(summary.sites, 'site')}, {_count(summary.streams, 'stream')}. "
        f"{share}, {summary.late:,} came late.",
        "worst": "".join(
            f'<tr><th scope="row"><bdi>{html.escape(_shown(site.site_id))}</bdi></th>'
            f"{''.join(f'<td>{number(site)}</td>' for number in numbers)}</tr>\n"
            for site in worst
        )
        or '<tr><td colspan="7">Nothing is missing, and nothing came late.</td></tr>\n',
        "style": style,
        "script": script,
        # What is not of this page cannot run in it, and it cannot load or send anything.
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    """Give per cent that are 0 and 100 only where all or nothing is."""
    if not whole:
        return "0 %"
    shown = f"{100 * part / whole:.2f}"
    if shown == "0.00" and part:
        return "under 0.01 %"
    return "over 99.99 %" if shown == "100.00" and part < whole else f"{shown.rstrip('0').rstrip('.')} %"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _write(file: IO[bytes], parts: Mapping[str, str], planes: Iterable[bytes | bytearray]) -> None:
    template = files(__name__).joinpath("page.html").read_text("utf-8")
    before, after = (
        # In one pass: what stands in for a mark is not looked at again.
        re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], piece).encode()
        for piece in template.split("{{data}}")
    )
    file.write(before)
    packer = zlib.compressobj(9)
    waiting = b""
    for plane in planes:
        waiting += packer.compress(plane)
        whole = len(waiting) // 3 * 3
        file.write(base64.b64encode(waiting[:whole]))
        waiting = waiting[whole:]
    file.write(base64.b64encode(waiting + packer.flush()))
    file.write(after)
