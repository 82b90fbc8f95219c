"""
Answers of the streams endpoint to columns in the landing schema; for the extraction.

Decoding is the hot path, so there are two readers. The *columnar* one looks up the shown start and end of every row
in the labels that the asked range must have, so a single kernel settles format, zone, grid and width. Whatever it
does not recognise goes to the *plain* one, which reads row by row, accepts every spelling that is right, and names
site and row of what is wrong. Both give the same columns.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from airflow_provider_stem.api.payloads import one_line, read_object
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.windows import Window, epoch, from_epoch, iso

log = logging.getLogger(__name__)

_INSTANT = pa.timestamp("us", "UTC")

LANDING_SCHEMA = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field(
            "stream_type",
            pa.string(),
            nullable=False,
            metadata={
                "description": "MONITOR: site meter with storage; CONVERTER: storage; INTERVAL_REVENUE: revenue meter"
            },
        ),
        pa.field("resolution", pa.int32(), nullable=False, metadata={"unit": "s"}),
        pa.field(
            "interval_start",
            _INSTANT,
            nullable=False,
            metadata={"description": "exclusive left edge: interval_end - resolution"},
        ),
        pa.field("interval_end", _INSTANT, nullable=False, metadata={"description": "inclusive right edge"}),
        pa.field(
            "kw_total_avg",
            pa.float64(),
            metadata={
                "unit": "kW",
                "description": "average power over the interval; energy in kWh = kw_total_avg * resolution / 3600",
                "sign": "MONITOR: positive is import from the grid, negative export; "
                "CONVERTER: positive is charging, negative discharging",
            },
        ),
    ]
)
"""One row per site, stream type and interval, sorted by ``site_id, stream_type, interval_end``, no duplicates."""

STREAM_SCHEMA = pa.schema([LANDING_SCHEMA.field("interval_end"), LANDING_SCHEMA.field("kw_total_avg")])
"""The two columns that are not constant within one stream; sorted by ``interval_end``, no duplicates."""

Streams = dict[str, pa.RecordBatch]
"""One site's rows by stream type, each in :data:`STREAM_SCHEMA`."""


def landing_batch(site_id: str, stream_type: str, resolution: int, stream: pa.RecordBatch) -> pa.RecordBatch:
    """Complete the rows of one stream to the landing schema."""
    rows = stream.num_rows
    ends = stream.column(0)
    starts = pc.subtract(ends, pa.scalar(resolution, pa.duration("s"))).cast(_INSTANT)
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(site_id, pa.string()), rows),
            pa.repeat(pa.scalar(stream_type, pa.string()), rows),
            pa.repeat(pa.scalar(resolution, pa.int32()), rows),
            starts,
            ends,
            stream.column(1),
        ],
        schema=LANDING_SCHEMA,
    )


class StreamsDecoder:
    """
    Decodes the answers of one run.

    Safe to share between threads. Fields that the guide does not know are told once a run and left out.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def decode(self, body: bytes, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Give the rows of one answer that lie in the window.

        :param body: the whole body of a 200 (guide: "Reading stream Data", "Response output").
        :param stream_types: what was asked for; each of them is in the result, with or without rows.
        :param window: what to keep; the answer may hold more on either side.
        :raises UnreadableAnswerError: the body is no JSON; asking again may help.
        :raises StemDataError: names site and row: a value that is no finite number, a row off the grid or of another
            width, two values for one interval, a type that was not asked for, another site's answer.
        """
        streams = _read_columnar(body, site_id, stream_types, window, lenient=bool(self._told))
        if streams is None:
            streams, unknown = _read_plain(body, site_id, stream_types, window)
            if new := unknown - self._told:
                self._told |= new
                log.warning("Fields that the API's guide does not know are left out: %s", ", ".join(sorted(new)))
        return {stream_type: streams.get(stream_type, _EMPTY) for stream_type in stream_types}


_EMPTY = pa.RecordBatch.from_arrays([pa.array([], _INSTANT), pa.array([], pa.float64())], schema=STREAM_SCHEMA)

# --- columnar -------------------------------------------------------------------------------------------------------

SHOWN_ROW = pa.struct([("start_datetime", pa.string()), ("end_datetime", pa.string()), ("kw_total_avg", pa.float64())])
_ANSWER = pa.schema(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("stream_types", pa.list_(pa.struct([("stream_type", pa.string()), ("streams", pa.list_(SHOWN_ROW))]))),
        ("errors", pa.null()),  # the guide's error payload is not to be passed over among unknown fields
    ]
)


def _read_columnar(
    body: bytes, site_id: str, stream_types: Sequence[str], window: Window, *, lenient: bool
) -> Streams | None:
    """Give the rows, or ``None`` for anything but a plain, right answer."""
    # pyarrow's reader does not look at the encoding, and a body that begins with another value may end the process.
    if not body.lstrip().startswith(b"{") or not _is_utf8(body):
        return None
    try:
        answer = pyarrow.json.read_json(
            pa.BufferReader(body),
            # One block, since an object may not straddle two.
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=_ANSWER,
                newlines_in_values=True,
                unexpected_field_behavior="ignore" if lenient else "error",
            ),
        )
        if answer.num_rows != 1 or answer.column("id").to_pylist() not in ([site_id], [None]):
            return None
        if answer.column("stream_types").null_count:
            return None
        entries = answer.column("stream_types").combine_chunks().flatten()
        names = entries.field("stream_type").to_pylist()
    except pa.ArrowException:
        return None
    if entries.null_count or len(set(names)) < len(names) or not set(names) <= set(stream_types):
        return None

    result: Streams = {}
    lists = entries.field("streams")
    for index, name in enumerate(names):
        rows = lists.slice(index, 1).flatten()
        stream = _stream_of(rows, window)
        if stream is None:
            return None
        result[name] = stream
    return result


def _is_utf8(body: bytes) -> bool:
    try:
        return body.isascii() or bool(body.decode())
    except UnicodeDecodeError:
        return False


def _stream_of(rows: pa.StructArray, window: Window) -> pa.RecordBatch | None:
    if not len(rows):
        return _EMPTY
    if rows.null_count:
        return None
    shown_ends = rows.field("end_datetime")
    zone = "Z" if str(shown_ends[0]).endswith("Z") else "+00:00"
    labels = _labels(window, zone)
    position = pc.index_in(shown_ends, labels.ends)
    values = rows.field("kw_total_avg")
    if (
        position.null_count
        or not position.equals(pc.index_in(rows.field("start_datetime"), labels.starts))
        or not pc.all(pc.is_finite(values), min_count=0).as_py()
    ):
        return None
    if not _is_increasing(position):
        order = pc.array_sort_indices(position)
        position, values = position.take(order), values.take(order)
        if not _is_increasing(position):
            return None
    stream = pa.RecordBatch.from_arrays([labels.instants.take(position), values], schema=STREAM_SCHEMA)
    # The labels begin one interval before the window and end one after it.
    first = int(position[0].as_py() == 0)
    last = int(position[-1].as_py() > window.intervals)
    return stream.slice(first, max(stream.num_rows - first - last, 0))


def _is_increasing(numbers: pa.Array) -> bool:
    return bool(pc.all(pc.greater(numbers.slice(1), numbers.slice(0, len(numbers) - 1)), min_count=0).as_py())


@dataclass(frozen=True, slots=True)
class _Labels:
    """How the API shows the intervals of a padded window, and what they mean."""

    starts: pa.Array
    ends: pa.Array
    instants: pa.Array


@lru_cache(maxsize=8)
def _labels(window: Window, zone: str) -> _Labels:
    asked = window.padded()
    ends = range(asked.first_end, asked.last_end + 1, window.resolution)
    seconds = pa.array(ends, pa.int64()).cast(pa.timestamp("s", "UTC"))
    shown = f"%Y-%m-%dT%H:%M:%S{zone}"
    return _Labels(
        starts=pc.strftime(pc.subtract(seconds, pa.scalar(window.resolution - 1, pa.duration("s"))), shown),
        ends=pc.strftime(seconds, shown),
        instants=seconds.cast(_INSTANT),
    )


# --- plain ----------------------------------------------------------------------------------------------------------

_SHOWN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.0{1,9})?(?:Z|[+-]\d\d:?\d\d)", re.ASCII)
_ANSWER_FIELDS = frozenset(_ANSWER.names)
_ENTRY_FIELDS = frozenset({"stream_type", "streams"})
_ROW_FIELDS = frozenset(SHOWN_ROW.names)


def _read_plain(body: bytes, site_id: str, stream_types: Sequence[str], window: Window) -> tuple[Streams, set[str]]:
    answer = read_object(body, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
    shown_site = one_line(site_id)
    if answer.get("id") not in (None, site_id):
        raise StemDataError(f"site {shown_site}: the answer is for another id, {one_line(str(answer['id']))!r}")
    if "stream_types" not in answer:
        raise StemDataError(f"site {shown_site}: the answer has no 'stream_types'")
    rows: dict[str, dict[int, float | None]] = {}
    unknown = answer.keys() - _ANSWER_FIELDS
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
    for stream_type, values in rows.items():
        kept = sorted(item for item in values.items() if window.first_end <= item[0] <= window.last_end)
        streams[stream_type] = pa.RecordBatch.from_arrays(
            [
                pa.array([end for end, _ in kept], pa.int64()).cast(pa.timestamp("s", "UTC")).cast(_INSTANT),
                pa.array([value for _, value in kept], pa.float64()),
            ],
            schema=STREAM_SCHEMA,
        )
    return streams, {one_line(name) for name in unknown}


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
