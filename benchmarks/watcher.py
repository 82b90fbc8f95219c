"""
A watcher of a thousand sites in a real triggerer: lag of the event loop, warnings of Airflow, CPU and memory.

Each poll reads the whole look-back of every site again, to find restatements. A small trigger in the same triggerer
records how late its own ticks are, alone and beside the watcher. Needs Airflow 3.3. Prints a table::

    python -m benchmarks.watcher --sites 1000 --days 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from airflow_provider_stem.simulator import Settings, Simulator
from benchmarks.triggerer import triggerer_processes
from tests.servers import progress
from tests.servers.airflow_server import AirflowServer

TICK = 0.01
POLL = 10
# In Airflow's folder of plugins, from which the triggerer can import it.
TICKS = f"""
import asyncio
import time
from airflow.triggers.base import BaseEventTrigger


class Ticks(BaseEventTrigger):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def serialize(self):
        return "ticks.Ticks", {{"path": self.path}}

    async def run(self):
        with open(self.path, "a", buffering=1) as file:
            while True:
                began = time.monotonic()
                await asyncio.sleep({TICK})
                now = time.monotonic()
                file.write(f"{{now}} {{now - began - {TICK}}}\\n")
        yield
"""
DAG = """
from airflow.sdk import DAG, Asset, AssetWatcher
{import_trigger}

with DAG("{name}", schedule=[Asset("{name}", watchers=[AssetWatcher(name="{name}", trigger={trigger})])]):
    pass
"""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sites", type=int, default=1000)
    options.add_argument("--days", type=float, default=1.0, help="the look-back")
    options.add_argument("--polls", type=int, default=6)
    options.add_argument("--idle", type=float, default=60.0, help="seconds of the small trigger alone")
    given = options.parse_args()
    sites = [f"site-{number + 1:05}" for number in range(given.sites)]
    with tempfile.TemporaryDirectory(prefix="watcher-") as folder, Simulator(Settings(sites=given.sites)) as sim:
        dags, home, ticks = Path(folder, "dags"), Path(folder, "airflow"), Path(folder, "ticks")
        for each in (dags, home / "plugins"):
            each.mkdir(parents=True)
        (home / "plugins" / "ticks.py").write_text(TICKS)
        _write(dags, "ticks", "from ticks import Ticks", f"Ticks({str(ticks)!r})")
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            # Airflow starts a watcher when it parses the file after the DAG was unpaused.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        }
        progress("Starting Airflow")
        with AirflowServer(home, dags, environment=environment) as server:
            server.wait_until(ticks.exists, "the small trigger to start")
            triggerers = triggerer_processes(server)
            progress(f"Measuring it alone for {given.idle:g} s")
            size = server.log_file.stat().st_size
            began = time.monotonic()
            time.sleep(given.idle)
            periods = [("alone", began, time.monotonic(), 0)]
            warnings_alone = _warnings(server, size)
            cpu = sum(sum(one.cpu_times()[:2]) for one in triggerers)
            size = server.log_file.stat().st_size
            arguments = f"sites={sites}, lookback={given.days * 86_400}, restatement_interval=1, poll_interval={POLL}"
            _write(
                dags,
                "watcher",
                "from airflow_provider_stem.watchers import StemWindowsTrigger",
                f"StemWindowsTrigger({arguments})",
            )
            server.wait_for_dags("watcher")
            for number in range(1, given.polls + 1):
                server.wait_until(lambda: len(sim.requests) >= number * given.sites, f"poll {number}")  # noqa: B023
                time.sleep(POLL / 2)  # until it is evaluated
                requests = sim.requests[(number - 1) * given.sites : number * given.sites]
                periods.append((f"poll {number}", requests[0].arrived, requests[-1].arrived + 1, len(requests)))
            used = sum(sum(one.cpu_times()[:2]) for one in triggerers) - cpu
            memory = sum(one.memory_full_info().uss for one in triggerers)
            warnings = _warnings(server, size)
        lags = [tuple(map(float, line.split())) for line in ticks.read_text().splitlines()]
    print("| | seconds | requests | median lag ms | 99 % | longest |\n" + "|---" * 6 + "|")
    periods.append(("all polls", periods[1][1], periods[-1][2], sum(one[3] for one in periods)))
    for name, first, last, count in periods:
        found = sorted(1000 * lag for at, lag in lags if first <= at and at - lag <= last)
        cells = [f"{found[int(share * (len(found) - 1))]:.0f}" for share in (0.5, 0.99, 1)]
        print(f"| {' | '.join([name, f'{last - first:.1f}', str(count), *cells])} |")
    print(f"{warnings} warnings of Airflow beside the watcher, {warnings_alone} before it")
    print(f"{used / given.polls:.1f} s of CPU for each poll, {memory / 1e6:.0f} MB")


def _warnings(server: AirflowServer, begin: int) -> int:
    return server.log_file.read_bytes()[begin:].count(b"async thread was blocked for")


def _write(dags: Path, name: str, import_trigger: str, trigger: str) -> None:
    (dags / f"{name}.py").write_text(DAG.format(name=name, import_trigger=import_trigger, trigger=trigger))


if __name__ == "__main__":
    main()
