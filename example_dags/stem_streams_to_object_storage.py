"""
List the sites, and land yesterday's telemetry in a folder or in any object store, every day.

Needs the connection ``stem_default``, with the API key as Password, and a folder that all workers share. Another
``path``, such as ``gs://bucket/``, needs a connection to that store.
"""

from __future__ import annotations

import pendulum
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToObjectStorageOperator

with DAG(
    dag_id="stem_streams_to_object_storage",
    description="Stem's site, battery and revenue meter telemetry, daily, as Parquet in a folder or an object store",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=2,
    params={"path": "file:///srv/stem-telemetry/"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", batches=8)
    StemStreamsToObjectStorageOperator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],
        path="{{ params.path }}",
    ).expand_kwargs(sites.output)
