"""
Answers of the streams endpoint to columns; for the extraction.

Decoding is the hot path, so there are two readers. The *columnar* one takes the first row as the pattern of all: it
writes down what every row of the asked range must look like up to its value, and compares. So a single kernel settles
format, zone, grid and width, and only the values are parsed. What is not written like its first row goes to the *plain*
reader, which reads row by row, accepts every spelling that is right, and names site and row of what is wrong. Both give
the same columns.
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
"""Bytes of text that are taken apart at a time, so that memory does not grow with the answer."""
_MAX_ROW = 1_000
"""Bytes: what a year of rows must look like is written down whole, so of longer ones it would fill the memory."""
_FLOOD = 2**20
"""Bytes: more beside the rows, or row by row, is searched for unknown fields before it is parsed."""
_MAX_TOLD = 20
_DAY = 86_400
_SECONDS = pa.timestamp("s", "UTC")


class StreamsDecoder:
    """
    Decodes the answers of one run.

    Safe to share between threads. Fields that the guide does not know are logged once a run and left out.

    :param redact: takes the API key out of what is logged.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        self._redact = redact
        self._told: set[str] = set()
        # One answer at a time, in a thread of its own: faster than a network delivers, and memory that a thread once
        # needed for a table is not given back, so that each thread that decodes would add its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stem-decoder")

    def decode(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Give the rows of one answer that lie in the window.

        :param body: the whole body of a 200 (guide: "Reading stream Data", "Response output").
        :param stream_types: what was asked for; each of them is in the result, with or without rows.
        :param window: what to keep; the answer may hold more on either side.
        :raises UnreadableAnswerError: the body is no JSON; asking again may help.
        :raises StemDataError: names site and row: a value that is no finite number, a row off the grid or of another
            width, two values for one interval, a type that was not asked for, another site's answer, rows of another
            window alone.
        """
        return self._thread.submit(self._decode, body, site_id, stream_types, window).result()

    def _decode(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        streams = _read_columnar(body, site_id, stream_types, window, lenient=bool(self._told))
        if streams is None:
            streams, unknown = _read_plain(body, site_id, stream_types, window)
            # A few make the point; where each answer has other ones, they are neither remembered nor told without end.
            if new := sorted(unknown - self._told)[: _MAX_TOLD - len(self._told)]:
                self._told |= set(new)
                log.warning(
                    "Fields that the API's guide does not know are left out: %s", one_line(self._redact(", ".join(new)))
                )
        if len(body) > _BLOCK:
            # What the kernels needed by the way; it would stay this thread's, and is several times what they give.
            pa.default_memory_pool().release_unused()
        return {stream_type: streams.get(stream_type, _EMPTY) for stream_type in stream_types}


_EMPTY = pa.RecordBatch.from_arrays([pa.array([], INSTANT), pa.array([], pa.float64())], schema=STREAM_SCHEMA)

# --- columnar -------------------------------------------------------------------------------------------------------

_SPACE = rb"[ \t\n\r]*"
_LIST = re.compile(rb'"streams"' + _SPACE + b":" + _SPACE + rb"\[")
_VALUE = re.compile(rb'"kw_total_avg"' + _SPACE + b":" + _SPACE + rb"([^ \t\n\r,}]+)")
_BETWEEN = re.compile(rb"\}" + _SPACE + b"," + _SPACE + rb"\{")
# Stand for the two times of a row, and for the dates in them; JSON has no such bytes.
_START, _END, _DATE, _NEXT_DATE = b"\x00", b"\x01", b"\x02", b"\x03"
# What Arrow takes for a number and JSON does not, among numbers with commas between.
_NO_NUMBER = r"(?:^|,)(?:\+|-?\.|-?0[0-9])|\.(?:[,eE]|$)"


def _read_columnar(
    body: Body, site_id: str, stream_types: Sequence[str], window: Window, *, lenient: bool
) -> Streams | None:
    """Give the rows, or ``None`` for anything but a right answer whose rows are all written alike."""
    # Quotes inside of strings are escaped, so this finds keys alone, and those of the entries: each has an empty list
    # when what was found is cut out.
    around, lists, at = [], [], 0
    while found := _LIST.search(body, at):
        around.append(body[at : found.end()])
        at = body.find(b"]", found.end())
        if at < 0:
            return None
        lists.append((found.end(), at))
    around.append(body[at:])
    if sum(map(len, around)) > _FLOOD:
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
    """Give the rows of one list, whose text lies between its brackets."""
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
        # The text as it lies in the body, not copied.
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
    # Expected is one interval before the window and one after it, too.
    before, after = int(position[0].as_py() == 0), int(position[-1].as_py() > window.intervals)
    return stream.slice(before, max(stream.num_rows - before - after, 0))


def _read_rows(
    rows: pa.BinaryArray, pattern: _Pattern, expected: _Expected, upcoming: int
) -> tuple[pa.Int32Array, pa.DoubleArray] | None:
    """Give for each row, without its braces, the number of the interval and the value."""
    before, after = pattern.widths
    width = pc.max(pc.binary_length(rows)).as_py()
    if width <= before + after:
        return None
    values = _numbers(pc.binary_slice(rows, before, -after or width).cast(pa.string()))
    if values is None:
        return None
    heads = pc.binary_slice(rows, 0, before)
    # Without a gap, what is shown is a slice of what is expected, and comparing is much cheaper than looking up.
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
    """Read JSON's numbers and nulls; ``None`` where there is anything else, or no finite number."""
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), ",")
    if pc.match_substring_regex(joined, _NO_NUMBER)[0].as_py():
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
    """How the rows of a list are written: the text before and after the value, with marks for the times."""

    before: bytes
    after: bytes
    zone: str

    @classmethod
    def of(cls, row: bytes, *, lenient: bool) -> _Pattern | None:
        """Read the pattern off a row, braces included."""
        if len(row) > _MAX_ROW or b"\\" in row:  # with a backslash a key could look like another
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
        """How many bytes are before and after the value."""
        longer = len(f"2025-01-01T00:00:00{self.zone}") - 1
        before, after = (part.count(_START) + part.count(_END) for part in (self.before, self.after))
        return len(self.before) + before * longer, len(self.after) + after * longer


@dataclass(frozen=True, slots=True)
class _Expected:
    """
    The rows of a padded window.

    :param heads: what is before the value.
    :param tails: what is after it, if anything.
    :param ends: the interval's end.
    :param numbers: the row's place here.
    """

    numbers: pa.Int32Array
    heads: pa.BinaryArray
    tails: pa.BinaryArray | None
    ends: pa.TimestampArray


@lru_cache(maxsize=1)
def _expected(pattern: _Pattern, window: Window) -> _Expected:
    """Write down the rows of a padded window."""
    asked = window.padded()
    return _Expected(
        _counted(0, 1, asked.intervals, pa.int32()),
        _written(pattern.before, pattern.zone, asked),
        _written(pattern.after, pattern.zone, asked) if pattern.after else None,
        _counted(asked.first_end, asked.resolution, asked.intervals, pa.int64()).cast(_SECONDS).cast(INSTANT),
    )


def _written(part: bytes, zone: str, asked: Window) -> pa.BinaryArray:
    """Write down a part of every row: those of a day with a gap for the date, then each day with its date."""
    step = asked.resolution
    rows = []
    for begin in range(0, _DAY, step):
        # The last interval of a day ends in the next one.
        day = _DATE if begin + step < _DAY else _NEXT_DATE
        rows.append(
            part.replace(_START, _DATE + _clock(begin + 1, zone)).replace(_END, day + _clock(begin + step, zone))
        )
    pieces = b"".join(rows).split(_DATE)
    first = asked.first_end - step
    dates = [
        date.fromordinal(day + date(1970, 1, 1).toordinal()).isoformat().encode() + b"T"
        for day in range(first // _DAY, (asked.last_end - step) // _DAY + 2)
    ]
    text = b"".join(day.join(pieces).replace(_NEXT_DATE, following) for day, following in pairwise(dates))
    width = len(text) // ((len(dates) - 1) * len(rows))
    offsets = _counted(first % _DAY // step * width, width, asked.intervals + 1, pa.int32())
    return pa.BinaryArray.from_buffers(pa.binary(), asked.intervals, [None, offsets.buffers()[1], pa.py_buffer(text)])


def _clock(second: int, zone: str) -> bytes:
    return f"{timedelta(seconds=second % _DAY)!s:0>8}{zone}".encode()


def _counted(first: int, step: int, count: int, kind: pa.DataType) -> pa.Array:
    """Give ``range(first, first + count * step, step)``."""
    return pc.cumulative_sum(pa.repeat(pa.scalar(step, kind), count), start=pa.scalar(first - step, kind))


# --- plain ----------------------------------------------------------------------------------------------------------

_SHOWN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.0{1,9})?(?:Z|[+-]\d\d:?\d\d)", re.ASCII)
_ANSWER_FIELDS = frozenset({"id", "name", "stream_types", "errors"})
_ENTRY_FIELDS = frozenset({"stream_type", "streams"})
_ROW_FIELDS = frozenset(field.name for field in SHOWN_ROW)  # pyarrow 17 has no names here


_STRING = rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrtu])*)"'
_SCALAR = (
    rb"(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|"
    + _STRING.replace(b"((", b"(?:(")
    + b")"
)
# Each string is matched as a whole, so what looks like a member inside of one is none. A member ends with its comma,
# so that what is left without it is right.
_STRING_OR_MEMBER = re.compile(_STRING + b"(" + _SPACE + b":" + _SPACE + _SCALAR + _SPACE + b",)?")


def _read_plain(body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> tuple[Streams, set[str]]:
    unknown: set[str] = set()
    if len(body) > _FLOOD:
        body = _without_unknown(body, unknown)
    answer = read_object(body, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    shown_site = one_line(site_id)
    if answer.get("id") not in (None, site_id):
        raise StemDataError(f"site {shown_site}: the answer is for another id, {one_line(str(answer['id']))!r}")
    if "stream_types" not in answer:
        raise StemDataError(f"site {shown_site}: the answer has no 'stream_types'")
    rows: dict[str, dict[int, float | None]] = {}
    unknown |= answer.keys() - _ANSWER_FIELDS
    for entry in _list_of(answer["stream_types"], f"site {shown_site}: 'stream_types'"):
        if not isinstance(entry, dict) or entry.get("stream_type") not in stream_types:
            name = entry.get("stream_type") if isinstance(entry, dict) else entry
            raise StemDataError(
                f"site {shown_site}: the answer holds stream type {one_line(repr(name))}, asked for were "
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
    # One interval more than was asked for may come on either side.
    plausible = window.padded().padded()
    for stream_type, values in rows.items():
        kept = sorted(item for item in values.items() if window.first_end <= item[0] <= window.last_end)
        outside = [end for end in values if not plausible.first_end <= end <= plausible.last_end]
        if outside and _is_of_another_window([end for end, _ in kept], outside, window):
            raise StemDataError(
                f"site {shown_site}, {stream_type}: the answer is for another window, with a row that ends at "
                f"{iso(from_epoch(outside[0]))} and {len(kept)} of {window.intervals:,} in {window}. Try again later, "
                "or report it to Stem if it stays so"
            )
        streams[stream_type] = pa.RecordBatch.from_arrays(
            [
                pa.array([end for end, _ in kept], pa.int64()).cast(pa.timestamp("s", "UTC")).cast(INSTANT),
                pa.array([value for _, value in kept], pa.float64()),
            ],
            schema=STREAM_SCHEMA,
        )
    return streams, {one_line(name) for name in heapq.nsmallest(2 * _MAX_TOLD, unknown)}


def _is_of_another_window(kept: Sequence[int], outside: Sequence[int], window: Window) -> bool:
    """
    Return whether rows are those of another request.

    Requests are padded, so an answer to the one before or after this one has a row or two of its first or last
    intervals.

    :param kept: ends of the intervals in the window, sorted; ``outside`` those of rows that nothing explains.
    """
    if not kept or len(kept) == window.intervals:
        return not kept
    reach = window.resolution
    is_earlier = max(outside) < window.first_end and kept[-1] <= window.first_end + reach
    return is_earlier or (min(outside) > window.last_end and kept[0] >= window.last_end - reach)


def _without_unknown(body: Body, unknown: set[str]) -> bytes:
    """
    Return a long body without members that the guide does not know, whose values are strings, numbers or literals.

    As Python objects, a million of them would take hundreds of megabytes.

    :param unknown: gets the names of the first ones.
    """
    known = {name.encode() for name in _ANSWER_FIELDS | _ENTRY_FIELDS | _ROW_FIELDS}
    kept, upto = bytearray(), 0
    for found in _STRING_OR_MEMBER.finditer(body):
        if found.start(2) < 0 or found[1] in known or b"\\" in found[1]:
            continue
        if len(unknown) < _MAX_TOLD:
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
