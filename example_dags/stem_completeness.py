"""
Publish the completeness of the last days every morning, as one HTML page in S3, another store or a folder.

Reads the warehouse of the connection ``stem_warehouse``, of DuckDB or PostgreSQL. The params are the address of the
page, such as ``gs://bucket/completeness.html``, and the connection of its store, if it is not the default one. The page
is self-contained: open it in a browser.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param, task
from airflow.timetables.interval import CronDataIntervalTimetable

with DAG(
    dag_id="stem_completeness",
    description="Completeness of Stem's telemetry, sites by days, as a page",
    schedule=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={
        "path": "s3://stem-telemetry/stem/completeness.html",
        "conn_id": Param(None, type=["null", "string"]),
        "days": 90,
    },
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task(task_id="publish_page")
    def publish(**context: Any) -> dict[str, Any]:
        """Read the last complete UTC days, and replace the page."""
        from airflow_provider_stem.completeness.publishing import publish_page
        from airflow_provider_stem.failures import final_errors

        with final_errors("stem_default"):
            params = context["params"]
            return publish_page(params["path"], days=params["days"], conn_id=params["conn_id"])

    publish()
