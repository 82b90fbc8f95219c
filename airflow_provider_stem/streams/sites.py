"""Site records that come back from XCom, and the starts of their streams; used by everything that takes ``sites``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_provider_stem._text import invalid_response, one_line
from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.windows import first_expected_end

StreamStarts = Mapping[str, datetime | None]
"""When each stream of a site began, in UTC; ``None`` if the API does not report it."""

_MAX_TIME = 64


@dataclass(frozen=True, slots=True)
class Site:
    """
    One site.

    :param site_id: opaque identifier.
    :param stream_starts: the site's streams, or ``None`` if only the id is known.
    :param name: ``None`` if unknown; the same for ``client_id``.
    """

    site_id: str
    stream_starts: StreamStarts | None = None
    name: str | None = None
    client_id: str | None = None

    def lacks(self, stream_type: str) -> bool:
        """Return whether the site is known to have no stream of the type."""
        return self.stream_starts is not None and stream_type not in self.stream_starts

    def expected_from(self, stream_type: str, resolution: int) -> int | None:
        """Return the end of the stream's first interval in epoch seconds; ``None`` if its start is unknown."""
        start = (self.stream_starts or {}).get(stream_type)
        return None if start is None else first_expected_end(start, resolution)


class ListAsText(str):
    """The string that a template made of a list because the DAG does not render native objects."""

    __slots__ = ()


def read_sites(argument: Any) -> list[Site]:
    """
    Return the sites in the operators' argument ``sites``.

    :param argument: a site id, a record of ``StemSiteListOperator``, or an iterable of either.
    :return: each site once, sorted by id.
    :raises StemConfigError: an entry is invalid, or there is none. The message names the entry and the remedy.
    """
    if isinstance(argument, ListAsText):
        raise StemConfigError(
            "sites is a list that was rendered to a string. Pass the output itself (sites=task.output), or set "
            f"render_template_as_native_obj=True in the DAG. It begins with {one_line(argument)[:40]!r}."
        )
    entries = [argument] if isinstance(argument, (str, Mapping)) else argument
    if not isinstance(entries, Iterable) or isinstance(entries, (bytes, bytearray)):
        raise StemConfigError(
            f"Invalid sites {one_line(repr(argument))}. Use a site id, a site record, or a list of either."
        )
    sites: dict[str, Site] = {}
    for entry in entries:
        site = read_site(entry)
        known = sites.get(site.site_id)
        if known is None or (known.stream_starts is None and site.stream_starts is not None):
            sites[site.site_id] = site
    if not sites:
        raise StemConfigError("sites is empty. Use at least one site id or record.")
    return [sites[site_id] for site_id in sorted(sites)]


def stream_starts(payload: Mapping[str, Any], site_id: str) -> StreamStarts | None:
    """
    Return ``stream_start_times`` (guide: "Obtaining sites"), such as ``{"MONITOR": "2011-03-01T16:15:01Z"}``.

    :param payload: a site from the API, or a record of one.
    :param site_id: for the message.
    :return: ``None`` if the payload does not have it.
    :raises StemDataError: a value is not a time.
    """
    times = payload.get("stream_start_times")
    if times is None:
        return None
    if not isinstance(times, Mapping):
        raise invalid_response(f"site {one_line(site_id)}: stream_start_times is not an object")
    return {stream_type: _read_start(text, site_id, stream_type) for stream_type, text in times.items()}


def _read_start(text: Any, site_id: str, stream_type: str) -> datetime | None:
    if text is None:
        return None
    try:
        # Python accepts any number of digits after the seconds, and records must be bounded in size.
        instant = datetime.fromisoformat(text if len(text) <= _MAX_TIME else "")
        # All times of the API are UTC, so a time without an offset is accepted here.
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise invalid_response(
            f"site {one_line(site_id)}: stream_start_times of {one_line(stream_type)} is {one_line(repr(text))[:60]}, "
            "not an ISO 8601 time"
        ) from None


def site_id_of(record: Mapping[str, Any]) -> Any:
    """Return the id in a record of ``StemSiteListOperator``, or in a site from the API; unchecked."""
    return record.get("site_id", record.get("id"))


def read_site(entry: Any) -> Site:
    """
    Return one site of the operators' argument ``sites``.

    :param entry: a site id, a :class:`~airflow_provider_stem.streams.records.SiteRecord`, or a site from the API.
    :raises StemConfigError: the entry is invalid. The message names it and the remedy.
    """
    if isinstance(entry, str):
        return Site(_parse_site_id(entry))
    if isinstance(entry, Mapping):
        if {"sites", "batch"} <= entry.keys():
            raise StemConfigError(
                "sites contains a batch of StemSiteListOperator(batches=...). Map with .expand_kwargs(listing.output) "
                "instead of .expand(sites=listing.output)."
            )
        site_id = site_id_of(entry)
        if isinstance(site_id, str):
            # A site can be read without a name or client, so one that is not a string is left out.
            known = {name: entry[name] for name in ("name", "client_id") if isinstance(entry.get(name), str)}
            try:
                return Site(_parse_site_id(site_id), stream_starts(entry, site_id), **known)
            except StemDataError as exc:
                problem = str(exc).rpartition(". Try again later")[0]
                raise StemConfigError(
                    f"sites contains an invalid record: {problem}. Use records that StemSiteListOperator returned."
                ) from None
    raise StemConfigError(f"sites contains {one_line(repr(entry))[:100]}. Use site ids, or records with a 'site_id'.")


def _parse_site_id(site_id: str) -> str:
    if site_id.strip() in {"", ".", ".."}:
        raise StemConfigError(f"sites contains the invalid site id {site_id[:100]!r}. Use ids that the API lists.")
    return site_id
