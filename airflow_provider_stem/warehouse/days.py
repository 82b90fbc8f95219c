"""
Which intervals of each UTC day are loaded, as bits of two integers, so that completeness need not count rows.

A bit that is set again stays set. So the tables are exact however often an object is loaded. For the loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.warehouse.session import Session

_DAY = 86_400
_HALF = _DAY // 2

DAYS_SCHEMA = pa.schema(
    [
        pa.field("object", pa.int32()),
        pa.field("site_id", pa.string()),
        pa.field("stream_type", pa.string()),
        pa.field("resolution", pa.int32()),
        pa.field("day", pa.date32()),
        pa.field("am", pa.int64()),
        pa.field("pm", pa.int64()),
    ]
)
"""One row per object, stream and UTC day. Bits as in the table ``stream_days``."""

_KEYS = ["site_id", "stream_type", "resolution", "day"]

_UPDATE_STREAM_DAYS = """
UPDATE {{ params.schema }}.stream_days AS known
SET late_am = CASE WHEN arrived.is_late THEN known.late_am | (arrived.am & ~known.received_am) ELSE known.late_am END,
    late_pm = CASE WHEN arrived.is_late THEN known.late_pm | (arrived.pm & ~known.received_pm) ELSE known.late_pm END,
    received_am = known.received_am | arrived.am, received_pm = known.received_pm | arrived.pm
FROM (
    SELECT stem_days.*, CAST(? AS TIMESTAMP WITH TIME ZONE) AT TIME ZONE 'UTC' > day + INTERVAL '2 days' AS is_late
    FROM stem_days
) AS arrived
WHERE known.day = arrived.day AND known.resolution = arrived.resolution AND known.site_id = arrived.site_id
    AND known.stream_type = arrived.stream_type AND known.day BETWEEN ? AND ?
    AND (arrived.am & ~known.received_am <> 0 OR arrived.pm & ~known.received_pm <> 0)
"""
_INSERT_STREAM_DAYS = """
INSERT INTO {{ params.schema }}.stream_days (
    day, resolution, site_id, stream_type, received_am, received_pm, late_am, late_pm
)
SELECT arrived.day, arrived.resolution, arrived.site_id, arrived.stream_type, arrived.am, arrived.pm,
    CASE WHEN arrived.is_late THEN arrived.am ELSE 0 END, CASE WHEN arrived.is_late THEN arrived.pm ELSE 0 END
FROM (
    SELECT stem_days.*, CAST(? AS TIMESTAMP WITH TIME ZONE) AT TIME ZONE 'UTC' > day + INTERVAL '2 days' AS is_late
    FROM stem_days
) AS arrived
LEFT JOIN (SELECT * FROM {{ params.schema }}.stream_days WHERE day BETWEEN ? AND ?) AS known
    ON known.day = arrived.day AND known.resolution = arrived.resolution AND known.site_id = arrived.site_id
    AND known.stream_type = arrived.stream_type
WHERE known.site_id IS NULL
"""
_INSERT_STREAMS = """
INSERT INTO {{ params.schema }}.loaded_streams (site_id, stream_type, resolution)
SELECT DISTINCT site_id, stream_type, resolution FROM stem_days
EXCEPT
SELECT site_id, stream_type, resolution FROM {{ params.schema }}.loaded_streams
"""
_UPDATE_COVERED = """
UPDATE {{ params.schema }}.covered_days
SET covered_am = covered_am | ?, covered_pm = covered_pm | ?
WHERE day = ? AND resolution = ?
"""
_INSERT_COVERED = """
INSERT INTO {{ params.schema }}.covered_days (covered_am, covered_pm, day, resolution) VALUES (?, ?, ?, ?)
"""


def days_of(number: int, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """
    Return the days of an object's rows, in :data:`DAYS_SCHEMA`.

    :param number: of the object.
    :param batches: its rows, in the landing schema, without duplicate keys.
    """
    parts = [_bits(batch) for batch in batches]
    if not parts:
        return DAYS_SCHEMA.empty_table()
    days = pa.concat_tables(parts).group_by(_KEYS).aggregate([("am", "sum"), ("pm", "sum")])
    days = days.rename_columns([name.removesuffix("_sum") for name in days.column_names])
    return days.append_column("object", pa.repeat(pa.scalar(number, pa.int32()), days.num_rows)).select(
        DAYS_SCHEMA.names
    )


def _bits(rows: pa.RecordBatch) -> pa.Table:
    """Return one bit per row: a sum of different bits is the same as their union."""
    resolution = rows.column("resolution").cast(pa.int64())
    start = pc.divide(rows.column("interval_start").cast(pa.int64()), 1_000_000)
    # A division truncates, and days before 1970 are negative.
    day = pc.floor(pc.divide(start.cast(pa.float64()), float(_DAY))).cast(pa.int32())
    slot = pc.divide(pc.subtract(start, pc.multiply(day.cast(pa.int64()), _DAY)), resolution)
    half = pc.divide(pa.scalar(_HALF, pa.int64()), resolution)
    is_am = pc.less(slot, half)
    bit = pc.shift_left(pa.scalar(1, pa.int64()), pc.if_else(is_am, slot, pc.subtract(slot, half)))
    zero = pa.scalar(0, pa.int64())
    columns = [rows.column("site_id"), rows.column("stream_type"), rows.column("resolution"), day.cast(pa.date32())]
    columns += [pc.if_else(is_am, bit, zero), pc.if_else(is_am, zero, bit)]
    return pa.Table.from_arrays(columns, [*_KEYS, "am", "pm"])


def update_days(session: Session, days: pa.Table, now: datetime) -> None:
    """
    Mark the intervals of ``stem_days`` as received.

    :param days: the rows of ``stem_days``; not empty, and with one row per stream and day.
    :param now: when the rows were loaded.
    """
    bounds = pc.min_max(days.column("day")).as_py()
    session.execute(_UPDATE_STREAM_DAYS, now, bounds["min"], bounds["max"])
    session.execute(_INSERT_STREAM_DAYS, now, bounds["min"], bounds["max"])
    session.execute(_INSERT_STREAMS)


def update_covered(session: Session, periods: Iterable[tuple[datetime, datetime, int]]) -> None:
    """
    Mark the intervals of periods as covered.

    :param periods: start, end and resolution in seconds; each once.
    """
    covered: dict[tuple[int, int], tuple[int, int]] = {}
    for start, end, resolution in periods:
        for day, am, pm in _covered(int(start.timestamp()), int(end.timestamp()), resolution):
            known = covered.get((day, resolution), (0, 0))
            covered[day, resolution] = known[0] | am, known[1] | pm
    for (day, resolution), bits in covered.items():
        values = *bits, datetime.fromordinal(_EPOCH + day).date(), resolution
        if not session.change(_UPDATE_COVERED, *values):
            session.execute(_INSERT_COVERED, *values)


_EPOCH = datetime(1970, 1, 1).toordinal()  # noqa: DTZ001


def _covered(start: int, end: int, resolution: int) -> Iterator[tuple[int, int, int]]:
    """Yield each day of a period with the bits of the whole intervals in it. Times are seconds since 1970."""
    half = _HALF // resolution
    for day in range(start // _DAY, -(-end // _DAY)):
        first = max(-(-(start - day * _DAY) // resolution), 0)
        last = min((end - day * _DAY) // resolution, 2 * half)
        bits = (1 << last) - (1 << first) if last > first else 0
        if bits:
            yield day, bits & ((1 << half) - 1), bits >> half
