"""
Verified objects into the table of streams, in one transaction; for the operator.

The statements are common to all engines that are loaded from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.text import one_line
from airflow_provider_stem.warehouse.objects import LandedObject
from airflow_provider_stem.warehouse.session import Session
from airflow_provider_stem.warehouse.staging import Fetch, StagedObject, Staging

log = logging.getLogger(__name__)

Counts = dict[str, int]
_COUNTED = ("rows", "inserted", "changed", "unchanged", "absent")

_STAGE = """
CREATE TEMPORARY TABLE stem_staged (
    site_id VARCHAR, stream_type VARCHAR, resolution INTEGER,
    interval_start TIMESTAMP WITH TIME ZONE, interval_end TIMESTAMP WITH TIME ZONE, kw_total_avg DOUBLE PRECISION
)
"""
_KNOWN = """
SELECT count(known.site_id) AS known,
    count(CASE WHEN known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg THEN known.site_id END) AS changed
FROM stem_staged AS staged
LEFT JOIN {{ params.schema }}.streams AS known
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
"""
_IN_PERIOD = """
SELECT count(*) AS in_period
FROM {{ params.schema }}.streams AS known
JOIN (SELECT DISTINCT site_id, stream_type, resolution FROM stem_staged) AS staged
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution
WHERE known.interval_end > ? AND known.interval_end <= ?
"""
# Two plain statements under a lock, not ON CONFLICT: that writes a lock into every row that is the same, and in DuckDB
# 1.1 it has left two rows with one key in a file that was opened anew.
_CHANGE = """
UPDATE {{ params.schema }}.streams AS known
SET kw_total_avg = staged.kw_total_avg, changed_at = CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM stem_staged AS staged
WHERE known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
    AND known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg
"""
_ADD = """
INSERT INTO {{ params.schema }}.streams (
    site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
)
SELECT staged.site_id, staged.stream_type, staged.resolution, staged.interval_start, staged.interval_end,
    staged.kw_total_avg, CAST(? AS TIMESTAMP WITH TIME ZONE), CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM stem_staged AS staged
LEFT JOIN {{ params.schema }}.streams AS known
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
    :return: ``objects``, of these ``replaced``, which hold another number of rows than their receipt tells, since they
        were landed anew; ``rows``, ``inserted``, ``changed``, ``unchanged`` and ``absent``: rows that the warehouse
        has in an object's period, of streams that the object holds, and that the object does not have. They stay.
    :raises StemDataError: an object is not as it was landed; nothing is loaded.
    """
    with Staging(fetch) as staging:
        staged = [staging.add(landed) for landed in objects]
        replaced = sum(one.rows != one.landed.rows for one in staged)
        total: Counts = {"objects": len(objects), "replaced": replaced} | dict.fromkeys(_COUNTED, 0)
        with connect() as session:
            with session.transaction():
                session.create_missing()
            with session.transaction():
                session.lock("streams")
                now = loaded_at or datetime.now(UTC)
                for one in staged:
                    # A table of its own: rows that are only deleted stay until the transaction ends.
                    session.execute(_STAGE)
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
    [(known, changed)] = session.execute(_KNOWN)
    [(in_period,)] = session.execute(_IN_PERIOD, staged.landed.start, staged.landed.end)
    written = session.change(_CHANGE, now), session.change(_ADD, now, now)
    # Bills are made of these rows: what was merged is looked at again before it is committed.
    [found] = session.execute(_KNOWN)
    if written != (changed, rows - known) or found != (rows, 0):
        raise StemDataError(
            f"{one_line(staged.landed.uri)}: {written[0]:,} rows were changed and {written[1]:,} added where "
            f"{changed:,} and {rows - known:,} were to be, and {found[0]:,} of {rows:,} are there with {found[1]:,} "
            "other values. Another program writes the table without its lock, or its primary key does not hold."
        )
    return {
        "rows": rows,
        "inserted": rows - known,
        "changed": changed,
        "unchanged": known - changed,
        # All rows of the object lie in its period.
        "absent": in_period - known,
    }


def _told(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
