"""
What ``stem_daily`` and ``stem_history`` land, into a warehouse: whatever their events tell of, and nothing else.

Needs the connections ``stem_default``, ``aws_default`` and ``stem_warehouse``. The warehouse is a DuckDB file, as in
``{"conn_type": "duckdb", "host": "/data/telemetry.duckdb"}``, or PostgreSQL (``"conn_type": "postgres"``); nothing else
changes. Views on energy, demand peaks and completeness come with it. Events that come while a run is under way are
loaded together by the next one.

Environment: ``STEM_BUCKET``, as for the other two.
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

BUCKET = os.environ.get("STEM_BUCKET", "stem-telemetry")
TELEMETRY = Asset(f"s3://{BUCKET}/stem/daily")
HISTORY = Asset(f"s3://{BUCKET}/stem/history")
# A transaction: a day of ten thousand sites, and the three that it looks back on, are there at once. Months take more.
MOST_ROWS = 12_000_000

with DAG(
    dag_id="stem_to_warehouse",
    description="What landed of Stem's telemetry, into a warehouse",
    schedule=TELEMETRY | HISTORY,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # Days, since a run that fails for good has had its events: the next one loads newer ones alone.
    default_args={
        "retries": 70,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
    },
    tags=["stem", "energy"],
) as dag:

    @task
    def cut_into_loads(**context: Any) -> list[list[dict[str, Any]]]:
        """Give the objects that the triggering events tell of, so many for each load."""
        loads: list[list[dict[str, Any]]] = []
        for landed in landed_objects(context):
            if not loads or sum(one["rows"] for one in loads[-1]) + landed["rows"] > MOST_ROWS:
                loads.append([])
            loads[-1].append(landed)
        return loads

    # One at a time: the warehouse would let the others wait, with a worker's slot and a connection each.
    StemObjectsToSqlOperator.partial(
        task_id="load_streams", sql_conn_id="stem_warehouse", max_active_tis_per_dag=1
    ).expand(objects=cut_into_loads())

    # Completeness is told for the sites that are known here.
    sites = StemSiteListOperator(task_id="list_sites")
    StemSitesToSqlOperator(task_id="load_sites", sites=sites.output, sql_conn_id="stem_warehouse")
