"""
The plain decoder: reads a response row by row.

It specifies what a response means. It accepts every valid format of the guide ("Reading stream Data"), and its errors
name site and row. The columnar decoder returns the same columns or leaves the response to this one.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from airflow_provider_stem._text import invalid_response, one_line
from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.streams.tables import SHOWN_ROW, STREAM_SCHEMA, Streams
from airflow_provider_stem.streams.windows import Window, epoch, from_epoch, iso

MAX_UNFILTERED = 2**20
"""Bytes. Unknown fields are removed from longer text before it is parsed into Python objects."""

MAX_REPORTED = 20
"""Number of unknown fields that are reported."""

RESPONSE_FIELDS = frozenset({"id", "name", "stream_types", "errors"})
ENTRY_FIELDS = frozenset({"stream_type", "streams"})
ROW_FIELDS = frozenset(field.name for field in SHOWN_ROW)  # a struct type of pyarrow 17 has no names
"""The guide's fields of a response, of a stream type in it, and of a row."""

_MAX_SHOWN = len("2014-12-31T23:45:00.000000000+00:00")
_SHOWN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.0{1,9})?(?:Z|[+-]\d\d:?\d\d)", re.ASCII)
_SPACE = rb"[ \t\n\r]*"
_STRING = rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrtu])*)"'
_SCALAR = (
    rb"(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|"
    + _STRING.replace(b"((", b"(?:(")
    + b")"
)
# Each string is matched as a whole, so members in strings do not match. A member includes its comma, so that the text
# without it is valid JSON.
_STRING_OR_MEMBER = re.compile(_STRING + b"(" + _SPACE + b":" + _SPACE + _SCALAR + _SPACE + b",)?")


def read_plain(body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> tuple[Streams, set[str]]:
    """
    Return the rows of one response that are in the window, and the names of fields that are not in the guide.

    :param body: the whole body of a 200.
    :param site_id: the requested site.
    :param stream_types: the requested types.
    :param window: the intervals to return, at the requested resolution; their ends are in UTC.
    :return: rows by stream type, for the types in the response, each in
        :data:`~airflow_provider_stem.streams.tables.STREAM_SCHEMA`; and at most :data:`MAX_REPORTED` names, each in
        one line.
    :raises UnreadableResponseError: the body is not JSON.
    :raises StemDataError: the response is invalid; see
        :meth:`~airflow_provider_stem.streams.decoding.StreamsDecoder.decode`.
    """
    unknown: set[str] = set()
    if len(body) > MAX_UNFILTERED:
        body = _without_unknown(body, unknown)
    response = read_object(body, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    shown_site = one_line(site_id)
    if response.get("id") not in (None, site_id):
        raise invalid_response(f"site {shown_site}: the response is for another id, {one_line(str(response['id']))!r}")
    if "stream_types" not in response:
        raise invalid_response(f"site {shown_site}: the response has no 'stream_types'")
    rows: dict[str, dict[int, float | None]] = {}
    unknown |= response.keys() - RESPONSE_FIELDS
    for entry in _list_of(response["stream_types"], f"site {shown_site}: 'stream_types'"):
        if not isinstance(entry, dict) or entry.get("stream_type") not in stream_types:
            name = entry.get("stream_type") if isinstance(entry, dict) else entry
            raise invalid_response(
                f"site {shown_site}: the response contains stream type {one_line(repr(name))}, requested were "
                f"{', '.join(stream_types)}"
            )
        unknown |= entry.keys() - ENTRY_FIELDS
        stream = rows.setdefault(entry["stream_type"], {})
        place = f"site {shown_site}, {entry['stream_type']}"
        for number, row in enumerate(_list_of(entry.get("streams"), f"{place}: 'streams'")):
            where = f"{place}, row {number}"
            end, value = _read_row(row, window.resolution, where)
            unknown |= row.keys() - ROW_FIELDS
            if end in stream and stream[end] != value:
                raise invalid_response(f"{where}: {iso(from_epoch(end))} has two values, {stream[end]} and {value}")
            stream[end] = value
    streams = {
        stream_type: _in_window(stream, window, f"site {shown_site}, {stream_type}")
        for stream_type, stream in rows.items()
    }
    return streams, {one_line(name) for name in heapq.nsmallest(MAX_REPORTED, unknown)}


def _in_window(stream: dict[int, float | None], window: Window, place: str) -> pa.RecordBatch:
    """Return the rows in the window, sorted, given the values by interval end in epoch seconds."""
    first, last, around = window.first_end, window.last_end, 2 * window.resolution
    ends = sorted(end for end in stream if first <= end <= last)
    # The response may contain one interval more than requested on each side.
    outside = [end for end in stream if not first - around <= end <= last + around]
    if outside and _is_of_another_window(ends, outside, window):
        raise invalid_response(
            f"{place}: the response is for another window, with a row that ends at {iso(from_epoch(outside[0]))} and "
            f"{len(ends)} of {window.intervals:,} in {window}"
        )
    return pa.RecordBatch.from_arrays(
        [[end * 10**6 for end in ends], [stream[end] for end in ends]], schema=STREAM_SCHEMA
    )


def _is_of_another_window(kept: Sequence[int], outside: Sequence[int], window: Window) -> bool:
    """
    Return whether rows are the response to another request.

    Requests are padded, so the response to the previous or next one contains a row or two of this window.

    :param kept: ends of the intervals in the window, sorted.
    :param outside: ends of the intervals outside the padded window.
    """
    if not kept or len(kept) == window.intervals:
        return not kept
    reach = window.resolution
    is_earlier = max(outside) < window.first_end and kept[-1] <= window.first_end + reach
    return is_earlier or (min(outside) > window.last_end and kept[0] >= window.last_end - reach)


def _without_unknown(body: Body, unknown: set[str]) -> bytes:
    """
    Return a long body without members that are not in the guide and whose values are strings, numbers or literals.

    As Python objects, a million of them would take hundreds of megabytes.

    :param unknown: the names of the first ones are added to it.
    """
    known = {name.encode() for name in RESPONSE_FIELDS | ENTRY_FIELDS | ROW_FIELDS}
    kept, upto = bytearray(), 0
    for found in _STRING_OR_MEMBER.finditer(body):
        if found[2] is None or found[1] in known or b"\\" in found[1]:
            continue
        try:
            found[0].decode(errors="surrogatepass")
        except UnicodeDecodeError:
            break  # the parser rejects what is left
        if len(unknown) < MAX_REPORTED:
            unknown.add(found[1].decode(errors="surrogatepass"))
        kept += body[upto : found.start()]
        upto = found.end()
    kept += body[upto:]
    return bytes(kept)


def _list_of(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid_response(f"{name} is not a list")
    return value


def _read_row(row: Any, resolution: int, where: str) -> tuple[int, float | None]:
    if not isinstance(row, dict):
        raise invalid_response(f"{where} is not an object")
    start = _read_shown(row, "start_datetime", where)
    end = _read_shown(row, "end_datetime", where)
    if end % resolution:
        raise invalid_response(f"{where}: end_datetime {row['end_datetime']} is off the grid of {resolution} s")
    if end - start != resolution - 1:
        raise invalid_response(
            f"{where}: {row['start_datetime']} to {row['end_datetime']} is not an interval of {resolution} s"
        )
    value = row.get("kw_total_avg")
    if value is None:
        return end, None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid_response(f"{where}: kw_total_avg is {one_line(repr(value))}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise invalid_response(f"{where}: kw_total_avg is not a finite number")
    return end, number


def _read_shown(row: Mapping[str, Any], field: str, where: str) -> int:
    """Return the epoch second of a time as the API shows it."""
    text = row.get(field)
    second = _parse_shown(text) if isinstance(text, str) and len(text) <= _MAX_SHOWN else None
    if second is None:
        raise invalid_response(
            f"{where}: {field} is {one_line(json.dumps(text))}, not a time such as 2014-12-31T23:45:00+00:00"
        )
    return second


# Every site shows the same times. The cache holds those of ten days at 900 s, which is more than is read here.
@lru_cache(maxsize=2_000)
def _parse_shown(text: str) -> int | None:
    if _SHOWN.fullmatch(text):
        try:
            return epoch(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            pass
    return None
