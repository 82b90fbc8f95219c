"""A real Airflow (``airflow standalone``) on SQLite and a free loopback port."""

from __future__ import annotations

import os
import shlex
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tests.servers.airflow_api import LOCK_TIMEOUT, PATIENCE, AirflowApi
from tests.servers.processes import HUNG_AFTER, ServerProcess, free_ports, retry_on_other_ports

# Airflow 3 writes the audit log in the event loop of its API server. If another request there has locked the database,
# that one cannot end before the log's wait for the lock does, so this wait is short. Clients repeat their requests.
#
# Airflow's log servers listen on fixed ports of every interface. They are not needed: every log is a local file.
_LAUNCHER = """#!/bin/sh
case "$1" in
standalone) exec {python} -m airflow "$@";;
api-server) AIRFLOW__DATABASE__SQL_ALCHEMY_CONN={short_wait} {python} -m airflow "$@";;
scheduler) {python} -c {preload} "$@" --skip-serve-logs;;
triggerer) {python} -m airflow "$@" --skip-serve-logs;;
*) {python} -m airflow "$@";;
esac
echo "$1" >> {ended}
"""
_SHORT_WAIT = 5
_PRELOAD = "{imports}; from airflow.__main__ import main; main()"


class AirflowServer(AirflowApi):
    """
    Scheduler, DAG processor, triggerer and API server, as a context manager. Every user is an administrator.

    :param home: folder for database, logs and configuration. It is kept when the server stops.
    :param dags: folder of the DAGs.
    :param environment: additional variables, such as connections or ``AIRFLOW__SECTION__KEY``. Airflow's variables of
        the calling process are not inherited.
    :param paused: whether DAGs stay paused. Otherwise they are unpaused once all components run: tasks that start
        earlier fail, because they cannot reach the API server.
    :param parallelism: number of tasks that run at the same time.
    :param preload: modules that the scheduler imports once for all tasks, which are forked from it.
    :raises RuntimeError: Airflow does not start, or a DAG file cannot be imported.
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
        self._standalone: ServerProcess | None = None

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    def _database_url(self, timeout: int) -> str:
        return f"sqlite:///{self._database}?timeout={timeout}"

    @property
    def _ends(self) -> Path:
        # Names of the components that have ended. The others continue, and standalone does not report it.
        return self.home / "ended"

    @property
    def log_file(self) -> Path:
        """The output of all components."""
        return self.home / "standalone.log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every component, for programs that use the same Airflow."""
        port = self.url.rpartition(":")[2]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        return {
            **inherited,
            "PATH": os.pathsep.join([str(self.home / "bin"), os.environ.get("PATH", os.defpath)]),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # One component writes at a time. On a busy machine the others wait longer than the default of 5 s.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database_url(LOCK_TIMEOUT),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self._parallelism),
            # Airflow 3.0 sends tasks through a pipe while it locks the database. If the pipe were full, it would
            # wait for tasks that wait for the database.
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(2 * self._parallelism),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
            # A new file is parsed immediately. Parsing it repeatedly would slow down the tasks.
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
            # There is one of each component, so none must be replaced when its heartbeat is late.
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
                    # Otherwise Airflow 2 would run one task at a time, each in a new interpreter.
                    "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
                }
                if self._is_2
                else {
                    "AIRFLOW__API__HOST": "127.0.0.1",
                    "AIRFLOW__API__PORT": port,
                    "AIRFLOW__API__WORKERS": "1",
                    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
                    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
                    # Airflow 3.0 has no default issuer, which newer versions of PyJWT reject.
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
        launcher.write_text(
            _LAUNCHER.format(
                python=shlex.quote(sys.executable),
                preload=shlex.quote(preload),
                short_wait=shlex.quote(self._database_url(_SHORT_WAIT)),
                ended=shlex.quote(str(self._ends)),
            )
        )
        launcher.chmod(0o755)
        if self._is_2:
            (self.home / "webserver_config.py").write_text("AUTH_ROLE_PUBLIC = 'Admin'\n")
        with closing(sqlite3.connect(self._database)) as database:
            # Readers do not block writers. Airflow 3 sets it itself. The setting is stored in the file.
            database.execute("PRAGMA journal_mode=WAL")
        retry_on_other_ports(lambda: self._start(launcher))
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, launcher: Path) -> None:
        self._ends.unlink(missing_ok=True)
        self.log_file.unlink(missing_ok=True)
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        self._standalone = ServerProcess(
            [str(launcher), "standalone"], log=self.log_file, environment=self.environment, folder=self.home
        )
        try:
            self.connect()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every process. Committed data stays."""
        standalone, self._standalone = self._standalone, None
        self.disconnect()
        if standalone is not None:
            standalone.stop()

    def processes(self) -> list[int]:
        """Return the process ids of all components and tasks."""
        return [] if self._standalone is None else self._standalone.processes()

    def ended(self) -> list[str]:
        """Return the names of the components that have ended."""
        if self._ends.exists():
            return self._ends.read_text().split()
        return [] if self._standalone is not None and self._standalone.is_running else ["Airflow"]

    def _has_bound_port(self) -> bool:
        return self._standalone is not None and self._standalone.listens_on(int(self.url.rpartition(":")[2]))

    def _tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]
