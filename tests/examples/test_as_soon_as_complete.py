"""The watcher of ``stem_as_soon_as_complete`` in a real Airflow, whose triggerer is killed again and again."""

from __future__ import annotations

import io
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import progress
from tests.servers.airflow_server import AirflowServer
from tests.servers.processes import ServerProcess
from tests.support import expected_rows, landed_rows

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.s3,
    pytest.mark.stem_simulator(sites=3, clients=1),
    pytest.mark.skipif(version("apache-airflow").startswith("2."), reason="there are no watchers before 3.0"),
]
DAG_FILE = Path(__file__).parents[2] / "example_dags" / "stem_as_soon_as_complete.py"
DAG_ID = DAG_FILE.stem
HOUR = timedelta(hours=1)
LOOKBACK = 24
SITES = ["site-00001", "site-00002", "site-00003"]
RANDOM = Random(17)


class History:
    """Arrival of the hours of a day: some are hidden, and values are restated later."""

    def __init__(self, sim, lake):
        self.sim = sim
        self.lake = lake
        self.visible: set[datetime] = set()
        self.restated: Counter[datetime] = Counter()
        sim.rewrite = self._rewrite

    def _rewrite(self, request, payload):
        for entry in payload.get("stream_types", ()) if request.path.endswith("/streams") else ():
            rows = [(end_of_hour(datetime.fromisoformat(row["end_datetime"])), row) for row in entry["streams"]]
            # The last row of one site is what a hidden hour lacks.
            entry["streams"] = [
                {**row, "kw_total_avg": row["kw_total_avg"] + self.restated[hour]}
                for hour, row in rows
                if hour in self.visible
                or payload["id"] != SITES[-1]
                or datetime.fromisoformat(row["end_datetime"]) < hour
            ]
        return payload

    def expected(self, hours):
        """Return the rows of some hours, given by their ends, as they must be in the lake."""
        rows = []
        for hour in hours:
            found = expected_rows(self.sim, SITES, ["MONITOR"], 900, (hour - HOUR).isoformat(), hour.isoformat())
            rows += [(*row[:5], row[5] + self.restated[hour]) for row in found]
        return sorted(rows)

    def landed(self):
        """Return the rows in the lake; each object is one hour."""
        # The operator writes and deletes other objects, to find out what the store can do.
        listed = self.lake.client.list_objects_v2(Bucket=self.lake.bucket).get("Contents", [])
        keys = [one["Key"] for one in listed if one["Key"].endswith(".parquet")]
        tables = [pq.read_table(io.BytesIO(self.lake.read(key))) for key in keys]
        return sorted(landed_rows(pa.concat_tables(tables))) if tables else []

    def has_landed(self, hours):
        return set(self.expected(hours)) <= set(self.landed())


def end_of_hour(instant):
    return instant + (-(instant - datetime(2000, 1, 1, tzinfo=UTC)) % HOUR)


class Triggerer:
    """The triggerer of a server, which can be killed and started again."""

    def __init__(self, server):
        self.server = server
        self.kills = 0
        self._processes = []

    def kill(self):
        for pid in sorted(self.server.processes() + [pid for one in self._processes for pid in one.processes()]):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if "triggerer" in " ".join(psutil.Process(pid).cmdline()):
                    os.kill(pid, signal.SIGKILL)
        self.kills += 1

    def start(self):
        self._processes.append(
            ServerProcess(
                [str(self.server.home / "bin" / "airflow"), "triggerer"],
                log=self.server.home / f"triggerer-{self.kills}.log",
                environment=self.server.environment,
                folder=self.server.home,
            )
        )

    def stop(self):
        for one in self._processes:
            one.stop()


def announced(server):
    """Return the ends of the announced hours in the order of the events, each with the reason."""
    hours = []
    for event in sorted(server.asset_events(), key=lambda one: one["id"]):
        payload = event["extra"]["payload"]
        start, end = (datetime.fromisoformat(payload["window"][name]) for name in ("start", "end"))
        hours += [(start + number * HOUR, payload["reason"]) for number in range(1, (end - start) // HOUR + 1)]
    return hours


def has_more_events(server, than):
    return len(server.asset_events()) > than


def test_no_window_is_lost_while_the_triggerer_is_killed(stem, lake, tmp_path):
    history = History(stem, lake)
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / DAG_FILE.name).write_text(DAG_FILE.read_text())
    environment = {
        "AIRFLOW_CONN_STEM_DEFAULT": stem.connection,
        "AIRFLOW_CONN_AWS_DEFAULT": os.environ["AIRFLOW_CONN_AWS_DEFAULT"],
        "STEM_SITES": ",".join(SITES),
        "STEM_BUCKET": lake.bucket,
        "STEM_LOOKBACK": str(LOOKBACK * 3600),
        "STEM_RESTATEMENT_INTERVAL": "5",
        "STEM_POLL_INTERVAL": "2",
        # Airflow starts a watcher when it parses the file after the DAG was unpaused.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        # So that another triggerer replaces a killed one soon.
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    }
    now = datetime.now(UTC)
    newest = end_of_hour(now) - HOUR if end_of_hour(now) > now else now
    # Not the oldest hours, which can leave the look-back during the test.
    hours = [newest - number * HOUR for number in range(LOOKBACK - 4)]
    hidden = RANDOM.sample(hours, len(hours))
    latencies, kills_at = [], {2: "before", 4: "after", 6: "after", 8: "before"}
    with AirflowServer(tmp_path / "airflow", dags, environment=environment) as server:
        triggerer = Triggerer(server)
        try:
            for step in range(10):
                revealed = [hidden.pop() for _ in range(2)]
                events = len(server.asset_events())
                if kills_at.get(step) == "before":
                    triggerer.kill()
                history.visible |= set(revealed)
                began = time.monotonic()
                if step % 3 == 2:
                    history.restated[RANDOM.choice(sorted(history.visible - set(revealed)))] += 1
                if kills_at.get(step) == "after":
                    server.wait_until(partial(has_more_events, server, events), "an event")
                    triggerer.kill()
                if step in kills_at:
                    triggerer.start()
                server.wait_until(lambda: history.has_landed(history.visible), f"step {step} to land")
                if step not in kills_at:
                    latencies.append(time.monotonic() - began)
            # Airflow starts a run for an event that arrives while another one is waiting only with the next event.
            found = announced(server)
        finally:
            triggerer.stop()
        progress(f"{sorted(round(one, 1) for one in latencies)}")
    first = Counter(hour for hour, reason in found if reason != "restated")
    doubled = {hour: times for hour, times in first.items() if times > 1}
    restated = {hour for hour, reason in found if reason == "restated"}
    events = len({*found})
    progress(
        f"windows: {len(history.visible)}, announced: {len(found)} ({events} different), doubled: {len(doubled)}, "
        f"lost: {len(history.visible - first.keys())}, restarts: {triggerer.kills}, "
        f"seconds from complete to landed: {min(latencies):.1f} to {max(latencies):.1f}"
    )
    assert history.visible <= first.keys()
    assert sum(times - 1 for times in doubled.values()) <= 2 * triggerer.kills
    assert set(history.restated) <= restated | doubled.keys()
    rows = history.landed()
    assert len(rows) == len({row[:5] for row in rows})
    assert set(history.expected(history.visible)) <= set(rows)
