"""
A real Airflow (``airflow standalone``) on SQLite and a free loopback port; for the tests and the benchmarks.

Run as a program, this file is the guard of such an Airflow: it ends all of its processes once its standard input is
closed, which it is too when the process that started it is killed.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

ENDED = frozenset({"success", "failed"})
_POLL = 0.2
_LOCK_TIMEOUT = 30  # seconds that one component waits for another to let go of the database
# Airflow's log servers listen on every interface, on fixed ports, and here every log is a file of this machine.
_LAUNCHER = """#!/bin/sh
case "$1" in
standalone) exec {python} -m airflow "$@";;
scheduler) {python} -c {preload} "$@" --skip-serve-logs;;
triggerer) {python} -m airflow "$@" --skip-serve-logs;;
*) {python} -m airflow "$@";;
esac
echo "$1" >> {ended}
"""
_PRELOAD = "{imports}; from airflow.__main__ import main; main()"
_COMMANDS = """
import json, sys
from airflow.__main__ import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    main()
"""


class AirflowServer:
    """
    Runs scheduler, DAG processor, triggerer and API server, as a context manager; everyone is admin.

    :param home: folder for database, logs and configuration; kept when the server stops.
    :param dags: folder of the DAGs.
    :param environment: more variables, such as connections or ``AIRFLOW__SECTION__KEY``. Airflow's variables of this
        process itself are not handed on.
    :param paused: whether DAGs stay paused; else those are unpaused that are there, once everything is up: a task that
        begins earlier fails, since it cannot reach the API server.
    :param parallelism: how many tasks run at a time.
    :param preload: modules that tasks import, for the scheduler to import once: tasks are forked from it.
    :param within: seconds that anything that is waited for may take.
    :raises RuntimeError: Airflow does not come up, or a DAG file cannot be imported.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        environment: Mapping[str, str] | None = None,
        paused: bool = False,
        parallelism: int = 4,
        preload: Sequence[str] = ("airflow",),
        within: float = 180.0,
    ) -> None:
        self.home = home.absolute()
        self.version = version("apache-airflow")
        self.within = within
        self.url = ""
        self._dags = dags.absolute()
        self._more = dict(environment or {})
        self._paused = paused
        self._parallelism = parallelism
        self._preload = preload
        self._is_2 = self.version.startswith("2.")
        self._session: requests.Session | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    @property
    def _ended(self) -> Path:
        # Which components have ended: the others go on, and standalone does not tell.
        return self.home / "ended"

    @property
    def log_file(self) -> Path:
        """What the components print."""
        return self.home / "standalone.log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every component, for programs that must see the same Airflow."""
        port = self.url.rpartition(":")[2]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        return {
            **inherited,
            "PATH": os.pathsep.join([str(self.home / "bin"), os.environ.get("PATH", os.defpath)]),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # One component writes at a time; on a busy machine the others wait for longer than the 5 s of the default.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._database}?timeout={_LOCK_TIMEOUT}",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self._parallelism),
            # Airflow 3.0 hands out tasks through a pipe while the database is locked. Were it full, it would wait
            # for tasks that wait for the database.
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(2 * self._parallelism),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            # A file is parsed once it is there; doing so again and again would take time from what runs.
            **dict.fromkeys(
                (
                    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL",
                    "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL",
                ),
                "600",
            ),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            **(
                {
                    "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
                    "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": port,
                    "AIRFLOW__WEBSERVER__WORKERS": "1",
                    "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
                    "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "5",
                    "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "1",
                    # Tasks one after the other, each in a new interpreter, would take minutes.
                    "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
                }
                if self._is_2
                else {
                    "AIRFLOW__API__HOST": "127.0.0.1",
                    "AIRFLOW__API__PORT": port,
                    "AIRFLOW__API__WORKERS": "1",
                    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
                    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
                    # Airflow 3.0 names no issuer by itself, which newer versions of PyJWT refuse.
                    "AIRFLOW__API_AUTH__JWT_ISSUER": "airflow",
                }
            ),
            **self._more,
        }

    def __enter__(self) -> AirflowServer:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self.home.mkdir(parents=True, exist_ok=True)
        launcher = self.home / "bin" / "airflow"
        launcher.parent.mkdir(exist_ok=True)
        preload = _PRELOAD.format(imports=f"import {', '.join(self._preload)}")
        self._ended.unlink(missing_ok=True)
        launcher.write_text(
            _LAUNCHER.format(
                python=shlex.quote(sys.executable),
                preload=shlex.quote(preload),
                ended=shlex.quote(str(self._ended)),
            )
        )
        launcher.chmod(0o755)
        if self._is_2:
            (self.home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")
        with closing(sqlite3.connect(self._database)) as database:
            # The file keeps it: who reads does not hinder who writes. Airflow 3 sets it itself.
            database.execute("PRAGMA journal_mode=WAL")
        self.url = f"http://127.0.0.1:{_free_port()}"
        with self.log_file.open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, __file__, str(launcher), "standalone"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.home,
                # A session of its own: that is how all of its processes are found, whatever group they are in.
                start_new_session=True,
            )
        self._session = requests.Session()
        self._session.trust_env = False
        # An answer 500 ends the connection, which the next call finds out.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(3, backoff_factor=0.1)))
        try:
            self.wait_until(self._is_healthy, "Airflow to be healthy")
            if not self._is_2:
                token = self._session.get(f"{self.url}/auth/token", timeout=30).json()["access_token"]
                self._session.headers["Authorization"] = f"Bearer {token}"
            self.wait_until(self.dag_ids, f"a DAG of {self._dags}")
            if not self._paused:
                self.unpause()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process; what the database has committed stays."""
        guard, self._guard = self._guard, None
        if self._session is not None:
            self._session.close()
        if guard is None or guard.stdin is None:
            return
        guard.stdin.close()
        try:
            guard.wait(10)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        _end_session(guard.pid)

    def processes(self) -> list[int]:
        """Give the process ids of all components and tasks."""
        return [] if self._guard is None else _members(self._guard.pid)

    def wait_until(self, holds: Callable[[], Any], what: str, within: float | None = None) -> Any:
        """
        Ask again and again until the answer is true in the sense of Python, and give it.

        :raises RuntimeError: the time is over, or Airflow has ended.
        """
        deadline = time.monotonic() + (within or self.within)
        while time.monotonic() < deadline:
            if self._guard is None or self._guard.poll() is not None or self._ended.exists():
                ended = self._ended.read_text().split() if self._ended.exists() else ["Airflow"]
                raise RuntimeError(
                    f"{', '.join(ended)} ended while waiting for {what}. Airflow's log ends with:\n{self._tail()}"
                )
            if held := holds():
                return held
            time.sleep(_POLL)
        raise RuntimeError(f"Waited in vain for {what}. Airflow's log ends with:\n{self._tail()}")

    def call(self, method: str, path: str, **given: Any) -> Any:
        """
        Call the REST API (``/api/v2``, on Airflow 2 ``/api/v1``) and give the decoded answer.

        :param given: as :meth:`requests.Session.request` takes it.
        :raises RuntimeError: the answer is an error.
        """
        return self._call(method, path, **given).json()

    def dag_ids(self) -> list[str]:
        """
        Give the ids of the DAGs that are parsed.

        :raises RuntimeError: a DAG file cannot be imported.
        """
        for error in self.call("GET", "importErrors")["import_errors"]:
            raise RuntimeError(f"{error['filename']} cannot be imported:\n{error['stack_trace']}")
        return [dag["dag_id"] for dag in self._pages("dags", "dags")]

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Return when these DAGs are parsed, and let them run unless all are to stay paused."""
        self.wait_until(lambda: {*dag_ids} <= {*self.dag_ids()}, f"the DAGs {', '.join(dag_ids)}")
        if not self._paused:
            self.unpause()

    def pause(self, dag_id: str) -> None:
        """Let a DAG make no runs of itself, and begin no task."""
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": True})

    def unpause(self, pattern: str = "%") -> None:
        """Let the DAGs run whose id is like this pattern of SQL; by default all that are parsed."""
        self.call("PATCH", "dags", params={"dag_id_pattern": pattern}, json={"is_paused": False})

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Mapping[str, Any] | None = None, **more: Any
    ) -> str:
        """Start a run through the REST API and give its id; Airflow 2 takes the present where there is no date."""
        body: dict[str, Any] = {"conf": dict(conf or {}), **more}
        if logical_date is not None or not self._is_2:
            body["logical_date"] = logical_date and logical_date.isoformat()
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def backfill(self, dag_id: str, start: datetime, end: datetime, *, by_command: bool = False) -> None:
        """
        Start a backfill.

        Airflow 2 has it in the command line alone, and returns when it has ended. On Airflow 3 let nothing run
        meanwhile: it gives up where another component writes to SQLite between two of its statements.
        """
        if self._is_2:
            self.cli("dags", "backfill", dag_id, "--start-date", start.isoformat(), "--end-date", end.isoformat())
            return
        bounds = {"from_date": start.isoformat(), "to_date": end.isoformat()}

        def made() -> bool:
            try:
                if by_command:
                    options = [f"--{name.replace('_', '-')}={value}" for name, value in bounds.items()]
                    self.cli("backfill", "create", f"--dag-id={dag_id}", *options)
                else:
                    self.call("POST", "backfills", json={"dag_id": dag_id, **bounds})
            except RuntimeError as exc:
                if "locked" not in str(exc) and "POST backfills: 500" not in str(exc):
                    raise
                for begun in self.call("GET", "backfills", params={"dag_id": dag_id})["backfills"]:
                    if not begun["completed_at"]:
                        self.call("PUT", f"backfills/{begun['id']}/cancel")
                return False
            return True

        self.wait_until(made, f"a backfill of {dag_id}")

    def cli(self, *arguments: str) -> str:
        """
        Run ``airflow ARGUMENTS`` and give what it prints.

        :raises RuntimeError: it fails.
        """
        return self.commands(arguments)

    def commands(self, *commands: Sequence[str]) -> str:
        """
        Run several commands in one process, since its start takes seconds, and give what they print.

        :raises RuntimeError: one fails.
        """
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=self.within,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {commands} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Give a DAG's runs (``~``: of all DAGs), the earliest first."""
        return self._pages(f"dags/{dag_id}/dagRuns", "dag_runs", order_by="start_date")

    def wait_for_run(self, dag_id: str, run_id: str, within: float | None = None) -> str:
        """Give the state in which a run ends."""

        def ended() -> str | None:
            state = str(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])
            return state if state in ENDED else None

        return str(self.wait_until(ended, f"the end of {dag_id} {run_id}", within))

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Give a run's task instances (``~`` for all)."""
        return self._pages(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int | None = None
    ) -> Any:
        """Give what a task has pushed, or None."""
        import requests

        query: dict[str, Any] = {"stringify": "false"}
        if map_index is not None:
            query["map_index"] = map_index
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._call("GET", path, params=query, but=requests.codes.not_found)
        return answer.json()["value"] if answer.ok else None

    def log(self, dag_id: str, run_id: str, task_id: str, *, attempt: int = 1, map_index: int = -1) -> str:
        """Give the log of one attempt as text."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        query = {"full_content": "true", "map_index": map_index}
        accept = {"Accept": "text/plain" if self._is_2 else "application/json"}
        answer = self._call("GET", path, params=query, headers=accept)
        if self._is_2:
            return answer.text
        lines = answer.json()["content"]
        return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)

    def links(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> dict[str, str | None]:
        """Give the addresses that a task's page links to, by name."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        answer = self.call("GET", path, params={"map_index": map_index})
        return dict(answer.get("extra_links", answer))

    def asset_events(self) -> list[dict[str, Any]]:
        """Give all events of assets, the earliest first."""
        kind = "dataset" if self._is_2 else "asset"
        return self._pages(f"{kind}s/events", f"{kind}_events", order_by="timestamp")

    def _pages(self, path: str, field: str, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", path, params={**query, "limit": 100, "offset": len(found)})
            found += page[field]
            if not page[field] or len(found) >= page["total_entries"]:
                return found

    def _call(self, method: str, path: str, *, but: int | None = None, **given: Any) -> requests.Response:
        if self._session is None:
            raise RuntimeError("Airflow does not run.")
        address = f"{self.url}/api/{'v1' if self._is_2 else 'v2'}/{path}"
        # On SQLite parts of Airflow can wait for each other until one gives up; what that one did is undone.
        for _ in range(4):
            answer = self._session.request(method, address, timeout=5 * _LOCK_TIMEOUT, **given)
            if answer.status_code < 500 or not re.search("database", answer.text, re.IGNORECASE):
                break
        if not answer.ok and answer.status_code != but:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer

    def _is_healthy(self) -> bool:
        import requests

        try:
            health = self._call("GET", "health" if self._is_2 else "monitor/health").json()
        except (requests.RequestException, RuntimeError):
            return False
        # On Airflow 2 the scheduler parses the DAGs itself, so that there is no such component.
        needed = ["metadatabase", "scheduler", "triggerer"] + ([] if self._is_2 else ["dag_processor"])
        return all(health[name]["status"] == "healthy" for name in needed)

    def _tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _members(session: int) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _end_session(session: int) -> None:
    # Again and again: what is killed may have started something since.
    while members := [pid for pid in _members(session) if pid != os.getpid()]:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _guard(command: list[str]) -> int:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        # Nothing is ever written to it, so it is readable when it is closed.
        while child.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
            pass
        _end_session(os.getpid())
        return child.wait()


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
