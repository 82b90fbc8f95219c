"""
Seconds from "complete at the API" to "in the lake": a watcher, a schedule with a sensor, and a plain schedule.

All three run side by side in one real Airflow, on the same sites and the same arrivals, and land in a real S3 server. A
period of some minutes stands for an hour: at each period's end an hour of data ends too, whose last row arrives at each
site after a random delay of up to one and a half periods. All clocks are the real ones; the hours of data are past
ones. The watcher and the sensor have their default intervals. Needs Airflow 3.3. Prints a table::

    python -m benchmarks.latency --sites 16 --windows 6 --period 5
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer
from tests.servers.s3 import S3Server
from tests.support import expected_rows, landed_rows

HOUR = 3600
POLL = 60
LOOKBACK = 3
WAYS = ("watcher", "sensor", "schedule")
# What sends requests; each has a simulator and a connection, so that the requests can be counted.
SENDERS = ("watcher_polls", "watcher_loads", "sensor_polls", "sensor_loads", "schedule_loads")
WATCHERS = f"""
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.watchers import StemWindowsTrigger

for site in SITES:
    trigger = StemWindowsTrigger(
        sites=site, lookback=WATCHED * {HOUR}, poll_interval={POLL}, stem_conn_id="stem_watcher_polls"
    )
    hours = Asset(f"hours_of_{{site}}", watchers=[AssetWatcher(name=site, trigger=trigger)])
    with DAG(f"watcher_{{site}}", schedule=[hours]):
        StemStreamsToS3Operator(
            task_id="land", sites=site, partition="hour", s3_bucket="lake", stem_conn_id="stem_watcher_loads"
        )
"""
SCHEDULES = f"""
from datetime import datetime, timedelta
from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor

FIRST_RUN, FIRST_HOUR = map(datetime.fromisoformat, INSTANTS)
PERIOD = timedelta(minutes=MINUTES)


def hour(instant, more=0):
    number = (instant.timestamp() - FIRST_RUN.timestamp()) // PERIOD.total_seconds()
    return (FIRST_HOUR + timedelta(hours=number + more)).isoformat()


def scheduled(dag_id, periods):
    return DAG(
        dag_id, schedule=CronDataIntervalTimetable("*/MINUTES * * * *", timezone="UTC"), catchup=True,
        start_date=FIRST_RUN - PERIOD, end_date=FIRST_RUN + (periods - 2) * PERIOD,
        user_defined_macros={{"hour": hour}},
        default_args={{
            "start": "{{{{ hour(data_interval_end, -1) }}}}", "end": "{{{{ hour(data_interval_end) }}}}",
        }},
    )


with scheduled("sensor", WINDOWS):
    for site in SITES:
        StemStreamsSensor(
            task_id=f"wait_{{site}}", sites=site, poke_interval={POLL}, deferrable=True,
            stem_conn_id="stem_sensor_polls",
        ) >> StemStreamsToS3Operator(
            task_id=f"land_{{site}}", sites=site, partition="hour", s3_bucket="lake",
            stem_conn_id="stem_sensor_loads",
        )

with scheduled("schedule", WINDOWS + 2):
    StemStreamsToS3Operator(
        task_id="land", sites=SITES, partition="hour", lookback=timedelta(hours={LOOKBACK}), s3_bucket="lake",
        stem_conn_id="stem_schedule_loads",
    )
"""


class Arrivals:
    """
    When the last row of each hour arrives at each site.

    :param sites: ids.
    :param windows: number of hours.
    :param period: seconds that stand for an hour.
    """

    def __init__(self, sites: list[str], windows: int, period: int) -> None:
        self.sites, self.windows, self.period = sites, windows, period
        # Two more hours have ended, which the schedule reads while late values of the others arrive.
        self.first = int(time.time()) // HOUR * HOUR - (windows + 1) * HOUR
        self.begin = math.inf
        self.at: dict[tuple[int, str], float] = {}
        self.while_due: defaultdict[str, int] = defaultdict(int)

    def start(self, begin: float) -> None:
        """Draw the arrivals; ``begin`` is when the first hour ends, in epoch seconds."""
        random = Random(17)
        self.at = {
            (number, site): begin + (number + random.uniform(0, 1.5)) * self.period
            for number in range(self.windows)
            for site in self.sites
        }
        self.begin = begin

    def end_of(self, number: int) -> int:
        """Return the end of an hour in epoch seconds."""
        return self.first + number * HOUR

    def rewrite(self, sender: str, _: Any, payload: Any) -> Any:
        """Remove what has not arrived from a response, and count requests while an hour that has ended is due."""
        now = time.time()
        if "stream_types" in payload:
            site = payload["id"]
            due = (
                self.begin + number * self.period <= now < self.at[number, site] + POLL
                for number in range(self.windows if self.at else 0)
            )
            self.while_due[sender] += any(due)
            for entry in payload["stream_types"]:
                entry["streams"] = [
                    row for row in entry["streams"] if self._has_arrived(row["end_datetime"], site, now)
                ]
        return payload

    def _has_arrived(self, end: str, site: str, now: float) -> bool:
        number, rest = divmod(int(datetime.fromisoformat(end).timestamp()) - self.first, HOUR)
        return number < 0 or rest != 0 or self.at.get((number, site), math.inf) <= now


class Lake:
    """
    What has landed in the bucket.

    :param client: boto3 client.
    :param sim: where the values come from.
    :param arrivals: what is expected.
    """

    def __init__(self, client: Any, sim: Simulator, arrivals: Arrivals) -> None:
        self._client, self._arrivals = client, arrivals
        self.rows: dict[str, list[Any]] = {}
        self._tags: dict[str, str] = {}
        self._expected = {
            (number, site): set(
                expected_rows(  # type: ignore[no-untyped-call]
                    sim, [site], ["MONITOR"], 900, _iso(arrivals.end_of(number - 1)), _iso(arrivals.end_of(number))
                )
            )
            for number in range(arrivals.windows)
            for site in arrivals.sites
        }
        self.landed: dict[str, dict[tuple[int, str], float]] = {way: {} for way in WAYS}

    def look(self) -> None:
        """Read what is new, and record when the hours of a site were there as a whole."""
        listed = self._client.list_objects_v2(Bucket="lake", Prefix="stem/").get("Contents", [])
        for one in listed:
            key, now = one["Key"], time.time()
            if key.endswith(".parquet") and self._tags.get(key) != one["ETag"]:
                body = self._client.get_object(Bucket="lake", Key=key)["Body"].read()
                table = pq.read_table(io.BytesIO(body))
                self.rows[key] = landed_rows(table)  # type: ignore[no-untyped-call]
                self._tags[key] = one["ETag"]
                found, landed = set(self.rows[key]), self.landed[_way(key)]
                for window, rows in self._expected.items():
                    if window not in landed and rows <= found:
                        landed[window] = now

    def wrong(self, way: str) -> int:
        """Return the number of rows of the windows that are wrong or there more than once."""
        first, last = (self._arrivals.end_of(number) for number in (-1, self._arrivals.windows - 1))
        rows = [row for key, rows in self.rows.items() if _way(key) == way for row in rows if first < row[4] <= last]
        return len(rows) - len(set(rows) & set().union(*self._expected.values()))


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sites", type=int, default=16)
    options.add_argument("--windows", type=int, default=6, help="hours of data")
    options.add_argument("--period", type=int, default=5, help="minutes that stand for an hour; divides 60")
    given = options.parse_args()
    sites = [f"site-{number + 1:05}" for number in range(given.sites)]
    period = 60 * given.period
    arrivals = Arrivals(sites, given.windows, period)
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, ExitStack() as stack:
        s3 = stack.enter_context(S3Server(Path(folder, "s3")))
        s3.client().create_bucket(Bucket="lake")
        sims = {name: stack.enter_context(Simulator(Settings(sites=given.sites))) for name in SENDERS}
        environment = {
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
            # Airflow starts a watcher when it parses the file after the DAG was unpaused.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        }
        for name, sim in sims.items():
            environment[f"AIRFLOW_CONN_STEM_{name.upper()}"] = sim.connection
            sim.rewrite = partial(arrivals.rewrite, name)
        lake = Lake(s3.client(), sims["schedule_loads"], arrivals)
        dags = Path(folder, "dags")
        dags.mkdir()
        watched = given.windows + 2 + LOOKBACK
        (dags / "watchers.py").write_text(WATCHERS.replace("SITES", repr(sites)).replace("WATCHED", str(watched)))
        progress("Starting Airflow")
        preload = ["airflow_provider_stem.operators", "airflow_provider_stem.streams.landing"]
        server = stack.enter_context(
            AirflowServer(Path(folder, "airflow"), dags, environment=environment, preload=preload)
        )
        server.wait_for_dags(*(f"watcher_{site}" for site in sites))
        progress("Waiting until every watcher has announced the hours before")
        server.wait_until(lambda: len(_states(server, "watcher")) == given.sites, "a run for each watcher")
        server.wait_until(lambda: {*_states(server, "watcher")} == {"success"}, "these runs")
        schedules = SCHEDULES
        begin = (int(time.time()) + 60) // period * period + period
        instants = repr((_iso(begin), _iso(arrivals.first)))
        for name, value in {
            "INSTANTS": instants,
            "SITES": sites,
            "MINUTES": given.period,
            "WINDOWS": given.windows,
        }.items():
            schedules = schedules.replace(name, str(value))
        (dags / "schedules.py").write_text(schedules)
        server.wait_for_dags("sensor", "schedule")
        for sim in sims.values():
            sim.reset_requests()
        arrivals.start(begin)
        progress(f"The first hour ends at {_iso(begin)}")
        until = begin + (given.windows + 3) * period
        while time.time() < until and any(len(one) < len(arrivals.at) for one in lake.landed.values()):
            lake.look()
            time.sleep(0.5)
        lake.look()
        progress("Counting")
        sent = {name: len(sim.requests) for name, sim in sims.items()}
        runs = {way: len(_states(server, way)) for way in WAYS}
        runs["watcher"] -= given.sites
    _print(arrivals, lake, sent, runs)


def _print(arrivals: Arrivals, lake: Lake, sent: dict[str, int], runs: dict[str, int]) -> None:
    period = arrivals.period
    print(f"{len(arrivals.sites)} sites, {arrivals.windows} windows, a schedule every {period} s, polls every {POLL} s")
    print("| | samples | median s | 90 % | worst | runs | polls | of these while due | loads | rows wrong | lost |")
    print("|---" * 11 + "|")
    for way in WAYS:
        seconds = sorted(at - arrivals.at[window] for window, at in lake.landed[way].items())
        polls = f"{way}_polls"
        cells = [way, len(seconds), *_quantiles(seconds), runs[way], sent.get(polls, 0), arrivals.while_due[polls]]
        cells += [sent[f"{way}_loads"], lake.wrong(way), len(arrivals.at) - len(seconds)]
        print(f"| {' | '.join(map(str, cells))} |")
    # The part until the next scheduled run grows with the period; what follows it does not.
    waits = {window: -(at - arrivals.begin) % period for window, at in arrivals.at.items()}
    hourly = sorted(
        at - arrivals.at[window] + waits[window] * (HOUR / period - 1) for window, at in lake.landed["schedule"].items()
    )
    print("by arithmetic, the schedule every hour: median, 90 %, worst:", *_quantiles(hourly))
    delays = [at - arrivals.begin - number * period for (number, _), at in arrivals.at.items()]
    print(f"a window was complete {statistics.mean(delays):.0f} s after its end on average")


def _quantiles(seconds: list[float]) -> list[str]:
    return [f"{seconds[math.ceil(share * len(seconds)) - 1]:.1f}" for share in (0.5, 0.9, 1)]


def _states(server: AirflowServer, way: str) -> list[str]:
    return [run["state"] for run in server.runs("~") if run["dag_id"].startswith(way)]


def _way(key: str) -> str:
    return key.split("/")[1].partition("_")[0]


def _iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat()


if __name__ == "__main__":
    main()
