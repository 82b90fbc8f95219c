"""
An Airflow as it is run for many sites: PostgreSQL, Redis, CeleryExecutor with several workers; each part can be killed.

As a program it brings up such a cluster beside a simulated API and an S3 server, with the example DAGs, until Ctrl-C.
PostgreSQL and Redis are Debian's packages, or servers that run already and that ``CLUSTER_POSTGRES`` and
``CLUSTER_REDIS`` name, as ``USER:PASSWORD@HOST:PORT/DATABASE`` and ``redis://HOST:PORT/NUMBER``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

from airflow_api import PATIENCE, AirflowApi
from postgres_server import PostgresServer, postgres_program
from processes import Guarded, free_port

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cluster"
"""Keeps the logs and the lake until the next start."""
_MAIN = "from airflow.__main__ import main; main()"


class Cluster(AirflowApi):
    """
    Runs each component as a program of its own, as a context manager; everyone is admin.

    :param home: folder for configuration and logs; kept when the cluster stops.
    :param dags: folder of the DAGs.
    :param environment: more variables, such as connections or ``AIRFLOW__SECTION__KEY``.
    :param workers: how many Celery workers there are.
    :param slots: how many tasks each of them runs at a time.
    :param preload: modules that tasks import, for the workers to import once.
    :param paused: whether DAGs stay paused.
    :raises RuntimeError: a program is missing, a part does not come up, or a DAG file cannot be imported.
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
    ) -> None:
        super().__init__(paused=paused)
        self.home = home.absolute()
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        self._dags = dags.absolute()
        self._more = dict(environment or {})
        self._slots = slots
        self._preload = preload
        self._database = os.environ.get("CLUSTER_POSTGRES", "")
        self._broker = os.environ.get("CLUSTER_REDIS", "")
        self._parts: dict[str, Guarded | PostgresServer] = {}

    @property
    def database(self) -> str:
        """The metadata database, as a URI."""
        return f"postgresql://{self._database}"

    @property
    def components(self) -> list[str]:
        """The programs of Airflow."""
        return ["api-server", "scheduler", "dag-processor", "triggerer", *self.workers]

    def log_file(self, part: str) -> Path:
        """What a component, ``postgres`` or ``redis`` prints."""
        return self.home / f"{part}.log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every component."""
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
            # A file is parsed once it is there; doing so again and again would take time from what runs.
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
            self._start_postgres()
            self._start_redis()
            self.url = f"http://127.0.0.1:{free_port()}"
            self.cli("db", "migrate")
            for component in self.components:
                self.start(component)
            self.connect()
            self.wait_until(self._has_all_workers, f"{len(self.workers)} workers")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process that was started here."""
        self.disconnect()
        for part in reversed(self._parts):
            self._parts[part].stop()
        self._parts.clear()

    def start(self, component: str) -> None:
        """Start a component that does not run."""
        arguments = {
            "api-server": ["api-server"],
            "dag-processor": ["dag-processor"],
            # Airflow's log servers listen on every interface, and here every log is a file of this machine.
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
        }.get(component, ["celery", "worker", "--skip-serve-logs", f"--celery-hostname={component}@%h"])
        preload = f"import {', '.join(self._preload)}; " if component in self.workers else ""
        self._parts[component] = Guarded(
            [sys.executable, "-c", preload + _MAIN, *arguments],
            log=self.log_file(component),
            environment=self.environment,
            folder=self.home,
        )

    def kill(self, component: str) -> None:
        """Kill a component with all that it started, as when its machine is lost."""
        self._parts.pop(component).stop()

    def processes(self, part: str) -> list[int]:
        """Give the process ids of a component, ``postgres`` or ``redis``."""
        return self._parts[part].processes() if part in self._parts else []

    def _start_postgres(self) -> None:
        if self._database:
            return
        server = PostgresServer(self.log_file("postgres"))
        self._parts["postgres"] = server
        server.start()
        server.create("airflow")
        self._database = server.address("airflow")

    def _start_redis(self) -> None:
        if self._broker:
            return
        program = shutil.which("redis-server")
        if not program:
            raise RuntimeError("redis-server is missing: install Debian's redis-server, or set CLUSTER_REDIS.")
        port = str(free_port())
        self._parts["redis"] = Guarded(
            [program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", str(self.home)],
            log=self.log_file("redis"),
            environment=os.environ,
            folder=self.home,
        )
        self._broker = f"redis://127.0.0.1:{port}/0"

    def _has_all_workers(self) -> bool:
        return all("ready." in self.log_file(worker).read_text(errors="replace") for worker in self.workers)

    def ended(self) -> list[str]:
        """Name the parts that have ended without being killed."""
        return [part for part, program in self._parts.items() if not program.is_running]

    def _tail(self) -> str:
        parts = self.ended() or list(self._parts)
        return "\n".join(
            f"--- {part}:\n{self.log_file(part).read_text(errors='replace')[-2000:]}"
            for part in parts
            if self.log_file(part).exists()
        )


def missing_programs() -> str:
    """Tell which packages a cluster lacks here, or nothing."""
    lacks = []
    if not os.environ.get("CLUSTER_POSTGRES"):
        try:
            postgres_program("postgres")
        except RuntimeError as exc:
            lacks.append(str(exc))
    if not os.environ.get("CLUSTER_REDIS") and not shutil.which("redis-server"):
        lacks.append("redis-server is missing: install Debian's redis-server, or set CLUSTER_REDIS.")
    return " ".join(lacks)


def main() -> int:
    """Bring a cluster up, tell where its parts are, and take it down again."""
    from s3_server import S3Server

    from airflow_provider_stem.simulator import Settings, Simulator

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4, help="tasks that a worker runs at a time")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that each answer of the API waits")
    given = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)

    over = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with ExitStack() as stack:
        simulator = stack.enter_context(
            Simulator(Settings(sites=given.sites, clients=given.clients, latency=given.latency))
        )
        s3 = stack.enter_context(S3Server(FOLDER / "lake"))
        s3.client().create_bucket(Bucket="lake")  # type: ignore[attr-defined]
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": simulator.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
            "STEM_BUCKET": "lake",
            "STEM_START": str(datetime.now(UTC).date() - timedelta(days=1)),
        }
        print("Starting PostgreSQL, Redis, Airflow and its workers; this takes about a minute.", flush=True)
        cluster = stack.enter_context(
            Cluster(
                FOLDER / "airflow",
                ROOT / "example_dags",
                environment=environment,
                workers=given.workers,
                slots=given.slots,
            )
        )
        cluster.call("POST", "pools", json={"name": "stem_api", "slots": given.workers * given.slots // 2 or 1})
        print(f"Airflow    {cluster.url}")
        print(f"database   {cluster.database}")
        print(f"API        {simulator.url} ({given.sites:,} sites of {given.clients} clients)")
        print(f"S3         {s3.url}")
        print(f"logs       {FOLDER / 'airflow'}: {', '.join(f'{one}.log' for one in cluster.components)}")
        print("Unpause stem_daily, and it loads yesterday. Ctrl-C takes it all down.", flush=True)
        while not over.wait(1):
            if ended := cluster.ended():
                print(f"{', '.join(ended)} ended; see the log.", file=sys.stderr)
                return 1
    print("All is down.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
