"""A running Airflow through its REST API and its command line; for tests, benchmarks and pictures."""

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

from processes import HUNG_AFTER

if TYPE_CHECKING:
    import requests

ENDED = frozenset({"success", "failed"})
_POLL = 0.2
LOCK_TIMEOUT = 120
"""Seconds that one component waits for another to let go of an SQLite database; a scheduler that gives up is gone."""
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
"""Options of Airflow and the provider that fail what is only slow, such as a call that takes 5 seconds."""
_COMMANDS = """
import json, sys
from airflow.__main__ import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    main()
"""


class AirflowApi(ABC):
    """
    What can be asked of an Airflow in which everyone is admin.

    :param paused: whether DAGs stay paused that :meth:`wait_for_dags` waits for.
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
        """The environment of every component, for programs that must see the same Airflow."""

    @abstractmethod
    def ended(self) -> list[str]:
        """Name the components that have ended but should not have."""

    @abstractmethod
    def _tail(self) -> str:
        """Give the end of the log."""

    def connect(self) -> None:
        """Return when Airflow is healthy and has parsed a DAG; the DAGs are unpaused then, unless all stay paused."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self._session = requests.Session()
        self._session.trust_env = False
        # An answer 500 ends the connection, which the next call finds out.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(3, backoff_factor=0.1)))
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
        Ask again and again until the answer is true in the sense of Python, and give it.

        :raises RuntimeError: a component of Airflow has ended, or the wait has lasted for :data:`HUNG_AFTER`.
        """
        deadline = time.monotonic() + HUNG_AFTER
        while time.monotonic() < deadline:
            if ended := self.ended():
                raise RuntimeError(
                    f"{', '.join(ended)} ended while waiting for {what}. The log ends with:\n{self._tail()}"
                )
            if held := holds():
                return held
            time.sleep(_POLL)
        raise RuntimeError(f"Waited in vain for {what}. The log ends with:\n{self._tail()}")

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
            timeout=HUNG_AFTER,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {commands} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Give a DAG's runs (``~``: of all DAGs), the earliest first."""
        return self._pages(f"dags/{dag_id}/dagRuns", "dag_runs", order_by="start_date")

    def wait_for_run(self, dag_id: str, run_id: str) -> str:
        """Give the state in which a run ends."""

        def ended() -> str | None:
            state = str(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])
            return state if state in ENDED else None

        return str(self.wait_until(ended, f"the end of {dag_id} {run_id}"))

    def clear(self, dag_id: str, run_id: str, task: str | tuple[str, int]) -> None:
        """Let a task, or one that is mapped, run again with all that follows from it."""
        body = {"dag_run_id": run_id, "task_ids": [task], "include_downstream": True, "only_failed": False}
        self.call("POST", f"dags/{dag_id}/clearTaskInstances", json={**body, "dry_run": False, "reset_dag_runs": True})

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
            answer = self._session.request(method, address, timeout=HUNG_AFTER, **given)
            if answer.status_code < 500 or not re.search("database", answer.text, re.IGNORECASE):
                break
        if not answer.ok and answer.status_code != but:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer

    def health(self) -> dict[str, Any]:
        """Return each component's state and its latest heartbeat."""
        return dict(self.call("GET", "health" if self._is_2 else "monitor/health"))

    def is_healthy(self) -> bool:
        """Whether every component says so."""
        import requests

        try:
            health = self.health()
        except (requests.RequestException, RuntimeError):
            return False
        # On Airflow 2 the scheduler parses the DAGs itself, so that there is no such component.
        needed = ["metadatabase", "scheduler", "triggerer"] + ([] if self._is_2 else ["dag_processor"])
        return all(health[name]["status"] == "healthy" for name in needed)
