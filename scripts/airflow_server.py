"""A real Airflow (``airflow standalone``) on SQLite and a free loopback port; for the tests and the benchmarks."""

from __future__ import annotations

import os
import shlex
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from airflow_api import LOCK_TIMEOUT, PATIENCE, AirflowApi
from processes import HUNG_AFTER, Guarded, free_port

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


class AirflowServer(AirflowApi):
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
    ) -> None:
        super().__init__(paused=paused)
        self.home = home.absolute()
        self._dags = dags.absolute()
        self._more = dict(environment or {})
        self._parallelism = parallelism
        self._preload = preload
        self._standalone: Guarded | None = None

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    @property
    def _ends(self) -> Path:
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
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._database}?timeout={LOCK_TIMEOUT}",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self._parallelism),
            # Airflow 3.0 hands out tasks through a pipe while the database is locked. Were it full, it would wait
            # for tasks that wait for the database.
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(2 * self._parallelism),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
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
            **PATIENCE,
            # There is one of each component, so nothing takes over from one whose heartbeat is late.
            **dict.fromkeys(
                (
                    "AIRFLOW__DAG_PROCESSOR__HEALTH_CHECK_THRESHOLD",
                    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD",
                    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD",  # Airflow 2
                    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT",
                    "AIRFLOW__TRIGGERER__RUNNER_HEALTH_CHECK_THRESHOLD",
                    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD",
                ),
                f"{HUNG_AFTER:.0f}",
            ),
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
        self.home.mkdir(parents=True, exist_ok=True)
        launcher = self.home / "bin" / "airflow"
        launcher.parent.mkdir(exist_ok=True)
        preload = _PRELOAD.format(imports=f"import {', '.join(self._preload)}")
        self._ends.unlink(missing_ok=True)
        self.log_file.unlink(missing_ok=True)
        launcher.write_text(
            _LAUNCHER.format(
                python=shlex.quote(sys.executable),
                preload=shlex.quote(preload),
                ended=shlex.quote(str(self._ends)),
            )
        )
        launcher.chmod(0o755)
        if self._is_2:
            (self.home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")
        with closing(sqlite3.connect(self._database)) as database:
            # The file keeps it: who reads does not hinder who writes. Airflow 3 sets it itself.
            database.execute("PRAGMA journal_mode=WAL")
        self.url = f"http://127.0.0.1:{free_port()}"
        self._standalone = Guarded(
            [str(launcher), "standalone"], log=self.log_file, environment=self.environment, folder=self.home
        )
        try:
            self.connect()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process; what the database has committed stays."""
        standalone, self._standalone = self._standalone, None
        self.disconnect()
        if standalone is not None:
            standalone.stop()

    def processes(self) -> list[int]:
        """Give the process ids of all components and tasks."""
        return [] if self._standalone is None else self._standalone.processes()

    def ended(self) -> list[str]:
        """Name the components that have ended."""
        if self._ends.exists():
            return self._ends.read_text().split()
        return [] if self._standalone is not None and self._standalone.is_running else ["Airflow"]

    def _tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]
