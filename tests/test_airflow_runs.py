"""Runs that a real Airflow makes, on SQLite: what the context holds, what retries, what the database keeps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow import __version__ as airflow_version

from tests.support import Lake, expected_rows, instant, landed_rows

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parent.parent
AIRFLOW_3 = not airflow_version.startswith("2.")

# One process for all of them, since Airflow takes seconds to start. The last line printed is the outcome.
RUNS = """
import json, sys
from datetime import datetime
from airflow.utils.session import create_session
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
try:
    from airflow.models.asset import AssetEvent
    due = "logical_date"
except ImportError:  # of Airflow 2's time
    from airflow.models.dataset import DatasetEvent as AssetEvent
    due = "execution_date"
dags = DagBag(sys.argv[1]).dags
outcomes = {}
for dag_id, bucket in json.loads(sys.argv[2]).items():
    print("RUN", dag_id, flush=True)
    run = dags[dag_id].test(**{due: datetime.fromisoformat(sys.argv[3])}, run_conf={"bucket": bucket})
    tasks = [
        {"task": ti.task_id, "state": str(ti.state), "tries": ti.try_number,
         "receipt": ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index) if ti.task_id == "land" else None}
        for ti in run.get_task_instances()
    ]
    with create_session() as session:
        events = [event.extra for event in session.query(AssetEvent).filter(AssetEvent.source_run_id == run.run_id)]
    outcomes[dag_id] = {"state": str(run.state), "tasks": tasks, "events": events}
print(json.dumps(outcomes))
"""

HOUR = ("2025-07-01T05:00Z", "2025-07-01T06:00Z")
# A plain cron gives its runs an interval on Airflow 2, which goes before the task's default_interval of two hours.
WINDOWS = (
    {
        "data_interval": HOUR,
        "plain_cron_with_default_interval": ("2025-07-01T04:00Z", "2025-07-01T06:00Z"),
    }
    if AIRFLOW_3
    else dict.fromkeys(("data_interval", "plain_cron", "plain_cron_with_default_interval"), HOUR)
)
WITHOUT = ("plain_cron", "no_schedule") if AIRFLOW_3 else ("no_schedule",)


@pytest.fixture(scope="module")
def runs(s3_server, tmp_path_factory):
    """Let Airflow make one run of each DAG; give the outcomes, the log, the lakes and the simulator."""
    from airflow_provider_stem.simulator import Settings, Simulator

    lakes = {dag_id: Lake(s3_server) for dag_id in (*WINDOWS, *WITHOUT)}
    dags = str(ROOT / "tests" / "dags")
    with Simulator(Settings(api_key="the-key-of-the-runs")) as sim:
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")),
            "AIRFLOW__CORE__DAGS_FOLDER": dags,
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
        }
        # Airflow 3.0 refuses to run a task whose outlets it has not seen.
        for command in ("db migrate", "dags reserialize"):
            airflow = [sys.executable, "-m", "airflow", *command.split()]
            subprocess.run(airflow, env=environment, check=True, capture_output=True)
        buckets = json.dumps({dag_id: lake.bucket for dag_id, lake in lakes.items()})
        done = subprocess.run(
            [sys.executable, "-c", RUNS, dags, buckets, "2025-07-01T06:00:00+00:00"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        outcomes = json.loads(done.stdout.splitlines()[-1])
        yield SimpleNamespace(outcomes=outcomes, log=done.stdout + done.stderr, lakes=lakes, sim=sim)


@pytest.mark.parametrize("dag_id", WINDOWS)
def test_a_run_lands_its_window_and_tells_its_asset(dag_id, runs):
    outcome = runs.outcomes[dag_id]
    assert outcome["state"] == "success"
    receipts = [task["receipt"] for task in outcome["tasks"] if task["task"] == "land"]
    assert len(receipts) == len(outcome["events"]) == 2
    for receipt in receipts:
        window = receipt["window"]
        assert (instant(window["start"]), instant(window["end"])) == tuple(map(instant, WINDOWS[dag_id]))
        assert {name: receipt[name] for name in ("window", "objects", "rows")} in outcome["events"]
    expected = expected_rows(runs.sim, runs.sim.fleet.site_ids, ["MONITOR"], 900, *WINDOWS[dag_id])
    assert sorted(landed_rows(runs.lakes[dag_id].table())) == expected


@pytest.mark.parametrize("dag_id", WITHOUT)
def test_a_run_without_an_interval_fails_at_once_and_names_the_remedy(dag_id, runs):
    outcome = runs.outcomes[dag_id]
    assert outcome["state"] == "failed"
    landings = [task for task in outcome["tasks"] if task["task"] == "land"]
    assert [(task["state"], task["tries"]) for task in landings] == [("failed", 1)] * 2
    assert "CronDataIntervalTimetable" in runs.log.split(f"RUN {dag_id}")[-1]
    assert runs.lakes[dag_id].objects() == {}


def test_the_key_is_in_no_log_line(runs):
    lines = [line for line in runs.log.splitlines() if runs.sim.settings.api_key in line]
    if airflow_version.startswith("3.0."):
        # What this one is told to mask, it shows itself at the level of debugging, which a DAG's test() cannot change.
        lines = [line for line in lines if not re.search(r"\[debug +\] .* msg=MaskSecret\(value=", line)]
    assert not lines
