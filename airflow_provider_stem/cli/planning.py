"""The command ``plan``: what a backfill of a DAG costs, before it runs."""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TextIO

from airflow_provider_stem.cli.dags import LandingTask, landing_tasks
from airflow_provider_stem.cli.progress import progress
from airflow_provider_stem.cli.reading import instant
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.sites import Site, read_sites
from airflow_provider_stem.streams.windows import Window, check_order


@dataclass(slots=True)
class _Cost:
    """
    The cost of the runs of one task.

    :param tasks: number of task instances: one for each batch or site that the task is mapped over.
    :param requests: requests of streams; those of the listing, and retries, come on top.
    :param writes: number of PUTs of objects. With a look-back, several runs write an object.
    :param periods: the periods of the objects.
    :param rows: number of intervals that are expected.
    """

    runs: int = 0
    tasks: int = 0
    requests: int = 0
    writes: int = 0
    periods: set[Window] = field(default_factory=set)
    rows: int = 0
    first: Window | None = None
    last: Window | None = None


class _Fleet:
    """
    The sites of a task, by the start of their streams.

    :param batches: the sites of each instance of the task.
    :param stream_types: the types that the task reads.
    :param resolution: seconds.
    """

    def __init__(self, batches: Sequence[Sequence[Site]], stream_types: Sequence[str], resolution: int) -> None:
        self.batches = len(batches)
        starts: list[int] = []
        firsts: list[int] = []
        for site in (site for batch in batches for site in batch):
            of_site = [site.expected_from(name, resolution) or 0 for name in stream_types if not site.lacks(name)]
            starts += of_site
            firsts += [min(of_site)] if of_site else []
        self._streams = sorted(starts)
        self._sites = sorted(firsts)

    def requests(self, window: Window) -> int:
        """Return the number of requests for a window, if each is answered at once."""
        before = bisect_right(self._sites, window.first_end)
        late = self._sites[before : bisect_right(self._sites, window.last_end)]
        return before * len(list(window.parts())) + sum(len(list(window.parts(first))) for first in late)

    def rows(self, window: Window) -> int:
        """Return the number of intervals of a window that are expected."""
        before = bisect_right(self._streams, window.first_end)
        late = self._streams[before : bisect_right(self._streams, window.last_end)]
        step = window.resolution
        return before * window.intervals + sum((window.last_end - first) // step + 1 for first in late)


def plan(arguments: argparse.Namespace, output: TextIO) -> int:
    """
    Show what a backfill costs, and return the exit code.

    :raises StemConfigError: an argument is wrong, or a run of the DAG could not read its window.
    """
    start, end = instant("--from", arguments.start), instant("--to", arguments.end)
    check_order(start, end)
    for name, value in (("--sites", arguments.sites), ("--requests-per-second", arguments.requests_per_second)):
        if value is not None and not value > 0:
            raise StemConfigError(f"{name} must be above 0, got {value:g}.")
    tasks = landing_tasks(arguments.dag_file, arguments.dag_id)
    if not tasks:
        raise StemConfigError(
            f"{arguments.dag_file!r} has no task with StemStreamsToS3Operator in {arguments.dag_id or 'any DAG'}. Use "
            "another file or --dag-id."
        )
    for task in tasks:
        if argument := task.set_by_runs:
            output.write(f"{task}: its windows are not known before a run, which sets its {argument}\n")
            continue
        fleet = _fleet(task, arguments.sites)
        cost = _Cost()
        for window in progress(task.windows(start, end), "runs"):
            cost.first, cost.last = cost.first or window, window
            cost.runs += 1
            cost.tasks += fleet.batches
            cost.requests += fleet.requests(window)
            # A run without an interval of the resolution is skipped.
            periods = list(window.periods(task.arguments["partition"])) if window.intervals else []
            cost.writes += fleet.batches * len(periods)
            cost.periods.update(periods)
            cost.rows += fleet.rows(window)
        _print(task, cost, fleet, arguments.requests_per_second, output)
    return 0


def _fleet(task: LandingTask, number: int | None) -> _Fleet:
    types, resolution = task.arguments["stream_types"], task.arguments["resolution"]
    if number is not None:
        batches = min((task.listing.batches or number) if task.listing else 1, number)
        of_batch = -(-number // batches)
        sites = [Site(str(one)) for one in range(number)]
        return _Fleet([sites[one : one + of_batch] for one in range(0, number, of_batch)], types, resolution)
    literal = task.arguments.get("sites")
    if task.listing is None:
        try:
            return _Fleet([read_sites(literal)], types, resolution)
        except StemConfigError:
            raise StemConfigError(
                f"The sites of {task} are not known before a run. Use --sites with their number."
            ) from None
    entries: list[Any] = task.listing.list_sites()
    if task.listing.batches is not None:
        return _Fleet([read_sites(entry["sites"]) for entry in entries], types, resolution)
    return _Fleet([[site] for site in read_sites(entries)], types, resolution)


def _print(task: LandingTask, cost: _Cost, fleet: _Fleet, rate: float | None, output: TextIO) -> None:
    if cost.first is None or cost.last is None:
        output.write(f"{task}: no run begins in this time\n")
        return
    lines = {
        "runs": f"{cost.runs:,}",
        "first window": f"{cost.first} of {cost.first.resolution} s",
        "last window": f"{cost.last} of {cost.last.resolution} s",
        "tasks": f"{cost.tasks:,}",
        "requests": f"{cost.requests:,}",
        "objects": f"{fleet.batches * len(cost.periods):,}, with {cost.writes:,} writes",
        "rows": f"{cost.rows:,}",
    }
    if rate is not None:
        lines["time"] = f"{timedelta(seconds=round(cost.requests / rate))} at {rate:g} requests a second"
    output.write(f"{task}\n" + "".join(f"  {name:<14}{text}\n" for name, text in lines.items()))
