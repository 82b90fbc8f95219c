r"""
The columnar decoder: compares the rows of a response with generated text, and parses only their values.

The rows of a response differ only in their times and their value, and the times are known from the request. So the
decoder replaces the times in the first row by placeholders, which makes the *pattern* of the rows. From it, it
generates the *expected* text of each row of the range, up to the value, and compares::

    >>> from datetime import UTC, datetime
    >>> row = b'{"start_datetime":"2025-07-01T00:00:01Z","end_datetime":"2025-07-01T00:15:00Z","kw_total_avg":1.5}'
    >>> pattern = _Pattern.of(row, lenient=False)
    >>> pattern.before, pattern.after
    (b'"start_datetime":"\x00Z","end_datetime":"\x01Z","kw_total_avg":', b'')
    >>> hour = Window(datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 1, 1, tzinfo=UTC), 900)
    >>> for text in _expected(pattern, hour).heads[:2].to_pylist():  # the first one is the padding
    ...     print(text.decode())
    "start_datetime":"2025-06-30T23:45:01Z","end_datetime":"2025-07-01T00:00:00Z","kw_total_avg":
    "start_datetime":"2025-07-01T00:00:01Z","end_datetime":"2025-07-01T00:15:00Z","kw_total_avg":

If anything in the response differs, the decoder returns ``None``, and the plain decoder reads the response.

A year of one stream takes about 1/50 of the plain decoder's time: ``make bench-parts`` measures both.

Invariants, each with its tests in ``tests/streams/test_decoding.py``:

1. The result is the columns of the plain decoder or ``None``: `test_both_decoders_agree_on_every_valid_response`,
   `test_any_bytes_are_rows_or_a_data_error`, `test_a_damaged_response_is_rows_or_a_data_error`, and ``make fuzz``.
2. Each byte of a row before and after its value equals the expected text, which implies format, zone, grid and width:
   `test_width`, `test_grid`, `test_time`, `test_not_with_another_zone`.
3. No key is repeated, and none contains an escape, so that a key has one spelling: `test_repeated_keys`,
   `test_not_from_an_escaped_key`.
4. A value is a finite JSON number or null. Arrow accepts more: `test_not_with_numbers_that_are_not_json`.
5. The text outside the lists of rows is parsed as JSON, and each list belongs to an entry:
   `test_a_body_that_is_not_json_is_retryable`, `test_not_with_a_list_outside_the_entries`.
6. Interval ends increase strictly: `test_in_any_order_and_with_either_reading`, `test_two_values_for_one_interval`.
7. At most one row lies on each side of the window: `test_rows_of_another_window_are_an_error`,
   `test_rows_outside_the_window_are_dropped`.
8. Memory does not grow with the width of a row or with the number of blocks: `test_in_blocks_of_any_size`,
   `test_one_wide_row_is_left_to_the_plain_decoder`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.decoding.plain import ENTRY_FIELDS, MAX_UNFILTERED, RESPONSE_FIELDS, ROW_FIELDS
from airflow_provider_stem.streams.tables import EMPTY_STREAM, INSTANT, STREAM_SCHEMA, Streams, iso_texts
from airflow_provider_stem.streams.windows import Window

BLOCK = 2**20
"""Bytes of text that are split at a time, so that memory does not grow with the response."""

_MAX_ROW = 1_000
"""Bytes of a row. The expected text of a whole year of rows is generated, so long rows would need too much memory."""

_WHITE = b" \t\n\r"
_SPACE = rb"[ \t\n\r]*"
_LIST = re.compile(rb'"streams"' + _SPACE + b":" + _SPACE + rb"\[")
_VALUE = re.compile(rb'"kw_total_avg"' + _SPACE + b":" + _SPACE + rb"([^ \t\n\r,}]+)")
_BETWEEN = re.compile(rb"\}" + _SPACE + b"," + _SPACE + rb"\{")
# Placeholders for the two times of a row, without their zones. JSON cannot contain these bytes.
_START, _END = b"\x00", b"\x01"
_TIME = len("2025-07-01T00:15:00")
_UTC = ("Z", "+00:00")
# Numbers that Arrow accepts and JSON does not, in a comma-separated list.
_NOT_JSON_NUMBER = r"(?:^|,)(?:\+|-?\.|-?0[0-9])|\.(?:[,eE]|$)"


def read_columnar(
    body: Body, site_id: str, stream_types: Sequence[str], window: Window, *, lenient: bool
) -> Streams | None:
    """
    Return the rows of one response that are in the window; ``None`` if it is invalid or not in a uniform format.

    :param body: the whole body of a 200.
    :param site_id: the requested site.
    :param stream_types: the requested types.
    :param window: the intervals to return, at the requested resolution; their ends are in UTC.
    :param lenient: ignore fields that are not in the guide; otherwise, return ``None`` if there are any.
    :return: rows by stream type, for the types in the response, each in
        :data:`~airflow_provider_stem.streams.tables.STREAM_SCHEMA`.
    """
    found = _cut_lists(body)
    if found is None:
        return None
    response, lists = found
    entries = response.get("stream_types")
    if not isinstance(entries, list) or len(entries) != len(lists) or response.get("id") not in (None, site_id):
        return None
    if not lenient and not response.keys() <= RESPONSE_FIELDS:
        return None

    streams: Streams = {}
    for entry, (begin, end) in zip(entries, lists, strict=True):
        if not isinstance(entry, dict) or entry.get("streams") != [] or not (lenient or entry.keys() <= ENTRY_FIELDS):
            return None
        name = entry.get("stream_type")
        if not isinstance(name, str) or name not in stream_types or name in streams:
            return None
        try:
            stream = _read_list(body, begin, end, window, lenient=lenient)
        except pa.ArrowException:
            return None
        if stream is None:
            return None
        streams[name] = stream
    return streams


def _cut_lists(body: Body) -> tuple[dict[str, Any], list[tuple[int, int]]] | None:
    """Return the response with empty lists of rows, and the position of the text of each list in the body."""
    # Quotes in strings are escaped, so only keys match. They are those of the entries if each entry has an empty list
    # after the lists are cut out.
    around, lists, at = [], [], 0
    while found := _LIST.search(body, at):
        around.append(body[at : found.end()])
        at = body.find(b"]", found.end())
        if at < found.end():
            return None
        lists.append((found.end(), at))
    around.append(body[at:])
    if sum(map(len, around)) > MAX_UNFILTERED:
        return None
    try:
        return read_object(b"".join(around)), lists
    except StemDataError:
        return None


def _read_list(body: Body, begin: int, end: int, window: Window, *, lenient: bool) -> pa.RecordBatch | None:
    """Return the rows of one list, given the position of its text in the body."""
    first_end = body.find(b"}", begin, end) + 1
    if not first_end:
        return None if body[begin:end].strip(_WHITE) else EMPTY_STREAM
    pattern = _Pattern.of(body[begin:first_end].lstrip(_WHITE), lenient=lenient)
    last = body.rfind(b"}", begin, end)
    if pattern is None or body[last + 1 : end].strip(_WHITE):
        return None
    separator = _BETWEEN.match(body, first_end - 1)
    between = separator[0] if separator else b"},{"
    expected = _expected(pattern, window)

    at, upcoming = body.find(b"{", begin) + 1, 0
    positions, values = [], []
    while at <= last:
        upto = body.find(between, at + BLOCK, last)
        upto = last if upto < at else upto
        # The text in the body, without a copy.
        offsets = pa.array([at, upto], pa.int32()).buffers()[1]
        text = pa.BinaryArray.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(body)])
        read = _read_rows(pc.split_pattern(text, between).flatten(), expected, upcoming)
        if read is None:
            return None
        positions.append(read[0])
        values.append(read[1])
        at, upcoming = upto + len(between), read[0][-1].as_py() + 1
    return _in_window(pa.concat_arrays(positions), pa.concat_arrays(values), expected, window)


def _read_rows(rows: pa.BinaryArray, expected: _Expected, upcoming: int) -> tuple[pa.Int32Array, pa.DoubleArray] | None:
    """
    Return the position in the padded window and the value of each row; ``None`` if a row is not as expected.

    :param rows: rows without their braces.
    :param upcoming: the position of the first row if there is no gap.
    """
    before, after = expected.before, expected.after
    width = pc.max(pc.binary_length(rows)).as_py()
    values = _read_numbers(pc.binary_slice(rows, before, -after or width).cast(pa.string()))
    if values is None:
        return None
    heads = pc.binary_slice(rows, 0, before)
    # Without a gap, the rows are a slice of the expected rows, and comparing is much faster than a lookup.
    if heads.equals(expected.heads.slice(upcoming, len(rows))):
        position = expected.positions.slice(upcoming, len(rows))
    else:
        position = pc.index_in(heads, expected.heads)
        if position.null_count:
            return None
    if after and not pc.binary_slice(rows, -after).equals(expected.tails.take(position)):
        return None
    return position, values


def _read_numbers(texts: pa.StringArray) -> pa.DoubleArray | None:
    """Return JSON numbers and nulls as floats; ``None`` if there is anything else, or a number is not finite."""
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), ",")
    if pc.match_substring_regex(joined, _NOT_JSON_NUMBER)[0].as_py():
        return None
    try:
        values = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        values = pc.if_else(pc.equal(texts, "null"), None, texts).cast(pa.float64())
    return values if pc.all(pc.is_finite(values), min_count=0).as_py() else None


def _in_window(
    position: pa.Int32Array, value: pa.DoubleArray, expected: _Expected, window: Window
) -> pa.RecordBatch | None:
    """Return the rows in the window, sorted; ``None`` if two rows have the same position."""
    if not _is_increasing(position):
        order = pc.array_sort_indices(position)
        position, value = position.take(order), value.take(order)
        if not _is_increasing(position):
            return None
    stream = pa.RecordBatch.from_arrays([expected.ends.take(position), value], schema=STREAM_SCHEMA)
    # The expected rows include one interval before the window and one after it.
    before, after = int(position[0].as_py() == 0), int(position[-1].as_py() > window.intervals)
    return stream.slice(before, max(stream.num_rows - before - after, 0))


def _is_increasing(numbers: pa.Array) -> bool:
    return bool(pc.all(pc.greater(numbers.slice(1), numbers.slice(0, len(numbers) - 1)), min_count=0).as_py())


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Format of the rows of a list: the text before and after the value, with placeholders for the times."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, row: bytes, *, lenient: bool) -> _Pattern | None:
        """Return the pattern of a row, given with its braces; ``None`` if there is none."""
        if len(row) > _MAX_ROW or b"\\" in row:  # with an escape, a key may have several spellings
            return None
        try:
            shown = read_object(row)
        except StemDataError:
            return None
        value = _VALUE.search(row)
        if not value or not (lenient or shown.keys() <= ROW_FIELDS):
            return None
        before, after = row[1 : value.start(1)], row[value.end(1) : -1]
        for field, mark in (("start_datetime", _START), ("end_datetime", _END)):
            text = shown.get(field)
            if not isinstance(text, str) or text[_TIME:] not in _UTC:
                return None
            written = b'"%s"' % text.encode(errors="backslashreplace")
            if before.count(written) + after.count(written) != 1:
                return None
            marked = b'"%s%s"' % (mark, text[_TIME:].encode())
            before, after = before.replace(written, marked), after.replace(written, marked)
        return cls(before, after)


@dataclass(frozen=True, slots=True)
class _Expected:
    """
    The expected text of the rows of a padded window.

    :param positions: 0, 1, 2, ...
    :param heads: the text before the value.
    :param tails: the text after the value.
    :param ends: the end of the interval.
    :param before: number of bytes of each head.
    :param after: number of bytes of each tail; may be 0.
    """

    positions: pa.Int32Array
    heads: pa.BinaryArray
    tails: pa.BinaryArray
    ends: pa.TimestampArray
    before: int
    after: int


@lru_cache(maxsize=1)
def _expected(pattern: _Pattern, window: Window) -> _Expected:
    """Generate the rows of a padded window."""
    padded = window.padded()
    first, step, count = padded.first_end, padded.resolution, padded.intervals
    starts, ends = (_counted(one * 10**6, step * 10**6, count).cast(INSTANT) for one in (first - step + 1, first))
    times = {_START: iso_texts(starts).cast(pa.binary()), _END: iso_texts(ends).cast(pa.binary())}
    empty = pa.repeat(b"", count)  # at least one array is needed
    heads, tails = (
        pc.binary_join_element_wise(empty, *[times.get(one, one) for one in re.split(b"([\x00\x01])", part)], b"")
        for part in (pattern.before, pattern.after)
    )
    return _Expected(
        _counted(0, 1, count).cast(pa.int32()),
        heads,
        tails,
        ends,
        len(heads[0].as_py()),
        len(tails[0].as_py()),
    )


def _counted(first: int, step: int, count: int) -> pa.Int64Array:
    """Return ``range(first, first + count * step, step)``; from Python's own range it takes ten times as long."""
    return pc.cumulative_sum(pa.repeat(step, count), start=pa.scalar(first - step))
