"""Every reader gets exactly the rows and the right sum, or docs/readers.md says why not."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

from .read import COLUMNS, as_rows

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "readers.md"
PYTHONS = {
    **dict.fromkeys(
        ("duckdb", "polars", "pandas", "fastparquet", "datafusion", "chdb", "pyiceberg", "deltalake", "daft"), "readers"
    ),
    **{f"spark {version}": f"readers-spark-{version}" for version in ("3.3", "3.5", "4.1")},
}
TITLES = {
    "duckdb": "DuckDB",
    "pandas": "pandas with pyarrow",
    "fastparquet": "pandas with fastparquet",
    "datafusion": "DataFusion",
    "chdb": "chDB",
    "daft": "Daft",
}
KINDS: dict[str, Callable[[random.Random], float | None]] = {
    "no decimals": lambda draw: float(draw.randrange(-50, 50)),
    "one decimal": lambda draw: draw.randrange(1000) / 10,
    "two decimals": lambda draw: draw.randrange(10_000) / 100,
    "five decimals": lambda draw: draw.randrange(10**7) / 10**5,
    "whole numbers": lambda draw: float(draw.randrange(100_000)),
    "single precision": lambda draw: struct.unpack("f", struct.pack("f", draw.gauss(50, 20)))[0],
    "any digits": lambda draw: draw.gauss(),
    "exponents": lambda draw: draw.choice([1e22, -1.5e-7, 1e-9, 3e25, 0.0]),
    "constant": lambda _: 50.0,
    "zeros": lambda _: 0.0,
    "some nulls": lambda draw: draw.choice([None, draw.randrange(100) / 10]),
    "nulls": lambda _: None,
}
EMPTY = "empty"
# In these a reader that infers types meets a number before any null.
INFERRED = [kind for kind in KINDS if "null" not in kind]
LAYOUTS = [
    *(("parquet", compression, "portable") for compression in ("zstd", "gzip", "snappy", "none")),
    ("parquet", "zstd", "smallest"),
    *((name, compression, "") for name in ("csv", "jsonl") for compression in ("gzip", "zstd", "none")),
]
HEADINGS = {"portable": "Parquet, portable", "smallest": "Parquet, smallest", "csv": "CSV", "jsonl": "JSON Lines"}
BEGIN = datetime(2025, 7, 1, tzinfo=UTC)

Rows = list[tuple[Any, ...]]


@dataclass
class Lake:
    """Objects, what to ask of a reader, and what is right."""

    folder: Path
    requests: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, list[list[Any]]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    cells: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Request to its column of the table, and what of it is read."""

    def ask(
        self, heading: str, what: str, days: list[tuple[Path, Rows]], layout: tuple[str, str, str], **more: Any
    ) -> None:
        """Write objects and add a request for all of them."""
        file_format, compression, encoding = layout
        for path, rows in days:
            path.parent.mkdir(parents=True, exist_ok=True)
            columns: list[Any] = list(zip(*rows, strict=True)) or [()] * 6
            arrays = [pa.array(one, kind.type) for one, kind in zip(columns, LANDING_SCHEMA, strict=True)]
            with path.open("wb") as file:
                batch = pa.RecordBatch.from_arrays(arrays, schema=LANDING_SCHEMA)
                FORMATS[file_format].write([batch], file, compression, encoding or "portable")
        name = f"{heading} {compression} {what}"
        paths = [str(path) for path, _ in days]
        request = {"name": name, "paths": paths, "format": file_format, "compression": compression}
        self.requests.append({"hive": False, "schema": False, **request, **more})
        every = [row for _, rows in days for row in rows]
        self.rows[name] = as_rows({column: [row[n] for row in every] for n, column in enumerate(COLUMNS)})
        self.sums[name] = math.fsum(row[5] for row in every if row[5] is not None)
        self.cells[name] = (heading, f"{compression}: {what}")


def day_of(kind: str, day: int) -> Rows:
    draw = random.Random(day)
    rows = []
    for site_id in () if kind == EMPTY else ("site-a", "site-b"):
        for number in range(96):
            begin = BEGIN + timedelta(days=day, minutes=15 * number)
            rows.append((site_id, "MONITOR", 900, begin, begin + timedelta(minutes=15), KINDS[kind](draw)))
    return rows


def idle(leading: float | None) -> list[Rows]:
    """Thirty days, the first twelve of them without a value other than one."""
    days = []
    for day in range(30):
        values = [leading if day < 12 else k + 0.25 for k in range(96)]
        begins = [BEGIN + timedelta(days=day, minutes=15 * k) for k in range(96)]
        step = timedelta(minutes=15)
        rows = zip(begins, values, strict=True)
        days.append([("site-a", "MONITOR", 900, begin, begin + step, value) for begin, value in rows])
    return days


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake"))


def build(folder: Path) -> Lake:
    made = Lake(folder)
    for layout in LAYOUTS:
        file_format, compression, encoding = layout
        heading = HEADINGS[encoding or file_format]
        ending = FORMATS[file_format].extension(compression)
        folder = made.folder / f"{file_format}-{compression}-{encoding or 'text'}"
        is_text = file_format != "parquet"
        for number, kind in enumerate(INFERRED if is_text else [*KINDS, EMPTY]):
            path = folder / "single" / kind.replace(" ", "-") / f"all.{ending}"
            made.ask(heading, kind, [(path, day_of(kind, number))], layout)
        root = folder / "lake"
        # The empty day lies in the middle.
        kinds = [*list(KINDS)[:6], EMPTY, *list(KINDS)[6:]]
        days = [
            (root / f"date={BEGIN + timedelta(days=day):%Y-%m-%d}" / f"all.{ending}", day_of(kind, day))
            for day, kind in enumerate(kinds)
        ]
        where = {"root": str(root), "pattern": f"{root}/date=*/all.{ending}"}
        made.ask(heading, "data set with an empty day", days, layout, hive=True, schema=is_text, **where)
        if is_text and compression == "gzip":
            for what, leading, schema in (("idle days first", 0.0, False), ("nulls first, with a schema", None, True)):
                root = folder / what.replace(" ", "-")
                days = [
                    (root / f"date={BEGIN + timedelta(days=day):%Y-%m-%d}" / f"all.{ending}", rows)
                    for day, rows in enumerate(idle(leading))
                ]
                where = {"root": str(root), "pattern": f"{root}/date=*/all.{ending}"}
                made.ask(heading, what, days, layout, hive=True, schema=schema, **where)
    return made


@dataclass(frozen=True)
class Result:
    version: str
    failures: dict[str, str]
    """Request to what was wrong."""
    read: set[str]


def run(reader: str, lake: Lake) -> Result:
    python = ROOT / f".venv-{PYTHONS[reader]}" / "bin" / "python"
    done = subprocess.run(
        [python, Path(__file__).parent / "read.py", reader.partition(" ")[0]],
        input=json.dumps(lake.requests),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=lake.folder,
        env={**os.environ, "TZ": "UTC", "PYTHONWARNINGS": "ignore", "PYSPARK_PYTHON": str(python)},
    )
    answered = json.loads(done.stdout.splitlines()[-1])
    failures = {}
    for name, answer in answered["answers"].items():
        if "error" in answer:
            failures[name] = answer["error"]
        elif answer["rows"] != lake.rows[name]:
            failures[name] = "other rows than were written"
        elif not math.isclose(answer["sum"] or 0.0, lake.sums[name], rel_tol=1e-12, abs_tol=1e-9):
            failures[name] = f"sum {answer['sum']!r} instead of {lake.sums[name]!r}"
    return Result(answered["version"], failures, set(answered["answers"]))


@pytest.fixture(scope="session")
def results(lake: Lake) -> dict[str, Result]:
    return {reader: run(reader, lake) for reader in PYTHONS if not reader.startswith("spark") or shutil.which("java")}


def needs_java(reader: str) -> None:
    if reader.startswith("spark") and shutil.which("java") is None:
        pytest.skip("Spark needs Java: apt-get install default-jre-headless")


def test_the_smallest_files_hold_what_portable_ones_do_not(lake: Lake) -> None:
    found: dict[str, set[str]] = {"portable": set(), "smallest": set()}
    for path in lake.folder.rglob("*.parquet"):
        group = pq.read_metadata(path)
        encoding = "smallest" if "smallest" in str(path) else "portable"
        for number in range(group.num_row_groups):
            for column in range(6):
                found[encoding] |= set(group.row_group(number).column(column).encodings)
    assert found["portable"] == {"PLAIN", "RLE_DICTIONARY", "RLE"}
    assert found["smallest"] >= {"BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"}


@pytest.mark.parametrize("reader", PYTHONS)
def test_portable_parquet_is_read_whatever_the_values_are(reader: str, results: dict[str, Result], lake: Lake) -> None:
    needs_java(reader)
    asked = {name for name, (heading, _) in lake.cells.items() if heading == HEADINGS["portable"]}
    assert results[reader].read >= asked
    assert {name: why for name, why in results[reader].failures.items() if name in asked} == {}


@pytest.mark.parametrize("reader", ["duckdb", "polars"])
def test_numbers_of_text_files_are_floats_whatever_comes_first(
    reader: str, results: dict[str, Result], lake: Lake
) -> None:
    asked = {name for name, (heading, _) in lake.cells.items() if not heading.startswith("Parquet")}
    assert len([name for name in asked if "idle" in name]) == 2
    assert lake.sums[next(name for name in asked if "idle" in name)] == 82512.0
    failures = {name: why for name, why in results[reader].failures.items() if name in asked}
    assert failures == {}


def test_the_documentation_has_the_table_of_this_run(results: dict[str, Result], lake: Lake) -> None:
    before, begin, rest = DOCS.read_text().partition("<!-- table -->\n")
    old, end, after = rest.partition("<!-- end of table -->\n")
    assert (begin, end) != ("", "")
    new = table(results, lake)
    if os.environ.get("WRITE_READERS_TABLE"):
        DOCS.write_text(before + begin + new + end + after)
    elif any(reader not in results for reader in PYTHONS):
        pytest.skip("without Java the rows of Spark cannot be compared")
    else:
        assert old == new


def table(results: dict[str, Result], lake: Lake) -> str:
    headings = list(HEADINGS.values())
    lines = [f"| reader | version | {' | '.join(headings)} |", f"|---|---|{'---|' * len(headings)}"]
    notes: list[str] = []
    for reader, result in results.items():
        cells = []
        for heading in headings:
            asked = [name for name, (of, _) in lake.cells.items() if of == heading and name in result.read]
            failed = [name for name in asked if name in result.failures]
            if not asked:
                cells.append("-")
                continue
            marks = []
            for why in dict.fromkeys(reason(result.failures[name]) for name in failed):
                what = [lake.cells[name][1] for name in failed if reason(result.failures[name]) == why]
                note = f"{grouped(what, asked, lake)}: `{why}`"
                if note not in notes:
                    notes.append(note)
                marks.append(f"[{notes.index(note) + 1}]")
            cells.append(f"{len(asked) - len(failed)} of {len(asked)} {' '.join(marks)}" if failed else "all")
        title = "Spark" if reader.startswith("spark") else TITLES.get(reader, reader)
        lines.append(f"| {title} | {result.version} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "".join(f"{n}. {note}\n" for n, note in enumerate(notes, 1))


def grouped(what: list[str], asked: list[str], lake: Lake) -> str:
    """Name compressions that fail as a whole, and the others one by one."""
    every = [lake.cells[name][1] for name in asked]
    named = []
    for compression in dict.fromkeys(one.partition(": ")[0] for one in what):
        of = [one.partition(": ")[2] for one in what if one.startswith(f"{compression}: ")]
        whole = len(of) == len([one for one in every if one.startswith(f"{compression}: ")])
        named.append(compression if whole else f"{compression} ({', '.join(of)})")
    return "; ".join(named)


def reason(error: str) -> str:
    """Return an error's essence: without paths, addresses and line breaks."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    text = causes[-1].removeprefix("Caused by: ") if causes else lines[0]
    text = re.sub(r"(file:)?/+[^\s'\",:]*/", "", text)
    text = re.sub(r"@[0-9a-f]{6,}|[0-9a-f]{8}-[0-9a-f-]{27,}", "", text)
    return text.replace("|", "/").replace("`", "'")[:160]
