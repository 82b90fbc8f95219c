"""
Load what is missing in the ledger of ``stem_daily``: each site's history, back to the start of its streams.

Also loads later days that the daily load missed, because a site was not listed or a batch failed. Runs after each run
of ``stem_daily``, and again as long as something landed; see docs/loading.md. Has the same requirements as
``stem_daily``, and needs a pool with few slots, so that most of the API's capacity is left for the daily load::

    airflow pools set stem_history 2 "Stem API, in the background: eight requests a slot"

Environment variables: those of ``stem_daily``, and ``STEM_HISTORY_POOL``, the name of the pool.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task

from airflow_provider_stem.assets import combined
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.ledger import Ledger
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToObjectStorageOperator

LAKE = os.environ.get("STEM_LAKE", "s3://stem-telemetry/stem").rstrip("/")
START = datetime.strptime(os.environ.get("STEM_START", "2025-07-01"), "%Y-%m-%d").replace(tzinfo=UTC)
BATCHES = int(os.environ.get("STEM_BATCHES", "100"))
POOL = os.environ.get("STEM_HISTORY_POOL", "stem_history")

STREAM_TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
LOOKBACK = timedelta(days=3)  # as in stem_daily, which reads these days again
CUT = START.date().replace(day=1)  # earlier days are stored by month, later days in the objects of stem_daily
PATHS = {
    "month": f"{LAKE}/history/month={{start:%Y-%m}}/{{resolution}}s_{{batch}}.{{extension}}",
    "day": f"{LAKE}/daily/date={{start:%Y-%m-%d}}/{{resolution}}s_{{batch}}.{{extension}}",  # as in stem_daily
}
TELEMETRY = Asset(f"{LAKE}/daily")
HISTORY = Asset(f"{LAKE}/history")

with DAG(
    dag_id="stem_history",
    description="The history of Stem's sites since the start of their streams, in the background",
    schedule=TELEMETRY | HISTORY,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # two runs would read the same intervals
    # The next run tries again what failed. If workers are scarce, the daily load has priority.
    default_args={"retries": 1, "retry_delay": timedelta(minutes=15), "priority_weight": 1, "weight_rule": "absolute"},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=BATCHES)

    @task
    def find_history(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the sites and windows to read next, one entry for each task."""
        with final_errors("stem_default"):
            pieces = Ledger(f"{LAKE}/ledger", STREAM_TYPES).missing(batches, CUT, LOOKBACK)
        return [{**piece, "path": PATHS[piece["partition"]]} for piece in pieces]

    pieces = find_history(sites.output)
    land = StemStreamsToObjectStorageOperator.partial(
        task_id="land_streams",
        stream_types=STREAM_TYPES,
        pool=POOL,
        max_workers=8,
        on_site_error="skip",
    ).expand_kwargs(pieces)

    # Runs also if some tasks failed. The event starts the next run.
    @task(outlets=[HISTORY], trigger_rule="all_done")
    def enter(pieces: list[dict[str, Any]] | None, receipts: list[Any] | None, **context: Any) -> None:
        """Enter in the ledger what landed and what failed, and what landed in the asset event."""
        # As a slice: when receipts of mapped tasks are iterated over, Airflow 3 logs an error after the last one.
        landed = [receipt for receipt in (receipts or [])[:] if receipt]
        with final_errors("stem_default"):
            Ledger(f"{LAKE}/ledger", STREAM_TYPES).enter(pieces or (), landed, count_tries=True)
        if not landed:
            raise AirflowSkipException("Nothing landed.")
        context["outlet_events"][HISTORY].extra.update(combined(landed))

    # Runs only if every task succeeded. Without this task the run would succeed if `enter` does.
    @task
    def sum_up(receipts: list[Any]) -> dict[str, int]:
        """Return the counts of the whole run."""
        read = receipts[:]
        return {name: sum(receipt[name] for receipt in read) for name in ("rows", "missing", "requests")}

    enter(pieces, land.output)
    sum_up(land.output)
