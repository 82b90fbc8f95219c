"""Queries of the pages in Airflow. They read what was loaded into the warehouse. For the app."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from airflow_provider_stem.completeness.cells import STATUSES, Cells
from airflow_provider_stem.streams.batches import batch_index
from airflow_provider_stem.warehouse.session import Session
from airflow_provider_stem.warehouse.sql import SCHEMA

_STEP = 10
"""Days of one query of cells, which bounds the memory that DuckDB needs: with three times as many, 1.6 times it."""
_MAX_LOADS = 5000
_MAX_RESTATEMENTS = 2000
_BATCH = re.compile(r"(?<!\d)(\d+)-of-(\d+)(?!\d)")
_DAY = timedelta(days=1)

_NUMBER = " ".join(f"WHEN '{status}' THEN {number}" for number, status in enumerate(STATUSES, 1))
# The days of a stream in one string, six bytes each in hexadecimal: thirty times fewer rows than days.
_CELLS = f"""
SELECT site_id, stream_type, resolution, string_agg(lpad(to_hex(cell), 12, '0'), '')
FROM (
    SELECT site_id, stream_type, resolution, CAST(
        (day - CAST(? AS DATE)) * 4294967296 + (CASE status {_NUMBER} END) * 16777216
        + expected * 65536 + received * 256 + late AS BIGINT
    ) AS cell
    FROM {SCHEMA}.completeness
    WHERE day BETWEEN ? AND ?
) AS cells
GROUP BY site_id, stream_type, resolution
"""  # noqa: S608  # nosec B608 # the values are constants
_VERSION = f"""
SELECT loads.number, loads.last, sites.number, sites.last, sites.listed
FROM (SELECT count(*) AS number, CAST(max(loaded_at) AS VARCHAR) AS last FROM {SCHEMA}.loads) AS loads
CROSS JOIN (
    SELECT count(*) AS number, CAST(max(valid_from) AS VARCHAR) AS last,
        CAST(max(last_listed_at) AS VARCHAR) AS listed
    FROM {SCHEMA}.sites
) AS sites
"""  # noqa: S608  # nosec B608
_NAMES = f"SELECT site_id, name FROM {SCHEMA}.sites WHERE valid_to IS NULL"  # noqa: S608  # nosec B608
_SITE = f"SELECT name, client_id, time_zone FROM {SCHEMA}.sites WHERE site_id = ? AND valid_to IS NULL"  # noqa: S608  # nosec B608
_DAYS = f"""
SELECT stream_type, resolution, day, expected, received, late, status FROM {SCHEMA}.completeness
WHERE site_id = ? AND day BETWEEN ? AND ? ORDER BY day DESC, stream_type, resolution
"""  # noqa: S608  # nosec B608
_VALUES = f"""
SELECT stream_type, resolution, CAST(extract(EPOCH FROM interval_end) AS BIGINT), kw_total_avg FROM {SCHEMA}.streams
WHERE site_id = ? AND interval_end > ? AND interval_end <= ?
"""  # noqa: S608  # nosec B608
_COVERED = f"SELECT resolution, covered_am, covered_pm FROM {SCHEMA}.covered_days WHERE day = ?"  # noqa: S608  # nosec B608
_RESTATED = f"""
SELECT stream_type, resolution, CAST(extract(EPOCH FROM interval_end) AS BIGINT), old_kw, new_kw,
    CAST(extract(EPOCH FROM changed_at) AS BIGINT), dag_id, run_id
FROM {SCHEMA}.restatements
WHERE site_id = ? AND interval_end > ? AND interval_end <= ?
ORDER BY changed_at, interval_end, stream_type LIMIT {_MAX_RESTATEMENTS}
"""  # noqa: S608  # nosec B608
_LOADS = f"""
SELECT uri, dag_id, run_id, CAST(extract(EPOCH FROM loaded_at) AS BIGINT), resolution, inserted, changed
FROM {SCHEMA}.loads
WHERE window_start < ? AND window_end > ? AND row_count > 0
ORDER BY loaded_at DESC, uri LIMIT {_MAX_LOADS}
"""  # noqa: S608  # nosec B608
_CHANGES = f"""
SELECT changes.site_id, sites.name, stream_type, resolution, day, count(*),
    sum((coalesce(new_kw, 0) - coalesce(old_kw, 0)) * resolution / 3600.0),
    CAST(extract(EPOCH FROM max(changed_at)) AS BIGINT)
FROM (
    SELECT site_id, stream_type, resolution, old_kw, new_kw, changed_at,
        CAST((interval_end - resolution * INTERVAL '1 second') AT TIME ZONE 'UTC' AS DATE) AS day
    FROM {SCHEMA}.restatements
    WHERE interval_end > ? AND interval_end <= ?
) AS changes
LEFT JOIN (SELECT site_id, name FROM {SCHEMA}.sites WHERE valid_to IS NULL) AS sites
    ON sites.site_id = changes.site_id
GROUP BY changes.site_id, sites.name, stream_type, resolution, day
ORDER BY day DESC, changes.site_id, stream_type, resolution LIMIT ? OFFSET ?
"""  # noqa: S608  # nosec B608


@dataclass(frozen=True, slots=True)
class StreamDay:
    """
    Counts of one stream on one UTC day.

    :param status: one of :data:`~airflow_provider_stem.completeness.STATUSES`.
    """

    stream_type: str
    resolution: int
    day: date
    expected: int
    received: int
    late: int
    status: str

    @property
    def missing(self) -> int:
        """Return the number of expected intervals that were not received."""
        return max(0, self.expected - self.received)


@dataclass(frozen=True, slots=True)
class Restatement:
    """A value that a load changed. ``end`` is that of its interval, ``resolution`` its length in seconds; UTC."""

    stream_type: str
    resolution: int
    end: datetime
    old_kw: float | None
    new_kw: float | None
    changed_at: datetime
    dag_id: str | None
    run_id: str | None

    @property
    def number(self) -> int:
        """Return the number of the interval in its UTC day, from 0."""
        start = self.end - timedelta(seconds=self.resolution)
        return (start.hour * 3600 + start.minute * 60) // self.resolution


@dataclass(frozen=True, slots=True)
class Load:
    """A load of an object. ``dag_id`` and ``run_id`` are those of the load, and not of the landing."""

    uri: str
    dag_id: str | None
    run_id: str | None
    loaded_at: datetime
    resolution: int | None
    inserted: int
    changed: int


@dataclass(frozen=True, slots=True)
class Curve:
    """
    Values of one stream on one UTC day.

    :param counts: how many intervals are expected, received and late.
    :param values: average kW by the number of the interval from 0; ``None`` is a null of the API.
    :param missing: numbers of the intervals that are expected and were not received.
    """

    counts: StreamDay
    values: Mapping[int, float | None]
    missing: tuple[int, ...]


def read_version(session: Session) -> str:
    """Return a string that differs after each load and each listing of sites."""
    [values] = session.execute(_VERSION)
    return " ".join(map(str, values))


def read_cells(session: Session, first_day: date, last_day: date) -> Cells:
    """
    Return the cells of all sites.

    :param session: of the warehouse.
    :param first_day: first UTC day.
    :param last_day: last UTC day, inclusive.
    """
    cells = Cells(first_day, last_day)
    for start in range(0, (last_day - first_day).days + 1, _STEP):
        since = first_day + timedelta(days=start)
        until = min(last_day, since + timedelta(days=_STEP - 1))
        for site_id, stream_type, resolution, records in session.execute(_CELLS, first_day, since, until):
            cells.add_stream(site_id, stream_type, resolution, bytes.fromhex(records))
    return cells


def read_names(session: Session) -> dict[str, str | None]:
    """Return the current names of all sites by id."""
    return dict(session.execute(_NAMES))


def read_site(session: Session, site_id: str) -> tuple[str | None, str | None, str | None]:
    """
    Return name, client and time zone of a site, each ``None`` if it is unknown.

    :param session: of the warehouse.
    :param site_id: id of the site.
    """
    found = session.execute(_SITE, site_id)
    return found[0] if found else (None, None, None)


def read_stream_days(session: Session, site_id: str, first_day: date, last_day: date) -> list[StreamDay]:
    """
    Return the days of a site's streams, the latest day first.

    :param session: of the warehouse.
    :param site_id: id of the site.
    :param first_day: first UTC day.
    :param last_day: last UTC day, inclusive.
    """
    return [
        StreamDay(stream_type, resolution, day, int(expected), int(received), int(late), status)
        for stream_type, resolution, day, expected, received, late, status in session.execute(
            _DAYS, site_id, first_day, last_day
        )
    ]


def read_curves(session: Session, site_id: str, day: date) -> list[Curve]:
    """
    Return the values of a site's streams on one day.

    :param session: of the warehouse.
    :param site_id: id of the site.
    :param day: UTC day.
    """
    start, end = _bounds(day, day)
    values: dict[tuple[str, int], dict[int, float | None]] = {}
    for stream_type, resolution, seconds, kw in session.execute(_VALUES, site_id, start, end):
        number = (seconds - int(start.timestamp())) // resolution - 1
        values.setdefault((stream_type, resolution), {})[number] = kw
    covered = {resolution: halves for resolution, *halves in session.execute(_COVERED, day)}
    curves = []
    for counts in sorted(read_stream_days(session, site_id, day, day), key=lambda one: one.stream_type):
        own = values.get((counts.stream_type, counts.resolution), {})
        absent = [n for n in _numbers(counts.resolution, *covered.get(counts.resolution, (0, 0))) if n not in own]
        # Those before a stream's first interval are not expected. They come first.
        missing = tuple(absent[len(absent) - counts.missing :])
        curves.append(Curve(counts, own, missing))
    return curves


def _numbers(resolution: int, am: int, pm: int) -> Iterator[int]:
    half = 43_200 // resolution
    bits = am | pm << half
    return (number for number in range(2 * half) if bits >> number & 1)


def read_restatements(session: Session, site_id: str, day: date) -> list[Restatement]:
    """
    Return the values of a site's day that loads changed, the earliest change first; at most 2,000.

    :param session: of the warehouse.
    :param site_id: id of the site.
    :param day: UTC day in which the intervals begin.
    """
    return [
        Restatement(stream_type, resolution, _instant(end), old, new, _instant(changed), dag_id, run_id)
        for stream_type, resolution, end, old, new, changed, dag_id, run_id in session.execute(
            _RESTATED, site_id, *_bounds(day, day)
        )
    ]


def read_loads(session: Session, site_id: str, day: date) -> list[Load]:
    """
    Return the loads of the objects that cover a site's day, the latest first.

    The warehouse does not store which object a row is from. An object of another batch than the site's is left out.

    :param session: of the warehouse.
    :param site_id: id of the site.
    :param day: UTC day.
    """
    start, end = _bounds(day, day)
    return [
        Load(uri, dag_id, run_id, _instant(loaded), resolution, int(inserted), int(changed))
        for uri, dag_id, run_id, loaded, resolution, inserted, changed in session.execute(_LOADS, end, start)
        if _may_contain(uri, site_id)
    ]


def _may_contain(uri: str, site_id: str) -> bool:
    found = _BATCH.search(uri)
    return not found or batch_index(site_id, max(1, int(found[2]))) == int(found[1]) - 1


def read_changes(
    session: Session, first_day: date, last_day: date, limit: int, offset: int
) -> list[tuple[str, str | None, str, int, date, int, float, datetime]]:
    """
    Return the days of streams with restated values, the latest day first.

    :param session: of the warehouse.
    :param first_day: first UTC day in which the intervals begin.
    :param last_day: last UTC day, inclusive.
    :param limit: maximum number of rows.
    :param offset: number of rows to leave out before them.
    :return: site id, name, stream type, resolution in seconds, day, number of changes, their sum in kWh, and the time
        of the last one in UTC. An unknown value adds nothing to the sum.
    """
    return [
        (site_id, name, stream_type, resolution, day, int(number), float(kwh), _instant(changed_at))
        for site_id, name, stream_type, resolution, day, number, kwh, changed_at in session.execute(
            _CHANGES, *_bounds(first_day, last_day), limit, offset
        )
    ]


def _bounds(first_day: date, last_day: date) -> tuple[datetime, datetime]:
    """Return the edges of days: an interval that begins in them ends after the first and up to the second."""
    first, last = (datetime.combine(one, time(), UTC) for one in (first_day, last_day))
    return first, last + _DAY


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
