"""
Load into a warehouse what ``stem_daily`` and ``stem_history`` land: exactly the objects that their asset events list.

Needs the connections ``stem_default``, ``aws_default`` and ``stem_warehouse``. The warehouse is a DuckDB file, such as
``{"conn_type": "duckdb", "host": "/data/telemetry.duckdb"}``, or PostgreSQL (``"conn_type": "postgres"``); nothing else
differs. Views of energy, demand peaks, completeness and restatements are created. Events that arrive during a run are
loaded together by the next run.

Environment variable: ``STEM_LAKE``, as for ``stem_daily``.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.operators import StemSiteListOperator
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator

LAKE = os.environ.get("STEM_LAKE", "s3://stem-telemetry/stem").rstrip("/")
TELEMETRY = Asset(f"{LAKE}/daily")
HISTORY = Asset(f"{LAKE}/history")
# The size of a transaction: a day of ten thousand sites with a look-back of three days. Months need several.
MAX_ROWS = 12_000_000

with DAG(
    dag_id="stem_to_warehouse",
    description="Load landed telemetry into a warehouse",
    schedule=TELEMETRY | HISTORY,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # Retries last for days, since the events of a failed run are lost: the next run has only newer ones.
    default_args={
        "retries": 70,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
    },
    tags=["stem", "energy"],
) as dag:
    # [START load_from_events]
    @task
    def split_into_loads(**context: Any) -> list[list[dict[str, Any]]]:
        """Return the objects of the asset events that triggered the run, split into loads of limited size."""
        loads: list[list[dict[str, Any]]] = []
        for landed in landed_objects(context):
            if not loads or sum(one["rows"] for one in loads[-1]) + landed["rows"] > MAX_ROWS:
                loads.append([])
            loads[-1].append(landed)
        return loads

    # One load at a time, since others would wait for the warehouse and occupy worker slots and connections.
    StemObjectsToSqlOperator.partial(
        task_id="load_streams", sql_conn_id="stem_warehouse", max_active_tis_per_dag=1
    ).expand(objects=split_into_loads())
    # [END load_from_events]

    # The view of completeness needs the table of sites.
    sites = StemSiteListOperator(task_id="list_sites")
    StemSitesToSqlOperator(task_id="load_sites", sites=sites.output, sql_conn_id="stem_warehouse")
