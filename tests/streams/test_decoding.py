from __future__ import annotations

import doctest
import itertools
import json
import logging
import mmap
import random
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.api.payloads import Body, UnreadableResponseError
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.decoding import StreamsDecoder
from airflow_provider_stem.streams.decoding import columnar as columnar_module
from airflow_provider_stem.streams.decoding.columnar import read_columnar
from airflow_provider_stem.streams.decoding.plain import _without_unknown, read_plain
from airflow_provider_stem.streams.tables import LANDING_SCHEMA, STREAM_SCHEMA, Streams, landing_batch
from airflow_provider_stem.streams.windows import Window
from tests.servers.processes import HUNG_AFTER
from tests.support import STREAM_TYPES, full_depth_only

from .helpers import (
    DAY,
    RESOLUTIONS,
    answer,
    at,
    encoded,
    ends_of,
    examples,
    grid,
    row,
    rows_of,
    seconds,
    stream,
    tally,
    utc,
    window,
)

HOUR = window("2025-07-01T00:00", "2025-07-01T01:00")
ENDS = grid(HOUR)
FIELDS = ("start_datetime", "end_datetime", "kw_total_avg")
ABSENT = "absent"
DECODING = "airflow_provider_stem.streams.decoding"

Bits = list[tuple[int, bytes | None]]


def bits(rows: Sequence[tuple[int, float | None]]) -> Bits:
    """Return the rows with the bits of their values, so that -0.0 differs from 0.0."""
    return [(end, None if value is None else struct.pack("<d", value)) for end, value in rows]


def mapped(body: bytes) -> Body:
    """Return a body as a memory-mapped file, like a long response."""
    if not body:
        return body
    memory = mmap.mmap(-1, len(body))
    memory[:] = body
    return memory


def exact(streams: Streams, stream_types: Sequence[str]) -> dict[str, Bits]:
    return {name: bits(rows_of(streams[name])) if name in streams else [] for name in stream_types}


@pytest.fixture(autouse=True)
def short_responses_are_decoded_as_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode the short responses of these tests in columns too."""
    monkeypatch.setattr(f"{DECODING}._SHORT", -1)


def decode(
    body: bytes, stream_types: Sequence[str] = ("MONITOR",), of: Window = HOUR, decoder: StreamsDecoder | None = None
) -> Streams:
    return (decoder or StreamsDecoder()).decode(body, "site", stream_types, of)


def warned_decoder() -> StreamsDecoder:
    """Return a decoder that has logged an unknown field."""
    decoder = StreamsDecoder()
    decode(encoded(answer({"MONITOR": [{**row(ENDS[0]), "quality": "measured"}]})), decoder=decoder)
    return decoder


def all_decoders() -> list[StreamsDecoder]:
    """Return a new decoder, one that has logged an unknown field, and one with ``columnar_decoding = False``."""
    return [StreamsDecoder(), warned_decoder(), StreamsDecoder(columnar=False)]


@dataclass
class Request:
    window: Window
    stream_types: tuple[str, ...]


@dataclass
class Response:
    body: bytes
    expected: dict[str, Bits]


literals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-2000, 2000).map(lambda number: f"{number:.5f}"),
    st.integers(-(10**6), 10**6).filter(bool).map(str),
    st.decimals(-2000, 2000, allow_nan=False, allow_infinity=False)
    .map(lambda number: f"{number:f}")
    .filter(lambda text: text not in {"-0", "0"}),
    st.sampled_from(
        [
            "0",
            "0.0",
            "-0.0",
            "1e22",
            "1E+22",
            "1e23",
            "-1e-7",
            "0e0",
            "10.59252",
            "5e-324",
            "2.2250738585072011e-308",
            "1.7976931348623157e308",
            "9007199254740993",
            "123456789012345678901234567890",
            "0.1000000000000000055511151231257827021181583404541015625",
            "0.30000000000000004",
            "-12345678.123456789012345678",
            "null",
            ABSENT,
        ]
    ),
)


def as_written(end: int, zone: str, fraction: str) -> str:
    """Return an instant in one of its ISO 8601 formats."""
    offset = {"+05:30": 19_800, "-0700": -25_200, "+12:45": 45_900}.get(zone, 0)
    return f"{at(end + offset):%Y-%m-%dT%H:%M:%S}{fraction}{zone}"


usual = st.sampled_from(["+00:00", "Z"])
ODD_ZONES = ["+00:00", "Z", "-00:00", "+0000", "+05:30", "-0700", "+12:45"]
FRACTIONS = ["", ".0", ".000", ".000000", ".000000000"]
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)

unknown_fields = st.dictionaries(st.sampled_from(["quality", "flag", "kW", "ü", "start", ""]), junk, max_size=2)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    resolution = draw(st.sampled_from(RESOLUTIONS))
    start = draw(st.integers(seconds(utc("1999-12-30")) // resolution, seconds(utc("2040-01-01")) // resolution))
    length = draw(st.integers(0, 12))
    types = draw(st.lists(st.sampled_from(STREAM_TYPES), min_size=1, max_size=3, unique=True))
    return Request(Window(at(start * resolution), at((start + length) * resolution), resolution), tuple(types))


@st.composite
def responses(draw: st.DrawFn, request: Request) -> Response:
    """Valid responses in any format and order, with the request and the expected rows."""
    of, resolution = request.window, request.window.resolution
    beyond = draw(st.sampled_from([0, 1, 1, 1, 2]))
    around = range(seconds(of.start) - (beyond - 1) * resolution, seconds(of.end) + beyond * resolution + 1, resolution)
    is_odd, is_noted, is_repeated = draw(st.booleans()), draw(st.integers(0, 3)) == 0, draw(st.integers(0, 4)) == 0
    missing, order = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])), draw(st.sampled_from(["up", "down", "any"]))
    values = draw(st.lists(literals, min_size=1, max_size=8))
    one_zone, unknown = draw(usual), draw(unknown_fields) if is_noted else {}
    choice = random.Random(draw(st.integers(0, 2**32)))

    raw: list[str] = []
    said: dict[str, dict[int, str]] = {}

    def written(name: str, end: int) -> dict[str, Any]:
        raw.append(said[name].setdefault(end, choice.choice(values)))
        zones, fraction = ODD_ZONES if is_odd else [one_zone], choice.choice(FRACTIONS) if is_odd else ""
        shown = [as_written(instant, choice.choice(zones), fraction) for instant in (end - resolution + 1, end)]
        fields: dict[str, Any] = dict(zip(FIELDS, [*shown, f"@{len(raw) - 1}@"], strict=True))
        if raw[-1] == ABSENT:
            del fields["kw_total_avg"]
        fields |= {field: value for field, value in unknown.items() if choice.random() < 0.5}
        names = list(fields)
        if is_odd:
            choice.shuffle(names)
        return {field: fields[field] for field in names}

    entries = []
    for name in request.stream_types[draw(st.integers(0, 1)) :]:
        said[name] = {}
        for _ in range(2 if is_repeated and choice.random() < 0.5 else 1):
            ends = [end for end in around if choice.random() >= missing]
            ends += [choice.choice(ends)] if ends and is_repeated else []
            if order == "any":
                choice.shuffle(ends)
            ends.sort(reverse=order == "down") if order != "any" else None
            entries.append({"stream_type": name, "streams": [written(name, end) for end in ends]})
    choice.shuffle(entries)
    payload: dict[str, Any] = {"id": "site", "name": draw(st.text(max_size=4)), "stream_types": entries}
    if draw(st.integers(0, 5)) == 0:
        payload["id"] = None
    if is_noted and draw(st.booleans()):
        payload["timezone"] = list(unknown.values())
    text = json.dumps(payload, indent=draw(st.sampled_from([None, None, 2, "\t"])), ensure_ascii=draw(st.booleans()))
    for number, literal in enumerate(raw):
        text = text.replace(f'"@{number}@"', literal)
    expected = {}
    for name in request.stream_types:
        kept = [(k, literal) for k, literal in sorted(said.get(name, {}).items()) if of.start < at(k) <= of.end]
        expected[name] = bits([(k, None if text in ("null", ABSENT) else float(json.loads(text))) for k, text in kept])
    return Response(text.encode(), expected)


def test_both_decoders_agree_on_every_valid_response() -> None:
    counts = tally("tables, valid responses")

    @examples(1000)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        request = data.draw(requests())
        got = data.draw(responses(request))
        types, of = request.stream_types, request.window

        plain, _ = read_plain(got.body, "site", types, of)
        assert exact(plain, types) == got.expected
        taken = 0
        for lenient in (False, True):
            body = got.body if lenient else mapped(got.body)
            columnar = read_columnar(body, "site", types, of, lenient=lenient)
            if columnar is not None:
                taken += 1
                assert exact(columnar, types) == got.expected
                for rows in columnar.values():
                    rows.validate(full=True)
        for decoder in all_decoders():
            streams = decode(got.body, types, of, decoder)
            assert list(streams) == list(types)
            assert exact(streams, types) == got.expected
            assert all(rows.schema.equals(STREAM_SCHEMA, check_metadata=True) for rows in streams.values())
        counts.add(
            answers=1,
            rows_kept=sum(map(len, got.expected.values())),
            read_in_columns=taken > 0,
            left_to_the_plain_reader=taken == 0,
        )

    check()
    # Otherwise the property would test only one reader.
    done = counts.counts
    assert min(done["read_in_columns"], done["left_to_the_plain_reader"]) > done["answers"] / 5


@pytest.mark.parametrize("literal", ["-0", "-0.0", "0", "-0e5"])
def test_both_decoders_agree_on_the_sign_of_a_zero(literal: str) -> None:
    body = encoded(answer({"MONITOR": [row(ENDS[0], value="@")]})).replace(b'"@"', literal.encode())
    plain, _ = read_plain(body, "site", ["MONITOR"], HOUR)
    columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
    assert columnar is None or exact(columnar, ["MONITOR"]) == exact(plain, ["MONITOR"])


class TestTheDocumentationOfTheColumnarDecoder:
    def test_the_example_is_correct(self) -> None:
        assert doctest.testmod(columnar_module, raise_on_error=True).attempted > 4

    def test_the_tests_of_its_invariants_exist(self) -> None:
        named = set(re.findall(r"\btest_\w+", str(columnar_module.__doc__).replace("tests/streams/test_decoding", "")))
        assert len(named) > 10
        assert named <= set(re.findall(r"\bdef (test_\w+)", Path(__file__).read_text()))


class TestTheUsualResponseIsReadInColumns:
    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @pytest.mark.parametrize("zone", ["+00:00", "Z"])
    @pytest.mark.parametrize("padded", [(0, 0), (1, 0), (0, 1), (1, 1)])
    @pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
    def test_in_any_order_and_with_either_reading(
        self, resolution: int, zone: str, padded: tuple[int, int], order: str
    ) -> None:
        of = window("2025-07-01", "2025-07-02", resolution)
        inside = grid(of)
        ends = list(range(inside[0] - padded[0] * resolution, inside[-1] + padded[1] * resolution + 1, resolution))
        if order == "descending":
            ends.reverse()
        elif order == "shuffled":
            random.Random(7).shuffle(ends)
        body = encoded(answer({"MONITOR": [row(end, resolution, end / 7, zone) for end in ends]}))
        columnar = read_columnar(body, "site", ["MONITOR"], of, lenient=False)
        assert columnar is not None
        assert rows_of(columnar["MONITOR"]) == [(end, end / 7) for end in inside]

    @pytest.mark.parametrize(
        "rows", [[], [row(ENDS[1])], [row(ENDS[0], value=None)], [row(ENDS[0], value=None), row(ENDS[3])]]
    )
    def test_with_gaps_and_nulls(self, rows: list[Any]) -> None:
        columnar = read_columnar(encoded(answer({"MONITOR": rows})), "site", ["MONITOR"], HOUR, lenient=False)
        assert columnar is not None
        assert columnar["MONITOR"].num_rows == len(rows)

    def test_with_unknown_fields_once_they_are_logged(self) -> None:
        body = encoded(answer({"MONITOR": [{**row(end), "quality": "measured"} for end in ENDS]}))
        assert read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False) is None
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=True)
        assert columnar is not None
        assert columnar["MONITOR"].num_rows == 4

    @pytest.mark.parametrize("block", [1, 110, 250, 1000])
    def test_in_blocks_of_any_size(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        counts, read = [], columnar_module._read_rows

        def counting(rows: pa.BinaryArray, *rest: Any) -> Any:
            counts.append(len(rows))
            return read(rows, *rest)

        monkeypatch.setattr(columnar_module, "_read_rows", counting)
        monkeypatch.setattr(columnar_module, "BLOCK", block)
        of = window("2025-07-01", "2025-07-02")
        ends = [end for end in grid(of) if end % 7]
        body = encoded(answer({name: [row(end, value=end / 7) for end in ends] for name in STREAM_TYPES}))
        columnar = read_columnar(body, "site", STREAM_TYPES, of, lenient=False)
        assert columnar is not None
        assert exact(columnar, STREAM_TYPES) == exact(read_plain(body, "site", STREAM_TYPES, of)[0], STREAM_TYPES)
        assert max(counts) <= 1 + block // 100
        for wrong in (b"{}", b"null", b"1", b'{"start_datetime":""}', b""):
            for between in (b"},", b"}, "):
                damaged = body.replace(b"}]}", between + wrong + b"]}")
                assert read_columnar(damaged, "site", STREAM_TYPES, of, lenient=False) is None

    @pytest.mark.parametrize("block", [1, 2**20])
    def test_without_a_lookup_if_there_is_no_gap(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(columnar_module, "BLOCK", block)
        monkeypatch.delattr(pc, "index_in")
        body = encoded(answer({"MONITOR": [row(end) for end in (ENDS[0] - 900, *ENDS)]}))
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
        assert columnar is not None
        assert ends_of(columnar["MONITOR"]) == ENDS

    @pytest.mark.parametrize("rows", [[], [row(ENDS[0])], [row(end) for end in ENDS]], ids=len)
    @pytest.mark.parametrize("place", ["before", "after"])
    @pytest.mark.parametrize(("text", "is_read"), [(b" \t\n\r", True), (b"\v", False), (b"\f", False), (b"1", False)])
    def test_with_no_more_than_white_space_around_the_rows(
        self, rows: list[Any], place: str, text: bytes, is_read: bool
    ) -> None:
        body = encoded(answer({"MONITOR": rows}))
        old, new = (b'"streams": [', b'"streams": [%s') if place == "before" else (b"]}]}", b"%s]}]}")
        columnar = read_columnar(body.replace(old, new % text), "site", ["MONITOR"], HOUR, lenient=False)
        assert (columnar is not None) is is_read

    @pytest.mark.parametrize("beyond", [0, 1])
    def test_not_with_a_long_text_outside_the_lists(self, beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
        outside = len(encoded(answer({"MONITOR": []})))
        monkeypatch.setattr(columnar_module, "MAX_UNFILTERED", outside - beyond)
        body = encoded(answer({"MONITOR": [row(end) for end in ENDS]}))
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
        assert (columnar is None) is bool(beyond)

    @pytest.mark.parametrize("key", ['a"kw_total_avg', '"start_datetime', 'x"end_datetime', "kw_total_avg "])
    def test_not_from_an_escaped_key(self, key: str) -> None:
        for place in range(3):
            names = [*FIELDS[:place], key, *FIELDS[place:]]
            rows = [{name: {key: 1.0, **row(end, value=2.0)}[name] for name in names} for end in ENDS]
            body = encoded(answer({"MONITOR": rows}))
            columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=True)
            assert columnar is None or columnar["MONITOR"].column(1).to_pylist() == [2.0] * 4
            assert read_plain(body, "site", ["MONITOR"], HOUR)[0]["MONITOR"].column(1).to_pylist() == [2.0] * 4

    @pytest.mark.parametrize("zone", ["-00:00", "+0000", "+05:30", "z", ""])
    def test_not_with_another_zone(self, zone: str) -> None:
        body = encoded(answer({"MONITOR": [row(end, zone=zone) for end in ENDS]}))
        assert read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False) is None

    def test_not_with_a_time_that_is_no_text(self) -> None:
        body = encoded(answer({"MONITOR": [row(end) for end in ENDS]}))
        for time in (b"2025-07-01T00:00:01", b"2025-07-01T00:15:00"):
            damaged = body.replace(time, time[:-1] + b"\xed\xa0\x80")  # a lone surrogate, which JSON permits
            assert read_columnar(damaged, "site", ["MONITOR"], HOUR, lenient=False) is None

    @pytest.mark.parametrize("order", [one for one in itertools.permutations(FIELDS) if one[0] != FIELDS[2]])
    def test_with_the_fields_in_any_order_with_a_time_first(self, order: Sequence[str]) -> None:
        body = encoded(answer({"MONITOR": [{name: row(end, value=end / 7)[name] for name in order} for end in ENDS]}))
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
        assert columnar is not None
        assert rows_of(columnar["MONITOR"]) == [(end, end / 7) for end in ENDS]

    def test_with_a_zone_for_each_time(self) -> None:
        body = encoded(answer({"MONITOR": [row(end, value=end / 7) for end in ENDS]}))
        body = body.replace(b':01+00:00"', b':01Z"')
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
        assert columnar is not None
        assert exact(columnar, ["MONITOR"]) == exact(read_plain(body, "site", ["MONITOR"], HOUR)[0], ["MONITOR"])

    @pytest.mark.parametrize("entry", [{"streams": []}, {"streams": None}, {}, None])
    def test_not_with_a_list_outside_the_entries(self, entry: Any) -> None:
        entry = entry if entry is None else {"stream_type": "MONITOR", **entry}
        payload = {"id": "site", "stream_types": [entry], "other": {"streams": [row(end) for end in ENDS]}}
        assert read_columnar(encoded(payload), "site", ["MONITOR"], HOUR, lenient=True) is None

    def test_with_all_fields_of_the_guide(self) -> None:
        body = encoded(answer({"MONITOR": [row(end) for end in ENDS]}, errors=[]))
        assert read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False) is not None

    @pytest.mark.parametrize("width", [1000, 1001])
    def test_one_wide_row_is_left_to_the_plain_decoder(self, width: int) -> None:
        spaces = b" " * (width - len(encoded(row(ENDS[0]))))
        body = encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b'"kw_total_avg"', spaces + b'"kw_total_avg"')
        columnar = read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False)
        assert (columnar is None) is (width > 1000)

    @pytest.mark.parametrize(
        "number", ["01", "+1", ".5", "1.", "-.5", "1.e5", "-01", "nan", "Infinity", "1e400", "0x1", "1,5"]
    )
    @pytest.mark.parametrize("block", [1, 2**20])
    def test_not_with_numbers_that_are_not_json(self, number: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(columnar_module, "BLOCK", block)
        for places in (ENDS, *([end] for end in ENDS)):
            body = encoded(answer({"MONITOR": [row(end, value=5.25 if end in places else 1.5) for end in ENDS]}))
            body = body.replace(b"5.25", number.encode())
            assert read_columnar(body, "site", ["MONITOR"], HOUR, lenient=False) is None

    def test_a_whole_year_of_all_types(self) -> None:
        of = window("2023-01-02", "2024-01-01")
        ends = range(of.first_end, of.last_end + 1, 900)
        body = encoded(answer({name: [row(end, value=end / 3) for end in ends] for name in STREAM_TYPES}))
        columnar = read_columnar(body, "site", STREAM_TYPES, of, lenient=False)
        assert columnar is not None
        for name in STREAM_TYPES:
            assert columnar[name].column(0).cast(pa.int64()).to_pylist() == [end * 10**6 for end in ends]
            assert columnar[name].column(1).to_pylist() == [end / 3 for end in ends]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("answer", marks=full_depth_only),
        pytest.param("entry", marks=full_depth_only),
        "row",
        "each row",
        "nested",
    ],
)
def test_many_unknown_fields_are_ignored_and_take_no_memory(place: str, caplog: pytest.LogCaptureFixture) -> None:
    flood = {f"key-{number:06}": [number, str(number), None, 1.5][number % 4] for number in range(100_000)}
    rows = [row(end, value=end / 3) for end in ENDS]
    payload = answer({"MONITOR": rows})
    if place == "each row":
        names = list(flood)
        rows[:] = [{**one, **dict.fromkeys(names[at::4], "x")} for at, one in enumerate(rows)]
    else:
        target = {"answer": payload, "entry": payload["stream_types"][0], "row": rows[1], "nested": payload}[place]
        target |= {"deep": [flood]} if place == "nested" else flood
    body = encoded(payload)
    assert len(body) > 2**20
    tracemalloc.start()
    try:
        streams = decode(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows_of(streams["MONITOR"]) == [(end, end / 3) for end in ENDS]
    assert peak < 4 * len(body)
    (logged,) = caplog.records
    assert len(logged.getMessage()) < 600


@pytest.mark.parametrize(
    "odd",
    [
        'a":1,"b',
        '":1,',
        "\\",
        '\\"',
        'start_datetime":"x",',
        '{"id":"x"},',
        "\u2028é☀",
        "\\u0022",
        "",
    ],
)
def test_a_field_in_a_string_is_not_a_field(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DECODING}.plain.MAX_UNFILTERED", 0)
    for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
        rows = [{odd: odd, **row(ENDS[0]), "x": odd, "y": [odd, {odd: odd, "z": 1}]}, {**row(ENDS[1]), odd: 1}]
        body = encoded(answer({"MONITOR": rows}, name=odd, other=odd), **options)
        assert json.loads(_without_unknown(body, set())).keys() <= {"id", "name", "stream_types", "other"}
        assert ends_of(decode(body)["MONITOR"]) == list(ENDS[:2])


@pytest.mark.parametrize(
    "damaged",
    [
        b'"x":01,',
        b'"x":,',
        b'"x":1.,',
        b'"x":"a\nb",',
        b'"x":"\\q",',
        b'"x":nul,',
        b'"x":1,,',
        b'"x":"\xff",',
        b'"\xc3":1,',
    ],
)
def test_a_damaged_field_is_an_error(damaged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DECODING}.plain.MAX_UNFILTERED", 0)
    body = encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b'"name"', damaged + b'"name"')
    with pytest.raises(UnreadableResponseError):
        decode(body)


def test_unknown_fields_are_removed_from_a_text_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"x{number:02}" for number in range(30, 0, -1)]
    body = encoded(answer({"MONITOR": [{**dict.fromkeys(names, 1), **row(ENDS[0])}]}))
    # Only where fields are removed, the reported names are the first ones instead of the smallest ones.
    for limit, reported in ((len(body), names[-20:]), (len(body) - 1, names[:20])):
        monkeypatch.setattr(f"{DECODING}.plain.MAX_UNFILTERED", limit)
        streams, unknown = read_plain(body, "site", ["MONITOR"], HOUR)
        assert (rows_of(streams["MONITOR"]), unknown) == ([(ENDS[0], 1.5)], set(reported))


@pytest.mark.parametrize("limit", [0, 2**20])
def test_any_spelling_of_a_name_in_json_is_read(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DECODING}.plain.MAX_UNFILTERED", limit)
    body = encoded(answer({"MONITOR": [{"kw_total_avg": 1.5, "?": 1, **row(ENDS[0])}]}))
    body = body.replace(b'"kw_total_avg"', rb'"kw_total\u005favg"').replace(b"?", "ü".encode() + b"\xed\xa0\x80")
    streams, unknown = read_plain(body, "site", ["MONITOR"], HOUR)
    assert (rows_of(streams["MONITOR"]), unknown) == ([(ENDS[0], 1.5)], {"ü"})


def test_an_unknown_field_with_the_name_of_the_key_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    decoder = StreamsDecoder(ApiKey("s3cr3t").redact)
    decode(encoded(answer({"MONITOR": [row(ENDS[0])]}, s3cr3t=1)), decoder=decoder)
    assert "***" in caplog.text
    assert "s3cr3t" not in caplog.text


OTHER_WINDOWS: dict[str, Sequence[int]] = {
    "a year before": range(ENDS[0] - 366 * DAY, ENDS[-1] - 366 * DAY, 900),
    "the day before": range(ENDS[0] - DAY, ENDS[0] - DAY + 3600, 900),
    "just before": range(ENDS[0] - 4 * 900, ENDS[0], 900),
    "just after": range(ENDS[-1] + 900, ENDS[-1] + 5 * 900, 900),
    "one row before": [ENDS[0] - 3 * 900],
    "one row after": [ENDS[-1] + 3 * 900],
    "both sides": [ENDS[0] - DAY, ENDS[-1] + DAY],
}


@pytest.mark.parametrize("ends", OTHER_WINDOWS.values(), ids=OTHER_WINDOWS)
@pytest.mark.parametrize("other", [None, [], [row(ENDS[0])]], ids=["alone", "beside no rows", "beside right rows"])
def test_rows_of_another_window_are_an_error(ends: Sequence[int], other: list[Any] | None) -> None:
    streams = {"MONITOR": [row(end) for end in ends]} | ({} if other is None else {"CONVERTER": other})
    for decoder in all_decoders():
        with pytest.raises(StemDataError, match="site site, MONITOR: the response is for another window"):
            decode(encoded(answer(streams)), ("CONVERTER", "MONITOR"), HOUR, decoder)


@pytest.mark.parametrize("rows_in", [1, 2])
@pytest.mark.parametrize("side", ["earlier", "later"])
def test_the_response_to_the_previous_or_next_request_is_an_error(rows_in: int, side: str) -> None:
    """Its padding is in the window, with a value of an interval that may not have been over."""
    inside = ENDS[:rows_in] if side == "earlier" else ENDS[-rows_in:]
    outside = range(ENDS[0] - DAY, ENDS[0], 900) if side == "earlier" else range(ENDS[-1] + 900, ENDS[-1] + DAY, 900)
    rows = [row(end) for end in sorted([*inside, *outside])]
    with pytest.raises(StemDataError, match=f"another window, with a row that ends at .* and {rows_in} of 4 in"):
        decode(encoded(answer({"MONITOR": rows})), ("MONITOR",), HOUR)


@pytest.mark.parametrize("ends", [[ENDS[0] - 900], [ENDS[0] - 2 * 900, ENDS[-1] + 2 * 900], [ENDS[-1] + 900]], ids=str)
def test_rows_of_the_padding_are_not_in_the_window(ends: list[int]) -> None:
    assert decode(encoded(answer({"MONITOR": [row(end) for end in ends]})), ("MONITOR",), HOUR)["MONITOR"].num_rows == 0


def test_rows_outside_the_window_are_dropped() -> None:
    whole_day = [row(end) for end in range(ENDS[0] - DAY, ENDS[-1] + DAY, 900)]
    assert ends_of(decode(encoded(answer({"MONITOR": whole_day})))["MONITOR"]) == list(ENDS)


@pytest.mark.parametrize("days", [[-1], [1], [-1, 1]], ids=str)
@pytest.mark.parametrize(
    "inside", [ENDS[:1], ENDS[-1:], ENDS[:3], ENDS[1:]], ids=["first", "last", "but last", "but first"]
)
def test_a_gap_does_not_make_another_window(days: list[int], inside: Sequence[int]) -> None:
    """Rows at one end are the padding of another request only if all rows outside are beyond this end."""
    outside = [ENDS[0] + day * DAY for day in days]
    body = encoded(answer({"MONITOR": [row(end) for end in sorted([*inside, *outside])]}))
    if (days, inside) in (([-1], ENDS[:1]), ([1], ENDS[-1:])):
        with pytest.raises(StemDataError, match="another window"):
            decode(body)
    else:
        assert ends_of(decode(body)["MONITOR"]) == list(inside)


@pytest.mark.parametrize("stream_types", [[], None])
def test_a_response_without_streams_has_no_rows(stream_types: Any) -> None:
    streams = decode(encoded({"id": "site", "stream_types": stream_types}), ("MONITOR", "CONVERTER"))
    assert {name: rows.num_rows for name, rows in streams.items()} == {"MONITOR": 0, "CONVERTER": 0}


@pytest.mark.parametrize("entry", [{"stream_type": "MONITOR"}, {"stream_type": "MONITOR", "streams": None}])
def test_a_type_without_a_list_has_no_rows(entry: Any) -> None:
    assert decode(encoded({"id": "site", "stream_types": [entry]}))["MONITOR"].num_rows == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(encoding: str) -> None:
    body = json.dumps(answer({"MONITOR": [row(ENDS[0])]})).encode(encoding)
    assert rows_of(decode(body)["MONITOR"]) == [(ENDS[0], 1.5)]


# --- invalid responses ----------------------------------------------------------------------------------------------

WHERE = "site site, MONITOR, row 2"


def with_row(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return a response whose row 2 is changed; ``{"raw": text}`` inserts the text unchanged."""
    rows: list[Any] = [row(end) for end in ENDS]
    rows[2] = change(rows[2])
    return encoded(answer({"MONITOR": rows}))


def with_value(literal: str) -> bytes:
    return with_row(lambda r: {**r, "kw_total_avg": "@"}).replace(b'"@"', literal.encode())


def shifted(start: int, end: int) -> bytes:
    return with_row(
        lambda r: {
            **r,
            "start_datetime": f"{at(ENDS[2] - 899 + start):%FT%TZ}",
            "end_datetime": f"{at(ENDS[2] + end):%FT%TZ}",
        }
    )


WRONG_VALUES = {
    literal: (with_value(literal), f"{WHERE}: kw_total_avg is {message}")
    for literal, message in {
        "NaN": "not a finite number",
        "Infinity": "not a finite number",
        "-Infinity": "not a finite number",
        "1e999": "not a finite number",
        "-1e400": "not a finite number",
        "1" + "0" * 400: "not a finite number",
        '"1.5"': "'1.5', not a number",
        '"NaN"': "'NaN', not a number",
        '""': "'', not a number",
        "true": "True, not a number",
        "false": "False, not a number",
        "[]": r"\[\], not a number",
        "[1.5]": r"\[1.5\], not a number",
        "{}": r"{}, not a number",
    }.items()
}
WRONG_WIDTHS = {
    "begins at the left edge": shifted(-1, 0),
    "begins two seconds after the left edge": shifted(1, 0),
    "twice as wide": shifted(-900, 0),
    "no width": shifted(899, 0),
    "ends before it starts": shifted(1800, 0),
}
OFF_THE_GRID = {"by a second": shifted(1, 1), "by a minute": shifted(60, 60), "ends with 59": shifted(-1, -1)}
WRONG_TIMES: dict[str, Any] = {
    "naive": "2025-07-01T00:45:00",
    "date only": "2025-07-01",
    "with a space": "2025-07-01 00:45:00Z",
    "lower case": "2025-07-01t00:45:00z",
    "basic format": "20250701T004500Z",
    "without seconds": "2025-07-01T00:45Z",
    "fraction of a second": "2025-07-01T00:45:00.500Z",
    "trailing space": "2025-07-01T00:45:00Z ",
    "two zones": "2025-07-01T00:45:00Z+00:00",
    "zone of 25 hours": "2025-07-01T00:45:00+25:00",
    "month 13": "2025-13-01T00:45:00Z",
    "hour 25": "2025-07-01T25:45:00Z",
    "second 60": "2025-07-01T00:44:60Z",
    "year 0": "0000-07-01T00:45:00Z",
    "before all time": "0001-01-01T00:00:00+14:00",
    "after all time": "9999-12-31T23:45:00-14:00",
    "digits of another script": "\uff12\uff10\uff12\uff15-07-01T00:45:00Z",
    "epoch": 1_751_330_700,
    "empty": "",
    "null": None,
    "boolean": True,
    "list": ["2025-07-01T00:45:00Z"],
    "object": {"utc": "2025-07-01T00:45:00Z"},
    "NUL": "2025-07-01T00:45:00Z\0",
    "lone surrogate": "\ud800",
}
WRONG_ENTRIES: dict[str, tuple[bytes, str]] = {
    "type not requested": (encoded(answer({"CONVERTER": []})), "stream type 'CONVERTER', requested were MONITOR"),
    "unknown type": (encoded(answer({"MONITOR": [], "monitor": []})), "stream type 'monitor'"),
    "type missing": (encoded({"id": "site", "stream_types": [{"streams": []}]}), "stream type None"),
    "type is a list": (encoded({"id": "site", "stream_types": [{"stream_type": ["MONITOR"]}]}), "stream type"),
    "entry is null": (encoded({"id": "site", "stream_types": [None]}), "stream type None"),
    "entry is a text": (encoded({"id": "site", "stream_types": ["MONITOR"]}), "stream type 'MONITOR'"),
    "stream_types missing": (encoded({"id": "site", "name": "n"}), "has no 'stream_types'"),
    "stream_types is an object": (
        encoded({"id": "site", "stream_types": {"MONITOR": []}}),
        "'stream_types' is not a list",
    ),
    "stream_types is a text": (encoded({"id": "site", "stream_types": "MONITOR"}), "'stream_types' is not a list"),
    "streams is an object": (encoded(answer({"MONITOR": {}})), "MONITOR: 'streams' is not a list"),  # type: ignore[dict-item]
    "streams is a text": (encoded(answer({"MONITOR": "none"})), "MONITOR: 'streams' is not a list"),
    "another site": (encoded(answer({"MONITOR": []}, site_id="other")), "for another id, 'other'"),
    "site without a name": (encoded(answer({"MONITOR": []}, site_id="")), "for another id, ''"),
    "site is a number": (encoded({"id": 5, "stream_types": []}), "for another id, '5'"),
}
JUNK_ROWS = {"null": None, "list": [], "text": "row", "number": 5, "nested": [[[{"kw_total_avg": 1}]]], "boolean": True}

decoders = pytest.mark.parametrize(
    "decoder",
    [StreamsDecoder, warned_decoder, partial(StreamsDecoder, columnar=False)],
    ids=["fresh", "warned", "not columnar"],
)


def assert_rejected(decoder: Callable[[], StreamsDecoder], body: bytes, pattern: str) -> None:
    """Check that decoding fails with a message that matches the pattern, in one line of bounded length."""
    with pytest.raises(StemDataError, match=pattern) as error:
        decode(body, decoder=decoder())
    assert not isinstance(error.value, UnreadableResponseError)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


@decoders
class TestAnInvalidResponseIsAnErrorThatNamesSiteAndRow:
    @pytest.mark.parametrize("literal", WRONG_VALUES, ids=lambda literal: literal[:12])
    def test_value(self, decoder: Callable[[], StreamsDecoder], literal: str) -> None:
        assert_rejected(decoder, *WRONG_VALUES[literal])

    @pytest.mark.parametrize("name", WRONG_WIDTHS)
    def test_width(self, decoder: Callable[[], StreamsDecoder], name: str) -> None:
        assert_rejected(decoder, WRONG_WIDTHS[name], f"{WHERE}: .* is not an interval of 900 s")

    @pytest.mark.parametrize("name", OFF_THE_GRID)
    def test_grid(self, decoder: Callable[[], StreamsDecoder], name: str) -> None:
        assert_rejected(decoder, OFF_THE_GRID[name], f"{WHERE}: end_datetime .* is off the grid of 900 s")

    @pytest.mark.parametrize("name", WRONG_TIMES)
    @pytest.mark.parametrize("field", ["start_datetime", "end_datetime"])
    def test_time(self, decoder: Callable[[], StreamsDecoder], field: str, name: str) -> None:
        body = with_row(lambda r: {**r, field: WRONG_TIMES[name]})
        shown = re.escape(json.dumps(WRONG_TIMES[name]))
        assert_rejected(decoder, body, f"{WHERE}: {field} is {shown}, not a time such as")

    @pytest.mark.parametrize("field", ["start_datetime", "end_datetime"])
    def test_time_that_is_missing(self, decoder: Callable[[], StreamsDecoder], field: str) -> None:
        body = with_row(lambda r: {name: value for name, value in r.items() if name != field})
        assert_rejected(decoder, body, f"{WHERE}: {field} is null")

    @pytest.mark.parametrize("name", JUNK_ROWS)
    def test_row_that_is_not_an_object(self, decoder: Callable[[], StreamsDecoder], name: str) -> None:
        assert_rejected(decoder, with_row(lambda _: JUNK_ROWS[name]), f"{WHERE} is not an object")

    @pytest.mark.parametrize("name", WRONG_ENTRIES)
    def test_response(self, decoder: Callable[[], StreamsDecoder], name: str) -> None:
        body, message = WRONG_ENTRIES[name]
        assert_rejected(decoder, body, f"site site.*{message}")

    def test_type_that_is_none_of_two(self, decoder: Callable[[], StreamsDecoder]) -> None:
        with pytest.raises(
            StemDataError, match="stream type 'OTHER', requested were MONITOR, CONVERTER. Try again later"
        ):
            decode(encoded(answer({"MONITOR": [], "OTHER": []})), ("MONITOR", "CONVERTER"), decoder=decoder())

    @pytest.mark.parametrize("values", [(1.5, 1.6), (1.5, None), (None, 0.0), (0.0, 5e-324)])
    @pytest.mark.parametrize("apart", [False, True], ids=["in one entry", "in two entries"])
    def test_two_values_for_one_interval(
        self, decoder: Callable[[], StreamsDecoder], values: tuple[Any, Any], apart: bool
    ) -> None:
        first, second = (row(ENDS[1], value=value) for value in values)
        payload = answer({"MONITOR": [row(ENDS[0]), first] if apart else [row(ENDS[0]), first, second]})
        if apart:
            payload["stream_types"].append({"stream_type": "MONITOR", "streams": [second]})
        body = encoded(payload)
        number = 0 if apart else 2
        assert_rejected(decoder, body, rf"site site, MONITOR, row {number}: 2025-07-01T00:30:00Z has two values")

    def test_rows_of_another_resolution(self, decoder: Callable[[], StreamsDecoder]) -> None:
        body = encoded(answer({"MONITOR": [row(end, 1800) for end in ENDS if end % 1800 == 0]}))
        assert_rejected(decoder, body, "site site, MONITOR, row 0: .* is not an interval of 900 s")

    @pytest.mark.parametrize("where", ["top", "entry", "row"])
    def test_repeated_keys(self, decoder: Callable[[], StreamsDecoder], where: str) -> None:
        body = encoded(answer({"MONITOR": [row(end) for end in ENDS]}))
        old, new = {
            "top": (b'"id": "site"', b'"id": "site", "id": "site"'),
            "entry": (b'"stream_type": "MONITOR"', b'"stream_type": "MONITOR", "stream_type": "MONITOR"'),
            "row": (b'"kw_total_avg": 1.5', b'"kw_total_avg": 1.5, "kw_total_avg": 2.5'),
        }[where]
        assert old in body
        assert_rejected(decoder, body.replace(old, new, 1), "repeats the keys")

    @pytest.mark.parametrize("rows", [[], [row(ENDS[0])]])
    def test_an_error_with_status_200(self, decoder: Callable[[], StreamsDecoder], rows: list[Any]) -> None:
        body = encoded(answer({"MONITOR": rows}, errors=[{"message": "The data store is down.", "code": 500}]))
        assert_rejected(decoder, body, "A 200 response contains an error: The data store is down.")

    @pytest.mark.parametrize("body", [b"[]", b"5", b'"text"', b"true", b"[{}]"])
    def test_other_json(self, decoder: Callable[[], StreamsDecoder], body: bytes) -> None:
        assert_rejected(decoder, body, "The response body is a JSON .*, not an object")


@decoders
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"<!doctype html><html>Sign in</html>",
        b'{"id": "site", "stream_types": [',
        encoded(answer({"MONITOR": [row(ENDS[0])]}))[:-1],
        encoded(answer({"MONITOR": [row(ENDS[0])]})) * 2,
        encoded(answer({"MONITOR": [row(ENDS[0])]})) + b"\n{}",
        encoded(answer({"MONITOR": [row(ENDS[0])]})) + b"x",
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"1.5", b"01.5"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"1.5", b"1."),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"1.5", b"+1"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"1.5", b"0x10"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"A site", b"\xff"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"2025-07-01T00:15:00+00:00", b"\xff\xfe"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"2025-07-01T00:00:01+00:00", b"\xff\xfe"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b"MONITOR", b"\xff\xfe"),
        encoded(answer({"MONITOR": [row(ENDS[0])]})).replace(b'"site"', b'"\xff\xfe"'),
        b'{"stream_types": ' + b"[" * 100_000,
        b"\xff\xfe\x00",
        b"\x00" * 10,
    ],
    ids=range(20),
)
def test_a_body_that_is_not_json_is_retryable(decoder: Callable[[], StreamsDecoder], body: bytes) -> None:
    with pytest.raises(UnreadableResponseError):
        decode(body, decoder=decoder())


@pytest.mark.parametrize("depth", [10, 100, 400, 600, 800, 900, *range(930, 1000, 3), 1100, 5000, 100_000])
@pytest.mark.parametrize("place", ["kw_total_avg", "end_datetime", "unknown", "row", "entry", "id"])
def test_nested_junk_is_rows_or_a_data_error(place: str, depth: int) -> None:
    nest = ("[" * depth + "]" * depth).encode()
    body = encoded(answer({"MONITOR": [row(ENDS[0], value="@value") | {"unknown": 1}]}, site_id="@id"))
    body = body.replace(b'"@id"', nest if place == "id" else b'"site"')
    body = body.replace(b'"@value"', nest if place == "kw_total_avg" else b"1.5")
    body = body.replace(b'"2025-07-01T00:15:00+00:00"', nest) if place == "end_datetime" else body
    body = body.replace(b'"unknown": 1', b'"unknown": ' + nest) if place == "unknown" else body
    body = body.replace(b'"streams": [', b'"streams": [' + nest + b", ") if place == "row" else body
    body = body.replace(b'"stream_types": [', b'"stream_types": [' + nest + b", ") if place == "entry" else body
    try:
        decode(body)
    except StemDataError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    else:
        assert place == "unknown"


@pytest.mark.parametrize("body", [b"null", b" null\n", b"\xef\xbb\xbfnull", b"null{}"])
def test_a_body_that_begins_with_null_does_not_end_the_process(body: bytes) -> None:
    # In a separate process, since pyarrow's reader crashes: exit status -11 is a segmentation fault.
    script = """if True:
        import sys
        from datetime import UTC, datetime
        from airflow_provider_stem.errors import StemDataError
        from airflow_provider_stem.streams.decoding import StreamsDecoder
        from airflow_provider_stem.streams.windows import Window
        window = Window.covering(datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 2, tzinfo=UTC), 900)
        try:
            StreamsDecoder().decode(bytes.fromhex(sys.argv[1]), "site", ["MONITOR"], window)
        except StemDataError:
            print("refused")
    """
    run = subprocess.run([sys.executable, "-c", script, body.hex()], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "refused\n"), run.stderr


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def rows_or_error(read: Callable[[], Streams]) -> dict[str, Bits] | tuple[type[StemDataError], str]:
    """Return the rows of two types, or class and message of the error."""
    try:
        return exact(read(), ("MONITOR", "CONVERTER"))
    except StemDataError as error:
        return type(error), str(error)


def check_any(body: bytes, outcome: Any) -> None:
    if body.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"null"):
        return  # tested above, in a separate process
    types = ("MONITOR", "CONVERTER")
    plain = rows_or_error(lambda: read_plain(mapped(body), "site", types, HOUR)[0])
    for decoder in all_decoders():
        assert rows_or_error(lambda: decode(body, types, decoder=decoder)) == plain  # noqa: B023
    kind = plain[0] if isinstance(plain, tuple) else None
    assert is_json(body) == (kind is not UnreadableResponseError)
    outcome.add(bodies=1, read=kind is None, refused=kind is StemDataError, unreadable=kind is UnreadableResponseError)


def test_any_bytes_are_rows_or_a_data_error() -> None:
    outcome = tally("tables, arbitrary bytes, by three decoders")

    @examples(400)
    @given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
    def check(body: bytes) -> None:
        check_any(body, outcome)

    check()


# fmt: off
DAMAGE = [
    b"", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\0", b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"0",
    b"9", b"e", b"NaN", b"null", b"true", b" ", b"\n", b"\xef\xbb\xbf", b"Z", b"+",
]
# fmt: on


def test_a_damaged_response_is_rows_or_a_data_error() -> None:
    outcome = tally("tables, damaged responses, by three decoders")
    whole = encoded(answer({"MONITOR": [row(e) for e in ENDS], "CONVERTER": [row(e, value=None) for e in ENDS[:2]]}))
    pieces = st.sampled_from(DAMAGE)
    damage = st.tuples(st.integers(0, len(whole)), st.integers(0, 4), pieces)

    @examples(1200)
    @given(st.lists(damage, min_size=1, max_size=3))
    def check(damages: list[tuple[int, int, bytes]]) -> None:
        body = whole
        for where, length, piece in damages:
            body = body[:where] + piece + body[where + length :]
        check_any(body, outcome)

    check()


def test_a_response_with_junk_is_rows_or_a_data_error() -> None:
    outcome = tally("tables, junk in responses, by three decoders")
    paths: list[tuple[Any, ...]] = [
        (),
        ("id",),
        ("name",),
        ("stream_types",),
        ("stream_types", 0),
        ("stream_types", 0, "stream_type"),
        ("stream_types", 0, "streams"),
        ("stream_types", 0, "streams", 1),
        *(("stream_types", 0, "streams", 1, name) for name in (*FIELDS, "new")),
        ("errors",),
        ("new",),
    ]

    @examples(800)
    @given(st.lists(st.tuples(st.sampled_from(paths), junk), min_size=1, max_size=2))
    def check(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        payload: Any = answer({"MONITOR": [row(end) for end in ENDS], "CONVERTER": []})
        for path, value in changes:
            if not path:
                payload = value
                continue
            place = payload
            try:
                for step in path[:-1]:
                    place = place[step]
                place[path[-1]] = value
            except (TypeError, KeyError, IndexError):
                continue
        check_any(encoded(payload), outcome)

    check()


# --- unknown fields -------------------------------------------------------------------------------------------------


class TestUnknownFields:
    BODY = encoded(answer({"MONITOR": [{**row(end), "quality": "measured", "flag": [1]} for end in ENDS]}))

    def test_they_are_ignored_with_one_warning_per_run(self, caplog: pytest.LogCaptureFixture) -> None:
        decoder = StreamsDecoder()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert rows_of(decode(self.BODY, decoder=decoder)["MONITOR"]) == [(end, 1.5) for end in ENDS]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert caplog.messages == ["Ignoring fields that are not in the API's guide: flag, quality"]

    def test_each_run_logs_them(self, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(2):
            decode(self.BODY)
        assert len(caplog.messages) == 2

    def test_many_threads_log_them_about_once(self, caplog: pytest.LogCaptureFixture) -> None:
        decoder, ready = StreamsDecoder(), threading.Barrier(8)

        def work() -> None:
            ready.wait(HUNG_AFTER)
            for _ in range(20):
                assert decode(self.BODY, decoder=decoder)["MONITOR"].num_rows == 4

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(caplog.messages) <= len(threads)

    def test_a_name_cannot_break_the_log_line(self, caplog: pytest.LogCaptureFixture) -> None:
        decode(encoded(answer({"MONITOR": [{**row(ENDS[0]), "a\nERROR b\x1b[31m" + "x" * 5000: 1}]})))
        (message,) = caplog.messages
        assert message.isprintable()
        assert len(message) < 1000

    def test_short_responses_log_them_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(f"{DECODING}._SHORT", len(self.BODY))
        decoder = StreamsDecoder()
        for field in (b"quality", b"another"):
            decode(self.BODY.replace(b"quality", field), decoder=decoder)
        assert caplog.messages == ["Ignoring fields that are not in the API's guide: flag, quality"]

    def test_fields_outside_the_rows_are_logged_once_and_then_read_in_columns(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        payload = answer({"MONITOR": [row(ENDS[0])]}, timezone="UTC")
        payload["stream_types"][0]["unit"] = "kW"
        decoder = StreamsDecoder()
        for _ in range(2):
            streams = decoder.decode(encoded(payload), "site", ("MONITOR",), HOUR)
            assert rows_of(streams["MONITOR"]) == [(ENDS[0], 1.5)]
        assert caplog.messages == ["Ignoring fields that are not in the API's guide: timezone, unit"]
        assert read_columnar(encoded(payload), "site", ("MONITOR",), HOUR, lenient=True) is not None


# --- landing schema -------------------------------------------------------------------------------------------------


class TestLandingSchema:
    def test_columns_types_and_order(self) -> None:
        instant = pa.timestamp("us", "UTC")
        assert [(field.name, field.type, field.nullable) for field in LANDING_SCHEMA] == [
            ("site_id", pa.string(), False),
            ("stream_type", pa.string(), False),
            ("resolution", pa.int32(), False),
            ("interval_start", instant, False),
            ("interval_end", instant, False),
            ("kw_total_avg", pa.float64(), True),
        ]

    def test_unit_and_sign_are_documented(self) -> None:
        metadata = LANDING_SCHEMA.field("kw_total_avg").metadata
        assert metadata[b"unit"] == b"kW"
        sign = metadata[b"sign"].decode()
        assert "MONITOR: positive is import" in sign
        assert "CONVERTER: positive is charging" in sign
        assert LANDING_SCHEMA.field("resolution").metadata[b"unit"] == b"s"

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @pytest.mark.parametrize("site_id", ["site", 'a,"b"\n', "", "東京"])
    def test_a_stream_gets_all_columns(self, resolution: int, site_id: str) -> None:
        ends = [k * resolution for k in (400_000, 400_001, 400_005)]
        batch = landing_batch(site_id, "CONVERTER", resolution, stream(ends, [1.5, None, -0.0]))
        batch.validate(full=True)
        assert batch.schema.equals(LANDING_SCHEMA, check_metadata=True)
        assert batch.to_pylist() == [
            {
                "site_id": site_id,
                "stream_type": "CONVERTER",
                "resolution": resolution,
                "interval_start": at(end - resolution),  # the left edge, not the shown :01
                "interval_end": at(end),
                "kw_total_avg": value,
            }
            for end, value in zip(ends, [1.5, None, -0.0], strict=True)
        ]

    def test_a_slice_and_no_rows_get_all_columns(self) -> None:
        rows = stream([k * 900 for k in range(10)], range(10))
        assert landing_batch("s", "MONITOR", 900, rows.slice(3, 4)).column("kw_total_avg").to_pylist() == [3, 4, 5, 6]
        empty = landing_batch("s", "MONITOR", 900, rows.slice(0, 0))
        assert empty.num_rows == 0
        assert empty.schema.equals(LANDING_SCHEMA, check_metadata=True)

    def test_a_year_of_instants_is_exact(self) -> None:
        ends = range(seconds(utc("2024-01-01")), seconds(utc("2025-01-01")), 900)
        assert len(ends) == 366 * DAY // 900
        batch = landing_batch("s", "MONITOR", 900, stream(ends, [0.0] * len(ends)))
        assert batch.column("interval_start").cast(pa.int64()).to_pylist() == [(end - 900) * 10**6 for end in ends]
