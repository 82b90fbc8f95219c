"""
Cost of a look-back over existing objects: S3 requests by method, seconds and CPU seconds.

Lands one day of many sites in new objects, then the next days with and without a look-back of three days, one batch
after another, as mapped tasks do. Prints a table::

    python -m benchmarks.lookback --sites 10000 --batches 100
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers import progress
from tests.servers.s3 import S3Server

ROOT = Path(__file__).parent.parent
FIRST = date(2025, 7, 1)
LOOKBACK = 3


def land(days: Sequence[date], lookback: int, sites: Sequence[str], batches: int) -> dict[str, Any]:
    """Run the tasks of some days in this process, and return what they cost."""
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
    from botocore.httpsession import URLLib3Session

    import airflow_provider_stem.streams.landing  # noqa: F401
    from airflow_provider_stem.operators import StemStreamsToS3Operator

    sent: Counter[str] = Counter()
    send = URLLib3Session.send

    def counting(self: Any, request: Any) -> Any:
        sent[request.method] += 1
        return send(self, request)

    URLLib3Session.send = counting
    get_hook_lineage_collector()  # type: ignore[no-untyped-call]
    cpu, began = time.process_time(), time.perf_counter()
    rows = objects = requests = 0
    for day in days:
        for batch in range(batches):
            receipt = StemStreamsToS3Operator(
                task_id="land",
                sites=list(sites[batch::batches]),
                batch=f"{batch + 1:03}-of-{batches:03}",
                start=f"{day}T00:00:00Z",
                end=f"{day + timedelta(days=1)}T00:00:00Z",
                lookback=timedelta(days=lookback) if lookback else None,
                partition="day",
                s3_bucket="bench",
            ).execute({})
            rows += receipt["rows"]
            objects += len(receipt["objects"])
            requests += receipt["requests"]
    cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return cost | {"rows": rows, "objects": objects, "requests": requests, "s3": dict(sent)}


def main() -> None:
    """Run each load in a process of its own, and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--land", nargs=3, metavar=("DAY", "DAYS", "LOOKBACK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sites = [f"site-{number:05}" for number in range(1, options.sites + 1)]
    if options.land:
        first, days, lookback = date.fromisoformat(options.land[0]), *map(int, options.land[1:])
        print(json.dumps(land([first + timedelta(days=n) for n in range(days)], lookback, sites, options.batches)))
        return
    loads = [
        (f"{LOOKBACK} days, new objects", FIRST, LOOKBACK, 0),
        ("1 day, new objects", FIRST + timedelta(days=LOOKBACK), 1, 0),
        (f"1 day and {LOOKBACK} before, over existing objects", FIRST + timedelta(days=LOOKBACK), 1, LOOKBACK),
    ]
    simulated = Simulator(Settings(sites=options.sites))
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3, simulated as simulator:
        client: Any = s3.client()
        client.create_bucket(Bucket="bench")
        print(f"{options.sites:,} sites in {options.batches:,} batches, one after another")
        print(f"{'':46} {'rows':>10} {'objects':>8} {'API':>7} {'seconds':>8} {'CPU s':>6}  requests to S3")
        for title, first, days, lookback in loads:
            progress(title)
            size = ["--sites", str(options.sites), "--batches", str(options.batches)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.lookback", *size, "--land", str(first), str(days), str(lookback)],
                env={
                    **os.environ,
                    "AIRFLOW_CONN_STEM_DEFAULT": simulator.connection,
                    "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
                    "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
                    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                },
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            cost = json.loads(done.stdout.splitlines()[-1])
            by_method = ", ".join(f"{number:,} {method}" for method, number in sorted(cost["s3"].items()))
            print(
                f"{title:46} {cost['rows']:10,} {cost['objects']:8,} {cost['requests']:7,} {cost['seconds']:8.1f} "
                f"{cost['cpu_seconds']:6.1f}  {by_method}",
                flush=True,
            )


if __name__ == "__main__":
    main()
