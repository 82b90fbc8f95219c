"""
Every day: land yesterday's telemetry and the two days before it anew in S3, and load what landed into a warehouse.

Needs the connections ``stem_default``, ``aws_default`` and ``stem_warehouse``, and the bucket named below. The
warehouse is a DuckDB file, as in ``{"conn_type": "duckdb", "host": "/data/telemetry.duckdb"}``, or PostgreSQL
(``"conn_type": "postgres"``); nothing else changes. Views on energy, demand peaks and completeness come with it.
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
    description="Stem's telemetry, daily, from the API to a lake and on to a warehouse",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # What a run re-reads another may be loading: one after the other, none finds an object replaced.
    max_active_runs=1,
    params={"bucket": "stem-telemetry"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=8)

    # Late and restated values come with the look-back; the same objects are written again.
    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],
        partition="day",
        lookback=timedelta(days=2),
        s3_bucket="{{ params.bucket }}",
    ).expand_kwargs(sites.output)

    # One task for all batches: one transaction, so that a day is there as a whole.
    StemObjectsToSqlOperator(task_id="load_streams", objects=land.output, sql_conn_id="stem_warehouse")
    StemSitesToSqlOperator(task_id="load_sites", sites=sites.output, sql_conn_id="stem_warehouse")
