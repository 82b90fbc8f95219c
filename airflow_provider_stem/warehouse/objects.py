"""Which objects to load, as receipts and asset events tell of them; for the operator and the load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import check_resolution, parse_instant

_FIELDS = ("uri", "rows", "sha256", "read_at", "start", "end")


@dataclass(frozen=True, slots=True)
class LandedObject:
    """
    One object, and what its receipt promises of it.

    :param start: left edge of the period whose intervals it holds; an interval belongs where it ends.
    :param end: right edge.
    :param sha256: of its bytes, in hexadecimal.
    :param read_at: when the reading of its newest rows began.
    :param resolution: seconds, where the receipt has it.
    """

    uri: str
    rows: int
    sha256: str
    read_at: datetime
    start: datetime
    end: datetime
    resolution: int | None = None


def read_objects(argument: Any) -> list[LandedObject]:
    """
    Read the operator's ``objects``: a receipt, an object of one, or a list of either.

    :param argument: entries that are ``None``, of tasks that were skipped, are passed over.
    :return: each object once, as the last entry tells of it, in the order of these.
    :raises StemConfigError: names the entry and the remedy.
    """
    entries = [argument] if isinstance(argument, Mapping) else argument
    if not isinstance(entries, Iterable) or isinstance(entries, (str, bytes, bytearray)):
        raise StemConfigError(
            f"objects is {one_line(repr(argument))[:100]}: give what StemStreamsToS3Operator returned, or a list of it."
        )
    objects: dict[str, LandedObject] = {}
    for told, resolution in _entries(entries):
        landed = _read_object(told, resolution)
        objects.pop(landed.uri, None)
        objects[landed.uri] = landed
    return list(objects.values())


def _entries(entries: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Give each object as it is told, and the resolution that its receipt tells."""
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("objects"), (list, tuple)):
            window = entry.get("window")
            resolution = window.get("resolution") if isinstance(window, Mapping) else None
            for told in entry["objects"]:
                yield told, resolution
        elif entry is not None:
            yield entry, None


def _read_object(told: Any, resolution: Any) -> LandedObject:
    try:
        uri, rows, sha256, read_at, start, end = (told[name] for name in _FIELDS)
    except (TypeError, KeyError, IndexError):
        uri = rows = sha256 = read_at = start = end = None
    if not isinstance(uri, str) or not uri.startswith("s3://") or type(rows) is not int or rows < 0:
        sha256 = None
    if not isinstance(sha256, str):
        raise StemConfigError(
            f"objects holds {one_line(repr(told))[:100]}: give what StemStreamsToS3Operator returned, or entries of "
            f"its 'objects', each with {', '.join(_FIELDS)}."
        )
    resolution = told.get("resolution", resolution)
    if resolution is not None:
        check_resolution(resolution)
    return LandedObject(
        uri,
        rows,
        sha256,
        parse_instant(f"read_at of {one_line(uri)} in objects", read_at),
        parse_instant(f"start of {one_line(uri)} in objects", start),
        parse_instant(f"end of {one_line(uri)} in objects", end),
        resolution,
    )
