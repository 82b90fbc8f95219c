"""
Load what the ledger of ``stem_daily`` lacks: each site's history, back to the start of its streams.

Also the days since then that the daily load missed, of a site that was away or a batch that failed. Runs after each run
of ``stem_daily``, and again as long as something landed; see docs/loading.md. Needs what ``stem_daily`` needs, and a
pool of few slots, which leaves most of the API to the daily load::

    airflow pools set stem_history 2 "Stem API, in the background: eight requests a slot"

Environment: that of ``stem_daily``, and ``STEM_HISTORY_POOL``, the pool's name.
"""

from __future__ import annotations

import os
from datetime import date, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task

from airflow_provider_stem.assets import combined
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.ledger import Ledger
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

BUCKET = os.environ.get("STEM_BUCKET", "stem-telemetry")
START = date.fromisoformat(os.environ.get("STEM_START", "2025-07-01"))
BATCHES = int(os.environ.get("STEM_BATCHES", "100"))
POOL = os.environ.get("STEM_HISTORY_POOL", "stem_history")

STREAM_TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
LOOKBACK = timedelta(days=3)  # as in stem_daily, which reads these days again
CUT = START.replace(day=1)  # earlier days are in objects of months, later ones in those of stem_daily
KEYS = {
    "month": "stem/history/month={start:%Y-%m}/{resolution}s_{batch}.{extension}",
    "day": "stem/daily/date={start:%Y-%m-%d}/{resolution}s_{batch}.{extension}",  # as in stem_daily
}
TELEMETRY = Asset(f"s3://{BUCKET}/stem/daily")
HISTORY = Asset(f"s3://{BUCKET}/stem/history")

with DAG(
    dag_id="stem_history",
    description="The history of Stem's sites from the start of their streams on, in the background",
    schedule=TELEMETRY | HISTORY,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # two would read the same
    # What fails here is tried again by the next run. Where workers are scarce, the daily load comes first.
    default_args={"retries": 1, "retry_delay": timedelta(minutes=15), "priority_weight": 1, "weight_rule": "absolute"},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=BATCHES)

    @task
    def find_history(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """List what to read next."""
        with final_errors("stem_default"):
            pieces = Ledger(BUCKET, "stem/ledger", STREAM_TYPES).missing(batches, CUT, LOOKBACK)
        return [{**piece, "s3_key": KEYS[piece["partition"]]} for piece in pieces]

    pieces = find_history(sites.output)
    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=STREAM_TYPES,
        s3_bucket=BUCKET,
        pool=POOL,
        max_workers=8,
        on_site_error="skip",
    ).expand_kwargs(pieces)

    # Also where some tasks failed. The event starts the next run.
    @task(outlets=[HISTORY], trigger_rule="all_done")
    def enter(pieces: list[dict[str, Any]] | None, receipts: list[Any] | None, **context: Any) -> None:
        """Enter in the ledger what landed and what did not, and describe what landed in the asset event."""
        landed = [receipt for receipt in receipts or () if receipt]
        with final_errors("stem_default"):
            Ledger(BUCKET, "stem/ledger", STREAM_TYPES).enter(pieces or (), landed, count_tries=True)
        if not landed:
            raise AirflowSkipException("Nothing landed.")
        context["outlet_events"][HISTORY].extra.update(combined(landed))

    # Only where every task succeeded: without this task the run would succeed whenever enter does.
    @task
    def sum_up(receipts: list[Any]) -> dict[str, int]:
        """Return the counts of the whole run."""
        return {name: sum(receipt[name] for receipt in receipts) for name in ("rows", "missing", "requests")}

    enter(pieces, land.output)
    sum_up(land.output)
