"""A running Airflow, through its REST API and its command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tests.servers.processes import HUNG_AFTER

if TYPE_CHECKING:
    import requests

ENDED = frozenset({"success", "failed"})
_POLL = 0.2
LOCK_TIMEOUT = 120
"""Seconds that a component waits for a lock of an SQLite database. A scheduler that gives up ends."""
PATIENCE = dict.fromkeys(
    (
        "AIRFLOW__API__WORKER_TIMEOUT",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT",
        "AIRFLOW__CORE__DAG_FILE_PROCESSOR_TIMEOUT",  # Airflow 2
        "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT",
        "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD",
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME",
        "AIRFLOW__SCHEDULER__STALE_DAG_THRESHOLD",  # Airflow 2
        "AIRFLOW__STEM__TIMEOUT",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT",
        "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT",  # Airflow 2
        "AIRFLOW__WEBSERVER__WEB_SERVER_WORKER_TIMEOUT",  # Airflow 2
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT",
    ),
    f"{HUNG_AFTER:.0f}",
)
"""Time limits of Airflow and the provider that slow calls exceed on a busy machine."""
_COMMANDS = """
import json, sys
from airflow.__main__ import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    main()
"""


class AirflowApi(ABC):
    """
    A running Airflow in which every user is an administrator.

    :param paused: whether DAGs stay paused. Otherwise :meth:`connect` and :meth:`wait_for_dags` unpause them.
    """

    def __init__(self, *, paused: bool) -> None:
        self.version = version("apache-airflow")
        self.url = ""
        self._paused = paused
        self._is_2 = self.version.startswith("2.")
        self._session: requests.Session | None = None

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The environment variables of every component, for programs that use the same Airflow."""

    @abstractmethod
    def ended(self) -> list[str]:
        """Return the names of components that have ended unexpectedly."""

    @abstractmethod
    def _has_bound_port(self) -> bool:
        """
        Return whether the API server of this Airflow listens on its port.

        :raises PortTakenError: another program does.
        """

    @abstractmethod
    def _tail(self) -> str:
        """Return the end of the log."""

    def connect(self) -> None:
        """Return when Airflow is healthy and has parsed a DAG. Then unpause all DAGs, unless they stay paused."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self._session = requests.Session()
        self._session.trust_env = False
        # A response with status 500 closes the connection, which only the next call notices.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(3, backoff_factor=0.1)))
        self.wait_until(self._has_bound_port, "the API server to start")
        self.wait_until(self.is_healthy, "Airflow to be healthy")
        if not self._is_2:
            token = self._session.get(f"{self.url}/auth/token", timeout=HUNG_AFTER).json()["access_token"]
            self._session.headers["Authorization"] = f"Bearer {token}"
        self.wait_until(self.dag_ids, "a DAG")
        if not self._paused:
            self.unpause()

    def disconnect(self) -> None:
        """Close what :meth:`connect` opened."""
        if self._session is not None:
            self._session.close()

    def wait_until(self, holds: Callable[[], Any], what: str) -> Any:
        """
        Call a function until it returns a true value, and return that value.

        :raises PortTakenError: the API server has ended because another program listens on its port.
        :raises RuntimeError: a component of Airflow has ended, or :data:`HUNG_AFTER` has passed.
        """
        deadline = time.monotonic() + HUNG_AFTER
        while time.monotonic() < deadline:
            if ended := self.ended():
                self._has_bound_port()
                raise RuntimeError(
                    f"{', '.join(ended)} ended while waiting for {what}. The log ends with:\n{self._tail()}"
                )
            if held := holds():
                return held
            time.sleep(_POLL)
        raise RuntimeError(f"Timed out waiting for {what}. The log ends with:\n{self._tail()}")

    def call(self, method: str, path: str, **given: Any) -> Any:
        """
        Call the REST API (``/api/v2``, on Airflow 2 ``/api/v1``) and return the decoded response.

        :param given: arguments of :meth:`requests.Session.request`.
        :raises RuntimeError: the response is an error.
        """
        return self._call(method, path, **given).json()

    def dag_ids(self) -> list[str]:
        """
        Return the ids of the parsed DAGs.

        :raises RuntimeError: a DAG file cannot be imported.
        """
        for error in self.call("GET", "importErrors")["import_errors"]:
            raise RuntimeError(f"{error['filename']} cannot be imported:\n{error['stack_trace']}")
        return [dag["dag_id"] for dag in self._pages("dags", "dags")]

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Return when these DAGs are parsed. Then unpause all DAGs, unless they stay paused."""
        self.wait_until(lambda: {*dag_ids} <= {*self.dag_ids()}, f"the DAGs {', '.join(dag_ids)}")
        if not self._paused:
            self.unpause()

    def pause(self, dag_id: str) -> None:
        """Pause a DAG."""
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": True})

    def unpause(self, pattern: str = "%") -> None:
        """Unpause the parsed DAGs whose id matches an SQL LIKE pattern."""
        self.call("PATCH", "dags", params={"dag_id_pattern": pattern}, json={"is_paused": False})

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Mapping[str, Any] | None = None, **more: Any
    ) -> str:
        """Trigger a run and return its id. Without a date, Airflow 2 uses the current time."""
        body: dict[str, Any] = {"conf": dict(conf or {}), **more}
        if logical_date is not None or not self._is_2:
            body["logical_date"] = logical_date and logical_date.isoformat()
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def backfill(self, dag_id: str, start: datetime, end: datetime, *, by_command: bool = False) -> None:
        """
        Start a backfill.

        Airflow 2 has it only on the command line, and returns when it has ended. On Airflow 3 nothing else should run
        meanwhile: it fails if another component writes to SQLite between two of its statements.
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
        Run ``airflow ARGUMENTS`` and return its output.

        :raises RuntimeError: it fails.
        """
        return self.commands(arguments)

    def commands(self, *commands: Sequence[str]) -> str:
        """
        Run several commands in one process, because its start takes seconds, and return their output.

        :raises RuntimeError: one fails.
        """
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HUNG_AFTER,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {commands} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG (``~``: of all DAGs), the earliest first."""
        return self._pages(f"dags/{dag_id}/dagRuns", "dag_runs", order_by="start_date")

    def wait_for_run(self, dag_id: str, run_id: str) -> str:
        """Wait until a run ends, and return its state."""

        def ended() -> str | None:
            state = str(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])
            return state if state in ENDED else None

        return str(self.wait_until(ended, f"the end of {dag_id} {run_id}"))

    def clear(self, dag_id: str, run_id: str, task: str | tuple[str, int]) -> None:
        """Clear a task, or one mapped instance of it, and all tasks downstream."""
        body = {"dag_run_id": run_id, "task_ids": [task], "include_downstream": True, "only_failed": False}
        self.call("POST", f"dags/{dag_id}/clearTaskInstances", json={**body, "dry_run": False, "reset_dag_runs": True})

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run (``~``: of all runs)."""
        return self._pages(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int | None = None
    ) -> Any:
        """Return an XCom value of a task, or None if there is none."""
        import requests

        query: dict[str, Any] = {"stringify": "false"}
        if map_index is not None:
            query["map_index"] = map_index
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._call("GET", path, params=query, but=requests.codes.not_found)
        return answer.json()["value"] if answer.ok else None

    def log(self, dag_id: str, run_id: str, task_id: str, *, attempt: int = 1, map_index: int = -1) -> str:
        """Return the log of one attempt as text."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        query = {"full_content": "true", "map_index": map_index}
        accept = {"Accept": "text/plain" if self._is_2 else "application/json"}
        answer = self._call("GET", path, params=query, headers=accept)
        if self._is_2:
            return answer.text
        lines = answer.json()["content"]
        return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)

    def links(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1) -> dict[str, str | None]:
        """Return the URLs of a task instance's extra links, by name."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        answer = self.call("GET", path, params={"map_index": map_index})
        return dict(answer.get("extra_links", answer))

    def asset_events(self) -> list[dict[str, Any]]:
        """Return all asset events, the earliest first."""
        kind = "dataset" if self._is_2 else "asset"

        def listed() -> tuple[list[dict[str, Any]]] | None:
            try:
                return (self._pages(f"{kind}s/events", f"{kind}_events", order_by="timestamp"),)
            except RuntimeError as exc:
                # Airflow 3.3 cannot list an event whose run is queued, because such a run has no start.
                if ": 500" not in str(exc):
                    raise
                return None

        return list(self.wait_until(listed, "asset events")[0])

    def _pages(self, path: str, field: str, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", path, params={**query, "limit": 100, "offset": len(found)})
            found += page[field]
            if not page[field] or len(found) >= page["total_entries"]:
                return found

    def _call(self, method: str, path: str, *, but: int | None = None, **given: Any) -> requests.Response:
        if self._session is None:
            raise RuntimeError("Airflow is not running.")
        address = f"{self.url}/api/{'v1' if self._is_2 else 'v2'}/{path}"
        # On SQLite, components of Airflow can block each other until one fails and is rolled back.
        for _ in range(10):
            answer = self._session.request(method, address, timeout=HUNG_AFTER, **given)
            is_safe = method == "GET" or re.search("database", answer.text, re.IGNORECASE)
            if answer.status_code < 500 or not is_safe:
                break
            time.sleep(_POLL)
        if not answer.ok and answer.status_code != but:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer

    def health(self) -> dict[str, Any]:
        """Return each component's state and its latest heartbeat."""
        return dict(self.call("GET", "health" if self._is_2 else "monitor/health"))

    def is_healthy(self) -> bool:
        """Return whether every component reports that it is healthy."""
        import requests

        try:
            health = self.health()
        except (requests.RequestException, RuntimeError):
            return False
        # On Airflow 2 the scheduler parses the DAGs.
        needed = ["metadatabase", "scheduler", "triggerer"] + ([] if self._is_2 else ["dag_processor"])
        return all(health[name]["status"] == "healthy" for name in needed)
