"""The README and the quick start, each block as written, in a fresh folder and a fresh environment with the wheel."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers.processes import HUNG_AFTER, free_ports
from tests.support import expected_rows, landed_rows

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SPARK = ROOT / ".venv-readers-spark-4.1" / "bin" / "python"
TYPES = ("MONITOR", "CONVERTER")

# What Airflow fails or starts again if a machine is busy.
PATIENT = dict.fromkeys(
    (
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT",
        "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT",
        "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT",
        "AIRFLOW__STEM__TIMEOUT",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT",
    ),
    "1800",
)

pytestmark = pytest.mark.airflow


def blocks(page):
    """Return language and text of each block of code in a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


class Newcomer:
    """
    A shell in an empty folder, where the blocks of a page are run one after the other.

    Only this differs from what is written: ports are free ones, the lake is in that folder, the wheel and its pinned
    requirements are installed instead of the newest, and by uv, which takes seconds where pip takes a minute.

    :param folder: an empty folder.
    :param wheel: the distribution to install.
    """

    def __init__(self, folder, wheel):
        self.folder = folder
        self._wheel = wheel
        self.api, self.web = free_ports(2)
        pins = re.findall(
            r"^([\w.-]+==[^ \\]+(?: ;[^\\]*[^\\ ])?)", (ROOT / "requirements/airflow-3.3.txt").read_text(), re.MULTILINE
        )
        (folder.parent / "pins.txt").write_text("\n".join(pins))
        # Airflow's log servers listen on every interface, on fixed ports, and here every log is a file.
        tools = folder.parent / "tools"
        tools.mkdir()
        (tools / "airflow").write_text(
            '#!/bin/sh\ncase "$1" in scheduler|triggerer) set -- "$@" --skip-serve-logs;; esac\n'
            'exec python -m airflow "$@"\n'
        )
        (tools / "airflow").chmod(0o755)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS", "PYTHON"))
        }
        self._output = folder.parent / "output.txt"
        self._shell: Any = subprocess.Popen(
            ["bash", "-eu"],
            cwd=folder,
            env={
                **inherited,
                "UV_CONSTRAINT": str(folder.parent / "pins.txt"),
                "AIRFLOW_HOME": str(folder / "airflow"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__API__PORT": str(self.web),
                "AIRFLOW__API__WORKERS": "1",
                "AIRFLOW__CORE__PARALLELISM": "4",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.web}/execution/",
                **PATIENT,
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow/airflow.db?timeout=600",
                "TOOLS": str(tools),
            },
            stdin=subprocess.PIPE,
            stdout=self._output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # In a terminal SIGINT is not ignored; where this suite runs in the background, it may be.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - nothing else runs in it
        )

        self.run(f'set -m; pip() {{ "{UV}" pip "$@"; }}')  # with jobs, as in a terminal

    def run(self, commands):
        """Run commands in the shell, and return what they print."""
        for written, used in {"8000": self.api, "8080": self.web}.items():
            commands = re.sub(rf"(?<=[ :]){written}\b", str(used), commands)
        # The name of the distribution with its extras, as an argument of pip.
        commands = re.sub(r'"?airflow-provider-stem(\[[\w,]+\])?"?(?=[ \n])', rf'"{self._wheel}\1"', commands)
        before = self._output.stat().st_size
        self._shell.stdin.write(f"{commands}\necho; echo END-OF-BLOCK\n")
        self._shell.stdin.flush()
        while not (printed := self._output.read_bytes()[before:].decode()).endswith("END-OF-BLOCK\n"):
            # The servers that it started keep its output open.
            if self._shell.poll() is not None:
                errors = "\n".join(re.findall(r"^.*(?:Error|Exception)\b.*$", printed, re.MULTILINE))
                raise AssertionError(f"{commands}\nfailed:\n{printed}\nIts errors:\n{errors[-3000:]}")
            time.sleep(0.05)
        return printed.removesuffix("END-OF-BLOCK\n")

    def save(self, path, text):
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self._in_folder(text))

    def _in_folder(self, text):
        return text.replace("/tmp/lake", f"{self.folder}/lake")

    def until_served(self, port):
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.1)

    def runs(self):
        """Return the state of each run by its id, from Airflow's database: a command of Airflow takes seconds."""
        database = self.folder / "airflow" / "airflow.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=HUNG_AFTER)) as connection:
            return dict(connection.execute("SELECT run_id, state FROM dag_run"))

    def lake(self):
        """Return the folder of the landed files."""
        return self.folder / "lake" / "stem" / "telemetry" / "streams"

    def processes(self):
        """Return what was started from the shell and has not ended."""
        found = []
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self._shell.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return [process for process in found if process.pid != self._shell.pid]

    def stop(self):
        self._shell.stdin.close()
        for process in (processes := self.processes()):
            process.terminate()
        for process in psutil.wait_procs(processes, timeout=20)[1]:
            process.kill()
        self._shell.wait()


def rows_of(lake, start, end):
    """Return the landed rows of a period as those of :func:`expected_rows`."""
    table = ds.dataset(lake).to_table(filter=(ds.field("interval_end") > start) & (ds.field("interval_end") <= end))
    return sorted(landed_rows(table))


def rows_of_api(start, end):
    simulator = Simulator(Settings(sites=20))
    return sorted(expected_rows(simulator, simulator.fleet.site_ids, TYPES, 900, start.isoformat(), end.isoformat()))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [UV, "build", "--quiet", "--no-build-isolation", "--wheel", "--out-dir", folder],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": str(Path(sys.executable).parents[1])},
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def readme(wheel, tmp_path_factory):
    """The README was followed up to the block that needs Spark: what was printed, and what is in the bucket."""
    folder = tmp_path_factory.mktemp("readme") / "new"
    folder.mkdir()
    someone = Newcomer(folder, wheel)
    printed: list[str] = []
    try:
        someone.run('python3 -m venv venv; . venv/bin/activate; PATH="$TOOLS:$PATH"')
        for language, text in blocks("README.md"):
            if not language:
                continue  # the commands of a checkout
            if "with DAG(" in text:
                someone.save("airflow/dags/telemetry.py", text)
            elif "pyspark" in text:
                continue
            elif language == "python":
                someone.save("query.py", (folder / "query.py").read_text() + text if printed else text)
                printed.append(someone.run("python query.py"))
            else:
                if "backfill" in text:
                    someone.run("airflow dags reserialize")  # a running Airflow has parsed the DAG
                someone.run(text)
                if "stem simulate" in text:
                    someone.until_served(someone.api)
        yield printed, someone.lake(), someone.runs()
    finally:
        someone.stop()


def test_the_readme_leads_to_the_rows_of_the_api(readme):
    printed, lake, runs = readme
    day = datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 2, tzinfo=UTC)
    found = rows_of(lake, *day)
    assert found == rows_of_api(*day)
    assert len(found) > 3_000
    assert f"{len(found)}" in printed[0].replace(".0", "")
    assert "2025-07-01" in printed[-1]
    assert sum(name.startswith("backfill__2025-07") for name in runs) == 7


def test_the_readme_is_short_and_its_commands_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for language, block in blocks("README.md"):
        if not language:
            for line in block.splitlines():
                program, target = line.partition("#")[0].split()
                assert program == "make"
                assert target in targets


@pytest.mark.skipif(
    not (SPARK.exists() and shutil.which("java")), reason="needs `make test-readers` and Java for Spark"
)
def test_sparks_block_of_the_readme_counts_the_rows(readme):
    [program] = [text for _, text in blocks("README.md") if "pyspark" in text]
    done = subprocess.run(
        [SPARK, "-c", program.replace("/tmp/lake/stem/telemetry/streams", str(readme[1]))],
        env={
            **os.environ,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": str(SPARK),
            "PYSPARK_SUBMIT_ARGS": "--conf spark.ui.enabled=false --master local[1] pyspark-shell",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "96" in done.stdout
    assert "site-000" in done.stdout


def test_the_quick_start_leads_to_the_rows_of_the_api(wheel, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    someone = Newcomer(folder, wheel)
    names = iter(["airflow/dags/telemetry.py", "query.py"])
    week = datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 8, tzinfo=UTC)
    printed = ""
    try:
        for language, text in blocks("docs/quickstart.md"):
            if language == "python":
                name = next(names)
                assert f"`{name}`" in (ROOT / "docs/quickstart.md").read_text()
                someone.save(name, text)
                continue
            if "kill" in text:
                week_rows = rows_of(someone.lake(), *week)
                someone.run(text)
                while someone.processes():
                    time.sleep(0.1)
                continue
            printed = someone.run(text)
            if "activate" in text:
                someone.run('PATH="$TOOLS:$PATH"')
            elif "stem simulate" in text:
                someone.until_served(someone.api)
            elif "standalone" in text:
                someone.until_served(someone.web)
            elif "unpause" in text:
                # As many runs as there are days, and yesterday's.
                while list(someone.runs().values()) != ["success"] * 8:
                    assert "failed" not in someone.runs().values()
                    time.sleep(1)
        assert week_rows == rows_of_api(*week)
        assert "672" in printed
    finally:
        someone.stop()
