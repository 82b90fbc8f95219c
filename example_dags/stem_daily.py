"""
Load the telemetry of a whole fleet into S3 or another store, day by day, as Parquet.

Designed for ten thousand sites on a cluster. ``stem_history`` loads earlier days, and days that are missing; see
docs/loading.md. Needs the connections ``stem_default`` and ``aws_default`` (or the default one of another store), and a
pool that limits the concurrent requests of all runs and backfills to its slots times ``max_workers``, here 8 times 8::

    airflow pools set stem_api 8 "Stem API: eight requests a slot"

Environment variables, the same for every component of Airflow and for both DAGs:

- ``STEM_LAKE``: the address to write to: ``s3://bucket/folder``, ``gs://bucket/folder``, ``abfs://container/folder`` or
  ``file:///folder``. Never change it.
- ``STEM_START``: the first day with a run, such as today. Never change it. With an early date there is one run for each
  day since then; the history loads earlier days with a fraction of the requests.
- ``STEM_BATCHES``: the number of tasks per run and of objects per day. Never change it.
- ``STEM_POOL``: the name of the pool.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.assets import combined
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.ledger import Ledger
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToObjectStorageOperator

LAKE = os.environ.get("STEM_LAKE", "s3://stem-telemetry/stem").rstrip("/")
START = datetime.strptime(os.environ.get("STEM_START", "2025-07-01"), "%Y-%m-%d").replace(tzinfo=UTC)
BATCHES = int(os.environ.get("STEM_BATCHES", "100"))  # with 100 sites per task: a few seconds and megabytes a day
POOL = os.environ.get("STEM_POOL", "stem_api")

STREAM_TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")  # one request per site covers all types
LOOKBACK = timedelta(days=3)
PATH = f"{LAKE}/daily/date={{start:%Y-%m-%d}}/{{resolution}}s_{{batch}}.{{extension}}"
TELEMETRY = Asset(f"{LAKE}/daily")

with DAG(
    dag_id="stem_daily",
    description="Every day of every site of Stem's as Parquet",
    # A plain "@daily" has no data interval on Airflow 3.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.instance(START),
    catchup=True,  # also load days on which Airflow was down
    # Concurrent runs lose nothing, but repeat requests, since their look-backs overlap in the same objects.
    max_active_runs=1,
    # These retries are for an outage of an hour. Shorter failures are retried inside the task.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=15), "priority_weight": 10},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=BATCHES, retry_delay=timedelta(minutes=1))

    @task
    def find_days(**context: Any) -> dict[str, str]:
        """Return the days to read: the run's own day and, unless the run is a backfill, the days before it."""
        with final_errors("stem_default"):
            start, end = wall_time_of_run(context)
        if "backfill" not in str(context["dag_run"].run_type).lower():
            start -= LOOKBACK
        if end <= START:
            raise AirflowSkipException(f"stem_history reads the days before {START:%Y-%m-%d}.")
        return {"start": max(start, START).isoformat(), "end": end.isoformat()}

    days = find_days()
    land = StemStreamsToObjectStorageOperator.partial(
        task_id="land_streams",
        stream_types=STREAM_TYPES,
        start=days["start"],
        end=days["end"],
        partition="day",
        path=PATH,
        pool=POOL,
        max_workers=8,
        on_site_error="skip",  # stem_history reads such a site later, and fails until it succeeds
    ).expand_kwargs(sites.output)

    # One asset event per run, also if some batches failed.
    @task(outlets=[TELEMETRY], trigger_rule="all_done", retry_delay=timedelta(minutes=1))
    def enter(batches: list[dict[str, Any]], receipts: list[Any] | None, **context: Any) -> None:
        """Enter what landed in the ledger and in the asset event."""
        # As a slice: when receipts of mapped tasks are iterated over, Airflow 3 logs an error after the last one.
        landed = [receipt for receipt in (receipts or [])[:] if receipt]
        if not landed:
            raise AirflowSkipException("Nothing landed.")
        with final_errors("stem_default"):
            Ledger(f"{LAKE}/ledger", STREAM_TYPES).enter(batches, landed)
        context["outlet_events"][TELEMETRY].extra.update(combined(landed))

    # Runs only if every batch succeeded. Without this task the run would succeed if `enter` does.
    @task
    def sum_up(receipts: list[Any]) -> dict[str, int]:
        """Return the counts of the whole run."""
        counts = ("rows", "missing", "requests", "failed_count")
        read = receipts[:]
        return {name: sum(receipt[name] for receipt in read) for name in counts}

    enter(sites.output, land.output)
    sum_up(land.output)
