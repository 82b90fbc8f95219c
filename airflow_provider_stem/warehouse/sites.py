"""Load site records into a table with history (a slowly changing dimension of type 2). For the operator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.records import as_entries
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
# A version lasts at least a microsecond, even if the clocks of workers differ.
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
    Return the rows of the operator's argument ``sites``.

    :param argument: what ``StemSiteListOperator`` returned: site records, or batches of them.
    :return: one row per site, sorted by id; the last record of a site wins.
    :raises StemConfigError: an entry is not a site record, or there is none.
    """
    entries = as_entries(argument)
    if entries is None:
        raise StemConfigError(
            f"Invalid sites {one_line(repr(argument))[:100]}: not a list of records. Pass what StemSiteListOperator "
            "returned."
        )
    rows: dict[str, SiteRow] = {}
    for entry in entries:
        batch = entry.get("sites") if isinstance(entry, Mapping) else None
        for record in batch if isinstance(batch, Sequence) and not isinstance(batch, str) else [entry]:
            row = _row(record)
            rows[row["site_id"]] = row
    if not rows:
        raise StemConfigError("sites is empty. Pass at least one record, as returned by StemSiteListOperator.")
    return [rows[site_id] for site_id in sorted(rows)]


def load_sites(
    rows: Sequence[SiteRow], connect: Callable[[], Session], *, listed_at: datetime | None = None
) -> dict[str, int]:
    """
    Update the table of sites to a listing, and return counts. A site that the listing lacks is not changed.

    :param rows: what :func:`read_records` returned.
    :param connect: opens the warehouse.
    :param listed_at: time of the listing, with a time zone, from which changes are valid; default: now.
    :return: ``sites``, and how many of them were ``added``, ``changed`` or ``unchanged``.
    :raises StemTransportError: the warehouse stayed locked.
    """
    import pyarrow as pa

    [listing] = pa.Table.from_pylist(list(rows), listing_schema()).combine_chunks().to_batches()
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
            f"Invalid record in sites: a stream of site {one_line(site_id)} starts at {start.isoformat()}, outside the "
            "range of timestamps. Remove the site."
        ) from None


def listing_schema() -> pa.Schema:
    """Return the Arrow schema of a listing's rows. Times are UTC, in microseconds."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    return pa.schema([pa.field(name, instant if name.endswith("_since") else pa.string()) for name in _COLUMNS])


def _row(record: Any) -> SiteRow:
    remedy = "Pass records as returned by StemSiteListOperator, with site_id, name, client_id and stream_start_times."
    if not isinstance(record, Mapping) or not {"site_id", "client_id", "stream_start_times"} <= record.keys():
        raise StemConfigError(f"Invalid record in sites: {one_line(repr(record))[:100]}. {remedy}")
    [site] = read_sites(record)
    for name in ("name", "client_id"):
        if not isinstance(record.get(name), (str, type(None))):
            raise StemConfigError(
                f"Invalid record in sites: {name} of site {one_line(site.site_id)} is {record[name]!r}. {remedy}"
            )
    try:
        starts = stream_starts(record, site.site_id) or {}
    except StemDataError as exc:
        raise StemConfigError(f"Invalid record in sites: {exc}.") from None
    row = {"site_id": site.site_id, "name": record.get("name"), "client_id": record["client_id"]}
    for stream_type in STREAM_TYPES:
        start = starts.get(stream_type)
        # The API lists the first second, such as 16:15:01. The left edge of its interval is 16:15:00.
        row[f"{stream_type.lower()}_since"] = None if start is None else _left_edge(start, site.site_id)
    return row
