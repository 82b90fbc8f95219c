"""
Whenever streams have landed: load what the events tell of into BigQuery. Not executed here.

Runs after ``stem_streams_to_s3``. Needs a connection of type ``gcpbigquery`` and, to read S3,
one of BigQuery Omni in the bucket's region.
The tables and views are made once, by hand, of ``tables.sql`` and ``views.sql`` in
``airflow_provider_stem/warehouse/sql/bigquery``.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.warehouse.session import statements

with DAG(
    dag_id="stem_warehouse_bigquery",
    description="What has just landed, into BigQuery",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # One after the other: all runs stage in the same table.
    max_active_runs=1,
    params={"schema": "stem", "connection": "aws-us-east-1.stem-lake"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task(task_id="objects")
    def objects_of_the_events(**context: Any) -> list[dict[str, Any]]:
        """List the objects that the triggering events tell of."""
        objects = landed_objects(context)
        if not objects:
            raise AirflowSkipException("No object was landed: nothing to load.")
        return objects

    # One script: its transaction spans statements. The provider of Google has BigQueryInsertJobOperator for the same.
    load = SQLExecuteQueryOperator(
        task_id="load",
        conn_id="google_cloud_default",
        hook_params={"use_legacy_sql": False},
        sql=";\n".join(statements("bigquery", "load")),
        split_statements=False,
    )
    objects_of_the_events() >> load
