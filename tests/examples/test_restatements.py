"""The example DAG that reports restatements: after days of a simulated API, with foreign ids, and of an empty day."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, date, datetime
from typing import Any
from xml.etree import ElementTree as ET

import duckdb
import pytest

from airflow_provider_stem.warehouse.sites import load_sites, read_records
from tests.examples.loading import ROOT, START, load, loading
from tests.examples.test_to_warehouse import DAY, values_of, warehouse
from tests.examples.test_warehouse import RUN
from tests.support import run_context
from tests.warehouse.conftest import engine
from tests.warehouse.helpers import Bucket, at

__all__ = ["engine", "loading", "warehouse"]

pytestmark = [pytest.mark.s3]
PARAMS = {"prefix": "stem/restatements", "day": None, "rows": 10_000, "bars": 20}


def read(page):
    """Return the rows of the table, and the names and values of the bars. The page must be well-formed."""
    text = page.decode()
    assert "<script" not in text
    head, _, body = text.partition("</head>")
    assert """content="default-src 'none'; style-src 'unsafe-inline'">""" in head
    root = ET.fromstring(body.removesuffix("</html>"))
    rows = ["".join(cell.itertext()) for row in root.iter("tr") for cell in row.iter("td")]
    bars = [tuple(text.text for text in bar.iter("text")) for bar in root.iter("g")]
    return [tuple(rows[n : n + 11]) for n in range(0, len(rows), 11)], bars, root


@pytest.mark.airflow
@pytest.mark.stem_simulator(sites=200, settle=2 * 3600, restate=2 * 86_400)
def test_airflow_reports_what_the_lake_shows_as_changed(loading, warehouse, tmp_path):
    expected: dict[tuple[str, ...], list[float]] = defaultdict(list)
    before: dict[Any, float | None] = {}
    for number in range(3):
        warehouse.load(loading.run_day(START + number * DAY))
        after = values_of(loading)
        for (site_id, stream_type, resolution, start, _), old in before.items():
            new = after[site_id, stream_type, resolution, start, start + resolution]
            if new != old:
                day = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}"
                expected[site_id, stream_type, f"{resolution}", day].append(((new or 0) - (old or 0)) / 4)
        before = after
    # Of one day, also if the test ran at midnight.
    with duckdb.connect(str(warehouse.path)) as connection:
        connection.execute("UPDATE stem.restatements SET changed_at = TIMESTAMPTZ '2025-07-01 23:00Z'")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "example_dags" / "stem_restatements.py"), loading.lake.bucket],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows, bars, _ = read(loading.lake.read("stem/restatements/2025-07-01.html"))
    assert len(rows) > 3
    found = {row[:4]: [float(number.replace(",", "")) for number in row[4:7]] for row in rows}
    assert found == {
        key: [pytest.approx(sum(kwh), abs=1e-6), pytest.approx(sum(map(abs, kwh)), abs=1e-6), len(kwh)]
        for key, kwh in expected.items()
    }
    times = ("2025-07-01 23:00:00",) * 2
    assert {row[7:] for row in rows} == {(*times, "stem_to_warehouse", "a-run")}
    assert len(bars) == len({key[:3] for key in expected})


@pytest.fixture
def publish(monkeypatch, lake, engine):
    """Return a function that publishes the report of a day, and returns what the task returns, and the page."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_WAREHOUSE", engine.connection)
    monkeypatch.setitem(sys.modules, "pytz", None)  # nothing that a user must have installs it
    task = load("stem_restatements").dag.get_task("publish_page")

    def run(date_of_run, **params):
        context = run_context(f"{date_of_run}T12:00Z", f"{date.fromisoformat(date_of_run) + DAY}T12:00Z")
        returned = task.python_callable(**context, params={**PARAMS, "bucket": lake.bucket, **params})
        key = f"stem/restatements/{returned['day']}.html"
        assert returned["uri"] == f"s3://{lake.bucket}/{key}"
        answer = lake.client.get_object(Bucket=lake.bucket, Key=key)
        assert answer["ContentType"] == "text/html; charset=utf-8"
        return returned, answer["Body"].read()

    return run


SITES = ["<b>&\"o'clock", "</svg><script>alert(1)</script>", "{{ 7 * 7 }}", "a\u202eb\nc", "x" * 300, "=1+1"]


def test_a_report_has_the_changes_of_a_local_day_with_foreign_text_as_text(engine, publish):
    records = [
        {"site_id": site_id, "name": "a", "client_id": "c", "stream_start_times": {"MONITOR": "2025-01-01T00:00:01Z"}}
        for site_id in SITES
    ]
    zones = {SITES[0]: "America/Los_Angeles"}
    load_sites(read_records(records), engine.session(), time_zone=zones, listed_at=at("01T00:00"))
    bucket = Bucket()
    # Each load: +4 kW and then -8 kW for a quarter of an hour; the last value becomes unknown.
    for hour, values in [("02T00:00", [0.0, 8.0]), ("02T22:00", [4.0, 8.0]), ("03T03:00", [-4.0, None])]:
        streams = {(site_id, "MONITOR"): values for site_id in SITES}
        receipt = bucket.land("day", streams, "01T08:00", "01T08:30")
        bucket.load(engine, receipt, at=at(hour), run_id="<i>run")

    returned, page = publish("2025-07-02")
    assert {name: returned[name] for name in ("day", "sites", "changes")} == {
        "day": "2025-07-02", "sites": 6, "changes": 8,
    }  # fmt: skip
    rows, bars, _ = read(page)
    shown = [*SITES[:3], "a\\u202eb\\nc", *SITES[4:]]
    # 22:00 UTC and 3:00 UTC are the afternoon and the evening of 2 July in Los Angeles.
    local = (shown[0], "MONITOR", "900", "2025-07-01", "-3.0", "5.0", "3")
    times = ("2025-07-02 22:00:00", "2025-07-03 03:00:00")
    assert rows[0] == (*local, *times, "dag", "<i>run")
    assert sorted(rows[1:]) == sorted(
        (site_id, "MONITOR", "900", "2025-07-01", "1.0", "1.0", "1", times[0], times[0], "dag", "<i>run")
        for site_id in shown[1:]
    )
    assert bars[0] == (f"{shown[0]} MONITOR 900 s", "-3.00")
    assert sorted(bars[1:]) == sorted((f"{site_id[:30]} MONITOR 900 s", "+1.00") for site_id in shown[1:])
    assert b"{{ 7 * 7 }}" in page

    assert publish("2025-07-09", day="2025-07-02") == (returned, page)
    _, short = publish("2025-07-02", rows=2, bars=1)
    rows, bars, root = read(short)
    assert (len(rows), len(bars)) == (2, 1)
    assert "The first 2 of 6 rows." in " ".join("".join(root.itertext()).split())


def test_a_value_that_changes_back_is_shown_with_what_changed_in_between(engine, publish):
    bucket = Bucket()
    for hour, value in [("02T01:00", 1.0), ("02T02:00", 5.0), ("02T03:00", 1.0)]:
        receipt = bucket.land("day", {("site-a", "CONVERTER"): [value]}, "01T08:00", "01T08:15")
        bucket.load(engine, receipt, at=at(hour))
    returned, page = publish("2025-07-02")
    [row], [bar], root = read(page)
    assert row[4:7] == ("0.0", "2.0", "2")
    assert bar == ("site-a CONVERTER 900 s", "+0.00")
    gross, net = (float(one.attrib["width"]) for one in root.iter("rect"))
    assert (gross, net) == (200, 0)
    assert returned["changes"] == 2


def test_a_day_without_restatements_has_a_report_that_says_so(engine, publish):
    with engine.session()() as session, session.transaction():
        session.create_missing()
    returned, page = publish("2025-07-02")
    assert (returned["sites"], returned["changes"]) == (0, 0)
    assert "<strong>2025-07-02</strong> in the time zone of each site.\nNo value was restated.</p>" in page.decode()
    assert read(page)[:2] == ([], [])


def test_a_run_that_is_triggered_without_an_interval_reports_the_day_before_it(engine, publish, lake, monkeypatch):
    with engine.session()() as session, session.transaction():
        session.create_missing()
    context = run_context()
    context["dag_run"].run_after = at("05T09:00")
    task = load("stem_restatements").dag.get_task("publish_page")
    assert task.python_callable(**context, params={**PARAMS, "bucket": lake.bucket})["day"] == "2025-07-04"
