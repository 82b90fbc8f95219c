"""The demo: its parts, and two complete runs with interrupted ones between them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import boto3
import duckdb
import psutil
import pyarrow as pa
import pytest
import requests

from airflow_provider_stem.simulator import Settings
from airflow_provider_stem.simulator.model import Fleet
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from scripts import demo, demo_report
from tests.servers.processes import HUNG_AFTER
from tests.support import until

ROOT = Path(__file__).parents[2]
DAY = date(2025, 7, 1)
CONNECTION = '{"conn_type": "stem", "password": "a-key"}'


@pytest.fixture(scope="module")
def expected():
    return demo_report.expected_rows(Fleet(Settings(sites=2)), DAY, datetime.now(UTC))


def table_of(rows):
    instants = [(k, datetime.fromtimestamp(v[0], UTC), datetime.fromtimestamp(k[2], UTC), v) for k, v in rows]
    return pa.Table.from_pylist(
        [
            dict(zip(LANDING_SCHEMA.names, (k[0], k[1], v[1], start, end, v[2]), strict=True))
            for k, start, end, v in instants
        ],
        LANDING_SCHEMA,
    )


def test_equal_rows_compare_as_equal(expected):
    found = demo_report.compare(expected, table_of(expected.items()))
    assert found.same
    assert found.landed == found.expected == len(expected) >= 2 * 2 * 96


@pytest.mark.parametrize("fault", ["missing", "doubled", "off", "shifted", "stray"])
def test_the_comparison_finds_each_fault(expected, fault):
    rows = list(expected.items())
    (key, (start, resolution, kw)), others = rows[100], rows[:100] + rows[101:]
    rows = {
        "missing": others,
        "doubled": [*rows, rows[100]],
        "off": [*others, (key, (start, resolution, kw + 1e-5))],
        "shifted": [*others, (key, (start + 1, resolution, kw))],
        "stray": [*rows, (("elsewhere", *key[1:]), (start, resolution, kw))],
    }[fault]
    found = demo_report.compare(expected, table_of(rows))
    counts = {name: getattr(found, name) for name in ("missing", "doubled", "off", "stray") if getattr(found, name)}
    assert counts == {"off" if fault == "shifted" else fault: 1}
    assert not found.same


def test_energy_separates_import_and_export():
    rows = [(("a", "MONITOR", 900), (0, 900, 8.0)), (("a", "MONITOR", 1800), (900, 900, -4.0))]
    (found,) = demo_report.energy(table_of([*rows, (("b", "MONITOR", 900), (0, 900, None))]))
    assert (found.sites, found.rows, found.taken, found.given) == (2, 3, 2.0, 1.0)


@pytest.mark.parametrize("name", [demo.STEM, demo.AWS])
def test_a_single_connection_is_an_error(name):
    (missing,) = {demo.STEM, demo.AWS} - {name}
    with pytest.raises(demo.DemoError, match=f"{name} is set, but {missing} is missing"):
        demo.parse([], {name: CONNECTION})


def test_connections_need_a_bucket():
    both = {demo.STEM: CONNECTION, demo.AWS: CONNECTION}
    with pytest.raises(demo.DemoError, match=demo.BUCKET):
        demo.parse([], both)
    options = demo.parse([], {**both, demo.BUCKET: "mine"})
    assert (options.real, options.bucket) == (True, "mine")
    assert options.day == datetime.now(UTC).date() - timedelta(days=1)


def test_arguments_are_parsed(tmp_path):
    options = demo.parse([], {})
    assert (options.day, options.sites, options.real, options.fresh) == (DAY, 20, False, False)
    assert options.folder == ROOT / ".demo"
    options = demo.parse(["--day=2024-02-29", "--sites=3", f"--folder={tmp_path}", "--fresh"], {})
    assert (options.day, options.sites, options.folder, options.fresh) == (date(2024, 2, 29), 3, tmp_path, True)


@pytest.mark.parametrize("argument", ["--day=2100-01-01", "--day=tomorrow", "--sites=0", "--sites=many"])
def test_invalid_arguments_are_rejected(argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.parse([argument], {})
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_fresh_removes_only_files_of_the_demo(tmp_path):
    for name in ("airflow.log", "notes.txt", "s3/data"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with ExitStack() as stack:
        demo.Demo(demo.parse([f"--folder={tmp_path}", "--fresh"], {}), demo.Screen())._prepare(stack)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "lock"}


def test_a_second_demo_in_the_same_folder_is_an_error(tmp_path):
    with demo.claimed(tmp_path), pytest.raises(demo.DemoError, match="Another demo"), demo.claimed(tmp_path):
        pass


@pytest.mark.parametrize(
    "connection",
    [
        CONNECTION,
        "stem://:a-key@host/",
        "aws://?aws_secret_access_key=a-key",
        '{"extra": "{\\"token\\": \\"a-key\\"}"}',
    ],
)
def test_secrets_of_connections_are_found(connection):
    assert demo.secrets_of(connection) == {"a-key"}


@pytest.mark.parametrize(
    "state", ["new_state=up_for_retry", "new_state=failed", "Marking task as UP_FOR_RETRY.", "Marking task as FAILED."]
)
def test_a_failed_task_ends_the_demo(state, tmp_path):
    watch = demo.Watch(demo.Screen(), tmp_path / "airflow.log")
    watch.read("[DAG TEST] starting task_id=land_streams map_index=3 [airflow.sdk]")
    watch.read("airflow_provider_stem.errors.StemAuthError: HTTP 401: No valid api_key was provided.")
    with pytest.raises(demo.DemoError, match=r"Task land_streams \[3\] failed: HTTP 401: No valid"):
        watch.read(f"Task instance state updated {state} rows_affected=1")


def test_each_task_is_reported_once_even_if_its_end_is_not_logged(tmp_path, capsys):
    watch = demo.Watch(demo.Screen(), tmp_path / "airflow.log")
    watch.read("[2025-07-02T00:00:00.000+0000] {dag.py:1} INFO - [DAG TEST] starting task_id=list_sites map_index=-1")
    watch.read("[2025-07-02T00:00:00.000+0000] {operators.py:1} INFO - Found 6 sites (client_id=None)")
    watch.read("[DAG TEST] starting task_id=land_streams map_index=0 [airflow.sdk]")
    watch.read("2025-07-02T00:00:00Z [info] Landed 288 rows in 1 object in 0.3 s: 0 missing of 288 expected")
    watch.read("[DAG TEST] end task task_id=land_streams map_index=0 [airflow.sdk]")
    watch.end_task()
    assert [line.split()[1:-2] for line in capsys.readouterr().out.splitlines()] == [
        ["list_sites", "Found", "6", "sites"],
        ["land_streams", "[0]", "288", "rows", "in", "1", "object"],
    ]


def test_changes_of_objects_are_counted():
    before = {"a": ("1", 1), "b": ("2", 2), "of another day": ("0", 0)}
    assert demo.changes(before, {"a": ("1", 1), "b": ("2", 2)}) == "2 objects, unchanged"
    assert demo.changes(before, {"a": ("1", 1), "b": ("3", 2), "c": ("4", 4)}) == (
        "3 objects: 1 new, 1 changed, 1 unchanged"
    )


def start_demo(folder, *options):
    # Variables that a user may have set, which must not affect the demo.
    own = {
        "AIRFLOW__CORE__DAGS_FOLDER": "/nowhere", "AIRFLOW_HOME": "/nowhere", "AWS_PROFILE": "mine",
        "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.demo", f"--folder={folder}", "--sites=6", *options],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_CONN_")}, **own},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def remaining(folder):
    """Return the processes that use the folder."""
    return [p for p in psutil.process_iter(["cmdline", "cwd"]) if str(folder) in f"{p.info['cmdline']} {p.info['cwd']}"]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    process = start_demo(folder)
    out, _ = process.communicate(timeout=HUNG_AFTER)
    return folder, process.returncode, out


@pytest.mark.airflow
def test_the_first_run_loads_everything(first_run):
    folder, code, out = first_run
    assert code == 0, out
    assert re.search(r"ok +list_sites +Found 6 sites ", out), out
    assert re.search(r"ok +land_streams \[0\] +[\d,]+ rows in 1 object ", out), out
    assert "0 missing, 0 doubled, 0 off, 0 unexpected" in out
    assert "demo-key" not in out + (folder / "airflow.log").read_text()
    assert (folder / "day-2025-07-01.png").read_bytes().startswith(b"\x89PNG")
    assert not remaining(folder)


def started_by(process, count):
    """Wait until the demo has that many child processes, and return them."""
    children: list[psutil.Process] = []

    def are_there():
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return len(children) >= count

    until(are_there)
    return children


# First with only the S3 server running, then also with Airflow and the reader of its results, each with a guard.
@pytest.mark.airflow
@pytest.mark.parametrize(
    ("signum", "condition", "count"),
    [(signal.SIGTERM, "simulated sites", 2), (signal.SIGHUP, "airflow dags test", 6)],
)
def test_a_signal_during_a_run_stops_all_processes(first_run, signum, condition, count):
    folder = first_run[0]
    process = start_demo(folder)
    for line in process.stdout:
        if condition in line:
            break
    children = started_by(process, count)
    process.send_signal(signum)
    process.send_signal(signum)  # a second signal must not interrupt the cleanup
    out, _ = process.communicate(timeout=HUNG_AFTER)
    assert process.returncode == 128 + signum
    assert out.strip() == "Stopped: all programs that the demo started have ended."
    # A killed process does not disappear immediately.
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert not remaining(folder)


@pytest.mark.airflow
def test_the_second_run_changes_nothing(first_run):
    folder = first_run[0]
    process = start_demo(folder)
    out, _ = process.communicate(timeout=HUNG_AFTER)
    assert process.returncode == 0, out
    assert "objects, unchanged" in out
    assert "0 missing, 0 doubled, 0 off, 0 unexpected" in out
    assert not remaining(folder)


@pytest.mark.airflow
def test_a_folder_needs_no_s3_server(tmp_path):
    folder = tmp_path / "a folder"
    for state in (r"\d+ objects?: \d+ new\n", "objects, unchanged"):
        process = start_demo(folder, "--store=folder")
        out, _ = process.communicate(timeout=HUNG_AFTER)
        assert process.returncode == 0, out
        assert re.search(state, out), out
        assert "0 missing, 0 doubled, 0 off, 0 unexpected" in out
        assert not (folder / "s3").exists()


def test_a_folder_needs_only_the_connection_to_the_api():
    options = demo.parse(["--store=folder"], {demo.STEM: CONNECTION})
    assert (options.real, options.store) == (True, "folder")
    assert not demo.parse(["--store=folder"], {demo.AWS: CONNECTION}).real


def search(pattern, text):
    found = re.search(pattern, text)
    assert found, text
    return found.groups()


@pytest.mark.airflow
def test_everything_stays_open_until_a_signal(first_run):
    folder = first_run[0]
    process = start_demo(folder, "--keep")
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "Query the warehouse" in line:
                break
        out = "".join(lines)
        (airflow,) = search(r"Airflow +(http\S+) \(no login\)", out)
        (page,) = search(r"\(XCom\): (http\S+)", out)
        (docs,) = search(r"Stem API +(http\S+) \(key demo-key\)", out)
        (objects,) = search(r"See the objects: (http\S+)", out)
        for address in (airflow, page, docs, objects):
            assert requests.get(address, timeout=HUNG_AFTER).ok
        api, headers = f"{airflow}/api/v1", {}
        if not version("apache-airflow").startswith("2."):
            token = requests.get(f"{airflow}/auth/token", timeout=HUNG_AFTER).json()["access_token"]
            api, headers = f"{airflow}/api/v2", {"Authorization": f"Bearer {token}"}
        runs = requests.get(f"{api}/dags/{demo.DAG_IDS['s3']}/dagRuns", headers=headers, timeout=HUNG_AFTER).json()
        assert [run["state"] for run in runs["dag_runs"]] == ["success"]
        s3, access_key, secret_key = search(r"S3 +(\S+) \(access key (\w+), secret key (\w+)\)", out)
        credentials = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
        client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1", **credentials)
        assert client.list_objects_v2(Bucket=demo.LOCAL_BUCKET)["KeyCount"] >= 1
        (landed,) = search(r"([\d,]+) rows landed of", out)
        with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as warehouse:
            count = "SELECT count(*), (SELECT count(*) > 0 FROM stem.energy) FROM stem.streams"
            assert warehouse.execute(count).fetchall() == [(int(landed.replace(",", "")), True)]
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        process.send_signal(signal.SIGINT)
        end, _ = process.communicate(timeout=HUNG_AFTER)
    assert (process.returncode, end.strip()) == (0, "Stopped: all programs that the demo started have ended.")
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert not remaining(folder)
