"""
An Airflow for many sites: PostgreSQL, Redis, CeleryExecutor and several workers. Each part can be killed.

PostgreSQL and Redis are Debian's packages, or running servers whose addresses are in ``CLUSTER_POSTGRES``
(``USER:PASSWORD@HOST:PORT/DATABASE``) and ``CLUSTER_REDIS`` (``redis://HOST:PORT/NUMBER``).
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.servers.airflow_api import PATIENCE, AirflowApi
from tests.servers.postgres import PostgresServer, postgres_program
from tests.servers.processes import PortTakenError, ServerProcess, free_ports, retry_on_other_ports

_NO_REDIS = "redis-server is missing. Install Debian's redis-server, or set CLUSTER_REDIS."
_MAIN = "from airflow.__main__ import main; main()"


class Cluster(AirflowApi):
    """
    Each component as a separate program, as a context manager. Every user is an administrator.

    :param home: folder for configuration and logs. It is kept when the cluster stops.
    :param dags: folder of the DAGs.
    :param environment: additional variables, such as connections or ``AIRFLOW__SECTION__KEY``.
    :param workers: number of Celery workers.
    :param slots: number of tasks that a worker runs at the same time.
    :param preload: modules that each worker imports once for all of its tasks.
    :param paused: whether DAGs stay paused.
    :param progress: called with a line at each step of the start, which takes about a minute.
    :raises RuntimeError: a program is missing, a part does not start, or a DAG file cannot be imported.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        environment: Mapping[str, str] | None = None,
        workers: int = 2,
        slots: int = 4,
        preload: Sequence[str] = ("airflow",),
        paused: bool = True,
        progress: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(paused=paused)
        self.home = home.absolute()
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        self._dags = dags.absolute()
        self._more = dict(environment or {})
        self._slots = slots
        self._preload = preload
        self._progress = progress
        self._database = os.environ.get("CLUSTER_POSTGRES", "")
        self._broker = os.environ.get("CLUSTER_REDIS", "")
        self._parts: dict[str, ServerProcess | PostgresServer] = {}

    @property
    def database(self) -> str:
        """The URI of the metadata database."""
        return f"postgresql://{self._database}"

    @property
    def components(self) -> list[str]:
        """The names of Airflow's components."""
        return ["api-server", "scheduler", "dag-processor", "triggerer", *self.workers]

    def log_file(self, part: str) -> Path:
        """Return the log file of a component, ``postgres`` or ``redis``."""
        return self.home / f"{part}.log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every component."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self._slots * len(self.workers)),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{self._database}",
            "AIRFLOW__CELERY__BROKER_URL": self._broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql://{self._database}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(self._slots),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": self.url.rpartition(":")[2],
            "AIRFLOW__API__WORKERS": "1",
            # A new file is parsed immediately. Parsing it repeatedly would slow down the tasks.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            **PATIENCE,
            **self._more,
        }

    def __enter__(self) -> Cluster:
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            if not self._database:
                self._progress("Starting PostgreSQL")
                server = PostgresServer(self.log_file("postgres"))
                self._parts["postgres"] = server
                server.start()
                server.create("airflow")
                self._database = server.address("airflow")
            if not self._broker:
                self._progress("Starting Redis")
                self._parts["redis"] = retry_on_other_ports(self._start_redis)
            retry_on_other_ports(self._start_airflow)
            self._progress("Waiting for the workers")
            self.wait_until(self._has_all_workers, f"{len(self.workers)} workers")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill every process of the cluster."""
        self.disconnect()
        for part in reversed(self._parts):
            self._parts[part].stop()
        self._parts.clear()

    def start(self, component: str) -> None:
        """Start a component that is not running."""
        arguments = {
            "api-server": ["api-server"],
            "dag-processor": ["dag-processor"],
            # Airflow's log servers listen on every interface. They are not needed: every log is a local file.
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }.get(component, ["celery", "worker", "--skip-serve-logs", f"--celery-hostname={component}@%h"])
        preload = f"import {', '.join(self._preload)}; " if component in self.workers else ""
        self._parts[component] = ServerProcess(
            [sys.executable, "-c", preload + _MAIN, *arguments],
            log=self.log_file(component),
            environment=self.environment,
            folder=self.home,
        )

    def kill(self, component: str) -> None:
        """Kill a component and everything that it started, as when its machine is lost."""
        self._parts.pop(component).stop()

    def processes(self, part: str) -> list[int]:
        """Return the process ids of a component, ``postgres`` or ``redis``."""
        return self._parts[part].processes() if part in self._parts else []

    def _start_redis(self) -> ServerProcess:
        program = shutil.which("redis-server")
        if not program:
            raise RuntimeError(_NO_REDIS)
        (port,) = free_ports(1)
        password = secrets.token_hex(16)
        configuration = self.home / "redis.conf"
        configuration.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\ndir "{self.home}"\n')
        server = ServerProcess(
            [program, str(configuration)], log=self.log_file("redis"), environment=os.environ, folder=self.home
        )
        server.wait_until_ready([port])
        self._broker = f"redis://:{password}@127.0.0.1:{port}/0"
        return server

    def _start_airflow(self) -> None:
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        self._progress("Creating Airflow's tables")
        self.cli("db", "migrate")
        self._progress(f"Starting {', '.join(self.components)}")
        for component in self.components:
            self.start(component)
        try:
            self.connect()
        except PortTakenError:
            # The address of the API server is in the environment of every component.
            for component in self.components:
                self.kill(component)
            raise

    def _has_all_workers(self) -> bool:
        return all("ready." in self.log_file(worker).read_text(errors="replace") for worker in self.workers)

    def ended(self) -> list[str]:
        """Return the names of the parts that have ended without being killed."""
        return [part for part, program in self._parts.items() if not program.is_running]

    def _has_bound_port(self) -> bool:
        server = self._parts.get("api-server")
        return isinstance(server, ServerProcess) and server.listens_on(int(self.url.rpartition(":")[2]))

    def _tail(self) -> str:
        parts = self.ended() or list(self._parts)
        return "\n".join(
            f"--- {part}:\n{self.log_file(part).read_text(errors='replace')[-2000:]}"
            for part in parts
            if self.log_file(part).exists()
        )


def missing_programs() -> str:
    """Return the error messages for missing programs, or an empty string."""
    missing = []
    if not os.environ.get("CLUSTER_POSTGRES"):
        try:
            postgres_program("postgres")
        except RuntimeError as exc:
            missing.append(str(exc))
    if not os.environ.get("CLUSTER_REDIS") and not shutil.which("redis-server"):
        missing.append(_NO_REDIS)
    return " ".join(missing)
