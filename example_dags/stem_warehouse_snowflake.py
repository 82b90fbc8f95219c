"""
Load landed objects into Snowflake, whenever an event lists some. Not executed in the tests.

Runs after ``stem_streams_to_s3``. Needs a connection of type ``snowflake`` and an external stage on the bucket.

Create the tables and views once, with the SQL that this command prints:
``python -m airflow_provider_stem.warehouse.sql snowflake schema=stem``.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.warehouse.sql import statements

with DAG(
    dag_id="stem_warehouse_snowflake",
    description="Load newly landed objects into Snowflake",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # One after the other: a merge must see what the one before it wrote.
    max_active_runs=1,
    params={"schema": "stem", "stage": "stem.lake"},
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

    # All statements run in one session, since they share a temporary table.
    load = SQLExecuteQueryOperator(
        task_id="load", conn_id="snowflake_default", sql=list(statements("snowflake", "load"))
    )
    list_objects() >> load
