"""The command ``plan``: what a backfill of a DAG costs, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TextIO

from airflow_provider_stem.api.config import MAX_RATE, MIN_RATE
from airflow_provider_stem.cli.dags import LandingTask, landing_tasks
from airflow_provider_stem.cli.progress import progress
from airflow_provider_stem.cli.reading import instant
from airflow_provider_stem.costs import LandingCosts
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.windows import check_order

_MAX_SITES = 10_000_000


def plan(arguments: argparse.Namespace, output: TextIO) -> int:
    """
    Show what a backfill costs, and return the exit code.

    :raises StemConfigError: an argument is wrong, or a run of the DAG could not read its window.
    """
    start, end = instant("--from", arguments.start), instant("--to", arguments.end)
    check_order(start, end)
    rate = arguments.requests_per_second
    limits = {"--sites": (arguments.sites, 1, _MAX_SITES), "--requests-per-second": (rate, MIN_RATE, MAX_RATE)}
    for name, (value, least, most) in limits.items():
        if value is not None and not least <= value <= most:
            raise StemConfigError(f"{name} must be a number from {least} to {most:,}, got {value:g}.")
    tasks = landing_tasks(arguments.dag_file, arguments.dag_id)
    if not tasks:
        raise StemConfigError(
            f"{arguments.dag_file!r} has no task that lands streams in {arguments.dag_id or 'any DAG'}. Use "
            "another file or --dag-id."
        )
    for task in tasks:
        if argument := task.set_by_runs:
            output.write(f"{task}: its windows are not known before a run, which sets its {argument}\n")
            continue
        settings = {name: task.arguments[name] for name in ("stream_types", "resolution", "partition")}
        costs = LandingCosts(_batches(task, arguments.sites), **settings)
        for window in progress(task.windows(start, end), "runs"):
            costs.add_window(window)
        _print(task, costs, rate, output)
    return 0


def _batches(task: LandingTask, number: int | None) -> Sequence[Any]:
    """Return the sites of each instance of the task; if their number is given, sites whose streams have begun."""
    if number is not None:
        batches = min((task.listing.batches or number) if task.listing else 1, number)
        of_batch = -(-number // batches)
        sites = [str(one) for one in range(number)]
        return [sites[one : one + of_batch] for one in range(0, number, of_batch)]
    if task.listing is None:
        literal = task.arguments.get("sites")
        try:
            read_sites(literal)
        except StemConfigError:
            raise StemConfigError(
                f"The sites of {task} are not known before a run. Use --sites with their number."
            ) from None
        return [literal]
    entries: list[Any] = task.listing.list_sites()
    return entries if task.listing.batches is None else [entry["sites"] for entry in entries]


def _print(task: LandingTask, costs: LandingCosts, rate: float | None, output: TextIO) -> None:
    lines = costs.described()
    if not lines:
        output.write(f"{task}: no run begins in this time, since its schedule is {task.schedule}\n")
        return
    if rate is not None:
        lines["time"] = f"{timedelta(seconds=round(costs.requests / rate))} at {rate:g} requests a second"
    output.write(f"{task}\n" + "".join(f"  {name:<14}{text}\n" for name, text in lines.items()))
