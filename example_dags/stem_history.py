"""
What lies before the days that ``stem_daily`` loads: each site's history from the start of its streams on, once.

Runs after each run of ``stem_daily``; without a site whose history is not in the lake yet it reads the list of sites
and ends. Killed, or days later, it goes on where it was: what is done is told by the objects that are there.
docs/loading.md tells how the two work together. Needs what ``stem_daily`` needs, and a pool of few slots, so that the
API is left to the daily load::

    airflow pools set stem_history 2 "Stem API, in the background: eight requests a slot"

Environment: that of ``stem_daily``, and ``STEM_HISTORY_POOL``, the pool's name.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task

from airflow_provider_stem.assets import combined
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.ledger import Ledger, LedgerStore
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

log = logging.getLogger(__name__)

BUCKET = os.environ.get("STEM_BUCKET", "stem-telemetry")
BATCHES = int(os.environ.get("STEM_BATCHES", "100"))
POOL = os.environ.get("STEM_HISTORY_POOL", "stem_history")

TASKS = 100  # a run: each is told its hundred sites, and all of that is one XCom
SETTLE = timedelta(days=3)  # as long as stem_daily looks back: what may still be restated has to wait
KEY = "stem/history/month={start:%Y-%m}/{start:%Y-%m-%d}_{end:%Y-%m-%d}_{resolution}s_{batch}.{extension}"
TELEMETRY = Asset(f"s3://{BUCKET}/stem/daily")
HISTORY = Asset(f"s3://{BUCKET}/stem/history")
MORE = Asset(f"s3://{BUCKET}/stem/history/more")

with DAG(
    dag_id="stem_history",
    description="The history of Stem's sites from the start of their streams on, once, in the background",
    schedule=TELEMETRY | MORE,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # two would read the same; what they write would be the same too
    # Where workers are scarce, whatever the daily load has to do comes first.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=15), "priority_weight": 1, "weight_rule": "absolute"},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=BATCHES)

    @task(multiple_outputs=False)
    def find_history(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """List what is not in the lake yet, the newest first."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        there = set(S3Hook().list_keys(BUCKET, prefix="stem/history/") or ())

        def next_pieces(ledger: Ledger) -> list[dict[str, Any]]:
            lacking = list(ledger.history(batches, SETTLE, KEY, there))
            log.info("%s tasks' worth of history is not in the lake, %s are next", f"{len(lacking):,}", TASKS)
            return sorted(lacking, key=lambda piece: piece["start"], reverse=True)[:TASKS]

        # In the ledger before it is read: which sites it is read without, since they are not listed now.
        with final_errors("stem_default"):
            return LedgerStore(BUCKET, "stem/ledger").enter_history(next_pieces)

    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],
        s3_bucket=BUCKET,
        s3_key=KEY,
        pool=POOL,
        max_workers=8,
        on_site_error="fail",  # what is landed is never read again, so it must be whole
    ).expand_kwargs(find_history(sites.output))

    # What is landed is never read again, so it is told whatever became of the run's other tasks.
    @task(outlets=[HISTORY], trigger_rule="all_done")
    def tell(receipts: list[dict[str, Any]] | None, **context: Any) -> dict[str, int]:
        """Tell the asset what there is to load."""
        landed = [receipt for receipt in receipts or () if receipt]
        if not landed:
            raise AirflowSkipException("Nothing was landed.")
        context["outlet_events"][HISTORY].extra.update(combined(landed))
        return {name: sum(receipt[name] for receipt in landed) for name in ("rows", "requests")}

    # Only where all went well: what fails waits for the next day.
    @task(outlets=[MORE])
    def go_on(receipts: list[dict[str, Any]]) -> None:
        """Start the next run, where there may be more."""
        if len(receipts) < TASKS:
            raise AirflowSkipException("All history that is settled is in the lake.")

    tell(land.output)
    go_on(land.output)
