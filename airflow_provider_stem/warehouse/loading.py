"""
Verified objects into the table of streams, in one transaction; for the operator.

The statements are common to all engines that are loaded from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.warehouse.session import Session
from airflow_provider_stem.warehouse.staging import Fetch, StagedObject, Staging

log = logging.getLogger(__name__)

Counts = dict[str, int]
_COUNTED = ("rows", "inserted", "changed", "unchanged", "absent")

_STAGED = """
CREATE TEMPORARY TABLE stem_staged (
    site_id VARCHAR, stream_type VARCHAR, resolution INTEGER,
    interval_start TIMESTAMP WITH TIME ZONE, interval_end TIMESTAMP WITH TIME ZONE, kw_total_avg DOUBLE PRECISION
)
"""
_KNOWN = """
CREATE TEMPORARY TABLE stem_known (
    site_id VARCHAR, stream_type VARCHAR, resolution INTEGER,
    interval_end TIMESTAMP WITH TIME ZONE, kw_total_avg DOUBLE PRECISION
)
"""
# The one look at the large table, stream by stream and within a period: by PostgreSQL's index, or in the few of
# DuckDB's blocks that hold the period. What it costs must not grow with all that was ever loaded.
_LOOK = """
INSERT INTO stem_known
SELECT known.site_id, known.stream_type, known.resolution, known.interval_end, known.kw_total_avg
FROM {{ params.schema }}.streams AS known
JOIN (SELECT DISTINCT site_id, stream_type, resolution FROM stem_staged) AS staged
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution
WHERE known.interval_end > ? AND known.interval_end <= ?
"""
_COMPARE = """
SELECT count(*) AS compared, count(known.site_id) AS known,
    count(CASE WHEN known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg THEN known.site_id END) AS changed,
    (SELECT count(*) FROM stem_known) AS in_period
FROM stem_staged AS staged
LEFT JOIN stem_known AS known
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
"""
# Two plain statements under a lock, not ON CONFLICT: that writes a lock into every row that is the same, and in DuckDB
# 1.1 it has left two rows with one key in a file that was opened anew.
_CHANGE = """
UPDATE {{ params.schema }}.streams AS stored
SET kw_total_avg = differing.kw_total_avg, changed_at = CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM (
    SELECT staged.*
    FROM stem_staged AS staged
    JOIN stem_known AS known
        ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
        AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
    WHERE known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg
) AS differing
WHERE stored.site_id = differing.site_id AND stored.stream_type = differing.stream_type
    AND stored.resolution = differing.resolution AND stored.interval_end = differing.interval_end
    AND stored.interval_end > ? AND stored.interval_end <= ?
"""
_ADD = """
INSERT INTO {{ params.schema }}.streams (
    site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
)
SELECT staged.site_id, staged.stream_type, staged.resolution, staged.interval_start, staged.interval_end,
    staged.kw_total_avg, CAST(? AS TIMESTAMP WITH TIME ZONE), CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM stem_staged AS staged
LEFT JOIN stem_known AS known
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
WHERE known.site_id IS NULL
"""
_LOG = """
INSERT INTO {{ params.schema }}.loads (
    uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end,
    dag_id, run_id, loaded_at
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def load_objects(
    objects: Sequence[LandedObject],
    fetch: Fetch,
    connect: Callable[[], Session],
    *,
    dag_id: str | None = None,
    run_id: str | None = None,
    loaded_at: datetime | None = None,
) -> Counts:
    """
    Load objects, all or none.

    :param fetch: gets an object.
    :param connect: opens the warehouse, once every object is here and verified.
    :param dag_id: for the log of loads.
    :param run_id: likewise.
    :param loaded_at: default: the clock.
    :return: ``objects``; ``replaced``: how many of them a later run has rewritten since their receipt; ``rows``,
        ``inserted``, ``changed``, ``unchanged`` and ``absent``: rows that the warehouse has in an object's period, of
        streams that the object holds, and that the object does not have. They stay.
    :raises StemDataError: an object is not as it was landed; nothing is loaded.
    """
    with Staging(fetch) as staging:
        staged = [staging.add(landed) for landed in objects]
        replaced = sum(one.replaced for one in staged)
        total: Counts = {"objects": len(objects), "replaced": replaced} | dict.fromkeys(_COUNTED, 0)
        with connect() as session:
            with session.transaction():
                session.create_missing()
            with session.transaction():
                session.lock("streams")
                now = loaded_at or datetime.now(UTC)
                for one in staged:
                    session.execute(_STAGED)
                    session.append("stem_staged", staging.batches(one))
                    counts = _merge(session, one, now)
                    session.execute("DROP TABLE stem_staged")
                    session.execute(
                        _LOG, one.landed.uri, *counts.values(), one.resolution, one.landed.start, one.landed.end,
                        dag_id, run_id, now,
                    )  # fmt: skip
                    for name, count in counts.items():
                        total[name] += count
                    log.info("%s: %s", one_line(one.landed.uri), _told(counts))
    log.info("Loaded %s", _told(total))
    return total


def _merge(session: Session, staged: StagedObject, now: datetime) -> Counts:
    rows = staged.rows
    period = staged.landed.start, staged.landed.end
    found = _look(session, period)
    _, known, changed, in_period = found
    changes = session.change(_CHANGE, now, *period) if changed else 0
    additions = session.change(_ADD, now, now) if known < rows else 0
    session.execute("DROP TABLE stem_known")
    # Bills are made of these rows: what was written is looked at again before it is committed.
    if changes or additions:
        found = _look(session, period)
        session.execute("DROP TABLE stem_known")
    if (changes, additions) != (changed, rows - known) or found != (rows, rows, 0, in_period + additions):
        raise StemDataError(
            f"{one_line(staged.landed.uri)}: {changes:,} rows were changed and {additions:,} added where {changed:,} "
            f"and {rows - known:,} were to be; now {found[1]:,} of {rows:,} are there, {found[2]:,} with other values, "
            f"{found[0] - rows:,} twice. Another program writes the table without its lock, or has doubled keys in it."
        )
    return {
        "rows": rows,
        "inserted": additions,
        "changed": changes,
        "unchanged": known - changed,
        # All rows of the object lie in its period.
        "absent": in_period - known,
    }


def _look(session: Session, period: tuple[datetime, datetime]) -> tuple[int, ...]:
    """Bring in what the table holds of the object's streams; count the rows compared, known, changed, in the period."""
    # A table of its own each time: rows that are only deleted stay until the transaction ends.
    session.execute(_KNOWN)
    session.execute(_LOOK, *period)
    [found] = session.execute(_COMPARE)
    return found


def _told(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
