"""JSON records that tasks return, and their validation when they come back through XCom or asset events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, cast

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.store import is_uri
from airflow_provider_stem.streams.windows import Window, WindowRecord, check_resolution, iso, iso_exact, parse_instant

_SHA256 = re.compile("[0-9a-f]{64}")
_SLICE = 100


class ObjectRecord(TypedDict):
    """A landed object in a receipt; see :class:`LandedObject`. Times are ISO 8601, UTC."""

    uri: str
    rows: int
    bytes: int
    sha256: str
    read_at: str
    start: str
    end: str


class IncompleteStream(TypedDict):
    """
    A stream with missing rows.

    :param first_missing: end of the first interval that is missing; ISO 8601, UTC.
    """

    site_id: str
    stream_type: str
    expected: int
    received: int
    first_missing: str


class UnavailableStream(TypedDict):
    """A stream that a site does not have."""

    site_id: str
    stream_type: str


class FailedSite(TypedDict):
    """A site that could not be read, with ``on_site_error="skip"``."""

    site_id: str
    error: str


class Receipt(TypedDict):
    """
    What one run of ``StemStreamsToS3Operator`` read and landed.

    :param rows: number of rows that this run read; ``expected`` is how many should exist, ``missing`` how many do not.
    :param requests: number of HTTP requests to the API, including retries.
    :param inserted: rows that are new in the objects; ``changed`` have another value, ``unchanged`` the same.
    :param kept: rows that the objects had and this run did not read.
    :param incomplete: at most 100 of ``incomplete_count``; the same for ``unavailable`` and ``failed_sites``.
    """

    window: WindowRecord
    objects: list[ObjectRecord]
    rows: int
    expected: int
    missing: int
    sites: int
    requests: int
    inserted: int
    changed: int
    unchanged: int
    kept: int
    incomplete: list[IncompleteStream]
    unavailable: list[UnavailableStream]
    failed_sites: list[FailedSite]
    incomplete_count: int
    unavailable_count: int
    failed_count: int


class SiteRecord(TypedDict):
    """
    A site as ``StemSiteListOperator`` returns it.

    :param stream_start_times: shown start of each stream, ISO 8601, UTC; ``None`` if the API does not report it.
    """

    site_id: str
    name: str | None
    client_id: str
    stream_start_times: dict[str, str | None] | None


class WatchReport(TypedDict):
    """
    What ``StemStreamsSensor`` returns.

    :param expected: number of intervals that the sites should have; ``missing`` of them are missing. A site that was
        not requested yet counts with all of them as missing, and with the types that it may have.
    :param incomplete_sites: number of the ``sites`` that lack an interval or were not requested yet.
    """

    window: WindowRecord
    sites: int
    expected: int
    missing: int
    incomplete_sites: int


def describe_report(report: WatchReport) -> str:
    """Return how complete a window is, as one line of text."""
    return (
        f"{report['expected'] - report['missing']:,} of {report['expected']:,} intervals received, "
        f"{report['incomplete_sites']:,} of {report['sites']:,} sites incomplete"
    )


@dataclass(frozen=True, slots=True)
class LandedObject:
    """
    A landed object, as its receipt describes it.

    :param uri: address, such as ``s3://bucket/key``.
    :param rows: number of rows.
    :param size: bytes.
    :param sha256: SHA-256 of its bytes, in hexadecimal.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock.
    :param start: start of its period, UTC; an interval belongs to the period in which it ends.
    :param end: end of its period, UTC.
    :param resolution: seconds; ``None`` if unknown.
    """

    uri: str
    rows: int
    size: int
    sha256: str
    read_at: datetime
    start: datetime
    end: datetime
    resolution: int | None = None

    def as_json(self) -> ObjectRecord:
        """Return the object as a receipt lists it."""
        return {
            "uri": self.uri,
            "rows": self.rows,
            "bytes": self.size,
            "sha256": self.sha256,
            "read_at": iso_exact(self.read_at),
            "start": iso(self.start),
            "end": iso(self.end),
        }


def as_entries(argument: Any) -> Iterator[Any] | None:
    """
    Return one record or several as an iterator; ``None`` if the argument is neither.

    A list of lists is read as one list: a list of the outputs of several mapped tasks, or ``XComArg.zip``.
    """
    if isinstance(argument, Mapping):
        return iter([argument])
    if not _is_list(argument):
        return None
    return (entry for one in _items(argument) for entry in (_items(one) if _is_list(one) else [one]))


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (Mapping, str, bytes, bytearray))


def _items(entries: Iterable[Any]) -> Iterator[Any]:
    if not isinstance(entries, Sequence):
        yield from entries
        return
    # An iteration would also ask for the item after the last one, for which Airflow 3 logs an error. Airflow reads what
    # mapped tasks returned item by item, or faster as slices, which XComArg.map, zip and concat do not support.
    step = _SLICE if type(entries).__name__.startswith("LazyXCom") else 1
    for first in range(0, len(entries), step):
        yield from entries[first : first + step] if step > 1 else [entries[first]]


def read_objects(argument: Any) -> list[LandedObject]:
    """
    Return the objects in receipts or asset events.

    Anyone who may create an event may write anything into it, so each value is validated.

    :param argument: a receipt, an object of one, or an iterable of either. Entries that are ``None``, from skipped
        tasks, are ignored.
    :return: each object once, as the last entry describes it, in the order of these entries.
    :raises StemConfigError: an entry is invalid. The message names the entry and the remedy.
    """
    entries = as_entries(argument)
    if entries is None:
        raise StemConfigError(
            f"Invalid objects {one_line(repr(argument))[:100]}. Use what a landing operator returned, or a list of it."
        )
    objects: dict[str, LandedObject] = {}
    for entry in entries:
        if entry is None:
            continue
        listed, window = [entry], None
        if isinstance(entry, Mapping) and isinstance(entry.get("objects"), (list, tuple)):
            listed, window = entry["objects"], entry.get("window")
            if isinstance(window, Mapping) and window.keys() >= {"start", "end"}:
                start, end = (parse_instant(f"window.{bound} in objects", window[bound]) for bound in ("start", "end"))
                if start >= end:
                    raise _invalid("window", f"{iso(start)}/{iso(end)}")
        for one in listed:
            landed = _read_object(one, window.get("resolution") if isinstance(window, Mapping) else None)
            objects.pop(landed.uri, None)
            objects[landed.uri] = landed
    return list(objects.values())


def receipt_entries(receipts: Any) -> Iterable[Any]:
    """
    Return the entries of an argument ``receipts``, which are not validated yet.

    :raises StemConfigError: the argument is not a list or another iterable of records.
    """
    entries = None if isinstance(receipts, Mapping) else as_entries(receipts)
    if entries is None:
        raise StemConfigError(f"receipts must be a list of what the tasks returned, got {str(receipts)[:100]!r}.")
    return entries


def without_counts() -> StemConfigError:
    """Return the error for a receipt whose counts are missing or have another type."""
    return StemConfigError("receipts contains a receipt without its counts. Use what a landing operator returned.")


def read_receipt(receipt: Any) -> Receipt:
    """
    Return a receipt that a task returned, with its window, objects and rows validated.

    Its window is aligned, with times in the format of :func:`~airflow_provider_stem.streams.windows.iso`.

    :raises StemConfigError: it is not a valid receipt.
    """
    if not isinstance(receipt, Mapping) or not receipt.keys() >= {"window", "objects", "rows"}:
        raise StemConfigError(
            f"receipts contains {one_line(repr(receipt))[:100]}. Use what a landing operator returned, or None."
        )
    window = receipt["window"]
    if not isinstance(window, Mapping) or type(receipt["rows"]) is not int or receipt["rows"] < 0:
        raise StemConfigError(
            f"receipts contains the window {one_line(repr(window))[:100]} and {one_line(repr(receipt['rows']))[:20]} "
            "rows. Use what a landing operator returned."
        )
    start, end = (parse_instant(f"window.{bound} of a receipt", window.get(bound)) for bound in ("start", "end"))
    aligned = Window.covering(start, end, cast(int, window.get("resolution"))).as_json()
    read_objects(receipt)
    return cast(Receipt, {**receipt, "window": aligned})


def _read_object(entry: Any, resolution: Any) -> LandedObject:
    if not isinstance(entry, Mapping) or not entry.keys() >= ObjectRecord.__required_keys__:
        raise StemConfigError(
            f"objects contains {one_line(repr(entry))[:100]}. Use what a landing operator returned, or entries of "
            f"its 'objects', each with {', '.join(ObjectRecord.__annotations__)}."
        )
    uri, rows, size, sha256 = (entry[name] for name in ("uri", "rows", "bytes", "sha256"))
    if not is_uri(uri):
        raise _invalid("uri", uri)
    for name, count in (("rows", rows), ("bytes", size)):
        if type(count) is not int or count < 0:
            raise _invalid(name, count)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _invalid("sha256", sha256)
    resolution = entry.get("resolution", resolution)
    if resolution is not None:
        check_resolution(resolution)
    read_at, start, end = (
        parse_instant(f"{name} of {uri} in objects", entry[name]) for name in ("read_at", "start", "end")
    )
    if start >= end:
        raise _invalid("period", f"{iso(start)}/{iso(end)}")
    return LandedObject(uri, rows, size, sha256, read_at, start, end, resolution)


def _invalid(name: str, value: Any) -> StemConfigError:
    return StemConfigError(
        f"objects contains the {name} {one_line(repr(value))[:100]}. Use what a landing operator returned."
    )
