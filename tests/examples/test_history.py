from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_stem.errors import StemServerError
from tests.examples.loading import LATE, ROOT, SITES, START, load, loading
from tests.servers.processes import HUNG_AFTER
from tests.support import landed_rows, run_context

__all__ = ["loading"]

pytestmark = [pytest.mark.s3, pytest.mark.stem_simulator(sites=200)]
DAY = timedelta(days=1)


def run_days(loading, start, end):
    """Run the daily load for the days from ``start`` to ``end``, exclusive, as numbers of days after its first day."""
    for number in range(start, end):
        loading.run_day(START + number * DAY)


def test_history_and_daily_load_contain_every_interval_of_every_site_exactly_once(loading, monkeypatch):
    """With an API that fails during a task, and a site that is listed long after its streams began."""
    run_days(loading, 0, 2)
    # Days that may still be restated are not read yet.
    assert [piece["end"][:10] for piece in loading.find_history()] == ["2023-03-02"]
    run_days(loading, 2, 3)

    (days,) = loading.find_history()
    assert (days["start"][:10], days["end"][:10], days["partition"]) == ("2023-03-01", "2023-03-03", "day")
    loading.enter(loading.history, [days], [loading.land(loading.history, days)])
    (first,) = loading.find_history()
    assert (first["start"][:10], first["end"][:10], first["partition"]) == ("2022-04-01", "2023-03-01", "month")
    monkeypatch.setenv("AIRFLOW__STEM__MAX_ATTEMPTS", "1")
    loading.sim.fail(503, after=2, times=None)
    with pytest.raises(StemServerError):
        loading.land(loading.history, first)
    assert loading.keys("stem/history/") == []
    with pytest.raises(AirflowSkipException):  # nothing landed, so no event starts another run
        loading.enter(loading.history, [first], [None])
    loading.sim.clear_faults()

    loading.listed.append(LATE)
    loading.run_history()
    run_days(loading, 3, 7)
    loading.run_history()
    rows = loading.check(START + 6 * DAY)
    assert rows > 200_000

    # Nothing is missing, so nothing is requested or written.
    before = loading.lake.objects()
    loading.count_requests()
    assert loading.run_history() == []
    assert loading.count_requests() == 0
    assert loading.lake.objects() == before


def test_a_landed_window_that_was_not_entered_is_read_again_and_changes_nothing(loading):
    run_days(loading, 0, 3)
    (piece,) = loading.find_history()
    loading.land(loading.history, piece)
    before = loading.lake.objects()
    assert loading.find_history() == [piece]
    loading.land(loading.history, piece)
    assert loading.lake.objects() == before


def test_a_site_that_fails_does_not_block_the_others(loading):
    run_days(loading, 0, 3)
    loading.sim.fail(403, path=f"{SITES[0]}/streams", times=None)
    (piece,) = loading.find_history()
    assert len(piece["sites"]) == 3
    while len(piece["sites"]) > 1:
        loading.enter(loading.history, [piece], [loading.land(loading.history, piece)])
        (piece,) = loading.find_history()
    assert piece["sites"][0]["site_id"] == SITES[0]
    with pytest.raises(AirflowFailException):
        loading.land(loading.history, piece)
    loading.sim.clear_faults()
    loading.run_history()
    loading.check(START + 2 * DAY)


def test_a_stream_type_that_is_added_later_is_read_from_its_start(loading):
    """The API lists it with a start time in the past."""
    hidden, rewrite = {"INTERVAL_REVENUE", "CONVERTER"}, loading.sim.rewrite

    def without_hidden(request, payload):
        for site in rewrite(request, payload).get("sites", ()):
            site["stream_start_times"] = {n: t for n, t in site["stream_start_times"].items() if n not in hidden}
        return payload

    loading.sim.rewrite = without_hidden
    run_days(loading, 0, 3)
    loading.run_history()
    assert {row[1] for row in loading.rows()} == {"MONITOR"}
    hidden.clear()
    run_days(loading, 3, 4)
    loading.run_history()
    loading.check(START + 3 * DAY)


def test_each_task_requests_each_site_once_and_the_events_list_what_landed(loading):
    run_days(loading, 0, 3)
    pieces = loading.find_history()
    loading.count_requests()
    receipts = [loading.land(loading.history, piece) for piece in pieces]
    assert loading.count_requests() == sum(len(piece["sites"]) for piece in pieces)
    extra = loading.enter(loading.history, pieces, [None, *receipts])
    assert extra["objects"] == [one for receipt in receipts for one in receipt["objects"]]
    enter, sum_up = (loading.history.dag.get_task(name) for name in ("enter", "sum_up"))
    assert (enter.trigger_rule, sum_up.trigger_rule) == ("all_done", "all_success")
    assert {task.task_id for task in loading.history.dag.leaves} == {"enter", "sum_up"}
    for none_landed in (None, [], [None]):
        with pytest.raises(AirflowSkipException):
            enter.python_callable(pieces if none_landed else None, none_landed, **run_context())


def test_the_history_runs_after_the_daily_load_and_has_the_same_settings(loading):
    daily, history = loading.daily, loading.history
    timetable = history.dag.timetable
    condition = getattr(timetable, "asset_condition", None) or timetable.dataset_condition
    assert {asset.uri for asset in condition.objects} == {daily.TELEMETRY.uri, history.HISTORY.uri}
    assert history.PATHS["day"] == daily.PATH
    assert not history.PATHS["month"].startswith(f"{daily.LAKE}/daily/")
    assert (daily.LOOKBACK, daily.START) == (history.LOOKBACK, history.START)
    assert history.STREAM_TYPES == daily.STREAM_TYPES
    priorities = [module.dag.get_task("land_streams").priority_weight for module in (history, daily)]
    assert priorities == [1, 10]


def test_one_variable_loads_into_a_folder_instead(loading, tmp_path, monkeypatch):
    monkeypatch.setenv("STEM_LAKE", f"file://{tmp_path}/stem/")
    loading.daily, loading.history = load("stem_daily"), load("stem_history")
    run_days(loading, 0, 4)
    extras = loading.run_history()
    files = list(tmp_path.glob("stem/*/*/*.parquet"))
    assert {one["uri"] for extra in extras for one in extra["objects"]} <= {f"file://{file}" for file in files}
    tables = pa.concat_tables(pq.ParquetFile(file).read() for file in files)
    monkeypatch.setattr(loading, "rows", lambda: landed_rows(tables))
    assert loading.check(START + 3 * DAY) > 0
    assert [file.name for file in tmp_path.glob("stem/ledger/*.json")] == ["001-of-001.json"]
    assert loading.lake.objects() == {}


@pytest.mark.parametrize("start", ["2025-07-15T06:00", "2025-07-15T00:00+02:00"])
@pytest.mark.parametrize("name", ["stem_daily", "stem_history", "stem_history_approved"])
def test_the_first_day_is_a_date_in_each_dag(start, name, monkeypatch):
    monkeypatch.setenv("STEM_START", start)
    with pytest.raises(ValueError, match="unconverted data remains"):
        load(name)


RUNS = """
import sys, datetime
from pathlib import Path
from airflow.utils.db import initdb

initdb()
sys.path.insert(0, sys.argv[1])
import stem_daily, stem_history

due = datetime.datetime.fromisoformat(sys.argv[2])
now = datetime.datetime.now(datetime.UTC)
# Each event of the history starts its next run. The last run finds nothing.
runs = [(stem_history, now + number * datetime.timedelta(seconds=1)) for number in range(4)]
for module, at in [(stem_daily, due), *runs]:
    run = module.dag.test(**{"execution_date" if AIRFLOW_2 else "logical_date": at})
    states = sorted((task.task_id, task.map_index, str(task.state)) for task in run.get_task_instances())
    print("STATES", run.state, states)
"""


@pytest.mark.airflow
@pytest.mark.skipif(version("apache-airflow").startswith("3.0."), reason="dag.test() considers its assets inactive")
def test_airflow_runs_both_dags(loading, tmp_path):
    """With mapped tasks, and arguments that passed through XCom."""
    folder = ROOT / "example_dags"
    (tmp_path / "run.py").write_text(f"AIRFLOW_2 = {version('apache-airflow').startswith('2.')}\n{RUNS}")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "STEM_BATCHES": "3",  # of which one has no site
    }
    loading.sim.now = None
    due = f"{START + 3 * DAY}T00:00:00+00:00"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(folder), due],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HUNG_AFTER,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    daily, *history = (line for line in done.stdout.splitlines() if line.startswith("STATES"))
    assert (daily.count("land_streams"), daily.count("success")) == (2, 7)
    assert [run.count("skipped") for run in history] == [0, 0, 0, 3]
    assert [run.count("success") - run.count("land_streams") for run in history] == [5, 5, 5, 2]
    loading.check(START + 2 * DAY)
