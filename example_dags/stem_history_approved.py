"""
Land days of ``stem_daily`` again, after a person has approved it if it costs many requests (Airflow 3.1 or later).

Trigger it with the first and the last day; the question is under *Required Actions*. Before Airflow 3.1 nobody is
asked: a period above the limit fails. It writes the objects of ``stem_daily``, and needs the same connections, pool and
environment variables. ``stem_history`` loads the days before ``STEM_START``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, Asset, Param, task

from airflow_provider_stem.assets import combined
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToObjectStorageOperator

ApprovalOperator: Any = None
with suppress(Exception):  # before Airflow 3.1 the module is absent, or raises another error
    from airflow.providers.standard.operators.hitl import ApprovalOperator

# As in stem_daily.
LAKE = os.environ.get("STEM_LAKE", "s3://stem-telemetry/stem").rstrip("/")
START = datetime.strptime(os.environ.get("STEM_START", "2025-07-01"), "%Y-%m-%d").replace(tzinfo=UTC)
STREAM_TYPES = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
TELEMETRY = Asset(f"{LAKE}/daily")

with DAG(
    dag_id="stem_history_approved",
    description="Days of Stem's telemetry again, after approval if it costs many requests",
    schedule=None,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    default_args={"retries": 5, "retry_delay": timedelta(minutes=15)},
    # With types, so that Airflow refuses other values when the DAG is triggered.
    params={
        "first_day": Param("2025-07-01", type="string", format="date"),
        "last_day": Param("2025-07-31", type="string", format="date"),
        "limit": Param(1000, type="integer", minimum=0, description="requests that need no approval"),
    },
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=int(os.environ.get("STEM_BATCHES", "100")))

    # [START ask]
    @task.branch
    def plan(batches: list[dict[str, Any]], **context: Any) -> str:
        """Compute what ``stem plan`` shows of the period, and choose the next task."""
        from airflow_provider_stem.costs import LandingCosts

        params = context["params"]
        first, last = (datetime.fromisoformat(params[name]).replace(tzinfo=UTC) for name in ("first_day", "last_day"))
        if not START <= first <= last <= datetime.now(UTC) - timedelta(days=1):
            raise AirflowFailException(
                f"Invalid days {first:%Y-%m-%d} to {last:%Y-%m-%d}. Use a first_day of {START:%Y-%m-%d} or later (the "
                "days before are those of stem_history), and a last_day from first_day to yesterday (UTC)."
            )
        costs = LandingCosts((batch["sites"] for batch in batches), stream_types=STREAM_TYPES, partition="day")
        costs.add(first, last + timedelta(days=1))
        lines = [f"- {name}: {text}" for name, text in costs.described().items()]
        context["ti"].xcom_push(key="costs", value="\n".join(lines))
        if costs.requests <= params["limit"]:
            return "approved"
        if ApprovalOperator is None:
            raise AirflowFailException(f"{costs.requests:,} requests are above the limit. Use a shorter period.")
        return "ask"

    next_task = plan(sites.output)
    approved = task(task_id="approved", trigger_rule="none_failed_min_one_success")(lambda: None)()
    next_task >> approved
    if ApprovalOperator is not None:
        ask = ApprovalOperator(
            task_id="ask",
            subject="Land {{ params.first_day }} to {{ params.last_day }}?",
            body="{{ ti.xcom_pull(task_ids='plan', key='costs') }}",
            defaults="Reject",
            response_timeout=timedelta(days=1),
        )
        next_task >> ask >> approved
    # [END ask]

    land = StemStreamsToObjectStorageOperator.partial(
        task_id="land_streams",
        stream_types=STREAM_TYPES,
        start="{{ params.first_day }}T00:00Z",
        end="{{ macros.ds_add(params.last_day, 1) }}T00:00Z",
        partition="day",
        path=f"{LAKE}/daily/date={{start:%Y-%m-%d}}/{{resolution}}s_{{batch}}.{{extension}}",
        pool=os.environ.get("STEM_POOL", "stem_api"),
        on_site_error="skip",
    ).expand_kwargs(sites.output)
    approved >> land

    # One asset event per run, also if some batches failed: the loads read all that has landed.
    @task(outlets=[TELEMETRY], trigger_rule="all_done")
    def emit(receipts: list[Any] | None, **context: Any) -> None:
        """Emit one event for all batches, which starts the loads into the warehouse."""
        # As a slice: when receipts of mapped tasks are iterated over, Airflow 3 logs an error after the last one.
        landed = [receipt for receipt in (receipts or [])[:] if receipt]
        if not landed:
            raise AirflowSkipException("Nothing landed.")
        context["outlet_events"][TELEMETRY].extra.update(combined(landed))

    # Runs only if every batch succeeded. Without this task the run would succeed if `emit` does.
    @task
    def sum_up(receipts: list[Any]) -> dict[str, int]:
        """Return the counts of the whole run."""
        read = receipts[:]
        return {name: sum(receipt[name] for receipt in read) for name in ("rows", "missing", "failed_count")}

    emit(land.output)
    sum_up(land.output)
