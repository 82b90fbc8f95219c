"""
Load landed objects into Amazon Redshift, whenever an event lists some. Not executed in the tests.

Runs after ``stem_streams_to_s3``. Needs ``aws_default``, and a workgroup whose default IAM role can read the bucket.

Create the tables and views once, with the SQL that this command prints:
``python -m airflow_provider_stem.warehouse.sql redshift schema=stem``.
"""

from __future__ import annotations

import json
from typing import Any

import pendulum
from airflow.providers.amazon.aws.operators.redshift_data import RedshiftDataOperator
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task

from airflow_provider_stem.assets import landed_objects
from airflow_provider_stem.warehouse.sql import statements

with DAG(
    dag_id="stem_warehouse_redshift",
    description="Load newly landed objects into Amazon Redshift",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # Runs must not overlap, since a load must see the rows of the previous one.
    max_active_runs=1,
    params={"schema": "stem", "location": "s3://stem-telemetry/manifests"},
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
        """Write the manifest of the objects that COPY loads, and return its URI."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        entries = [{"url": one["uri"], "mandatory": True, "meta": {"content_length": one["bytes"]}} for one in objects]
        address = f"{context['params']['location']}/{context['run_id']}.manifest"
        bucket, key = S3Hook.parse_s3_url(address)
        S3Hook().load_string(json.dumps({"entries": entries}), key, bucket, replace=True)
        return address

    # A list of statements runs in one transaction.
    load = RedshiftDataOperator(
        task_id="load",
        database="energy",
        workgroup_name="stem",
        sql=list(statements("redshift", "load")),
        wait_for_completion=True,
    )
    write_manifest(list_objects()) >> load
