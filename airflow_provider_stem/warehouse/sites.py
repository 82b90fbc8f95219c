"""Site records into a table with history (a slowly changing dimension of type 2); for the operator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.sites import read_sites, stream_starts
from airflow_provider_stem.streams.windows import RESOLUTIONS, STREAM_TYPES, first_expected_end, from_epoch

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_provider_stem.warehouse.session import Session

log = logging.getLogger(__name__)

SiteRow = dict[str, Any]

_COLUMNS = ("site_id", "name", "client_id", *(f"{stream_type.lower()}_since" for stream_type in STREAM_TYPES))

_STAGE = """
CREATE TEMPORARY TABLE stem_listed (
    site_id VARCHAR, name VARCHAR, client_id VARCHAR, monitor_since TIMESTAMP WITH TIME ZONE,
    converter_since TIMESTAMP WITH TIME ZONE, interval_revenue_since TIMESTAMP WITH TIME ZONE
)
"""
_KNOWN = """
SELECT count(DISTINCT listed.site_id) AS known
FROM stem_listed AS listed
JOIN {{ params.schema }}.sites AS known ON known.site_id = listed.site_id
"""
# A version lasts at least an instant, also where the clocks of workers differ.
_CLOSE = """
UPDATE {{ params.schema }}.sites AS known
SET valid_to = GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), known.valid_from + INTERVAL '1 microsecond')
FROM stem_listed AS listed
WHERE known.site_id = listed.site_id AND known.valid_to IS NULL AND (
    known.name IS DISTINCT FROM listed.name
    OR known.client_id IS DISTINCT FROM listed.client_id
    OR known.monitor_since IS DISTINCT FROM listed.monitor_since
    OR known.converter_since IS DISTINCT FROM listed.converter_since
    OR known.interval_revenue_since IS DISTINCT FROM listed.interval_revenue_since
)
"""
_OPEN = """
INSERT INTO {{ params.schema }}.sites (
    site_id, name, client_id, monitor_since, converter_since, interval_revenue_since,
    valid_from, valid_to, last_listed_at
)
SELECT listed.site_id, listed.name, listed.client_id,
    listed.monitor_since, listed.converter_since, listed.interval_revenue_since,
    GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), closed.valid_to), NULL, CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM stem_listed AS listed
LEFT JOIN (
    SELECT site_id, max(valid_to) AS valid_to, count(*) - count(valid_to) AS open_versions
    FROM {{ params.schema }}.sites GROUP BY site_id
) AS closed ON closed.site_id = listed.site_id
WHERE coalesce(closed.open_versions, 0) = 0
"""
_LIST = """
UPDATE {{ params.schema }}.sites AS known
SET last_listed_at = GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), known.last_listed_at)
FROM stem_listed AS listed
WHERE known.site_id = listed.site_id AND known.valid_to IS NULL
"""


def read_records(argument: Any) -> list[SiteRow]:
    """
    Read the operator's ``sites``: what ``StemSiteListOperator`` returned, records or batches of them.

    :return: a row for each site, sorted by id.
    :raises StemConfigError: names the entry and the remedy.
    """
    entries = [argument] if isinstance(argument, Mapping) else argument
    if not isinstance(entries, Iterable) or isinstance(entries, (str, bytes, bytearray)):
        raise StemConfigError(f"sites is {one_line(repr(argument))[:100]}: give what StemSiteListOperator returned.")
    rows: dict[str, SiteRow] = {}
    for entry in entries:
        batch = entry.get("sites") if isinstance(entry, Mapping) else None
        for record in batch if isinstance(batch, Sequence) and not isinstance(batch, str) else [entry]:
            row = _row(record)
            rows[row["site_id"]] = row
    if not rows:
        raise StemConfigError("sites is empty: give at least one record, as StemSiteListOperator returns them.")
    return [rows[site_id] for site_id in sorted(rows)]


def load_sites(
    rows: Sequence[SiteRow], connect: Callable[[], Session], *, listed_at: datetime | None = None
) -> dict[str, int]:
    """
    Bring the table of sites up to a listing. A site that the listing lacks stays as it is.

    :param listed_at: when the listing was made, from when changes count; default: the clock.
    :return: ``sites``, and of these ``added``, ``changed`` and ``unchanged``.
    """
    import pyarrow as pa

    [listing] = pa.Table.from_pylist(list(rows), listed_schema()).combine_chunks().to_batches()
    with connect() as session:
        with session.transaction():
            session.create_missing()
        with session.transaction():
            session.execute(_STAGE)
            session.append("stem_listed", [listing])
            session.lock("sites")
            now = listed_at or datetime.now(UTC)
            [(known,)] = session.execute(_KNOWN)
            changed = session.change(_CLOSE, now)
            session.execute(_OPEN, now, now)
            session.execute(_LIST, now)
            session.execute("DROP TABLE stem_listed")
    counts = {"sites": len(rows), "added": len(rows) - known, "changed": changed, "unchanged": known - changed}
    log.info("Loaded %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return counts


def _left_edge(start: datetime, site_id: str) -> datetime:
    finest = RESOLUTIONS[0]
    try:
        return from_epoch(first_expected_end(start, finest) - finest)
    except OverflowError:
        raise StemConfigError(
            f"sites holds a wrong record: a stream of site {one_line(site_id)} begins at {start.isoformat()}, beyond "
            "what a timestamp holds: leave the site out."
        ) from None


def listed_schema() -> pa.Schema:
    """Give the columns of a listing's rows."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    return pa.schema([pa.field(name, instant if name.endswith("_since") else pa.string()) for name in _COLUMNS])


def _row(record: Any) -> SiteRow:
    remedy = "give records as StemSiteListOperator returns them, with site_id, name, client_id and stream_start_times."
    if not isinstance(record, Mapping) or not {"site_id", "client_id", "stream_start_times"} <= record.keys():
        raise StemConfigError(f"sites holds {one_line(repr(record))[:100]}: {remedy}")
    [site] = read_sites(record)
    for name in ("name", "client_id"):
        if not isinstance(record.get(name), (str, type(None))):
            raise StemConfigError(f"sites holds {record[name]!r} as {name} of {one_line(site.site_id)}: {remedy}")
    try:
        starts = stream_starts(record, site.site_id) or {}
    except StemDataError as exc:
        raise StemConfigError(f"sites holds a wrong record: {exc}.") from None
    row = {"site_id": site.site_id, "name": record.get("name"), "client_id": record["client_id"]}
    for stream_type in STREAM_TYPES:
        start = starts.get(stream_type)
        # The API shows when the first second begins, as 16:15:01; the left edge of its interval is 16:15:00.
        row[f"{stream_type.lower()}_since"] = None if start is None else _left_edge(start, site.site_id)
    return row
