"""
A watcher of a thousand sites on one event loop: requests, lag of the loop, CPU and memory.

The simulator runs in another process. The first poll reads the whole look-back, and the later ones read it again to
find restatements. Prints a table::

    python -m benchmarks.watcher --sites 1000 --days 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import suppress

from airflow_provider_stem import watchers
from airflow_provider_stem.watchers import StemWindowsTrigger
from tests.servers.processes import free_ports

TICK = 0.01


async def measured(trigger: StemWindowsTrigger, polls: int) -> None:
    """Poll several times, and print a line for each."""
    print(f"{'poll':>4} {'seconds':>8} {'CPU s':>6} {'longest lag of the loop, ms':>28} {'99 %':>6} {'MB':>5}")
    source = watchers._Polls(trigger)  # noqa: SLF001 - the part that can block the loop
    arrivals = source._new_arrivals()  # noqa: SLF001
    for poll in range(1, polls + 1):
        lags: list[float] = []
        watcher = asyncio.ensure_future(_measure_lag(lags))
        began, cpu = time.monotonic(), time.process_time()
        snapshot = await source._poll(arrivals)  # noqa: SLF001
        took, used = time.monotonic() - began, time.process_time() - cpu
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        assert all(one.received and one.digest for one in snapshot.windows.values())
        lags.sort()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{poll:4} {took:8.1f} {used:6.1f} {1000 * lags[-1]:28.0f} "
            f"{1000 * lags[int(0.99 * len(lags))]:6.0f} {memory:5.0f}"
        )


async def _measure_lag(lags: list[float]) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(TICK)
        lags.append(time.monotonic() - began - TICK)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sites", type=int, default=1000)
    options.add_argument("--days", type=float, default=7.0, help="the look-back")
    options.add_argument("--polls", type=int, default=3)
    given = options.parse_args()
    port = free_ports(1)[0]
    command = ["-m", "airflow_provider_stem.simulator", "--sites", str(given.sites), "--port", str(port)]
    simulator = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert simulator.stdout is not None
        simulator.stdout.readline()
        connection = {"conn_type": "stem", "host": f"http://127.0.0.1:{port}", "password": "demo-key"}
        os.environ["AIRFLOW_CONN_STEM_DEFAULT"] = json.dumps(connection)
        trigger = StemWindowsTrigger(
            sites=[f"site-{number:05}" for number in range(1, given.sites + 1)],
            lookback=given.days * 86_400,
            restatement_interval=0.001,  # so that each poll reads everything
            poll_interval=1,
        )
        asyncio.run(measured(trigger, given.polls))
    finally:
        simulator.kill()
        simulator.wait()


if __name__ == "__main__":
    main()
