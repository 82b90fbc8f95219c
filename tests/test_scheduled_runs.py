"""Every kind of run in a real scheduler: which window the operator and the sensor read, or how they fail."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.assets import event_extras
from tests.servers.airflow_server import AirflowServer
from tests.support import RUNS_KEY, Lake, expected_rows, landed_rows

pytestmark = [pytest.mark.airflow, pytest.mark.s3]

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
DAGS = Path(__file__).parent / "dags_scheduled"
SITES = ("site-00001", "site-00002")
API_KEY = "the-key-of-the-scheduled-runs"
FIRST = datetime(2025, 7, 1, tzinfo=UTC)
DATED = FIRST + timedelta(hours=5, minutes=20)
DEFAULT = timedelta(hours=2)
OVER = {"success", "failed", "skipped", "upstream_failed", "up_for_retry"}  # the next attempt is an hour away
# Most of a task's time is spent on these imports.
IMPORTS = [
    "airflow.providers.amazon.aws.hooks.s3",
    "airflow_provider_stem.sensors",
    "airflow_provider_stem.streams.landing",
    "airflow_provider_stem.streams.watch",
]


@dataclass(frozen=True)
class Window:
    start: datetime
    end: datetime

    def __str__(self):
        end = f"{self.end:%H:%M}" if self.start.date() == self.end.date() else f"{self.end:%m-%d %H:%M}"
        return f"{self.start:%Y-%m-%d %H:%M} - {end}"


def hours(start, end):
    """Of 1 July 2025."""
    return Window(FIRST + timedelta(hours=start), FIRST + timedelta(hours=end))


def on_grid(moment, resolution=900):
    return datetime.fromtimestamp(moment.timestamp() // resolution * resolution, UTC)


def due(run):
    return datetime.fromisoformat(run.get("run_after") or run["logical_date"])


def up_to_when_due(run):
    return Window(on_grid(due(run) - DEFAULT), on_grid(due(run)))


def up_to_the_hour_when_due(run):
    return Window(on_grid(due(run) - DEFAULT, 3600), on_grid(due(run), 3600))


def last_hour(run):
    return Window(on_grid(due(run), 3600) - timedelta(hours=1), on_grid(due(run), 3600))


def last_month(run):
    end = due(run).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Window((end - timedelta(days=1)).replace(day=1), end)


def data_interval(run):
    return Window(*(on_grid(datetime.fromisoformat(run[f"data_interval_{bound}"])) for bound in ("start", "end")))


Run = dict[str, Any]
Expected = Window | Callable[[Run], Window] | None
"""None: there is no window, so the task fails at once."""


@dataclass(frozen=True)
class Kind:
    """
    A kind of run.

    :param windows: windows that its runs read, in order.
    :param with_default: the same with ``default_interval``, if the DAG has tasks with it.
    :param since: the first version of Airflow that has it.
    :param broken: whether this version of Airflow cannot make such a run.
    :param in_triggerer: whether the DAG also has a sensor that starts in the triggerer.
    :param rejected_in_triggerer: whether that sensor cannot resolve the window.
    """

    name: str
    windows: list[Expected]
    with_default: list[Expected] | tuple[()] = ()
    since: tuple[int, int] = (2, 11)
    broken: tuple[int, int] | None = None
    resolution: int = 900
    in_triggerer: bool = False
    rejected_in_triggerer: bool = False


IS_2 = AIRFLOW < (3, 0)  # in Airflow 2 every schedule has data intervals
KINDS = [
    Kind("cron_data_interval", [hours(4, 5), hours(5, 6)], in_triggerer=True),
    Kind("cron_trigger_interval", [hours(0, 6)]),
    Kind("cron_trigger", [None], [hours(4, 6)]),
    Kind(
        "plain_cron",
        [hours(6, 30)] if IS_2 else [None],
        [hours(6, 30)] if IS_2 else [hours(4, 6)],
        in_triggerer=True,
    ),
    Kind("timedelta", [hours(0, 6)] if IS_2 else [None], [hours(0, 6)] if IS_2 else [hours(-2, 0)]),
    Kind("once", [None], [hours(4, 6)]),
    Kind("continuous", [data_interval, data_interval]),
    Kind("manual_rest", [None], [up_to_when_due]),
    Kind("manual_rest_dated", [None], [hours(3.25, 5.25)]),
    Kind("manual_rest_data_interval_dated", [hours(4, 5)]),
    Kind(
        "manual_rest_data_interval",
        [last_month if IS_2 else None],
        [last_month if IS_2 else up_to_the_hour_when_due],
        resolution=3600,
    ),
    Kind("manual_rest_conf", [hours(7, 9)]),
    Kind("manual_cli", [None], [up_to_when_due]),
    # On Airflow 3 the command infers the interval from the current time, not from the logical date.
    Kind("manual_cli_dated", [None], [hours(3.25, 5.25) if IS_2 else up_to_when_due]),
    Kind("manual_cli_data_interval_dated", [hours(4, 5) if IS_2 else last_hour], broken=(3, 0)),
    Kind("backfill_cli", [hours(8, 9), hours(9, 10)]),
    Kind("backfill_rest", [hours(8, 9), hours(9, 10)], since=(3, 0)),
    Kind("assets", [hours(10, 12)], in_triggerer=True, rejected_in_triggerer=True),
    # In Airflow 3.0 runs do not see the events of an alias that started them.
    Kind("asset_alias", [None] if AIRFLOW == (3, 0) else [hours(12, 13)]),
    Kind("cron_partition", [None], [hours(6, 8)], since=(3, 2), in_triggerer=True),
    Kind("asset_of_cron_partition", [hours(6, 8)], since=(3, 2)),
    Kind("partitioned_asset", [hours(14, 16)], since=(3, 3), in_triggerer=True),
    Kind("asset_with_partition_events", [], since=(3, 3)),
]
HERE = [kind for kind in KINDS if kind.since <= AIRFLOW != kind.broken]
PRODUCERS = ["produces_earlier", "produces_later", "produces_alias"] + ["produces_partitions"] * (AIRFLOW >= (3, 3))
EXAMPLES = ["stem_streams_to_s3", "stem_energy_from_asset", "stem_completeness"]
EXAMPLE_PREFIX = "stem/stem_streams_to_s3/land_streams/"
# The examples' retry delay of five minutes suits an API that is down, not SQLite on a busy machine.
POLICY = """
from datetime import timedelta

def task_policy(task):
    if task.retry_delay == timedelta(minutes=5):
        task.retry_delay = timedelta(seconds=2)
"""
HEARTBEATS = 100
"""After this number of scheduler heartbeats without a change of any task, the wait ends."""
DECOY = f"{EXAMPLE_PREFIX}left_by_another_run.parquet"


class Runs:
    """
    The runs of all kinds in one Airflow.

    ``of`` has the runs by DAG, each with its ``tasks``. A task's ``output`` is its return value, else its log.
    A scheduled example may have several runs. The tests use the first.
    """

    def __init__(self, airflow, lake, examples, sim):
        self.airflow, self.lake, self.examples, self.sim = airflow, lake, examples, sim
        known = [*(kind.name for kind in KINDS), *PRODUCERS, *EXAMPLES]
        self.of: dict[str, list[Run]] = {dag_id: [] for dag_id in known}

    def start(self):
        """Start the runs that the scheduler does not start."""
        airflow = self.airflow
        airflow.wait_for_dags(*(kind.name for kind in HERE), *PRODUCERS, *EXAMPLES)
        first, last = FIRST + timedelta(hours=8), FIRST + timedelta(hours=9)
        if not IS_2:
            airflow.backfill("backfill_rest", first, last)
            airflow.backfill("backfill_cli", first, last, by_command=True)
        airflow.unpause()
        for dag_id in ("manual_rest", "manual_rest_data_interval", *PRODUCERS):
            airflow.trigger(dag_id)
        for dag_id in ("manual_rest_dated", "manual_rest_data_interval_dated"):
            airflow.trigger(dag_id, logical_date=DATED)
        airflow.trigger("manual_rest_conf", conf={"start": "2025-07-01T07:00Z", "end": "2025-07-01T09:00Z"})
        date = "--exec-date" if IS_2 else "--logical-date"
        dated = [kind.name for kind in HERE if kind.name in ("manual_cli_dated", "manual_cli_data_interval_dated")]
        airflow.commands(
            ("dags", "trigger", "manual_cli"),
            *(("dags", "trigger", dag_id, date, DATED.isoformat()) for dag_id in dated),
        )
        if IS_2:
            airflow.backfill("backfill_cli", first, last)

    def wait(self):
        """Wait until all runs have ended, or nothing changes any more; the tests then show what is missing."""
        wanted = {kind.name: len(kind.windows) for kind in HERE} | dict.fromkeys([*PRODUCERS, *EXAMPLES], 1)
        goes_on = True
        states: set[tuple[Any, ...]] = set()
        idle: set[str] = set()

        def over():
            nonlocal goes_on, states
            time.sleep(2)  # do not overload the API server
            done = dict.fromkeys(wanted, 0)
            tasks = sorted(self.airflow.tasks("~", "~"), key=_run_of)
            for (dag_id, _), members in groupby(tasks, _run_of):
                done[dag_id] += all(task["state"] in OVER for task in members)
            if goes_on and done["continuous"] >= wanted["continuous"]:
                self.airflow.pause("continuous")
                goes_on = False
            keys = ("dag_id", "dag_run_id", "task_id", "map_index", "state", "try_number")
            before, states = states, {tuple(task[key] for key in keys) for task in tasks}
            if states != before:
                idle.clear()
            # Counted in heartbeats, which are also later if the machine is busy.
            idle.add(self.airflow.health()["scheduler"]["latest_scheduler_heartbeat"])
            is_over = all(done[dag_id] >= number for dag_id, number in wanted.items()) and not self.without_energy()
            return is_over or len(idle) > HEARTBEATS

        self.airflow.wait_until(over, "the end of all runs")

    def without_energy(self):
        """Return the objects of the first example that the second one has not read."""
        landed = self.examples.objects()
        return {key for key in landed if key.startswith(EXAMPLE_PREFIX) and f"energy/{key}" not in landed} - {DECOY}

    def gather(self):
        """Read everything that the tests need from Airflow."""
        tasks = self.airflow.tasks("~", "~")
        for run in sorted(self.airflow.runs("~"), key=due):
            members = [self._with_output(task) for task in tasks if _run_of(task) == _run_of(run)]
            self.of[run["dag_id"]].append({**run, "tasks": members})
        self.events = self.airflow.asset_events()
        self.landed = {
            f"s3://{self.lake.bucket}/{key}": landed_rows(pq.read_table(io.BytesIO(body)))
            for key, body in self.lake.objects().items()
        }

    def _with_output(self, task):
        at = (*_run_of(task), task["task_id"])
        read = {"success": self.airflow.xcom, "failed": self.airflow.log}.get(task["state"])
        output = read and read(*at, map_index=task["map_index"])
        links = self.airflow.links(*at, map_index=task["map_index"]) if task["task_id"] == "land_streams" else {}
        return {**task, "output": output, "links": links}


def _run_of(task_or_run):
    return task_or_run["dag_id"], task_or_run["dag_run_id"]


@pytest.fixture(scope="session")
def runs(s3_server, tmp_path_factory, request):
    """All runs, after they have ended and their Airflow has stopped."""
    from airflow_provider_stem.simulator import Settings, Simulator

    lake, examples, home = Lake(s3_server), Lake(s3_server, "stem-telemetry"), tmp_path_factory.mktemp("airflow")
    examples.client.put_object(Bucket=examples.bucket, Key=DECOY, Body=b"no event tells of this")
    (home / "config").mkdir()
    (home / "config" / "airflow_local_settings.py").write_text(POLICY)
    warehouse = home / "warehouse.duckdb"
    with duckdb.connect(str(warehouse)) as made:
        made.execute("CREATE SCHEMA stem")
        made.execute(
            "CREATE TABLE stem.completeness AS SELECT 'site-00001' AS site_id, 'MONITOR' AS stream_type, "
            "900 AS resolution, (current_date - 7)::date AS day, 96 AS expected, 90 AS received, 0 AS late, "
            "'missing' AS status"
        )
        made.execute("CREATE TABLE stem.sites AS SELECT 'site-00001' AS site_id, 'One' AS name, NULL AS valid_to")
    times = [time.monotonic()]
    with Simulator(Settings(sites=len(SITES), clients=1, api_key=API_KEY)) as sim:
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
            "AIRFLOW_CONN_STEM_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": str(warehouse)}),
            "AWS_EC2_METADATA_DISABLED": "true",
            "STEM_TEST_BUCKET": lake.bucket,
            "STEM_TEST_BEGAN": (datetime.now(UTC) - timedelta(hours=3)).isoformat(),
        }
        with AirflowServer(home, DAGS, environment=environment, paused=True, preload=IMPORTS) as airflow:
            gathered = Runs(airflow, lake, examples, sim)
            for step in (gathered.start, gathered.wait, gathered.gather):
                times.append(time.monotonic())
                step()
            times.append(time.monotonic())
        up, started, over, kept = (int(then - now) for now, then in pairwise(times))
        request.config.stash[RUNS_KEY] += [
            *table(gathered),
            f"{up} s until Airflow was up, {started} s to start runs, {over} s until they were over, {kept} s to read",
        ]
        yield gathered


def table(runs):
    """Return the windows that were read, one per line."""
    lines: list[tuple[str, ...]] = [("kind of run", "operator", "sensor", "sensor from the triggerer")]
    for kind in HERE:
        for run in runs.of[kind.name][: len(kind.windows)] or [{"tasks": []}]:
            for suffix in ("", "_default") if kind.with_default else ("",):
                lines.append(
                    (
                        kind.name.replace("_", " ") + (" + default_interval" if suffix else ""),
                        *(
                            " / ".join(sorted({outcome(task) for task in tasks_of(run, name + suffix)}))
                            for name in ("land", "wait", "wait_in_triggerer")
                        ),
                    )
                )
    lines += [(kind.name.replace("_", " "), lacking(kind), "", "") for kind in KINDS if kind not in HERE]
    return [f"Airflow {version('apache-airflow')}", *("{:<48}{:<32}{:<32}{}".format(*line).rstrip() for line in lines)]


def lacking(kind):
    return "fails in Airflow itself" if kind.broken == AIRFLOW else f"needs Airflow {'.'.join(map(str, kind.since))}"


def outcome(task):
    match task:
        case {"state": "success"}:
            return str(window_of(task))
        case {"state": "failed", "try_number": 1}:
            return "fails at once"
    return str(task["state"])


def tasks_of(run, task_id):
    return [task for task in run["tasks"] if task["task_id"] == task_id]


def outputs_of(run, task_id):
    return [task["output"] for task in tasks_of(run, task_id)]


def landed_by(run):
    return [one for receipt in outputs_of(run, "land_streams") if receipt for one in receipt["objects"]]


def energy_of(uri):
    return uri.replace("/stem/", "/energy/stem/", 1)


def window_of(task):
    return Window(*(datetime.fromisoformat(task["output"]["window"][bound]) for bound in ("start", "end")))


def cases(kinds):
    return pytest.mark.parametrize(
        ("kind", "number", "suffix"),
        [
            pytest.param(kind, number, suffix, id=f"{kind.name}{suffix}-{number + 1}")
            for kind in kinds
            for suffix, windows in (("", kind.windows), ("_default", kind.with_default))
            for number in range(len(windows))
        ],
    )


def look_up(runs, kind, number, suffix):
    """Return a run, and the window that it must read."""
    if kind not in HERE:
        pytest.skip(lacking(kind))
    assert len(runs.of[kind.name]) > number, f"{len(runs.of[kind.name])} runs"
    run = runs.of[kind.name][number]
    expected = (kind.with_default if suffix else kind.windows)[number]
    return run, expected(run) if callable(expected) else expected


def check(tasks, expected):
    assert tasks
    for task in tasks:
        if expected is None:
            check_failed(task, "CronDataIntervalTimetable", "default_interval")
        elif expected.start == expected.end:
            assert task["state"] == "skipped"
        else:
            assert (task["state"], task["try_number"]) == ("success", 1), task["output"]
            assert window_of(task) == expected


def check_failed(task, *remedies):
    """Check that a task failed without its two retries."""
    assert (task["state"], task["try_number"], task["max_tries"]) == ("failed", 1, 2)
    assert all(remedy in task["output"] for remedy in remedies)


def rows_of(runs, kind, window):
    if window is None:
        return []
    bounds = window.start.isoformat(), window.end.isoformat()
    return expected_rows(runs.sim, SITES, ["MONITOR"], kind.resolution, *bounds)


@cases(KINDS)
def test_the_operator_lands_exactly_the_window_of_the_run(kind, number, suffix, runs):
    run, expected = look_up(runs, kind, number, suffix)
    tasks = tasks_of(run, f"land{suffix}")
    check(tasks, expected)
    objects = [one["uri"] for task in tasks if task["state"] == "success" for one in task["output"]["objects"]]
    assert sorted(row for uri in objects for row in runs.landed[uri]) == rows_of(runs, kind, expected)
    if expected is None:
        assert not any(f"/{kind.name}/land{suffix}/" in uri for uri in runs.landed)


@cases(KINDS)
def test_the_sensor_waits_for_the_same_window(kind, number, suffix, runs):
    run, expected = look_up(runs, kind, number, suffix)
    tasks = tasks_of(run, f"wait{suffix}")
    check(tasks, expected)
    reports = [task["output"] for task in tasks if task["state"] == "success"]
    assert sum(report["expected"] for report in reports) == len(rows_of(runs, kind, expected))
    assert not any(report["missing"] for report in reports)


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow starts tasks with templates in the triggerer from 3.3 on")
@cases([kind for kind in KINDS if kind.in_triggerer])
def test_a_sensor_that_starts_in_the_triggerer_resolves_the_window_of_its_run(kind, number, suffix, runs):
    run, expected = look_up(runs, kind, number, suffix)
    tasks = tasks_of(run, f"wait_in_triggerer{suffix}")
    if kind.rejected_in_triggerer:
        check_failed(tasks[0], "start_from_trigger")
    else:
        check(tasks, expected)


@pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow has partition keys for events from 3.3 on")
def test_events_with_partition_keys_do_not_start_a_dag_scheduled_on_the_plain_asset(runs):
    (event,) = events_of(runs, "produces_partitions")
    assert event["partition_key"]
    assert [run["dag_id"] for run in event["created_dagruns"]] == ["partitioned_asset"]
    assert runs.of["asset_with_partition_events"] == []


def test_an_event_lists_what_was_landed(runs):
    for dag_id in ("cron_data_interval", *PRODUCERS):
        receipts = [task["output"] for run in runs.of[dag_id] for task in tasks_of(run, "land")]
        events = [SimpleNamespace(extra=event["extra"]) for event in events_of(runs, dag_id)]
        extras = list(event_extras({"triggering_asset_events": {dag_id: events}}))
        assert len(extras) == len(receipts) >= 1
        for receipt in receipts:
            assert {name: receipt[name] for name in ("window", "objects", "rows")} in extras


def test_an_alias_resolves_to_the_prefix_of_the_landed_objects(runs):
    (event,) = events_of(runs, "produces_alias")
    assert event["dataset_uri" if IS_2 else "uri"] == f"s3://{runs.lake.bucket}/stem/produces_alias/land"


def test_the_second_example_loads_only_objects_in_the_events_of_the_first(runs):
    run, *later = runs.of["stem_streams_to_s3"]
    landed = {one["uri"] for one in landed_by(run)}
    assert len(landed) == len(tasks_of(run, "land_streams")) == len(SITES)  # each in its own batch
    assert all(window_of(task) == data_interval(run) for task in tasks_of(run, "land_streams"))

    bucket, others = f"s3://{runs.examples.bucket}/", {energy_of(one["uri"]) for r in later for one in landed_by(r)}
    sums = [one for r in runs.of["stem_energy_from_asset"] for one in outputs_of(r, "sum_up") if one]
    energy = {one["uri"]: one for one in sums if one["uri"] not in others}
    assert energy.keys() == {energy_of(uri) for uri in landed}
    bodies = {bucket + key: body for key, body in runs.examples.objects().items() if "energy/" in key}
    kept = {uri: pq.read_table(io.BytesIO(body)) for uri, body in bodies.items() if uri not in others}
    assert {uri: len(table) for uri, table in kept.items()} == {uri: one["rows"] for uri, one in energy.items()}

    by_stream: dict[tuple[str, str], list[float]] = {}
    types, bounds = ["CONVERTER", "INTERVAL_REVENUE", "MONITOR"], (run["data_interval_start"], run["data_interval_end"])
    for site, stream_type, _, _, _, kw in expected_rows(runs.sim, SITES, types, 900, *bounds):
        by_stream.setdefault((site, stream_type), []).append(kw)
    loaded = {(one["site_id"], one["stream_type"]): one for table in kept.values() for one in table.to_pylist()}
    assert loaded.keys() == by_stream.keys()
    for stream, values in by_stream.items():
        assert loaded[stream]["kwh_import_sum"] == pytest.approx(sum(max(kw, 0.0) for kw in values) / 4)
        assert loaded[stream]["kwh_export_sum"] == pytest.approx(-sum(min(kw, 0.0) for kw in values) / 4)
        assert (loaded[stream]["peak_kw_max"], loaded[stream]["peak_kw_count"]) == (max(values), 96)


def test_the_third_example_publishes_the_rows_of_the_warehouse(runs):
    run = runs.of["stem_completeness"][0]
    (published,) = outputs_of(run, "publish_page")
    page = runs.examples.objects()["stem/completeness.html"]
    assert published == {
        "uri": f"s3://{runs.examples.bucket}/stem/completeness.html", "bytes": len(page),
        "sites": 1, "streams": 1, "expected": 96, "received": 90, "missing": 6, "late": 0,
    }  # fmt: skip
    assert b"1 site, 1 stream. 6.25 % of 96 expected intervals are missing, 0 came late." in page
    assert b"One (site-00001)" in page


def test_a_task_links_to_its_objects_and_is_named_after_its_batch(runs):
    run = runs.of["stem_streams_to_s3"][0]
    for task in tasks_of(run, "land_streams"):
        assert task["rendered_map_index"] == task["output"]["objects"][0]["uri"].partition("900s_")[2].partition(".")[0]
        address = task["output"]["objects"][0]["uri"].replace("s3:/", runs.examples.client.meta.endpoint_url)
        assert unquote(task["links"]["Landed objects"]) == unquote(address)


def test_the_key_is_in_no_file_and_no_template_is_undefined(runs):
    files = [path for path in runs.airflow.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert any(path.suffix == ".db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert API_KEY.encode() not in content, path
        assert b"UndefinedError" not in content, path


def events_of(runs, dag_id):
    return [event for event in runs.events if event["source_dag_id"] == dag_id]
