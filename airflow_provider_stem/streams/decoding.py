"""
Decoding of responses of the streams endpoint into columns; used by the extraction.

Decoding takes most of the CPU time, so there are two readers. The *columnar* reader takes the first row as a pattern,
generates the text of every row of the requested range up to its value, and compares. This checks format, zone,
grid and width, and only the values are parsed. If a row does not match, the *plain* reader reads the response row by
row. It accepts every valid format, and its errors name site and row. Both readers return the same columns.
"""

from __future__ import annotations

import array
import heapq
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.tables import INSTANT, SHOWN_ROW, STREAM_SCHEMA, Streams
from airflow_provider_stem.streams.windows import Window, epoch, from_epoch, iso

log = logging.getLogger(__name__)

_BLOCK = 2**20
"""Bytes of text that are split at a time, so that memory does not grow with the response."""
_MAX_ROW = 1_000
"""Bytes of a row. The expected text of a whole year of rows is generated, so long rows would need too much memory."""
_MAX_UNFILTERED = 2**20
"""Bytes. Unknown fields are removed from longer text before it is parsed into Python objects."""
_MAX_REPORTED = 20
_DAY = 86_400
_SECONDS = pa.timestamp("s", "UTC")


class StreamsDecoder:
    """
    Decode the responses of one run.

    Thread-safe. Fields that are not in the guide are ignored, and logged once per run.

    :param redact: removes the API key from a string before it is logged.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        self._redact = redact
        self._reported: set[str] = set()
        # One thread decodes all responses, which is faster than a network delivers them. Memory that a thread has used
        # for a table is not freed, so more threads would need more memory.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stem-decoder")

    def decode(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Return the rows of one response that are in the window.

        :param body: the whole body of a 200 (guide: "Reading stream Data", "Response output").
        :param site_id: the requested site.
        :param stream_types: the requested types; the result contains each of them, with or without rows.
        :param window: the intervals to return; the response may contain more on both sides.
        :return: rows by stream type, each in :data:`~airflow_provider_stem.streams.tables.STREAM_SCHEMA`.
        :raises UnreadableResponseError: the body is not JSON; another request may help.
        :raises StemDataError: a value is not a finite number, a row is off the grid or of another width, an interval
            has two values, a type was not requested, or the response is for another site or window. The message names
            site and row.
        """
        return self._thread.submit(self._decode, body, site_id, stream_types, window).result()

    def _decode(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        streams = _read_columnar(body, site_id, stream_types, window, lenient=bool(self._reported))
        if streams is None:
            streams, unknown = _read_plain(body, site_id, stream_types, window)
            # Limited, since each response may have other ones.
            if new := sorted(unknown - self._reported)[: _MAX_REPORTED - len(self._reported)]:
                self._reported |= set(new)
                log.warning(
                    "Ignoring fields that are not in the API's guide: %s", one_line(self._redact(", ".join(new)))
                )
        if len(body) > _BLOCK:
            # The kernels need several times the memory of their result, which would stay with this thread.
            pa.default_memory_pool().release_unused()
        return {stream_type: streams.get(stream_type, _EMPTY) for stream_type in stream_types}


_EMPTY = pa.RecordBatch.from_arrays([pa.array([], INSTANT), pa.array([], pa.float64())], schema=STREAM_SCHEMA)

# --- columnar -------------------------------------------------------------------------------------------------------

_SPACE = rb"[ \t\n\r]*"
_LIST = re.compile(rb'"streams"' + _SPACE + b":" + _SPACE + rb"\[")
_VALUE = re.compile(rb'"kw_total_avg"' + _SPACE + b":" + _SPACE + rb"([^ \t\n\r,}]+)")
_BETWEEN = re.compile(rb"\}" + _SPACE + b"," + _SPACE + rb"\{")
# Placeholders for the two times of a row and the dates in them. JSON cannot contain these bytes.
_START, _END, _DATE, _NEXT_DATE = b"\x00", b"\x01", b"\x02", b"\x03"
# Numbers that Arrow accepts and JSON does not, in a comma-separated list.
_NOT_JSON_NUMBER = r"(?:^|,)(?:\+|-?\.|-?0[0-9])|\.(?:[,eE]|$)"


def _read_columnar(
    body: Body, site_id: str, stream_types: Sequence[str], window: Window, *, lenient: bool
) -> Streams | None:
    """Return the rows; ``None`` if the response is invalid or its rows are not all in the same format."""
    # Quotes in strings are escaped, so only keys match. They are those of the entries if each entry has an empty list
    # after the lists are cut out.
    around, lists, at = [], [], 0
    while found := _LIST.search(body, at):
        around.append(body[at : found.end()])
        at = body.find(b"]", found.end())
        if at < 0:
            return None
        lists.append((found.end(), at))
    around.append(body[at:])
    if sum(map(len, around)) > _MAX_UNFILTERED:
        return None
    try:
        answer = read_object(b"".join(around))
    except StemDataError:
        return None
    entries = answer.get("stream_types")
    if not isinstance(entries, list) or len(entries) != len(lists) or answer.get("id") not in (None, site_id):
        return None
    if not lenient and not answer.keys() <= _ANSWER_FIELDS:
        return None

    streams: Streams = {}
    for entry, (begin, end) in zip(entries, lists, strict=True):
        if not isinstance(entry, dict) or entry.get("streams") != [] or not (lenient or entry.keys() <= _ENTRY_FIELDS):
            return None
        name = entry.get("stream_type")
        if not isinstance(name, str) or name not in stream_types or name in streams:
            return None
        try:
            stream = _stream_of(body, begin, end, window, lenient=lenient)
        except pa.ArrowException:
            return None
        if stream is None:
            return None
        streams[name] = stream
    return streams


def _stream_of(body: Body, begin: int, end: int, window: Window, *, lenient: bool) -> pa.RecordBatch | None:
    """Return the rows of one list, given the positions after its opening and of its closing bracket."""
    first_end = body.find(b"}", begin, end) + 1
    if not first_end:
        return None if body[begin:end].strip(b" \t\n\r") else _EMPTY
    pattern = _Pattern.of(body[begin:first_end].lstrip(b" \t\n\r"), lenient=lenient)
    last = body.rfind(b"}", begin, end)
    if pattern is None or body[last + 1 : end].strip(b" \t\n\r"):
        return None
    separator = _BETWEEN.match(body, first_end - 1, end)
    between = separator[0] if separator else b"},{"
    expected = _expected(pattern, window)

    at, upcoming = body.find(b"{", begin) + 1, 0
    positions, values = [], []
    while at <= last:
        upto = body.find(between, at + _BLOCK, last)
        upto = last if upto < 0 else upto
        # The text in the body, without a copy.
        text = pa.BinaryArray.from_buffers(
            pa.binary(), 1, [None, pa.py_buffer(array.array("i", [at, upto])), pa.py_buffer(body)]
        )
        read = _read_rows(pc.split_pattern(text, between).flatten(), pattern, expected, upcoming)
        if read is None:
            return None
        positions.append(read[0])
        values.append(read[1])
        at, upcoming = upto + len(between), read[0][-1].as_py() + 1

    position, value = pa.concat_arrays(positions), pa.concat_arrays(values)
    if not _is_increasing(position):
        order = pc.array_sort_indices(position)
        position, value = position.take(order), value.take(order)
        if not _is_increasing(position):
            return None
    stream = pa.RecordBatch.from_arrays([expected.ends.take(position), value], schema=STREAM_SCHEMA)
    # The expected rows include one interval before the window and one after it.
    before, after = int(position[0].as_py() == 0), int(position[-1].as_py() > window.intervals)
    return stream.slice(before, max(stream.num_rows - before - after, 0))


def _read_rows(
    rows: pa.BinaryArray, pattern: _Pattern, expected: _Expected, upcoming: int
) -> tuple[pa.Int32Array, pa.DoubleArray] | None:
    """Return the number of the interval and the value of each row, given without its braces."""
    before, after = pattern.widths
    width = pc.max(pc.binary_length(rows)).as_py()
    if width <= before + after:
        return None
    values = _numbers(pc.binary_slice(rows, before, -after or width).cast(pa.string()))
    if values is None:
        return None
    heads = pc.binary_slice(rows, 0, before)
    # Without a gap, the rows are a slice of the expected rows, and comparing is much faster than a lookup.
    if heads.equals(expected.heads.slice(upcoming, len(rows))):
        position = expected.numbers.slice(upcoming, len(rows))
    else:
        position = pc.index_in(heads, expected.heads)
        if position.null_count:
            return None
    if expected.tails is not None and not pc.binary_slice(rows, -after, width).equals(expected.tails.take(position)):
        return None
    return position, values


def _numbers(texts: pa.StringArray) -> pa.DoubleArray | None:
    """Return JSON numbers and nulls as floats; ``None`` if there is anything else, or a number is not finite."""
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), ",")
    if pc.match_substring_regex(joined, _NOT_JSON_NUMBER)[0].as_py():
        return None
    try:
        values = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        values = pc.if_else(pc.equal(texts, "null"), pa.scalar(None, pa.string()), texts).cast(pa.float64())
    return values if pc.all(pc.is_finite(values), min_count=0).as_py() else None


def _is_increasing(numbers: pa.Array) -> bool:
    return bool(pc.all(pc.greater(numbers.slice(1), numbers.slice(0, len(numbers) - 1)), min_count=0).as_py())


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Format of the rows of a list: the text before and after the value, with placeholders for the times."""

    before: bytes
    after: bytes
    zone: str

    @classmethod
    def of(cls, row: bytes, *, lenient: bool) -> _Pattern | None:
        """Return the pattern of a row, given with its braces; ``None`` if there is none."""
        if len(row) > _MAX_ROW or b"\\" in row:  # with an escape, a key may have several spellings
            return None
        try:
            shown = read_object(row)
        except StemDataError:
            return None
        start, end, value = shown.get("start_datetime"), shown.get("end_datetime"), _VALUE.search(row)
        if not (isinstance(start, str) and isinstance(end, str) and value) or not (
            lenient or shown.keys() <= _ROW_FIELDS
        ):
            return None
        before, after = row[1 : value.start(1)], row[value.end(1) : -1]
        for text, mark in ((start, _START), (end, _END)):
            written = b'"%s"' % text.encode(errors="backslashreplace")
            if before.count(written) + after.count(written) != 1:
                return None
            before, after = before.replace(written, b'"%s"' % mark), after.replace(written, b'"%s"' % mark)
        return cls(before, after, "Z" if end.endswith("Z") else "+00:00")

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of bytes before and after the value."""
        longer = len(f"2025-01-01T00:00:00{self.zone}") - 1
        before, after = (part.count(_START) + part.count(_END) for part in (self.before, self.after))
        return len(self.before) + before * longer, len(self.after) + after * longer


@dataclass(frozen=True, slots=True)
class _Expected:
    """
    The expected text of the rows of a padded window.

    :param numbers: 0, 1, 2, ...
    :param heads: the text before the value.
    :param tails: the text after the value; ``None`` if there is none.
    :param ends: the end of the interval.
    """

    numbers: pa.Int32Array
    heads: pa.BinaryArray
    tails: pa.BinaryArray | None
    ends: pa.TimestampArray


@lru_cache(maxsize=1)
def _expected(pattern: _Pattern, window: Window) -> _Expected:
    """Generate the rows of a padded window."""
    padded = window.padded()
    return _Expected(
        _counted(0, 1, padded.intervals, pa.int32()),
        _written(pattern.before, pattern.zone, padded),
        _written(pattern.after, pattern.zone, padded) if pattern.after else None,
        _counted(padded.first_end, padded.resolution, padded.intervals, pa.int64()).cast(_SECONDS).cast(INSTANT),
    )


def _written(part: bytes, zone: str, padded: Window) -> pa.BinaryArray:
    """Generate a part of every row: first those of a day with placeholders for the date, then each day."""
    step = padded.resolution
    rows = []
    for begin in range(0, _DAY, step):
        # The last interval of a day ends in the next one.
        day = _DATE if begin + step < _DAY else _NEXT_DATE
        rows.append(
            part.replace(_START, _DATE + _clock(begin + 1, zone)).replace(_END, day + _clock(begin + step, zone))
        )
    pieces = b"".join(rows).split(_DATE)
    first = padded.first_end - step
    dates = [
        date.fromordinal(day + date(1970, 1, 1).toordinal()).isoformat().encode() + b"T"
        for day in range(first // _DAY, (padded.last_end - step) // _DAY + 2)
    ]
    text = b"".join(day.join(pieces).replace(_NEXT_DATE, following) for day, following in pairwise(dates))
    width = len(text) // ((len(dates) - 1) * len(rows))
    offsets = _counted(first % _DAY // step * width, width, padded.intervals + 1, pa.int32())
    return pa.BinaryArray.from_buffers(pa.binary(), padded.intervals, [None, offsets.buffers()[1], pa.py_buffer(text)])


def _clock(second: int, zone: str) -> bytes:
    return f"{timedelta(seconds=second % _DAY)!s:0>8}{zone}".encode()


def _counted(first: int, step: int, count: int, kind: pa.DataType) -> pa.Array:
    """Return ``range(first, first + count * step, step)``."""
    return pc.cumulative_sum(pa.repeat(pa.scalar(step, kind), count), start=pa.scalar(first - step, kind))


# --- plain ----------------------------------------------------------------------------------------------------------

_SHOWN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.0{1,9})?(?:Z|[+-]\d\d:?\d\d)", re.ASCII)
_ANSWER_FIELDS = frozenset({"id", "name", "stream_types", "errors"})
_ENTRY_FIELDS = frozenset({"stream_type", "streams"})
_ROW_FIELDS = frozenset(field.name for field in SHOWN_ROW)  # a struct type of pyarrow 17 has no names


_STRING = rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrtu])*)"'
_SCALAR = (
    rb"(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|"
    + _STRING.replace(b"((", b"(?:(")
    + b")"
)
# Each string is matched as a whole, so members in strings do not match. A member includes its comma, so that the text
# without it is valid JSON.
_STRING_OR_MEMBER = re.compile(_STRING + b"(" + _SPACE + b":" + _SPACE + _SCALAR + _SPACE + b",)?")


def _read_plain(body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> tuple[Streams, set[str]]:
    unknown: set[str] = set()
    if len(body) > _MAX_UNFILTERED:
        body = _without_unknown(body, unknown)
    answer = read_object(body, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    shown_site = one_line(site_id)
    if answer.get("id") not in (None, site_id):
        raise StemDataError(f"site {shown_site}: the response is for another id, {one_line(str(answer['id']))!r}")
    if "stream_types" not in answer:
        raise StemDataError(f"site {shown_site}: the response has no 'stream_types'")
    rows: dict[str, dict[int, float | None]] = {}
    unknown |= answer.keys() - _ANSWER_FIELDS
    for entry in _list_of(answer["stream_types"], f"site {shown_site}: 'stream_types'"):
        if not isinstance(entry, dict) or entry.get("stream_type") not in stream_types:
            name = entry.get("stream_type") if isinstance(entry, dict) else entry
            raise StemDataError(
                f"site {shown_site}: the response contains stream type {one_line(repr(name))}, requested were "
                f"{', '.join(stream_types)}"
            )
        unknown |= entry.keys() - _ENTRY_FIELDS
        stream = rows.setdefault(entry["stream_type"], {})
        place = f"site {shown_site}, {entry['stream_type']}"
        for number, row in enumerate(_list_of(entry.get("streams"), f"{place}: 'streams'")):
            where = f"{place}, row {number}"
            end, value = _read_row(row, window.resolution, where)
            unknown |= row.keys() - _ROW_FIELDS
            if end in stream and stream[end] != value:
                raise StemDataError(f"{where}: {iso(from_epoch(end))} has two values, {stream[end]} and {value}")
            stream[end] = value
    streams = {}
    # The response may contain one interval more than requested on each side.
    plausible = window.padded().padded()
    for stream_type, values in rows.items():
        kept = sorted(item for item in values.items() if window.first_end <= item[0] <= window.last_end)
        outside = [end for end in values if not plausible.first_end <= end <= plausible.last_end]
        if outside and _is_of_another_window([end for end, _ in kept], outside, window):
            raise StemDataError(
                f"site {shown_site}, {stream_type}: the response is for another window, with a row that ends at "
                f"{iso(from_epoch(outside[0]))} and {len(kept)} of {window.intervals:,} in {window}. Try again later, "
                "or report it to Stem if it persists"
            )
        streams[stream_type] = pa.RecordBatch.from_arrays(
            [
                pa.array([end for end, _ in kept], pa.int64()).cast(pa.timestamp("s", "UTC")).cast(INSTANT),
                pa.array([value for _, value in kept], pa.float64()),
            ],
            schema=STREAM_SCHEMA,
        )
    return streams, {one_line(name) for name in heapq.nsmallest(2 * _MAX_REPORTED, unknown)}


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
    known = {name.encode() for name in _ANSWER_FIELDS | _ENTRY_FIELDS | _ROW_FIELDS}
    kept, upto = bytearray(), 0
    for found in _STRING_OR_MEMBER.finditer(body):
        if found.start(2) < 0 or found[1] in known or b"\\" in found[1]:
            continue
        if len(unknown) < _MAX_REPORTED:
            unknown.add(found[1].decode(errors="replace"))
        kept += body[upto : found.start()]
        upto = found.end()
    kept += body[upto:]
    return bytes(kept)


def _list_of(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise StemDataError(f"{name} is not a list")
    return value


def _read_row(row: Any, resolution: int, where: str) -> tuple[int, float | None]:
    if not isinstance(row, dict):
        raise StemDataError(f"{where} is not an object")
    start = _read_shown(row, "start_datetime", where)
    end = _read_shown(row, "end_datetime", where)
    if end % resolution:
        raise StemDataError(f"{where}: end_datetime {row['end_datetime']} is off the grid of {resolution} s")
    if end - start != resolution - 1:
        raise StemDataError(
            f"{where}: {row['start_datetime']} to {row['end_datetime']} is not an interval of {resolution} s"
        )
    value = row.get("kw_total_avg")
    if value is None:
        return end, None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StemDataError(f"{where}: kw_total_avg is {one_line(repr(value))}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise StemDataError(f"{where}: kw_total_avg is not a finite number")
    return end, number


def _read_shown(row: Mapping[str, Any], field: str, where: str) -> int:
    text = row.get(field)
    if isinstance(text, str) and _SHOWN.fullmatch(text):
        try:
            return epoch(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            pass
    raise StemDataError(
        f"{where}: {field} is {one_line(json.dumps(text))}, not a time such as 2014-12-31T23:45:00+00:00"
    )
