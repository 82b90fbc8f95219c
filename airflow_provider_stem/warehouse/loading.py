"""
Load verified objects into the table of streams in one transaction. For the operator.

DuckDB and PostgreSQL share these statements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.staging import Fetch, StagedObject, Staging
from airflow_provider_stem.warehouse.session import Session

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
# The only read of the large table. It is limited to the object's streams and period, so that PostgreSQL uses its index
# and DuckDB reads few blocks: the cost must not grow with the size of the table.
_SELECT_KNOWN = """
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
# Two plain statements under a lock instead of ON CONFLICT. That would lock every unchanged row, and DuckDB 1.1 left two
# rows with one key in a file that was reopened.
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
    Load objects, all or none, and return counts.

    :param objects: what to load, in order; the last value of a key wins.
    :param fetch: copies an object into a file.
    :param connect: opens the warehouse; called once every object is fetched and verified.
    :param dag_id: stored in the table of loads.
    :param run_id: stored in the table of loads.
    :param loaded_at: time of the load, with a time zone; default: now.
    :return: ``objects``; ``replaced``: how many of them a later run has rewritten since their receipt; ``rows``,
        ``inserted``, ``changed`` and ``unchanged``; ``absent``: rows of the warehouse that an object lacks, of the
        object's streams and period. They are kept.
    :raises StemDataError: an object does not match its receipt, or another program writes the table without its lock.
        Nothing is loaded.
    :raises StemTransportError: an object cannot be fetched, or the warehouse stayed locked.
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
                    log.info("%s: %s", one_line(one.landed.uri), _summary(counts))
    log.info("Loaded %s", _summary(total))
    return total


def _merge(session: Session, staged: StagedObject, now: datetime) -> Counts:
    rows = staged.rows
    period = staged.landed.start, staged.landed.end
    found = _compare(session, period)
    _, known, changed, in_period = found
    changes = session.change(_CHANGE, now, *period) if changed else 0
    additions = session.change(_ADD, now, now) if known < rows else 0
    session.execute("DROP TABLE stem_known")
    # These rows are used for billing, so what was written is verified before it is committed.
    if changes or additions:
        found = _compare(session, period)
        session.execute("DROP TABLE stem_known")
    if (changes, additions) != (changed, rows - known) or found != (rows, rows, 0, in_period + additions):
        raise StemDataError(
            f"The table of streams holds duplicate keys, or another program writes it without a lock: {changes:,} rows "
            f"changed and {additions:,} added, expected {changed:,} and {rows - known:,}; the table now has "
            f"{found[1]:,} of {rows:,} rows, {found[2]:,} with other values, {found[0] - rows:,} duplicates. Stop that "
            f"program, or remove the duplicates, and load again [{one_line(staged.landed.uri)}]"
        )
    return {
        "rows": rows,
        "inserted": additions,
        "changed": changes,
        "unchanged": known - changed,
        # All rows of the object lie in its period.
        "absent": in_period - known,
    }


def _compare(session: Session, period: tuple[datetime, datetime]) -> tuple[int, ...]:
    """
    Copy the table's rows of the object's streams and period into ``stem_known``, and compare them with the staged ones.

    :return: the number of rows compared, known, changed, and in the period.
    """
    # The table is created each time, since deleted rows would take up space until the transaction ends.
    session.execute(_KNOWN)
    session.execute(_SELECT_KNOWN, *period)
    [found] = session.execute(_COMPARE)
    return found


def _summary(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
