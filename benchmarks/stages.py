"""
How long each stage of the operator is active, in a new process and again in the same process.

Stages overlap, so they do not add up to the total. Prints medians, in milliseconds::

    python -m benchmarks.stages
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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders.work import Work

ROOT = Path(__file__).parent.parent
STAGES = ("S3 client", "S3 requests", "API requests", "decoding", "writing the file", "none of them")
YEAR = ("2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
WORKS = {
    "1 site, 1 type, 1 hour": (1, ["MONITOR"], "2025-01-01T00:00:00Z", "2025-01-01T01:00:00Z", 0.0),
    "200 sites, 1 type, 1 day, 50 ms latency": (200, ["MONITOR"], "2025-06-01T00:00:00Z", "2025-06-02T00:00:00Z", 0.05),
    "20 sites, 2 types, 1 year": (20, ["CONVERTER", "MONITOR"], *YEAR, 0.0),
}


def measure() -> None:
    """Do the work twice and print the time of each stage; the work is read from standard input."""
    import botocore.httpsession
    import pyarrow.parquet
    import requests.adapters
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_stem.api import transport
    from airflow_provider_stem.streams.decoding import StreamsDecoder
    from benchmarks.contenders import stem_operator

    run = stem_operator.prepare(Work.from_json(sys.stdin.read()))
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(owner: Any, name: str, stage: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spans[stage].append((began, time.perf_counter()))

        setattr(owner, name, outer)

    timed(S3Hook, "get_conn", "S3 client")
    timed(botocore.httpsession.URLLib3Session, "send", "S3 requests")
    timed(requests.adapters.HTTPAdapter, "send", "API requests")
    timed(transport, "_read", "API requests")
    timed(StreamsDecoder, "decode", "decoding")
    timed(pyarrow.parquet.ParquetWriter, "write_table", "writing the file")
    for _ in range(2):
        spans.clear()
        began = time.perf_counter()
        run()
        whole = time.perf_counter() - began
        everything = [span for of in spans.values() for span in of]
        busy = {stage: _covered(spans[stage]) for stage in STAGES[:-1]}
        print(json.dumps({**busy, STAGES[-1]: whole - _covered(everything), "execute": whole}))


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return for how many seconds at least one span lasts."""
    covered, upto = 0.0, 0.0
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, upto))
        upto = max(upto, ended)
    return covered


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure()
        return

    from airflow_provider_stem.simulator import Settings, Simulator
    from tests.servers import progress
    from tests.servers.s3 import S3Server

    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3:
        client: Any = s3.client()
        client.create_bucket(Bucket="bench")
        for title, (sites, stream_types, start, end, latency) in WORKS.items():
            settings = Settings(sites=sites, latency=latency)
            progress(title)
            with Simulator(settings) as sim:
                work = Work(
                    sites=[f"site-{number:05}" for number in range(1, sites + 1)],
                    stream_types=stream_types,
                    start=start,
                    end=end,
                    bucket="bench",
                    prefix="stages",
                    api_url=sim.url,
                    api_key=settings.api_key,
                    s3_url=s3.url,
                    s3_access_key=s3.access_key,
                    s3_secret_key=s3.secret_key,
                )
                taken = [_measured(work) for _ in range(options.rounds + 1)][
                    1:
                ]  # the first fills the simulator's cache
            print(f"{title}: {options.rounds} processes, medians, in ms")
            print(f"{'':18} {'first time':>11} {'again':>8}")
            for stage in (*STAGES, "execute"):
                first, again = (statistics.median(one[turn][stage] for one in taken) * 1e3 for turn in (0, 1))
                print(f"{stage:18} {first:11.1f} {again:8.1f}")


def _measured(work: Work) -> list[dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stages", "--measure"],
        input=work.as_json(),
        env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
