"""
Land a period in S3 or another store, after a person has approved it if it costs many requests (Airflow 3.1 or later).

Trigger it with the first and the last day. Before Airflow 3.1 nobody is asked: a period above the limit fails. Needs
the connections ``stem_default`` and ``aws_default`` (or the default one of another store). The task that asks is under
*Required Actions*.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToObjectStorageOperator

ApprovalOperator: Any = None
with suppress(Exception):  # before Airflow 3.1 the module is absent, or raises an error of its own
    from airflow.providers.standard.operators.hitl import ApprovalOperator

START, END = "{{ params.first_day }}T00:00Z", "{{ macros.ds_add(params.last_day, 1) }}T00:00Z"

with DAG(
    dag_id="stem_history_approved",
    description="A period of Stem's telemetry, after approval if it costs many requests",
    schedule=None,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    params={"first_day": "2025-07-01", "last_day": "2025-07-31", "path": "s3://stem-telemetry/", "limit": 1000},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=8)

    # [START ask]
    @task.branch
    def plan(batches: list[dict[str, Any]], **context: Any) -> str:
        """Compute what ``stem plan`` shows of the period, and choose the next task."""
        from airflow_provider_stem.costs import LandingCosts

        params = context["params"]
        first, last = (datetime.fromisoformat(params[name]).replace(tzinfo=UTC) for name in ("first_day", "last_day"))
        costs = LandingCosts((batch["sites"] for batch in batches), partition="day")
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
        task_id="land_streams", start=START, end=END, partition="day", path="{{ params.path }}"
    ).expand_kwargs(sites.output)
    approved >> land
