"""
Where the time of a small task goes: one site, one hour, in new processes and again in the same ones.

Prints medians::

    python benchmarks/small_task.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from contenders.work import Work

PARTS = ("S3 client", "S3 requests", "API request")


def measure() -> None:
    """Run the task twice and print what each took, in milliseconds; the work comes on standard input."""
    import botocore.httpsession
    import requests.adapters
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from contenders import stem_operator

    run = stem_operator.prepare(Work.from_json(sys.stdin.read()))
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[part] += (time.perf_counter() - began) * 1e3

        setattr(owner, name, outer)

    timed(S3Hook, "get_conn", "S3 client")
    timed(botocore.httpsession.URLLib3Session, "send", "S3 requests")
    timed(requests.adapters.HTTPAdapter, "send", "API request")
    for _ in range(2):
        spent.update(dict.fromkeys(PARTS, 0.0))
        began = time.perf_counter()
        run()
        whole = (time.perf_counter() - began) * 1e3
        print(json.dumps({**spent, "all the rest": whole - sum(spent.values()), "execute": whole}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure()
        return

    from s3_server import ACCESS_KEY, SECRET_KEY, S3Server

    from airflow_provider_stem.simulator import Settings, Simulator

    settings = Settings(sites=1)
    taken: list[list[dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3, Simulator(settings) as sim:
        client: Any = s3.client()
        client.create_bucket(Bucket="bench")
        work = Work(
            sites=["site-00001"],
            stream_types=["MONITOR"],
            start="2025-01-01T00:00:00Z",
            end="2025-01-01T01:00:00Z",
            bucket="bench",
            prefix="small",
            api_url=sim.url,
            api_key=settings.api_key,
            s3_url=s3.url,
            s3_access_key=ACCESS_KEY,
            s3_secret_key=SECRET_KEY,
        )
        for number in range(options.rounds + 1):
            done = subprocess.run(
                [sys.executable, __file__, "--measure"],
                input=work.as_json(),
                env={
                    **os.environ,
                    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
                    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                },
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            if number:
                taken.append([json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    print(f"{options.rounds} processes, medians, in ms")
    print(f"{'':14} {'first time':>11} {'again':>8}")
    for part in taken[0][0]:
        first, again = (statistics.median(one[turn][part] for one in taken) for turn in (0, 1))
        print(f"{part:14} {first:11.1f} {again:8.1f}")


if __name__ == "__main__":
    main()
