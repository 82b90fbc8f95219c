"""Load site records into a table with history (a slowly changing dimension of type 2). For the operator."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_provider_stem._text import list_counts, one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.records import as_entries
from airflow_provider_stem.streams.sites import read_site
from airflow_provider_stem.streams.stream_types import STREAM_TYPES, since_column
from airflow_provider_stem.streams.windows import RESOLUTIONS, first_expected_end, from_epoch
from airflow_provider_stem.warehouse.sql import statements

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_provider_stem.warehouse.session import Session

log = logging.getLogger(__name__)

SiteRow = dict[str, Any]

_COLUMNS = ("site_id", "name", "client_id", "time_zone", *map(since_column, STREAM_TYPES))


def read_records(argument: Any) -> list[SiteRow]:
    """
    Return the rows of the operator's argument ``sites``.

    :param argument: what ``StemSiteListOperator`` returned: site records, or batches of them.
    :return: one row per site, sorted by id.
    :raises StemConfigError: an entry is not a site record, two records of a site differ, or there is none.
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
            if rows.setdefault(row["site_id"], row) != row:
                raise StemConfigError(
                    f"sites contains two records of site {one_line(row['site_id'])} that differ. Pass one listing at a "
                    "time."
                )
    if not rows:
        raise StemConfigError("sites is empty. Pass at least one record, as returned by StemSiteListOperator.")
    return [rows[site_id] for site_id in sorted(rows)]


def check_time_zone(argument: str, value: object) -> None:
    """
    Raise unless a value is ``None``, a time zone, or time zones by site id.

    :raises StemConfigError: a name is not a time zone of the IANA database.
    """
    if not isinstance(value, (str, Mapping, NoneType)):
        raise StemConfigError(
            f"Invalid {argument} {value!r:.100}. Use a name such as 'America/Los_Angeles', or a dict of names by site "
            "id."
        )
    names = value if isinstance(value, Mapping) else {None: value} if value is not None else {}
    for site_id, name in names.items():
        if not _is_time_zone(name):
            raise StemConfigError(
                f"Invalid {argument} {name!r:.100}{'' if site_id is None else f' of site {site_id!r:.100}'}: no such "
                "time zone. Use a name such as 'America/Los_Angeles' or 'UTC'."
            )


def _is_time_zone(name: object) -> bool:
    # zoneinfo also reads these files, which are no names of zones, and which not every database has.
    if not isinstance(name, str) or re.match("(localtime|posixrules|Factory)$|posix/|right/", name):
        return False
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return False
    return True


def load_sites(
    rows: Sequence[SiteRow],
    connect: Callable[[], Session],
    *,
    time_zone: str | Mapping[str, str] | None = None,
    listed_at: datetime | None = None,
) -> dict[str, int]:
    """
    Update the table of sites to a listing, and return counts. A site that the listing lacks is not changed.

    :param rows: what :func:`read_records` returned.
    :param connect: opens the warehouse.
    :param time_zone: of all sites, or by site id; the others keep theirs.
    :param listed_at: time of the listing, with a time zone, from which changes are valid; default: now.
    :return: ``sites``, and how many of them were ``added``, ``changed`` or ``unchanged``. One of which only the time
        zone differs is ``changed``, without another version.
    :raises StemConfigError: the database does not have a time zone, or an id in ``time_zone`` may be mistyped. Nothing
        is changed.
    :raises StemTransportError: the warehouse stayed locked.
    """
    import pyarrow as pa

    listed = {row["site_id"] for row in rows}
    zones = dict.fromkeys(listed, time_zone) if isinstance(time_zone, str) else time_zone or {}
    records = [{**row, "time_zone": zones.get(row["site_id"])} for row in rows]
    [listing] = pa.Table.from_pylist(records, listing_schema()).combine_chunks().to_batches()
    with connect() as session:
        with session.transaction():
            session.create_missing()
        with session.transaction():
            read_ids, close, set_zone, open_new, mark_listed = statements(session.engine, "sites")
            session.stage("stem_listed", listing_schema(), [listing])
            session.lock("sites")
            now = listed_at or datetime.now(UTC)
            stored = {site_id for (site_id,) in session.execute(read_ids)}
            known = len(stored & listed)
            _check_zones(session, zones, listed, stored)
            changed = session.change(close, now) + session.change(set_zone)
            session.execute(open_new, now, now)
            session.execute(mark_listed, now)
            session.drop("stem_listed")
    counts = {"sites": len(rows), "added": len(rows) - known, "changed": changed, "unchanged": known - changed}
    log.info("Loaded %s", list_counts(counts))
    return counts


def _check_zones(session: Session, zones: Mapping[str, str], listed: Set[str], stored: Set[str]) -> None:
    """Raise ``StemConfigError`` if a site may have no zone because its id is mistyped, or the database lacks a zone."""
    without, unknown = listed - zones.keys(), zones.keys() - listed - stored
    if without and unknown:
        raise StemConfigError(
            f"Invalid time_zone: it lacks the listed site {min(without)!r:.100}, and has "
            f"{min(map(repr, unknown)):.100}, which was never listed. Correct the id, or add the zone of the listed "
            "site, such as 'UTC'."
        )
    for name in {*zones.values()}:
        try:
            # As text: DuckDB returns times with a zone only if pytz is installed.
            session.execute("SELECT CAST(timezone(CAST(? AS VARCHAR), TIMESTAMP '2000-01-01') AS VARCHAR)", name)
        except StemConfigError:
            raise StemConfigError(
                f"Invalid time_zone {name!r}: the database has no such time zone. Use a name such as "
                "'America/Los_Angeles' or 'UTC'."
            ) from None


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
    if not isinstance(record, Mapping) or not {"site_id", "client_id", "stream_start_times"} <= record.keys():
        raise StemConfigError(
            f"Invalid record in sites: {one_line(repr(record))[:100]}. Pass records as returned by "
            "StemSiteListOperator, with site_id, name, client_id and stream_start_times."
        )
    site = read_site(record)
    for name in ("site_id", "name", "client_id"):
        value = record.get(name)
        if value is not None and (not isinstance(value, str) or re.search("[\ud800-\udfff]", value)):
            raise StemConfigError(
                f"sites contains an invalid record: {name} of site {one_line(site.site_id)} is "
                f"{one_line(repr(value))[:60]}. Use records that StemSiteListOperator returned."
            )
    row: SiteRow = {"site_id": site.site_id, "name": site.name, "client_id": site.client_id}
    for stream_type in STREAM_TYPES:
        start = (site.stream_starts or {}).get(stream_type)
        # The API lists the first second, such as 16:15:01. The left edge of its interval is 16:15:00.
        row[since_column(stream_type)] = None if start is None else _left_edge(start, site.site_id)
    return row
