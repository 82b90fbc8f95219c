"""The stream types of the API (guide: "stream Types"). Columns, views, messages and metadata follow from this table."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_stem.errors import StemConfigError


@dataclass(frozen=True, slots=True)
class StreamType:
    """
    One stream type.

    :param meaning: what it measures, for the metadata of the column ``stream_type``.
    :param sign: what positive and negative values mean, for the metadata of the column ``kw_total_avg``; empty if the
        guide does not say.
    :param energy: columns of the view ``energy`` in kWh, for positive and for negative power; ``None`` if the view has
        no column for it.
    """

    meaning: str
    sign: str = ""
    energy: tuple[str, str] | None = None


STREAM_TYPES: dict[str, StreamType] = {
    "MONITOR": StreamType(
        "site meter with storage", "positive is import from the grid, negative export", ("import_kwh", "export_kwh")
    ),
    "CONVERTER": StreamType("storage", "positive is charging, negative discharging", ("charge_kwh", "discharge_kwh")),
    "INTERVAL_REVENUE": StreamType("revenue meter"),
}
"""The stream types by their name in the API."""


def since_column(stream_type: str) -> str:
    """Return the column of the warehouse's table ``sites`` for the start of a site's stream."""
    return f"{stream_type.lower()}_since"


def parse_stream_types(stream_types: object) -> tuple[str, ...]:
    """
    Return the stream types, sorted and without duplicates.

    :param stream_types: a string, or a list, tuple or set of strings.
    :raises StemConfigError: it is empty, or a type is unknown.
    """
    types = (stream_types,) if isinstance(stream_types, str) else stream_types
    if not isinstance(types, (list, tuple, set, frozenset)) or not types:
        raise StemConfigError(f"Invalid stream_types {stream_types!r}. Use one or more of {', '.join(STREAM_TYPES)}.")
    # Not every value can be a key of a dict.
    if unknown := [one for one in types if one not in tuple(STREAM_TYPES)]:
        raise StemConfigError(f"stream_types contains {unknown[0]!r}. Use one or more of {', '.join(STREAM_TYPES)}.")
    return tuple(sorted(set(types)))
