from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from processes import HUNG_AFTER

from airflow_provider_stem.errors import StemServerError
from tests.examples.loading import LATE, ROOT, START, loading

__all__ = ["loading"]

pytestmark = [pytest.mark.s3, pytest.mark.stem_simulator(sites=200)]
DAY = timedelta(days=1)


def run_days(loading, start, end):
    """Run the daily load for days, counted from its first one; the end is not among them."""
    for number in range(start, end):
        loading.run_day(START + number * DAY)


def test_history_and_daily_load_hold_every_interval_of_every_site_exactly_once(loading, monkeypatch):
    """With an API that fails half-way, and a site that is listed long after its streams began."""
    run_days(loading, 0, 1)
    # The days before the first are still being restated, as the whole month that holds them would be.
    assert {piece["end"][:10] for piece in loading.lacking()} == {"2023-03-01", "2022-04-01"}
    run_days(loading, 1, 3)

    # It fails with the second of three, and only the first is in the lake; nothing of the second is.
    first, second, _ = loading.lacking()
    loading.land(loading.history, first)
    before = loading.keys("stem/history/")
    monkeypatch.setenv("AIRFLOW__STEM__MAX_ATTEMPTS", "1")
    loading.sim.fail(503, after=2, times=None)
    with pytest.raises(StemServerError):
        loading.land(loading.history, second)
    assert loading.keys("stem/history/") == before
    loading.sim.clear_faults()

    # A new site comes: the next run must not begin with it before the daily load has entered it.
    loading.listed.append(LATE)
    loading.asked()
    receipts = loading.run_history()
    assert [receipt["window"]["start"][:10] for receipt in receipts] == ["2022-04-01", "2022-03-01"]
    assert loading.asked() == sum(receipt["requests"] for receipt in receipts) == 3 + 2  # one began in April

    run_days(loading, 3, 7)
    assert {site["site_id"] for piece in loading.lacking() for site in piece["sites"]} == {LATE}
    loading.run_history()
    rows = loading.check(START + 6 * DAY)
    assert rows > 200_000

    # All is there: nothing is asked for, and nothing is written.
    before = loading.lake.objects()
    loading.asked()
    assert loading.run_history() == []
    assert loading.asked() == 0
    assert loading.lake.objects() == before


def test_what_was_uploaded_in_part_is_read_again_and_nothing_else(loading):
    loading.listed = ["site-00126"]
    run_days(loading, 0, 3)
    loading.run_history()
    before = loading.lake.objects()
    lost = [key for key in before if "month=2022-07" in key]
    for key in lost:
        loading.lake.client.delete_object(Bucket=loading.lake.bucket, Key=key)
    assert [(piece["start"][:10], piece["end"][:10]) for piece in loading.lacking()] == [("2022-04-01", "2023-03-01")]
    loading.run_history()
    assert lost
    assert loading.lake.objects() == before


def test_each_task_asks_for_each_site_once_and_a_run_has_so_many_tasks(loading):
    run_days(loading, 0, 3)
    loading.history.TASKS = 2
    newest, older = loading.lacking()
    assert (newest["start"][:10], newest["end"][:10], newest["partition"]) == ("2023-03-01", "2023-03-03", "interval")
    loading.asked()
    loading.land(loading.history, older)
    assert loading.asked() == len(older["sites"])
    go_on = loading.history.dag.get_task("go_on").python_callable
    go_on([{}, {}])
    with pytest.raises(AirflowSkipException):
        go_on([{}])


def test_history_comes_after_the_daily_load(loading):
    timetable = loading.history.dag.timetable
    condition = getattr(timetable, "asset_condition", None) or timetable.dataset_condition
    uris = {asset.uri for asset in condition.objects}
    assert uris == {loading.daily.TELEMETRY.uri, loading.history.MORE.uri}
    assert loading.history.HISTORY.uri not in uris  # it is told of each run, also of one that failed in part
    assert loading.history.SETTLE == loading.daily.LOOKBACK
    assert loading.history.KEY.startswith("stem/history/")
    priorities = [module.dag.get_task("land_streams").priority_weight for module in (loading.history, loading.daily)]
    assert priorities == [1, 10]


RUNS = """
import sys, datetime
from pathlib import Path
from airflow.utils.db import initdb

initdb()
sys.path.insert(0, sys.argv[1])
import stem_daily, stem_history

due = datetime.datetime.fromisoformat(sys.argv[2])
for module, at in (stem_daily, due), (stem_history, datetime.datetime.now(datetime.UTC)):
    run = module.dag.test(**{"execution_date" if AIRFLOW_2 else "logical_date": at})
    states = sorted((task.task_id, task.map_index, str(task.state)) for task in run.get_task_instances())
    print("STATES", run.state, states)
"""


@pytest.mark.airflow
@pytest.mark.skipif(version("apache-airflow").startswith("3.0."), reason="dag.test() takes its assets for inactive")
def test_airflow_runs_both(loading, tmp_path):
    """Mapped, with what XCom makes of the pieces."""
    folder = ROOT / "example_dags"
    (tmp_path / "run.py").write_text(f"AIRFLOW_2 = {version('apache-airflow').startswith('2.')}\n{RUNS}")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "STEM_BATCHES": "2",
    }
    # The first run that there is reads all days from the first one on, looking back.
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
    daily, history = (line for line in done.stdout.splitlines() if line.startswith("STATES"))
    assert (daily.count("land_streams"), daily.count("success")) == (2, 7)
    assert (history.count("land_streams"), history.count("skipped")) == (6, 1)
    loading.check(START + 2 * DAY)
