"""
Load landed objects into BigQuery, whenever an event lists some. Not executed in the tests.

Runs after ``stem_streams_to_s3``. Needs a connection of type ``gcpbigquery`` and, to read from S3, a BigQuery Omni
connection in the bucket's region.

Create the tables and views once, with the SQL that this command prints:
``python -m airflow_provider_stem.warehouse.sql bigquery schema=stem``.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.warehouse.sql import statements

with DAG(
    dag_id="stem_warehouse_bigquery",
    description="Load newly landed objects into BigQuery",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # Runs share one staging table, so they must not overlap.
    max_active_runs=1,
    params={"schema": "stem", "connection": "aws-us-east-1.stem-lake"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task(task_id="objects")
    def list_objects(**context: Any) -> list[dict[str, Any]]:
        """List the objects of the asset events that triggered the run."""
        objects = landed_objects(context)
        if not objects:
            raise AirflowSkipException("No object was landed. There is nothing to load.")
        return objects

    # One script, since its transaction spans statements. BigQueryInsertJobOperator of Google's provider works as well.
    load = SQLExecuteQueryOperator(
        task_id="load",
        conn_id="google_cloud_default",
        hook_params={"use_legacy_sql": False},
        sql=";\n".join(statements("bigquery", "load")),
        split_statements=False,
    )
    list_objects() >> load
