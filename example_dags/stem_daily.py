"""
The telemetry of a whole fleet, day by day, as Parquet in S3: each interval of each site exactly once.

Made for ten thousand sites on a cluster. docs/loading.md tells how it works together with ``stem_history``, which loads
what lies before. Needs the connections ``stem_default`` and ``aws_default``, and a pool, which bounds what the API is
asked at a time, over all runs and backfills: slots times ``max_workers``, here 8 times 8 requests::

    airflow pools set stem_api 8 "Stem API: eight requests a slot"

Environment, the same for every component of Airflow and for both DAGs:

- ``STEM_BUCKET``: where to;
- ``STEM_START``: the first day of the daily load, such as today. Each day from it on is read, so an early one costs a
  run a day; what lies before comes with the history for a fraction of the requests. Never changed afterwards;
- ``STEM_BATCHES``: tasks a run, and objects a day. Never changed afterwards;
- ``STEM_POOL``: the pool's name.
"""

from __future__ import annotations

import os
from datetime import date, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.assets import combined
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.ledger import LedgerStore, whole_days
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

BUCKET = os.environ.get("STEM_BUCKET", "stem-telemetry")
START = date.fromisoformat(os.environ.get("STEM_START", "2025-07-01"))
BATCHES = int(os.environ.get("STEM_BATCHES", "100"))  # a hundred sites a task: some seconds, some megabytes a day
POOL = os.environ.get("STEM_POOL", "stem_api")

LOOKBACK = timedelta(days=3)
# Without the run in it: whoever reads a day again replaces what was there.
KEY = "stem/daily/date={start:%Y-%m-%d}/{resolution}s_{batch}.{extension}"
TELEMETRY = Asset(f"s3://{BUCKET}/stem/daily")

with DAG(
    dag_id="stem_daily",
    description="Every day of every site of Stem's, exactly once, as Parquet in S3",
    # An interval of its own for every run: Airflow 3 gives none to a plain "@daily".
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(START.year, START.month, START.day, tz="UTC"),
    catchup=True,  # no day is left out, also where Airflow stood still
    # One after the other: of two runs that look back on a day, the one that read it later must also write it later.
    # A run by itself keeps the pool busy. A backfill has a bound of its own; each of its days is read by one run only.
    max_active_runs=1,
    # An API or a network that is down for an hour; what is over in a minute is retried inside the task.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=15), "priority_weight": 10},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=BATCHES, retry_delay=timedelta(minutes=1))

    # In the ledger before anything is read: a run that dies later has told what it set out to read.
    @task(retry_delay=timedelta(minutes=1))
    def enter_sites(batches: list[dict[str, Any]], **context: Any) -> list[dict[str, Any]]:
        """Enter the sites that are new, and tell which sites to read for which days."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        def is_there(batch: str, day: date) -> bool:
            key = KEY.format(start=day, resolution=900, batch=batch, extension="parquet")
            return bool(S3Hook().check_for_key(key, BUCKET))

        with final_errors("stem_default"):
            start, end = whole_days(*wall_time_of_run(context))
            ledger = LedgerStore(BUCKET, "stem/ledger").enter(batches, end, START)
            # A backfill reads each day as it is now; to look back would be to read its own days again.
            is_backfill = "backfill" in str(context["dag_run"].run_type).lower()
            return list(ledger.pieces(batches, start if is_backfill else start - LOOKBACK, end, is_there))

    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],  # one request a site, whatever is read of it
        partition="day",
        s3_bucket=BUCKET,
        s3_key=KEY,
        pool=POOL,
        max_workers=8,
        on_incomplete="warn",  # what is late comes with the look-back
        on_site_error="fail",  # to skip a site would take its earlier rows from the days that are looked back on
    ).expand_kwargs(enter_sites(sites.output))

    # One event a run, whatever the number of batches; stem_history.py is scheduled on it. What was landed is told
    # whatever became of the others: it is not landed again where one of its sites is no longer listed tomorrow.
    @task(outlets=[TELEMETRY], trigger_rule="all_done")
    def tell(receipts: list[dict[str, Any] | None] | None, **context: Any) -> None:
        """Tell the asset what there is to load."""
        if not any(receipts or ()):
            raise AirflowSkipException("Nothing was landed.")
        context["outlet_events"][TELEMETRY].extra.update(combined(receipts or ()))

    # Only where all went well. Without it the run would end well wherever the event did.
    @task
    def sum_up(receipts: list[dict[str, Any]]) -> dict[str, int]:
        """Give the figures of the whole run."""
        return {name: sum(receipt[name] for receipt in receipts) for name in ("rows", "missing", "requests")}

    tell(land.output)
    sum_up(land.output)
