"""
Time that several JSON readers take to convert one response of the API (half a year of two types) to columns.

Each returns start, end and value of every row as Arrow arrays, unchecked. The last line is our decoder, which also
checks every row and drops rows outside the window. Prints medians and ratios::

    python -m benchmarks.json_readers
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import msgspec
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.json
import requests
import simdjson

from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.streams.decoding import StreamsDecoder
from airflow_provider_stem.streams.tables import SHOWN_ROW
from airflow_provider_stem.streams.windows import Window
from tests.servers import progress

SITE, TYPES = "site-00001", ["CONVERTER", "MONITOR"]
WINDOW = Window.covering(datetime.fromisoformat("2025-01-01T00:00Z"), datetime.fromisoformat("2025-07-02T12:00Z"), 900)
FIELDS = SHOWN_ROW.names

Columns = list[pa.StructArray]


class Row(msgspec.Struct):
    """A row as in the API's guide."""

    start_datetime: str
    end_datetime: str
    kw_total_avg: float | None


class Entry(msgspec.Struct):
    """A stream as in the API's guide."""

    stream_type: str
    streams: list[Row]


class Answer(msgspec.Struct):
    """A response as in the API's guide."""

    stream_types: list[Entry]


def by_pyarrow(body: bytes) -> Columns:
    """Parse into one table with given types."""
    types = pa.schema(
        [("stream_types", pa.list_(pa.struct([("stream_type", pa.string()), ("streams", pa.list_(SHOWN_ROW))])))]
    )
    return _by_pyarrow(body, pyarrow.json.ParseOptions(explicit_schema=types, unexpected_field_behavior="ignore"))


def by_pyarrow_that_guesses(body: bytes) -> Columns:
    """Parse into one table with inferred types; times become timestamps."""
    return _by_pyarrow(body, pyarrow.json.ParseOptions())


def _by_pyarrow(body: bytes, parse: pyarrow.json.ParseOptions) -> Columns:
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1)
    lists = pyarrow.json.read_json(pa.BufferReader(body), read, parse)["stream_types"].combine_chunks().flatten()
    return [lists.field("streams").slice(index, 1).flatten() for index in range(len(lists))]


def by_polars(body: bytes) -> Columns:
    """Parse into one frame with given types."""
    shown = pl.List(pl.Struct({"start_datetime": pl.String, "end_datetime": pl.String, "kw_total_avg": pl.Float64}))
    frame = pl.read_ndjson(
        body, schema={"stream_types": pl.List(pl.Struct({"stream_type": pl.String, "streams": shown}))}
    )
    lists = frame["stream_types"].explode().struct.field("streams").explode().to_arrow()
    return [lists]


def by_orjson(body: bytes) -> Columns:
    """Parse into Python objects, then build columns."""
    return [_columns(entry["streams"]) for entry in orjson.loads(body)["stream_types"]]


def by_simdjson(body: bytes) -> Columns:
    """Parse into Python objects on access, then build columns."""
    parsed: Any = simdjson.Parser().parse(body)
    return [_columns(entry["streams"]) for entry in parsed["stream_types"]]


def by_msgspec(body: bytes) -> Columns:
    """Parse into Python objects of a declared type, then build columns."""
    return [
        pa.StructArray.from_arrays(
            [
                pa.array([row.start_datetime for row in entry.streams], pa.string()),
                pa.array([row.end_datetime for row in entry.streams], pa.string()),
                pa.array([row.kw_total_avg for row in entry.streams], pa.float64()),
            ],
            FIELDS,
        )
        for entry in msgspec.json.decode(body, type=Answer).stream_types
    ]


def _columns(rows: Iterable[Any]) -> pa.StructArray:
    starts, ends, values = zip(
        *((r["start_datetime"], r["end_datetime"], r["kw_total_avg"]) for r in rows), strict=True
    )
    return pa.StructArray.from_arrays(
        [pa.array(starts, pa.string()), pa.array(ends, pa.string()), pa.array(values, pa.float64())], FIELDS
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    asked = WINDOW.padded()
    with Simulator(Settings(sites=1)) as sim:
        body = requests.get(
            f"{sim.url}sites/{SITE}/streams",
            params={
                "start_datetime": f"{asked.start:%Y-%m-%dT%H:%M:%SZ}",
                "end_datetime": f"{asked.end:%Y-%m-%dT%H:%M:%SZ}",
                "stream_type": ",".join(TYPES),
            },
            headers={"Authorization": "APIKEY demo-key"},
            timeout=60,
        ).content
    columnar, plain = StreamsDecoder(), StreamsDecoder(columnar=False)
    readers: dict[str, Callable[[bytes], Any]] = {
        "pyarrow": by_pyarrow,
        "pyarrow, guessing": by_pyarrow_that_guesses,
        "polars": by_polars,
        "orjson": by_orjson,
        "simdjson": by_simdjson,
        "msgspec": by_msgspec,
        "our plain decoder": lambda body: plain.decode(body, SITE, TYPES, WINDOW),
        "our decoder": lambda body: columnar.decode(body, SITE, TYPES, WINDOW),
    }
    expected = pa.concat_arrays(by_pyarrow(body))
    for name, reader in readers.items():
        if name in {"pyarrow, guessing", "our plain decoder", "our decoder"}:
            continue
        assert pa.concat_arrays([part.cast(SHOWN_ROW) for part in reader(body)]).equals(expected), name
    taken: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        progress(f"Round {number + 1} of {rounds}")
        for name, reader in readers.items():
            began = time.perf_counter()
            reader(body)
            taken[name].append(time.perf_counter() - began)
    base = statistics.median(taken["pyarrow"])
    print(f"{len(expected):,} rows, {len(body) / 1e6:.1f} MB, {rounds} rounds, medians")
    print(f"{'':20} {'ms':>7} {'of pyarrow':>11} {'MB/s':>6}")
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{name:20} {median * 1e3:7.1f} {median / base:11.2f} {len(body) / median / 1e6:6.0f}")


if __name__ == "__main__":
    main()
