"""Defects that fuzzing found, each as the smallest response that shows it, and its most useful inputs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_stem.api.payloads import read_object
from airflow_provider_stem.errors import StemConfigError, StemDataError, StemError
from airflow_provider_stem.streams.decoding import StreamsDecoder
from airflow_provider_stem.streams.decoding.columnar import read_columnar
from airflow_provider_stem.streams.decoding.plain import read_plain
from airflow_provider_stem.streams.sites import read_sites, stream_starts
from airflow_provider_stem.streams.windows import Window
from tests.servers.processes import HUNG_AFTER

HOUR = Window(datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 1, 1, tzinfo=UTC), 900)


def test_a_repeated_key_among_many_is_found_quickly():
    keys = ",".join(f'"k{number}":1' for number in range(100_000))
    began = time.process_time()
    with pytest.raises(StemDataError, match="repeats the keys k7\\. Try again later"):
        read_object(f'{{{keys},"k7":2}}'.encode())
    assert time.process_time() - began < 5  # comparing all pairs took minutes


def test_a_repeated_key_cannot_flood_or_break_a_message():
    key = "a\\n\\u001b[31m" * 10_000
    with pytest.raises(StemDataError) as raised:
        read_object(f'{{"{key}": 1, "{key}": 2}}'.encode())
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


def test_one_wide_row_does_not_fill_the_memory():
    # A response of 45 kB made a pattern of 45 kB for each of the year's 35,000 intervals: 1.6 GB, twice.
    script = """if True:
        from datetime import UTC, datetime
        from airflow_provider_stem.streams.decoding import StreamsDecoder
        from airflow_provider_stem.streams.windows import Window
        window = Window(datetime(2024, 7, 1, tzinfo=UTC), datetime(2025, 6, 29, tzinfo=UTC), 900)
        row = '"start_datetime":"2025-01-01T00:00:01Z","end_datetime":"2025-01-01T00:15:00Z","kw_total_avg":1.5'
        for wide in ("{" + row + " " * 45_000 + "}", "{" + " " * 45_000 + row + "}"):
            body = '{"stream_types":[{"stream_type":"MONITOR","streams":[' + wide + "]}]}"
            print(StreamsDecoder().decode(body.encode(), "site", ["MONITOR"], window)["MONITOR"].num_rows)
        # The peak that resource reports starts with the peak of the parent process.
        (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(int(peak) // 1024)  # MB
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=HUNG_AFTER)
    first, second, memory = map(int, run.stdout.split())
    assert (first, second) == (1, 1)
    assert memory < 500


def test_many_unknown_fields_do_not_flood_the_log(caplog: pytest.LogCaptureFixture):
    decoder = StreamsDecoder()
    with caplog.at_level(logging.WARNING):
        for answer in range(50):
            fields = "".join(f',"{"x" * 400}{answer}-{number}":1' for number in range(200))
            decoder.decode(f'{{"stream_types":[]{fields}}}'.encode(), "site", ["MONITOR"], HOUR)
    assert len(caplog.messages) == 1
    assert len(caplog.messages[0]) < 1000


@pytest.mark.parametrize(
    "times", [{"a\n\x1b[31m" * 1000: "soon"}, {"MONITOR": ["\n\x1b" * 1000]}, {"\u202eMONITOR": 5}, "\n"]
)
@pytest.mark.parametrize("site_id", ["site", "a\nERROR b\x1b[31m" * 1000])
def test_stream_start_times_cannot_break_or_flood_a_message(times: Any, site_id: str):
    for read in (
        lambda: stream_starts({"stream_start_times": times}, site_id),
        lambda: read_sites({"site_id": site_id, "stream_start_times": times}),
    ):
        with pytest.raises(StemError, match="stream_start_times") as raised:
            read()
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 1300


@pytest.mark.parametrize(
    "sites", ["\n" * 10_000, [["\n" * 10_000]], 10**4000, [{"id": "\x1b" * 10_000, "x": 1} | {"id": 5}]]
)
def test_an_invalid_site_cannot_flood_a_message(sites: Any):
    with pytest.raises(StemConfigError) as raised:
        read_sites(sites)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 700


# The shortest body for each code path in the readers that fuzzing found; bytes, written as characters.
DATA = Path(__file__).with_name("data")
KEPT = [body.encode("latin-1") for body in json.loads((DATA / "fuzz_streams.json").read_text())]


@pytest.mark.parametrize("body", KEPT, ids=range(len(KEPT)))
@pytest.mark.parametrize("lenient", [False, True])
def test_the_readers_agree_on_the_inputs_of_fuzzing(body: bytes, lenient: bool):
    columnar = read_columnar(body, "site", ("MONITOR", "CONVERTER"), HOUR, lenient=lenient)
    try:
        plain, _ = read_plain(body, "site", ("MONITOR", "CONVERTER"), HOUR)
    except StemDataError:
        assert columnar is None
    else:
        assert columnar is None or {n: rows for n, rows in columnar.items() if rows.num_rows} == {
            n: rows for n, rows in plain.items() if rows.num_rows
        }


def test_the_inputs_of_fuzzing_cover_every_code_path():
    taken, refused = 0, 0
    for body in KEPT:
        taken += read_columnar(body, "site", ("MONITOR", "CONVERTER"), HOUR, lenient=True) is not None
        try:
            read_plain(body, "site", ("MONITOR", "CONVERTER"), HOUR)
        except StemDataError:
            refused += 1
    assert min(taken, refused, len(KEPT) - taken - refused) >= 3
