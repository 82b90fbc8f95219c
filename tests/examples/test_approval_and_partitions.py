"""The example DAGs for Airflow 3.1 and 3.3: an approval before a load, and a month's energy from daily partitions."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest

from airflow_provider_stem.assets import combined
from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.simulator import Settings, Simulator
from tests.examples.loading import ROOT
from tests.servers.airflow_server import AirflowServer
from tests.support import Lake, expected_rows, run_context

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.s3,
    pytest.mark.skipif(
        tuple(map(int, version("apache-airflow").split(".")[:2])) < (3, 3), reason="partitions exist since Airflow 3.3"
    ),
]
SITES = ["site-00001", "site-00002", "site-00003"]
IMPORTS = ["airflow.providers.amazon.aws.hooks.s3", "airflow_provider_stem.operators"]
# MONITOR of site-00003 begins on the last day, and that of site-00001 later.
PERIOD = {"first_day": "2020-01-16", "last_day": "2020-01-17"}
DAY = timedelta(days=1)
MONTH = datetime(2025, 2, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC)


class Started:
    """An Airflow with the examples, which land in the lake from the simulator."""

    def __init__(self, airflow, lake, sim):
        self.airflow, self.lake, self.sim = airflow, lake, sim

    def approve_or_reject(self, choice=None, **params):
        """Run the load of the period, and return its state, the question, and the task instances by task."""
        dag_id = "stem_history_approved"
        run = self.airflow.trigger(dag_id, conf={**PERIOD, **params})
        question = None
        if choice:
            detail = f"dags/{dag_id}/dagRuns/{run}/taskInstances/ask/-1/hitlDetails"
            self.airflow.wait_until(lambda: self._waits_for_answer(dag_id, run), "the question")
            question = self.airflow.call("GET", detail)
            assert question["response_received"] is False
            self.airflow.call("PATCH", detail, json={"chosen_options": [choice], "params_input": {}})
        state = self.airflow.wait_for_run(dag_id, run)
        tasks = defaultdict(list)
        for task in self.airflow.tasks(dag_id, run):
            tasks[task["task_id"]].append(task["state"])
        return run, state, question, dict(tasks)

    def _waits_for_answer(self, dag_id, run):
        # If the answer comes before the scheduler has read that the task's process ended, the task is queued again too
        # early: the scheduler then mistakes the end of the first process for a failure of the second one.
        [ask] = [task for task in self.airflow.tasks(dag_id, run) if task["task_id"] == "ask"]
        end = f"Received executor event with state success for task instance TaskInstanceKey(dag_id='{dag_id}', "
        end += f"task_id='ask', run_id='{run}'"
        return ask["state"] in ("awaiting_input", "deferred") and end in self.airflow.log_file.read_text()


@pytest.fixture(scope="module")
def started(s3_server, tmp_path_factory):
    home, lake = tmp_path_factory.mktemp("airflow"), Lake(s3_server)
    dags = home / "dags"
    dags.mkdir()
    for name in ("stem_history_approved", "stem_monthly_energy", "stem_streams_to_s3"):
        text = (ROOT / "example_dags" / f"{name}.py").read_text()
        (dags / f"{name}.py").write_text(text.replace("stem-telemetry", lake.bucket))
    with Simulator(Settings(sites=3, clients=1, gaps=0.02, null_values=0.02)) as sim:
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
            "STEM_START": "2020-01-01",
        }
        with AirflowServer(home / "home", dags, environment=environment, preload=IMPORTS) as airflow:
            airflow.call("POST", "pools", json={"name": "stem_api", "slots": 4})
            airflow.wait_for_dags("stem_history_approved", "stem_days", "stem_monthly_energy", "stem_streams_to_s3")
            yield Started(airflow, lake, sim)


def test_nothing_lands_when_a_person_rejects(started):
    _, state, question, tasks = started.approve_or_reject("Reject", limit=1)
    assert state == "success"
    assert question["defaults"] == ["Reject"]
    assert tasks["ask"] == ["success"]
    assert tasks["approved"] == tasks["land_streams"] == tasks["emit"] == ["skipped"]
    assert not [key for key in started.lake.objects() if key.startswith("stem/daily/")]


def test_the_question_has_the_costs_and_what_was_approved_lands(started):
    run, state, question, tasks = started.approve_or_reject("Approve", limit=1)
    assert state == "success"
    assert question["subject"] == "Land 2020-01-16 to 2020-01-17?"
    costs = dict(line.removeprefix("- ").split(": ", 1) for line in question["body"].splitlines())
    objects = [key for key in started.lake.objects() if key.startswith("stem/daily/")]
    receipts = [
        started.airflow.xcom("stem_history_approved", run, "land_streams", map_index=one)
        for one in range(len(tasks["land_streams"]))
    ]
    assert costs == {
        "runs": "1",
        "first window": "2020-01-16T00:00:00Z/2020-01-18T00:00:00Z of 900 s",
        "last window": "2020-01-16T00:00:00Z/2020-01-18T00:00:00Z of 900 s",
        "tasks": f"{len(receipts)}",
        "requests": f"{sum(receipt['requests'] for receipt in receipts)}",
        "objects": f"{len(objects)}, with {sum(len(receipt['objects']) for receipt in receipts)} writes",
        "rows": f"{sum(receipt['expected'] for receipt in receipts)}",
    }
    assert costs["requests"] == "2"


def test_a_period_below_the_limit_lands_without_a_question(started):
    _, state, _, tasks = started.approve_or_reject(limit=2)
    assert state == "success"
    assert tasks["ask"] == ["skipped"]
    assert set(tasks["land_streams"]) == {"success"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_day": "2019-12-31"},  # stem_history loads it
        {"first_day": "2020-01-18"},
        {"last_day": "9999-12-31"},
    ],
    ids=str,
)
def test_other_days_than_those_of_the_daily_load_are_rejected_without_a_retry(started, wrong):
    _, state, _, tasks = started.approve_or_reject(**wrong)
    assert state == "failed"
    assert tasks["plan"] == ["failed"]
    assert tasks["land_streams"] == ["upstream_failed"]


@pytest.mark.parametrize(
    "wrong", [{"limit": "5"}, {"limit": -1}, {"first_day": "2020-02-30"}, {"last_day": 5}], ids=str
)
def test_params_of_another_type_start_no_run(started, wrong):
    with pytest.raises(RuntimeError, match="400"):
        started.approve_or_reject(**wrong)


def test_a_month_is_summed_up_once_when_its_last_day_has_landed(started, monkeypatch):
    airflow = started.airflow
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", started.sim.connection)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", started.lake.server.connection)
    days = [MONTH[0] + number * DAY for number in range(28)]
    for _ in range(2):  # the second run replaces what the first one landed
        assert land_day(airflow, days[0]) == "success"
    [asset] = airflow.call("GET", "assets", params={"name_pattern": "stem_days"})["assets"]
    for day in days[1:-1]:  # landed as the DAG does it, without its tasks in Airflow
        landing = StemStreamsToS3Operator(task_id="land", sites=SITES, s3_bucket=started.lake.bucket)
        receipt = landing.execute(run_context(day.isoformat(), (day + DAY).isoformat()))
        event = {"asset_id": asset["id"], "partition_key": f"{day:%Y-%m-%d}", "extra": combined([receipt])}
        airflow.call("POST", "assets/events", json=event)
    before_the_last = max(event["timestamp"] for event in airflow.asset_events())
    assert not airflow.runs("stem_monthly_energy")
    assert land_day(airflow, days[-1]) == "success"
    [month] = airflow.wait_until(lambda: airflow.runs("stem_monthly_energy"), "the run of the month")
    assert month["queued_at"] > before_the_last
    assert month["partition_key"] == "2025-02"
    assert airflow.wait_for_run("stem_monthly_energy", month["dag_run_id"]) == "success"

    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    start, end = (edge.isoformat() for edge in MONTH)
    for site_id, stream_type, resolution, *_, kw in expected_rows(started.sim, SITES, ["MONITOR"], 900, start, end):
        values[site_id, stream_type] += [] if kw is None else [kw * resolution / 3600]
    energy = airflow.xcom("stem_monthly_energy", month["dag_run_id"], "sum_up")
    assert {(row["site_id"], row["stream_type"]): (row["kwh"], row["intervals"]) for row in energy} == {
        key: (pytest.approx(sum(kwh)), len(kwh)) for key, kwh in values.items()
    }
    assert len(energy) == len(SITES)
    assert {row["intervals_in_month"] for row in energy} == {28 * 96}
    assert all(row["intervals"] < row["intervals_in_month"] for row in energy)
    assert len(airflow.runs("stem_monthly_energy")) == 1


def land_day(airflow, day):
    return airflow.wait_for_run("stem_days", airflow.trigger("stem_days", partition_key=f"{day:%Y-%m-%d}"))


def test_the_receipts_of_mapped_tasks_are_read_without_an_error_in_the_log(started):
    airflow = started.airflow
    run = airflow.trigger("stem_streams_to_s3", logical_date=MONTH[0])
    assert airflow.wait_for_run("stem_streams_to_s3", run) == "success"
    logs = [airflow.log_file, *(airflow.home / "logs").rglob("*.log")]
    assert [path for path in logs if "XCom not found" in path.read_text()] == []
