"""The commands of ``stem`` and ``airflow stem``, on the simulator and a real S3 server."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import stat
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from sqlalchemy.exc import OperationalError

from airflow_provider_stem import _s3
from airflow_provider_stem._s3 import S3Store
from airflow_provider_stem.cli import main, reading
from airflow_provider_stem.cli.dags import landing_tasks
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.streams.store import honours_conditions
from tests.servers.processes import HUNG_AFTER, free_ports
from tests.support import full_depth_only, instant, run_context, until

pytestmark = pytest.mark.s3

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
DAY = ["--from", "2025-07-01", "--to", "2025-07-02"]
DAGS = """
import pendulum
from datetime import timedelta
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

with DAG("daily", schedule=CronDataIntervalTimetable("@daily", timezone="Europe/Berlin"),
         start_date=pendulum.datetime(2025, 1, 1), catchup=False):
    sites = StemSiteListOperator(task_id="sites", batches=4)
    StemStreamsToS3Operator.partial(task_id="land", s3_bucket="BUCKET", SETTINGS).expand_kwargs(sites.output)
"""


@pytest.fixture(autouse=True)
def unreadable_database(monkeypatch):
    """Fail to read pools, as on a database without tables: tests of other files may have created some."""

    def fail(_name):
        raise OperationalError("SELECT", {}, Exception("no such table: slot_pool"))

    monkeypatch.setattr("airflow.models.pool.Pool.get_pool", fail)


@pytest.fixture
def dag_file(tmp_path, lake):
    def write(settings="", text=DAGS):
        path = tmp_path / "dags.py"
        path.write_text(text.replace("SETTINGS", settings).replace("BUCKET", lake.bucket))
        return str(path)

    return write


# --- sites and pull ---------------------------------------------------------------------------------------------------


def test_sites_lists_what_the_operator_returns(stem, capsys):
    assert main(["sites", "--client-id", "acme-foods", "--output", "jsonl"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == StemSiteListOperator(task_id="t", client_id="acme-foods").list_sites()
    assert 0 < len(records) < 20
    assert main(["sites"]) == 0
    shown = capsys.readouterr().out
    assert all(f"site-{number:05}" in shown for number in range(1, 21))


def test_a_narrow_terminal_shows_whole_ids(stem, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert main(["sites"]) == 0
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["day.parquet", "day.CSV", "day.jsonl.gz"])
def test_pull_writes_what_the_hook_returns(stem, name, tmp_path, capsys):
    path = tmp_path / name
    types = ["MONITOR", "CONVERTER"]
    assert main(["pull", "site-00003", "site-00001", *DAY, "-o", str(path), "--stream-types", ",".join(types)]) == 0
    assert (
        f"{path}: rows: 384, missing: 0, sites: 2, requests: 2, window: 2025-07-01T00:00:00Z" in capsys.readouterr().out
    )
    expected = [
        row
        for site in ("site-00001", "site-00003")
        for row in StemHook()
        .get_streams(site, "2025-07-01T00:00Z", "2025-07-02T00:00Z", stream_types=types)
        .to_pylist()
    ]
    if name.endswith(".parquet"):
        assert pq.read_table(path).to_pylist() == expected
    elif name.endswith(".gz"):
        found = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert [row["kw_total_avg"] for row in found] == [row["kw_total_avg"] for row in expected]
    else:
        assert len(path.read_text().splitlines()) == 1 + len(expected)
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_pull_skips_the_types_that_a_site_lacks_and_says_so(stem, tmp_path, capsys):
    assert main(["pull", "site-00003", *DAY, "-o", str(tmp_path / "day.csv")]) == 0
    assert "Site site-00003 has no INTERVAL_REVENUE\n" in capsys.readouterr().out


def test_a_pull_that_fails_leaves_the_file_as_it_was(stem, tmp_path, capsys):
    path = tmp_path / "day.csv"
    path.write_text("before")
    assert main(["pull", "site-00001", "no-such-site", *DAY, "-o", str(path)]) == 1
    assert "stem pull: HTTP 404: The requested site - no-such-site could not be found" in capsys.readouterr().err
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-o", "day.csv", "--from", "2025-07-01T00:00Z", "--to", "2025-07-01T00:10Z"],
            "No interval of 900 s ends between --from and --to. Use a longer time.",
        ),
        (["-o", "day.txt", *DAY], "--output 'day.txt' has no known extension. Use one of .parquet, .csv, .csv.zst, "),
        (["-o", "no/such/day.csv", *DAY], "--output 'no/such/day.csv' is in no folder. Create 'no/such'."),
        (
            ["-o", "day.csv", "--from", "2025-07-01T00:00", "--to", "2025-07-02"],
            "Invalid --from '2025-07-01T00:00': no UTC",
        ),
        (
            ["-o", "day.csv", "--from", "2025-02-29", "--to", "2025-07-02"],
            "Invalid --from '2025-02-29': day ",
        ),
        (["-o", "day.csv", "--from", "2025-07-02", "--to", "2025-07-01"], "end 2025-07-01T00:00:00+00:00 is not after"),
        (["-o", "day.csv", *DAY, "--resolution", "60"], "Invalid resolution 60. Use one of 900, 1800, 3600 s."),
        (["-o", "day.csv", *DAY, "--stream-types", "SOLAR"], "stream_types contains 'SOLAR'. Use one or more of"),
        (["-o", "day.csv", *DAY, "--max-workers", "0"], "--max-workers must be an integer >= 1, got 0."),
        (["-o", "day.csv", *DAY, "--stem-conn-id", "none"], "The conn_id `none` isn't defined. Create this connection"),
    ],
)
def test_wrong_arguments_are_refused_before_any_request(arguments, message, stem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "site-00001", *arguments]) == 1
    assert f"stem pull: {message}" in capsys.readouterr().err
    assert not stem.requests
    assert list(tmp_path.iterdir()) == []


@pytest.mark.stem_simulator(api_key="site-00001")
def test_no_message_has_the_key(stem, tmp_path, capsys, monkeypatch):
    assert main(["pull", "site-00001-x", *DAY, "-o", str(tmp_path / "day.csv")]) == 1
    assert "could not be found" in (message := capsys.readouterr().err)
    assert "site-00001" not in message

    def fail(*_):
        raise KeyError("site-00001")

    monkeypatch.setattr(StemHook, "list_sites", fail)
    [problem] = examined(capsys)[1]
    assert "KeyError" in problem
    assert "site-00001" not in problem


# --- plan -------------------------------------------------------------------------------------------------------------


def planned(output):
    """Return the numbers of a plan by name."""
    lines = re.findall(r"^  (\w+) +([\d,]*\d)(?:, with ([\d,]+) writes)?$", output, flags=re.MULTILINE)
    counts = {name: int(number.replace(",", "")) for name, number, _ in lines}
    for *_, number in lines:
        if number:
            counts["writes"] = int(number.replace(",", ""))
    return counts


@pytest.mark.parametrize(
    ("settings", "resolution", "lookback"),
    [
        ("resolution=1800, stream_types='MONITOR'", 1800, None),
        pytest.param(
            "resolution=3600, stream_types=['MONITOR', 'CONVERTER'], partition='hour', lookback=timedelta(hours=2)",
            3600,
            2,
            marks=full_depth_only,
        ),
    ],
)
def test_a_plan_is_what_the_runs_then_do(settings, resolution, lookback, dag_file, stem, lake, capsys):
    """Over a change of clocks in the schedule's time zone, with a stream that begins in between."""
    began = instant(StemHook().get_site("site-00010")["stream_start_times"]["MONITOR"])
    day = began.replace(hour=0, minute=0, second=0, microsecond=0)
    start, end = day - timedelta(days=1), day + timedelta(days=2)
    file = dag_file(settings)
    bounds = ["--from", start.isoformat(), "--to", end.isoformat()]
    assert main(["plan", file, *bounds]) == 0
    plan = planned(capsys.readouterr().out)
    [task] = landing_tasks(file)
    done = dict.fromkeys(("runs", "tasks", "requests", "writes", "rows"), 0)
    for window in task.windows(start, end):
        done["runs"] += 1
        assert task.listing
        for batch in task.listing.list_sites():
            arguments = {
                name: value for name, value in task.arguments.items() if name in ("resolution", "stream_types")
            }
            landing = StemStreamsToS3Operator(
                task_id="land", s3_bucket=lake.bucket, partition=task.arguments["partition"], **arguments, **batch
            )
            receipt = landing.execute(run_context(window.start.isoformat(), window.end.isoformat()))
            done["tasks"] += 1
            done["requests"] += receipt["requests"]
            done["writes"] += len(receipt["objects"])
            done["rows"] += receipt["rows"]
    assert plan == {**done, "objects": len(lake.objects())}
    assert (plan["objects"] < plan["writes"]) == (lookback is not None)


def test_a_plan_for_many_sites_needs_no_request(dag_file, stem, capsys):
    file = dag_file("partition='day', lookback=timedelta(days=3)", DAGS.replace("Europe/Berlin", "UTC"))
    arguments = ["--from", "2024-01-01", "--to", "2025-01-01", "--sites", "10000", "--requests-per-second", "4"]
    assert main(["plan", file, *arguments]) == 0
    output = capsys.readouterr().out
    assert planned(output) == {
        "runs": 366,
        "tasks": 366 * 4,
        "requests": 366 * 10_000,
        "objects": (366 + 3) * 4,
        "writes": 366 * 4 * 4,
        "rows": 366 * 10_000 * 96 * 4,
    }
    assert "10 days, 14:10:00 at 4 requests a second" in output
    assert "first window  2023-12-29T00:00:00Z/2024-01-02T00:00:00Z of 900 s" in output
    assert not stem.requests


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ("", ["--sites", "0"], "--sites must be a number from 1 to 10,000,000, got 0."),
        ("", ["--requests-per-second", "nan"], "--requests-per-second must be a number from 0.001 to 1,000, got nan."),
        ("", ["--dag-id", "other"], "has no task that lands streams in other. Use another file or --dag-id."),
        ("resolution=7", [], "cannot be imported. Correct it: "),
        ("partition='month'", ["--sites", "1"], "partition='month' writes whole UTC months, but the window ends at"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(settings, arguments, message, dag_file, stem, capsys):
    assert main(["plan", dag_file(settings), *DAY, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not stem.requests


def test_a_plan_without_a_schedule_names_it(dag_file, stem, capsys):
    text = DAGS.replace('CronDataIntervalTimetable("@daily", timezone="Europe/Berlin")', "None")
    assert main(["plan", dag_file(text=text), *DAY, "--sites", "1"]) == 0
    assert capsys.readouterr().out == "daily.land: no run begins in this time, since its schedule is None\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "port must be 0-65535."),
        (["--port", "-1"], "port must be 0-65535."),
        (
            ["--now", "2025-07-01"],
            "now must be a time with an offset, such as 2025-07-01T00:00Z, got 2025-07-01 00:00:00",
        ),
        (["--api-key", "a b"], "--api-key must consist of visible ASCII characters, without spaces"),
    ],
)
def test_a_simulator_that_cannot_be_served_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--port", "0", *arguments])
    assert caught.value.code == 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # no signal stays blocked in this process
    assert message in capsys.readouterr().err


def test_a_task_whose_windows_only_a_run_knows_is_named(dag_file, stem, capsys):
    file = dag_file("start='{{ ds }}'")
    assert main(["plan", file, *DAY, "--sites", "1"]) == 0
    assert capsys.readouterr().out == "daily.land: its windows are not known before a run, which sets its start\n"
    lines, problems = examined(capsys, file)
    assert not problems
    assert "ok       schedule of daily.land: not checked, since a run sets its start" in lines


def test_a_run_without_an_interval_writes_nothing(dag_file, stem, capsys):
    file = dag_file("resolution=3600", DAGS.replace('"@daily"', '"*/15 * * * *"'))
    assert main(["plan", file, *DAY, "--sites", "8"]) == 0
    plan = planned(capsys.readouterr().out)
    assert (plan["runs"], plan["writes"], plan["requests"], plan["rows"]) == (96, 24 * 4, 24 * 8, 24 * 8)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (Path(__file__).parents[1] / "example_dags").glob("*.py"))
)
def test_each_example_can_be_examined_and_has_no_problem_but_its_bucket(name, stem, lake, capsys):
    path = Path(__file__).parents[1] / "example_dags" / name
    assert {problem.partition(":")[0] for problem in examined(capsys, str(path))[1]} <= {"bucket stem-telemetry"}


# --- doctor -----------------------------------------------------------------------------------------------------------


def examined(capsys, *arguments):
    """Run doctor, and return what it found in order, and its problems."""
    code = main(["doctor", *arguments])
    lines = capsys.readouterr().out.splitlines()
    problems = [line.removeprefix("PROBLEM  ") for line in lines if line.startswith("PROBLEM")]
    assert code == (1 if problems else 0)
    assert lines[-1] == f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found"
    return lines, problems


def test_a_set_up_that_works_has_no_problem(dag_file, stem, lake, capsys):
    lines, problems = examined(capsys, dag_file("partition='hour', s3_key='a/b/{start}_{batch}.{extension}'"))
    assert not problems
    text = "\n".join(lines)
    assert f"airflow-provider-stem {version('airflow-provider-stem')}" in text
    assert f"ok       connection stem_default: Connected to {stem.url}" in text
    assert "site site-00001 can be read: 288 rows of CONVERTER, INTERVAL_REVENUE, MONITOR yesterday (UTC)" in text
    assert f"ok       bucket {lake.bucket}: s3://{lake.bucket}/a/b: objects can be written, with conditions" in text
    assert "ok       schedule of daily.land: 31 runs in the last 32 days" in text
    assert not lake.objects()


def test_a_pool_that_does_not_exist_is_found(dag_file, stem, lake, capsys, monkeypatch):
    file = dag_file("pool='stem_api'")
    assert "pool stem_api: not checked, since Airflow's database cannot be read" in "".join(examined(capsys, file)[0])
    pools: dict[str, SimpleNamespace] = {}
    monkeypatch.setattr("airflow.models.pool.Pool.get_pool", pools.get)
    [problem] = examined(capsys, file)[1]
    assert problem.startswith("pool stem_api: There is no pool 'stem_api', so its tasks never start. Create it with ")
    pools["stem_api"] = SimpleNamespace(slots=8)
    assert "ok       pool stem_api: 8 slots" in examined(capsys, file)[0]


def test_each_broken_set_up_is_found_with_its_remedy(dag_file, stem, lake, capsys, monkeypatch):
    file = dag_file()
    connections = {name: os.environ[f"AIRFLOW_CONN_{name}"] for name in ("STEM_DEFAULT", "AWS_DEFAULT")}

    def broken(name, **fields):
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({**json.loads(connections[name]), **fields}))
        _, problems = examined(capsys, file)
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", connections[name])
        [problem] = problems
        return problem

    assert "The API rejected the key" in broken("STEM_DEFAULT", password="wrong")
    assert "Check the API key (Password), or ask Stem for access." in broken("STEM_DEFAULT", password="wrong")
    port = free_ports(1)[0]
    assert "The API cannot be reached. Check Host, Port" in broken("STEM_DEFAULT", host=f"http://127.0.0.1:{port}")
    assert "There is no Stem API at this address. Check Host" in broken("STEM_DEFAULT", host=stem.url + "other")
    assert "The connection has no Password. Enter the Stem API key" in broken("STEM_DEFAULT", password="")
    wrong_secret = broken("AWS_DEFAULT", password="wrong")
    assert "Correct access key and secret of connection 'aws_default'" in wrong_secret
    monkeypatch.delenv("AIRFLOW_CONN_STEM_DEFAULT")
    _, [problem] = examined(capsys, file)
    assert problem == (
        "connection stem_default: The conn_id `stem_default` isn't defined. Create this connection, or correct the "
        "connection id."
    )


def test_a_wrong_bucket_or_schedule_is_found_with_its_remedy(dag_file, stem, lake, capsys):
    [problem] = examined(capsys, "--bucket", "no bucket")[1]
    assert problem.startswith("bucket no bucket: Invalid --bucket 'no bucket'. Use only the name of a bucket")
    [problem] = examined(capsys, "--bucket", "")[1]
    assert problem.startswith("bucket of the connection: ")
    [problem] = examined(capsys, "--bucket", "no-such-bucket")[1]
    assert problem == (
        "bucket no-such-bucket: s3_bucket 'no-such-bucket' does not exist. Create it, or correct s3_bucket or "
        "connection 'aws_default'."
    )
    file = dag_file(text=DAGS.replace("CronDataIntervalTimetable(", "CronTriggerTimetable("))
    [problem] = examined(capsys, file)[1]
    assert problem.startswith(
        "schedule of daily.land: There is no window to read. Schedule the DAG with CronDataInterval"
    )
    [problem] = examined(capsys, dag_file("partition='day'"))[1]
    assert problem.startswith("schedule of daily.land: partition='day' writes whole UTC days, but the window ends at ")
    file = dag_file(text=DAGS.replace("catchup", "end_date=pendulum.datetime(2025, 2, 1), catchup"))
    [problem] = examined(capsys, file)[1]
    assert problem == (
        "schedule of daily.land: No run is due any more, since the end_date of the DAG was 2025-02-01T00:00:00Z. "
        "Remove it, or set a later one."
    )
    _, problems = examined(capsys, dag_file(text="import nothing_of_this_name"))
    assert len(problems) == 1
    assert "cannot be imported. Correct it: ModuleNotFoundError: No module named 'nothing_of_this_name'" in problems[0]


@pytest.mark.parametrize("settings", ["s3_bucket='{{ params.bucket }}'", "s3_key='s3://{{ params.bucket }}/x/{start}'"])
def test_a_bucket_that_is_a_template_is_not_checked(settings, dag_file, stem, lake, capsys):
    file = dag_file(settings, DAGS.replace('s3_bucket="BUCKET", ', ""))
    lines, problems = examined(capsys, file)
    assert not problems
    assert "ok       DAG file: the place of daily.land is known in a run only. To check one, use --bucket" in lines
    assert not [line for line in lines if "bucket " in line.partition(":")[0]]
    assert any(
        f"s3://{lake.bucket}/y: objects can be written" in line
        for line in examined(capsys, file, "--bucket", f"s3://{lake.bucket}/y")[0]
    )


def test_a_store_without_conditional_writes_is_found(stem, lake, capsys, monkeypatch):
    monkeypatch.setattr(
        _s3,
        "honours_conditions",
        lambda conn_id, probe, conditions, _, *more, **flags: honours_conditions(
            conn_id, probe, conditions, lambda *_: None, *more, **flags
        ),
    )
    [problem] = examined(capsys, "--bucket", f"s3://{lake.bucket}/x")[1]
    assert problem.startswith(f"bucket s3://{lake.bucket}/x: The store of connection 'aws_default' does not honour If-")


def test_a_wrong_clock_is_found(stem, lake, capsys, monkeypatch):
    head = S3Store.head
    monkeypatch.setattr(S3Store, "head", lambda self, key: (None, head(self, key)[1] - timedelta(hours=1)))
    [problem] = examined(capsys, "--bucket", lake.bucket)[1]
    assert re.search(
        "The clocks of this machine and of the store differ by 3,[56]\\d\\d s. Set this machine's clock", problem
    )


def test_an_error_that_nobody_expected_does_not_end_the_other_checks(stem, lake, capsys, monkeypatch):
    monkeypatch.setattr(StemHook, "test_connection", lambda _: 1 / 0)
    lines, problems = examined(capsys, "--bucket", lake.bucket)
    assert problems == ["connection stem_default: ZeroDivisionError: division by zero"]
    assert any("objects can be listed" in line for line in lines)


# --- both command lines -----------------------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        arguments,
        env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_AFTER,
    )


def test_a_file_that_is_pulled_keeps_its_link_and_replaces_no_folder(stem, tmp_path, capsys):
    target, link = tmp_path / "target.parquet", tmp_path / "day.parquet"
    link.symlink_to(target)
    assert main(["pull", "site-00001", *DAY, "-o", str(link)]) == 0
    assert link.is_symlink()
    assert pq.read_table(target).num_rows == 288
    long = tmp_path / f"{'x' * 251}.csv"  # with anything more, too long for a file system
    assert main(["pull", "site-00001", *DAY, "-o", str(long)]) == 0
    assert long.stat().st_size
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "self.csv").symlink_to(tmp_path / "self.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "no" / "such.csv")
    requests = len(stem.requests)
    for name, message in {
        "self.csv": f"{str(tmp_path / 'self.csv')!r} cannot be written (",
        "dangling.csv": f"is in no folder. Create {str(tmp_path / 'no')!r}.",
        f"{'x' * 252}.csv": "cannot be written ([Errno 36] File name too long: ",
    }.items():
        assert main(["pull", "site-00001", *DAY, "-o", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err
    assert main(["pull", "site-00001", *DAY, "-o", str(tmp_path / "folder.csv")]) == 1
    assert "exists, and is no regular file. Use another path." in capsys.readouterr().err
    assert len(stem.requests) == requests


def test_a_task_that_lands_in_a_folder_is_planned_and_checked(dag_file, stem, tmp_path, capsys):
    text = DAGS.replace("StemStreamsToS3Operator", "StemStreamsToObjectStorageOperator")
    text = text.replace('s3_bucket="BUCKET"', f'path="file://{tmp_path}/lake/"')
    file = dag_file(text=text)
    assert main(["plan", file, *DAY, "--sites", "8"]) == 0
    assert planned(capsys.readouterr().out)["tasks"] > 0
    [problem] = examined(capsys, file)[1]
    assert problem.startswith(f"folder {tmp_path}/lake/stem: The folder does not exist. Create it, mount its file")
    assert not (tmp_path / "lake").exists()
    (tmp_path / "lake" / "stem").mkdir(parents=True)
    lines, problems = examined(capsys, file)
    assert not problems
    assert any(line.startswith(f"ok       folder {tmp_path}/lake") for line in lines)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gopher://lake/x", "Use an address that begins with s3://"),
        ("/nope", "Use the name of a bucket or container and a key"),
        ("s3:///nope", "Use the name of a bucket or container and a key"),
        ("file://tmp/x", "Use three slashes and an absolute path"),
        ("file://{}/a/../x", "Use a key without empty, '.', '..' or '.stem' parts"),
        ("file://{}/.stem", "Use a key without empty, '.', '..' or '.stem' parts"),
        ("file://{}/no-such-folder", "The folder does not exist. Create it"),
    ],
)
def test_an_address_that_the_operators_reject_is_a_problem_and_nothing_is_created(
    address, message, stem, tmp_path, capsys
):
    address = address.format(tmp_path)
    [problem] = examined(capsys, "--bucket", address)[1]
    assert problem.startswith(f"bucket {address}: ")
    assert message in problem
    assert not list(tmp_path.iterdir())


def test_a_folder_and_a_bucket_with_its_connection_are_checked(stem, lake, tmp_path, capsys):
    for address in (f"file://{tmp_path}", f"file://{tmp_path}/", f"s3://aws_default@{lake.bucket}/a/"):
        lines, problems = examined(capsys, "--bucket", address)
        assert not problems
        assert any(line.startswith(f"ok       bucket {address}: ") for line in lines)


def test_a_file_that_is_pulled_again_keeps_its_permissions(stem, tmp_path):
    path = tmp_path / "day.csv"
    path.touch(0o640)
    path.chmod(0o640)
    assert main(["pull", "site-00001", "--from", "20250701", "--to", "2025-07-02", "-o", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_pull_is_complete_on_disk_before_it_replaces_a_file(stem, tmp_path, monkeypatch):
    sizes, replace = [], Path.replace

    def replaced(self, target):
        sizes.append(self.stat().st_size)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    path = tmp_path / "day.csv"
    assert main(["pull", "site-00001", *DAY, "-o", str(path)]) == 0
    assert sizes == [path.stat().st_size]


ENDING = {signal.SIGINT: "site-00001", signal.SIGTERM: "site-00002", signal.SIGHUP: "site-00003"}


@pytest.mark.parametrize("number", ENDING)
def test_a_pull_that_is_ended_leaves_no_file(number, stem, tmp_path):
    processes: list[subprocess.Popen[str]] = []

    def interrupt(request, payload):
        # The server may still handle a request of the process of another case.
        if f"/{ENDING[number]}/" in request.path:
            until(lambda: processes)
            stem.rewrite = None
            processes[0].send_signal(number)
        return payload

    stem.rewrite = interrupt
    program = str(Path(sys.executable).with_name("stem"))
    processes.append(
        subprocess.Popen(
            [program, "pull", ENDING[number], *DAY, "-o", str(tmp_path / "day.csv")],
            stderr=subprocess.PIPE,
            text=True,
            # They are ignored where this suite runs in the background.
            preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in ENDING],  # noqa: PLW1509 - nothing else runs in it
        )
    )
    error = processes[0].communicate(timeout=HUNG_AFTER)[1]
    assert error.endswith("stem pull: interrupted\n")
    assert processes[0].returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def handled(*_):
    """A handler of the program that calls the command, as a tool that measures coverage sets one."""


@pytest.mark.parametrize(("handler", "ends"), [(signal.SIG_DFL, True), (handled, True), (signal.SIG_IGN, False)])
def test_a_pull_replaces_handlers_of_signals_but_for_ignored_ones(handler, ends):
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        with reading._interruptible():
            during = {signal.getsignal(number) for number in numbers}
        assert during == {reading._interrupt if ends else handler}
        assert {signal.getsignal(number) for number in numbers} == {handler}
    finally:
        for number, value in before.items():
            signal.signal(number, value)


def test_stem_is_a_command(stem, tmp_path):
    program = str(Path(sys.executable).with_name("stem"))
    done = command(program, "pull", "site-00001", *DAY, "-o", str(tmp_path / "day.parquet"))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert pq.read_table(tmp_path / "day.parquet").num_rows == 288
    assert command(program, "pull", "site-00001").returncode == 2
    assert command(program, "--version").stdout == f"{version('airflow-provider-stem')}\n"
    full = command("bash", "-c", f"{program} sites > /dev/full")
    assert (full.returncode, full.stderr.splitlines()[-1]) == (1, "stem sites: [Errno 28] No space left on device")
    cut_off = command("bash", "-c", f"{program} sites --output jsonl | head -1")
    assert (cut_off.returncode, "Traceback" in cut_off.stderr) == (0, False), cut_off.stderr


@pytest.mark.skipif(AIRFLOW < (3, 2), reason="before 3.2, providers have no commands of airflow")
def test_airflow_stem_is_a_command(stem):
    program = str(Path(sys.executable).with_name("airflow"))
    done = command(program, "stem", "sites", "--output", "jsonl")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 20
    failed = command(program, "stem", "sites", "--stem-conn-id", "none")
    assert failed.returncode == 1
    assert "Create this connection" in failed.stderr
