"""
Land the telemetry of yesterday and the two days before it in S3, and load it into a warehouse, every day.

Needs the connections ``stem_default``, ``aws_default`` and ``stem_warehouse``, and the bucket below. The warehouse is a
DuckDB file, such as ``{"conn_type": "duckdb", "host": "/data/telemetry.duckdb"}``, or PostgreSQL
(``"conn_type": "postgres"``); nothing else differs. Views of energy, demand peaks, completeness and restatements are
created.
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator

with DAG(
    dag_id="stem_warehouse",
    description="Stem's telemetry, daily, from the API to S3 and to a warehouse",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # Runs that overlap would read the same days twice, and wait for each other's loads.
    max_active_runs=1,
    params={"bucket": "stem-telemetry"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=8)

    # [START land_with_lookback]
    # The look-back also lands late and restated values, in the same objects.
    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],
        partition="day",
        lookback=timedelta(days=2),
        s3_bucket="{{ params.bucket }}",
    ).expand_kwargs(sites.output)
    # [END land_with_lookback]

    # [START load_warehouse]
    # One task, and so one transaction, loads all batches, so that a day becomes visible as a whole.
    StemObjectsToSqlOperator(task_id="load_streams", objects=land.output, sql_conn_id="stem_warehouse")
    StemSitesToSqlOperator(task_id="load_sites", sites=sites.output, sql_conn_id="stem_warehouse")
    # [END load_warehouse]
