"""
Load landed objects into Iceberg tables with Amazon Athena, whenever an event lists some. Not executed in the tests.

Runs after ``stem_streams_to_s3``. Needs ``aws_default`` and a location for the results of queries.

Create the tables and views once, with the SQL that this command prints:
``python -m airflow_provider_stem.warehouse.sql athena schema=stem location=s3://stem-telemetry/warehouse``.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.providers.amazon.aws.operators.athena import AthenaOperator
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, chain, task

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.warehouse.sql import statements

with DAG(
    dag_id="stem_warehouse_athena",
    description="Load newly landed objects into Iceberg tables with Amazon Athena",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # Runs share one staging table, so they must not overlap.
    max_active_runs=1,
    params={"schema": "stem", "location": "s3://stem-telemetry/warehouse"},
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

    @task(task_id="manifest")
    def write_manifest(objects: list[dict[str, Any]], **context: Any) -> str:
        """Write the list of the staging table's objects to a new folder, and return the folder's URI."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        address = f"{context['params']['location']}/manifests/{context['run_id']}/"
        bucket, key = S3Hook.parse_s3_url(f"{address}objects.txt")
        S3Hook().load_string("\n".join(one["uri"] for one in objects), key, bucket, replace=True)
        return address

    # Athena runs one statement at a time, and each is atomic. The merge can be repeated.
    queries = [
        AthenaOperator(
            task_id=f"load_{number}",
            query=query,
            database="{{ params.schema }}",
            output_location="{{ params.location }}/results/",
        )
        for number, query in enumerate(statements("athena", "load"), 1)
    ]
    chain(write_manifest(list_objects()), *queries)
