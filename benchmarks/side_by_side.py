"""
The operator beside a bare floor and similar tools, in one run. Every landed row is checked afterwards.

Two cases: a year of 20 sites and two types (1.4 million rows) from an API without latency, and a day of 200 sites from
an API with a latency of 50 ms. Each contender runs in its own process and environment; imports are not measured.
Prints medians and ratios; ``--chart`` draws them::

    python -m benchmarks.side_by_side --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.simulator import Settings, Simulator
from benchmarks.contenders.work import Work
from tests.servers import progress
from tests.servers.s3 import S3Server

ROOT = Path(__file__).parent.parent
KEYS = ["site_id", "stream_type", "end"]
OWN = "stem_operator"
MERGE = "stem_operator, merge"
"""The operator again, over the objects that it has just written."""
FLOOR = "floor"
# Environments by contender: the dependencies of the others conflict with ours.
ENVIRONMENTS = {
    "http_to_s3": ".venv-bench-http-to-s3",
    "dlt_arrow": ".venv-bench-dlt",
    "dlt_rest_api": ".venv-bench-dlt",
}
TITLES = {
    FLOOR: "bare floor, no checks",
    OWN: "StemStreamsToS3Operator",
    MERGE: "the same again, merging",
    "http_to_s3": "HttpToS3Operator",
    "dlt_arrow": "dlt, Arrow tables",
    "dlt_rest_api": "dlt rest_api",
}


@dataclass(frozen=True)
class Task:
    """One case, with its contenders and the number of rounds of each."""

    title: str
    work: Work
    contenders: list[str]
    latency: float = 0.0

    def expected(self, sim: Simulator) -> pa.Table:
        """Return the rows that the simulator has."""
        first, last = (int(datetime.fromisoformat(t).timestamp()) for t in (self.work.start, self.work.end))
        tables = []
        for site in self.work.sites:
            for stream_type in self.work.stream_types:
                ends, values = sim.fleet.values(site, stream_type, 900, first + 900, last)
                names = [pa.repeat(site, len(ends)), pa.repeat(stream_type, len(ends))]
                tables.append(pa.table([*names, pa.array(ends), pa.array(values)], names=[*KEYS, "kw_total_avg"]))
        return pa.concat_tables(tables)


@dataclass
class Outcome:
    """The measurements of one contender in one case, by round, and its results."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    requests: int = 0
    objects: int = 0
    size: int = 0
    rows: int = 0
    wrong: int = 0

    def median(self, name: str) -> float:
        """Return the median of a measurement."""
        return statistics.median(one[name] for one in self.rounds)


def compare(tasks: list[Task], rounds: int) -> Iterator[tuple[Task, dict[str, Outcome]]]:
    """Run the contenders of each case one after another."""
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3:
        client: Any = s3.client()
        for number, task in enumerate(tasks):
            outcomes = {name: Outcome() for name in task.contenders}
            settings = Settings(sites=len(task.work.sites), latency=task.latency)
            with Simulator(settings) as sim:
                bucket = f"bench-{number}"
                client.create_bucket(Bucket=bucket)
                work = replace(
                    task.work,
                    bucket=bucket,
                    api_url=sim.url,
                    api_key=settings.api_key,
                    s3_url=s3.url,
                    s3_access_key=s3.access_key,
                    s3_secret_key=s3.secret_key,
                )
                for turn in range(rounds + 1):
                    for name, outcome in outcomes.items():
                        progress(f"{task.title}: round {turn} of {rounds}, {TITLES[name]}")
                        mine = replace(work, prefix=f"{_module(name)}/{turn}")
                        sim.reset_requests()
                        taken = measured(name, mine)
                        outcome.requests = len(sim.requests)
                        if turn:  # the first round fills the simulator's cache
                            outcome.rounds.append(taken)
                        if turn == rounds:
                            _look_at(client, name, mine, task.expected(sim), outcome)
            yield task, outcomes


def _module(name: str) -> str:
    return OWN if name == MERGE else name


def measured(name: str, work: Work) -> dict[str, float]:
    """Run a contender in its own process, and return its seconds and the growth of the process."""
    python = ROOT / ENVIRONMENTS[name] / "bin" / "python" if name in ENVIRONMENTS else sys.executable
    done = subprocess.run(
        [python, "-m", "benchmarks.contenders", _module(name)],
        input=work.as_json(),
        cwd=ROOT,
        env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def _look_at(client: Any, name: str, work: Work, expected: pa.Table, outcome: Outcome) -> None:
    """Count objects and rows, and the rows that are missing, duplicate, unexpected or have a wrong value."""
    contender = import_module(f"benchmarks.contenders.{_module(name)}")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=work.bucket, Prefix=f"{work.prefix}/")
    tables = []
    for listed in (one for page in pages for one in page.get("Contents", [])):
        outcome.objects += 1
        outcome.size += listed["Size"]
        body = client.get_object(Bucket=work.bucket, Key=listed["Key"])["Body"].read()
        tables.append(contender.rows(listed["Key"], body).cast(expected.schema))
    got = pa.concat_tables(tables)
    outcome.rows = got.num_rows
    once = got.group_by(KEYS).aggregate([("kw_total_avg", "min")])
    both = expected.join(once, KEYS, join_type="left outer")
    same = pc.fill_null(pc.equal(both["kw_total_avg"], both["kw_total_avg_min"]), False)
    foreign = once.join(expected, KEYS, join_type="left anti").num_rows
    outcome.wrong = got.num_rows - once.num_rows + pc.sum(pc.invert(same)).as_py() + foreign


def show(task: Task, outcomes: dict[str, Outcome]) -> None:
    """Print the table of one case."""
    print(f"\n{task.title}")
    print(
        f"{'':26} {'seconds':>8} {'of floor':>9} {'CPU s':>6} {'of floor':>9} {'growth MB':>10} {'requests':>9} "
        f"{'objects':>8} {'B/row':>7} {'rows wrong':>11}"
    )
    for name, one in outcomes.items():
        wall, cpu = (
            statistics.median(a[what] / b[what] for a, b in zip(one.rounds, outcomes[FLOOR].rounds, strict=True))
            for what in ("seconds", "cpu_seconds")
        )
        print(
            f"{TITLES[name]:26} {one.median('seconds'):8.2f} {wall:9.2f} {one.median('cpu_seconds'):6.2f} {cpu:9.2f} "
            f"{one.median('growth_mb'):10.0f} {one.requests:9,} {one.objects:8,} "
            f"{one.size / max(one.rows, 1):7.2f} {one.wrong:11,}"
        )
    first, again = outcomes[OWN].rounds, outcomes[MERGE].rounds
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(first, again, strict=True)]
    print(f"merging into existing objects : writing new ones = {statistics.median(ratios):.2f}")


def draw(results: list[tuple[Task, dict[str, Outcome]]], file: Path) -> None:
    """Draw the seconds of each case as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "side-by-side"
    figure, axes = plt.subplots(len(results), 1, figsize=(8, 2.3 * len(results)), layout="constrained")
    for axis, (task, outcomes) in zip(axes, results, strict=True):
        seconds = [one.median("seconds") for one in outcomes.values()]
        colours = ["#1b7f5c" if _module(name) == OWN else "#9aa5b1" for name in outcomes]
        bars = axis.barh([TITLES[name] for name in outcomes], seconds, color=colours)
        axis.bar_label(bars, [f"{value:.2f} s" for value in seconds], padding=4)
        axis.set_title(task.title, loc="left", fontsize="medium")
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def tasks(peers: bool) -> list[Task]:
    """Return the cases."""
    year = Work(
        sites=[f"site-{number:05}" for number in range(1, 21)],
        stream_types=["CONVERTER", "MONITOR"],
        start="2025-01-01T00:00:00Z",
        end="2026-01-01T00:00:00Z",
    )
    day = replace(
        year,
        sites=[f"site-{number:05}" for number in range(1, 201)],
        stream_types=["MONITOR"],
        end="2025-01-02T00:00:00Z",
    )
    others = list(ENVIRONMENTS) if peers else []
    return [
        Task("20 sites, 2 types, 1 year: 1,401,600 rows", year, [FLOOR, OWN, MERGE, *others]),
        Task("the same as CSV", replace(year, file_format="csv"), [FLOOR, OWN, MERGE]),
        Task("the same as JSON lines", replace(year, file_format="jsonl"), [FLOOR, OWN, MERGE]),
        Task("200 sites, 1 day, 50 ms latency: 19,200 rows", day, [FLOOR, OWN, MERGE, *others], latency=0.05),
    ]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="run only the floor and the operator")
    parser.add_argument("--chart", type=Path, help="where to draw the results, as SVG")
    parser.add_argument("--only", default="", help="only works whose title contains this, such as '200 sites'")
    options = parser.parse_args()
    results = []
    chosen = [task for task in tasks(peers=not options.no_peers) if options.only in task.title]
    for task, outcomes in compare(chosen, options.rounds):
        show(task, outcomes)
        results.append((task, outcomes))
    if options.chart:
        draw(results, options.chart)


if __name__ == "__main__":
    main()
