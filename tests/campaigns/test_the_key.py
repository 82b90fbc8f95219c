"""The API key through a whole Airflow, with tasks that end in every way: it is found nowhere afterwards."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer
from tests.support import RUNS_KEY, Lake

pytestmark = [pytest.mark.airflow, pytest.mark.s3, pytest.mark.timeout(0)]

KEY = "s3nTinel/Key+9=@:zQ-through-a-whole-Airflow"
WRONG_KEY = "wr0ng/Sentinel+8=@:zQ-through-a-whole-Airflow"
DAGS = Path(__file__).parent / "dags"
FAULTS = "400 401 403 429 500 503 html cut_json cut_body empty error_200 redirect reset"
OVER = {"success", "failed", "skipped", "upstream_failed"}
CONNECTIONS: dict[str, dict[str, Any]] = {
    "stem_wrong_key": {"password": WRONG_KEY},
    "stem_nobody_listens": {"host": "http://127.0.0.1:9/api/v1/", "extra": '{"max_attempts": 1}'},
    "stem_bad": {"extra": '{"timeout": "soon"}'},
}


def forms(key: str) -> list[bytes]:
    """Return the forms in which text could contain the key: plain, quoted for URLs, in JSON, hex, and base64."""
    shown = {key, quote(key), quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1], key.replace("/", "\\/")}
    encoded = {key.encode().hex()}
    for before in ("", "x", "xy"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The first and last characters depend on the surrounding text.
            encoded.add(encode((before + key).encode())[4:-4].decode())
    return [text.encode() for text in shown | encoded]


def test_the_key_is_found_nowhere(s3_server: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lake = Lake(s3_server)
    settings = Settings(sites=6, api_key=KEY, forbidden=frozenset())
    events = tmp_path / "lineage.jsonl"
    environment = {
        "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
        "AWS_EC2_METADATA_DISABLED": "true",
        "STEM_TEST_BUCKET": lake.bucket,
        "STEM_TEST_FAULTS": FAULTS,
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(events), "append": True}),
    }
    with Simulator(settings) as sim:
        for fault in FAULTS.split():
            sim.fail(int(fault) if fault.isdigit() else fault, path=f"site-{fault}", times=None)
        home = tmp_path / "airflow"
        progress("Starting Airflow, and running every kind of task")
        with AirflowServer(home, DAGS, environment=environment, paused=True, parallelism=4) as airflow:
            stem = {"conn_type": "stem", "host": sim.url, "password": KEY, "extra": '{"max_attempts": 2}'}
            # In the database, where most users store it. It is encrypted there.
            for conn_id, changed in {"stem_default": {}, **CONNECTIONS}.items():
                airflow.call("POST", "connections", json={"connection_id": conn_id, **stem, **changed})
            airflow.wait_for_dags("every_outcome")
            airflow.unpause()
            processes = Processes(airflow)
            processes.start()
            run = airflow.trigger("every_outcome")

            def over() -> list[dict[str, Any]] | None:
                tasks = airflow.tasks("every_outcome", run)
                return tasks if tasks and all(task["state"] in OVER for task in tasks) else None

            tasks = airflow.wait_until(over, "the end of all tasks")
            processes.stop()

    states = Counter(task["state"] for task in tasks)
    for task in tasks:
        fails = any(word in task["task_id"] for word in ("fails", "vain", "shows"))
        assert task["state"] == ("failed" if fails else "success"), task["task_id"]
    progress("Searching all files for the key")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert events in files, "no lineage event was written"
    kinds = Counter(path.suffix or "none" for path in files)
    assert kinds[".log"] > len(tasks)
    assert kinds[".db"] == 1
    places = {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}
    places["command lines of processes"] = b"\n".join(processes.seen)
    logs = b"".join(body for name, body in places.items() if name.endswith(".log"))
    assert b"DEBUG" in logs or b'"debug"' in logs
    assert b"Traceback" in logs or b"error_detail" in logs
    searched = [form for key in (KEY, WRONG_KEY) for form in forms(key)]
    hits = [(name, form) for name, body in places.items() for form in searched if form in body]
    request.config.stash[RUNS_KEY].append(
        f"the key: {len(tasks)} tasks ({', '.join(f'{n} {state}' for state, n in states.items())}), "
        f"{len(searched)} forms of two keys in {len(places):,} places ({dict(kinds)}, {len(processes.seen)} command "
        f"lines), {sum(map(len, places.values())):,} bytes: {len(hits)} hits"
    )
    assert hits == []


class Processes(threading.Thread):
    """Notes the command line of every process of an Airflow, again and again."""

    def __init__(self, airflow: AirflowServer) -> None:
        super().__init__(daemon=True)
        self._airflow = airflow
        self._over = threading.Event()
        self.seen: set[bytes] = set()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for pid in self._airflow.processes():
                try:
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                except OSError:  # it has ended since
                    continue

    def stop(self) -> None:
        self._over.set()
        self.join()
