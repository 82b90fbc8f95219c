"""The completeness page: its content, its validation, and the DAG that publishes it."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import re
import tracemalloc
import zlib
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.completeness import COLUMNS, STATUSES, Summary, write_page
from airflow_provider_stem.errors import StemConfigError
from tests.support import printed_by
from tests.warehouse.conftest import engine

__all__ = ["engine"]

ROOT = Path(__file__).parent.parent
FIRST, LAST = date(2025, 7, 1), date(2025, 7, 10)
MADE = datetime(2025, 7, 11, 6, 0, 5, tzinfo=UTC)
NAIVE = MADE.replace(tzinfo=None)
ROW = ("site-00001", "MONITOR", 900, FIRST, 96, 96, 0, "complete")


def page_of(rows, first=FIRST, last=LAST, made=MADE):
    file = BytesIO()
    summary = write_page(rows, file, first_day=first, last_day=last, made=made)
    return file.getvalue().decode(), summary


def rows_in(page):
    """Return the rows that a page contains."""
    (data,) = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]*)</script>', page)
    raw = zlib.decompress(base64.b64decode(data, validate=True))
    begin = 4 + int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4:begin])
    rows = []
    for site, lines in zip(head["sites"], head["lines"], strict=True):
        for kind in lines:
            for n in range(head["days"]):
                status, *counts = raw[begin : begin + 4]
                begin += 4
                if status:
                    day = date.fromisoformat(head["first"]) + timedelta(n)
                    rows.append((site, *head["kinds"][kind], day, *counts, STATUSES[status - 1]))
    assert begin == len(raw)
    return rows


class Reader(HTMLParser):
    """Parser of a page's tags, and of the text in its table."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.cells, self._in = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag):
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data):
        if {"th", "td"} & {*self._in}:
            self.cells[-1] += data


def worst_in(page):
    cells = [cell.strip() for cell in Reader(page).cells]
    return [tuple(cells[n : n + 7]) for n in range(7, len(cells), 7)]


COUNTS = st.integers(0, 96)
KEYS = st.tuples(
    st.text(min_size=1, max_size=5).filter(str.isprintable),
    st.sampled_from(["MONITOR", "CONVERTER", "INTERVAL_REVENUE"]),
    st.sampled_from([900, 1800, 3600]),
    st.dates(FIRST, LAST),
)


@given(st.dictionaries(KEYS, st.tuples(COUNTS, COUNTS, COUNTS, st.sampled_from(STATUSES)), max_size=40), st.randoms())
def test_the_page_contains_every_row_regardless_of_their_order(values, rand):
    rows = [(*key, *value) for key, value in values.items()]
    page, summary = page_of(rows)
    assert sorted(rows_in(page)) == sorted(rows)
    missing = {row: max(0, row[4] - row[5]) for row in rows}
    assert summary == Summary(
        sites=len({row[0] for row in rows}),
        streams=len({row[:3] for row in rows}),
        expected=sum(row[4] for row in rows),
        received=sum(row[5] for row in rows),
        missing=sum(missing.values()),
        late=sum(row[6] for row in rows),
    )
    by_site = {site: sum(missing[row] for row in rows if row[0] == site) for site in {row[0] for row in rows}}
    order = list(dict.fromkeys(row[0] for row in rows_in(page)))
    assert [by_site[site] for site in order] == sorted(by_site.values(), reverse=True)
    rand.shuffle(rows)
    assert page_of(rows)[0] == page


def test_the_page_has_the_time_of_the_rows_and_the_days():
    page, _ = page_of([ROW], made=datetime(2025, 7, 11, 1, 2, 3, tzinfo=timezone(timedelta(hours=-5))))
    assert "<title>Completeness of Stem telemetry, 2025-07-01 to 2025-07-10 (UTC days)</title>" in page
    assert "<time>2025-07-11 06:02:03 UTC</time>" in page


def test_the_table_lists_only_the_twenty_worst_sites():
    rows = [(f"site-{n:02}", "MONITOR", 900, FIRST, 96, 96 - n, 0, "missing" if n else "complete") for n in range(30)]
    rows.append(("site-29", "CONVERTER", 1800, FIRST + timedelta(1), 48, 40, 0, "missing"))
    rows.append(("site-00", "CONVERTER", 1800, FIRST, 0, 5, 0, "not expected"))
    table = worst_in(page_of(rows)[0])
    assert table[0] == ("site-29", "144", "107", "37", "25.69 %", "0", "2")
    assert [row[0] for row in table] == [f"site-{n:02}" for n in range(29, 9, -1)]


def test_the_table_says_if_nothing_is_missing_or_late():
    page, _ = page_of([ROW])
    assert worst_in(page) == [("site-00001", "96", "96", "0", "0 %", "0", "0")]
    assert "1 site, 1 stream. 0 % of 96 expected intervals are missing, 0 came late." in page
    assert rows_in(page_of([])[0]) == []


@pytest.mark.parametrize(
    ("missing", "share"), [(1, "under 0.01 %"), (250, "1 %"), (24999, "over 99.99 %"), (25000, "100 %")]
)
def test_shares_are_not_rounded_to_0_or_100_per_cent(missing, share):
    rows, left = [], missing
    for n in range(100):
        count = min(250, left)
        left -= count
        rows.append((f"s{n}", "MONITOR", 900, FIRST, 250, 250 - count, 0, "missing" if count else "complete"))
    assert f"{share} of 25,000 expected" in page_of(rows)[0]


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>',
    "'); alert(1); ('",
    "{{script}}{{data}}",
    "\\u003cscript\\u003e \\x3c",
    "a\u2028b\u2029c\r\nd\x1b[31m\x00\x7f",
    "\u202eetis\u2066",
    "\ud800",
    "]]>&lt;&amp;</table></main>",
]


def test_ids_from_the_api_are_escaped():
    plain = Reader(page_of([(f"site-{n}", *ROW[1:5], 90, 0, "missing") for n in range(len(HOSTILE))])[0])
    page, _ = page_of([(site, *ROW[1:5], 90, 0, "missing") for site in HOSTILE])
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in plain.tags]
    ids = {row[0] for row in worst_in(page)}
    assert len(ids) == len(HOSTILE)
    assert {"a\\u2028b\\u2029c\\r\\nd\\x1b[31m\\x00\\x7f", "\\u202eetis\\u2066", "\\ud800", HOSTILE[0]} <= ids
    assert {row[0] for row in rows_in(page)} == ids
    page, _ = page_of([("a", site, *ROW[2:]) for site in HOSTILE])
    assert {row[1] for row in rows_in(page)} == ids


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    page, _ = page_of([ROW])
    reader = Reader(page)
    addresses = [v for _, attrs in reader.tags for k, v in attrs.items() if k in ("src", "href", "action", "data")]
    assert addresses == ["data:,"]
    assert not re.search(r"https?:|@import|url\(|innerHTML|eval\(", page)
    (policy,) = [a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy


def test_memory_does_not_grow_with_the_number_of_rows():
    def rows():
        rand = random.Random(1)
        for day in range(90):
            for site in range(300):
                for stream_type in ("MONITOR", "CONVERTER", "INTERVAL_REVENUE"):
                    received = rand.randrange(97)
                    yield (f"site-{site}", stream_type, 900, FIRST + timedelta(day), 96, received, 0, "missing")

    tracemalloc.start()
    try:
        with Path("/dev/null").open("wb") as file:
            write_page(rows(), file, first_day=FIRST, last_day=FIRST + timedelta(89), made=MADE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 81,000 rows are 0.3 MB of cells; as tuples they would be over 10 MB.
    assert peak < 3_000_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"site_id": None}, "site_id must be a string, got None"),
        ({"site_id": 17}, "site_id must be a string, got 17"),
        ({"stream_type": b"MONITOR"}, "stream_type must be a string, got b'MONITOR'"),
        ({"resolution": 60}, "Invalid resolution 60. Use one of 900, 1800, 3600"),
        (
            {"day": date(2025, 7, 11)},
            r"Invalid day datetime.date\(2025, 7, 11\) in a row of site site-00001. Use dates from first_day",
        ),
        ({"day": NAIVE}, "Invalid day datetime.datetime"),
        ({"day": "2025-07-01"}, "Invalid day '2025-07-01' in a row"),
        ({"expected": None}, "expected must be a number of intervals from 0 to 255, got None"),
        ({"expected": 256}, "expected must be .*, got 256"),
        ({"received": -1}, "received must be .*, got -1"),
        ({"received": "96"}, "received must be .*, got '96'"),
        ({"late": 0.5}, "late must be .*, got 0.5"),
        ({"late": float("nan")}, "late must be .*, got nan"),
        ({"late": Decimal("NaN")}, r"Invalid row in rows: \('site-00001', .*\. Use site_id, stream_type, "),
        ({"status": "Complete"}, "status must be one of complete, late, missing, not expected, got 'Complete'"),
        ({"status": ["late"]}, r"Invalid row in rows: \('site-00001'"),
        ({"site_id": []}, r"Invalid row in rows: \(\[\], 'MONITOR'"),
    ],
)
def test_an_invalid_value_is_named(wrong, message):
    row = {**dict(zip(COLUMNS, ROW, strict=True)), **wrong}
    with pytest.raises(StemConfigError, match=message):
        page_of([tuple(row.values())])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW[:7]], r"Invalid row in rows: \('site-00001', .*\. Use site_id, stream_type"),
        ([17], "Invalid row in rows: 17. Use"),
        (
            [ROW, (*ROW[:5], 95, 0, "missing")],
            "Duplicate row in rows: site site-00001, MONITOR, 900, 2025-07-01. Use one row for each",
        ),
    ],
)
def test_an_invalid_row_is_named(rows, message):
    with pytest.raises(StemConfigError, match=message):
        page_of(rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": "2025-07-01"}, "first_day must be a date, got '2025-07-01'"),
        ({"last": NAIVE}, "last_day must be a date, got datetime"),
        ({"last": date(2025, 6, 30)}, "first_day 2025-07-01 and last_day 2025-06-30: 0 days. Use 1 to 3,660 days"),
        ({"last": date(2045, 6, 30)}, "Use 1 to 3,660 days"),
        ({"made": NAIVE}, "made must be a datetime with a time zone, got datetime"),
        ({"made": FIRST}, "made must be .*, got datetime.date"),
    ],
)
def test_an_invalid_time_is_named(wrong, message):
    with pytest.raises(StemConfigError, match=message):
        page_of([], **wrong)


def test_counts_can_be_decimals_of_a_database():
    page, _ = page_of([(*ROW[:4], Decimal(96), Decimal("90.0"), 0, "missing")])
    assert rows_in(page) == [(*ROW[:4], 96, 90, 0, "missing")]


HEAVY = {"boto3", "botocore", "duckdb", "numpy", "pandas", "pyarrow", "requests", "sqlalchemy"}


def test_the_module_imports_nothing_heavy():
    program = "import sys, json, airflow_provider_stem.completeness\nprint(json.dumps(sorted(sys.modules)))"
    assert not {name.partition(".")[0] for name in printed_by(program)} & (HEAVY | {"airflow"})


def test_parsing_the_example_does_not_import_what_only_its_task_needs():
    program = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
import pendulum
from airflow.providers.common.compat.sdk import DAG, BaseHook, task
from airflow.timetables.interval import CronDataIntervalTimetable
with DAG("twin", schedule=None):
    task(lambda: None, task_id="nothing")()
before = set(sys.modules)
spec = spec_from_file_location("example", sys.argv[1])
spec.loader.exec_module(module_from_spec(spec))
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    loaded = printed_by(program, str(ROOT / "example_dags" / "stem_completeness.py"))
    assert not {name.partition(".")[0] for name in loaded} & (HEAVY | {"airflow_provider_stem"})


def test_the_parts_of_the_page_are_in_the_wheel():
    from hatchling.builders.wheel import WheelBuilder

    released = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    folder = "airflow_provider_stem/completeness/templates"
    parts = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert len(parts) > 5
    assert parts <= released


@pytest.fixture
def publish():
    """Return the function of the example DAG's task."""
    spec = importlib.util.spec_from_file_location("stem_completeness", ROOT / "example_dags" / "stem_completeness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dag.get_task("publish_page").python_callable


@pytest.mark.s3
@pytest.mark.parametrize("days", [3, 13])
def test_the_example_publishes_the_last_days_of_the_view(days, engine, publish, lake, monkeypatch):
    today = datetime.now(UTC).date()
    covered = [
        (site, stream_type, 900, today - timedelta(back), 96, 96 - short * n, n, "missing" if short * n else "complete")
        for n, site in enumerate(["whole", "o'clock", "</script>"])
        for stream_type in ("CONVERTER", "MONITOR")
        for short, back in enumerate((1, 2, days), 1)
    ]
    others = [("old", "MONITOR", 900, today - timedelta(back), 96, 0, 0, "missing") for back in (0, days + 1)]
    values = ", ".join(f"{(*row[:3], str(row[3]), *row[4:])}" for row in covered + others).replace(
        '"o\'clock"', "'o''clock'"
    )
    names = "site_id, stream_type, resolution, day, expected, received, late, status"
    warehouse = engine.connect()
    cursor = warehouse.cursor()
    cursor.execute("CREATE SCHEMA stem")
    cursor.execute("CREATE TABLE stem.sites AS SELECT 'whole' AS site_id, 'West' AS name, NULL AS valid_to")
    # Some databases return the sum of integers as a decimal. The columns are in another order.
    cursor.execute(
        "CREATE TABLE stem.days (status text, late bigint, received decimal(20, 0), expected bigint, day date, "
        "resolution integer, stream_type text, site_id text)"
    )
    cursor.execute(f"INSERT INTO stem.days ({names}) VALUES {values}")
    cursor.execute("CREATE VIEW stem.completeness AS SELECT * FROM stem.days")
    warehouse.commit()
    warehouse.close()
    monkeypatch.setenv("AIRFLOW_CONN_STEM_WAREHOUSE", engine.connection)
    params = {"path": f"s3://{lake.bucket}/stem/", "days": days}

    lake.client.put_object(Bucket=lake.bucket, Key="stem/completeness.html", Body=b"of yesterday")
    published = publish(params={"conn_id": None, **params})

    (body,) = lake.objects().values()
    assert sorted(rows_in(body.decode())) == sorted(covered)
    assert published == {
        "uri": f"s3://{lake.bucket}/stem/completeness.html", "bytes": len(body), "sites": 3, "streams": 6,
        "expected": 18 * 96, "received": 18 * 96 - 36, "missing": 36, "late": 18,
    }  # fmt: skip
    head = lake.client.head_object(Bucket=lake.bucket, Key="stem/completeness.html")
    assert head["ContentType"] == "text/html; charset=utf-8"
