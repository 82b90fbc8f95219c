"""One DAG for each kind of run that the tests let Airflow itself make."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

SCHEDULES = {
    "data_interval": CronDataIntervalTimetable("0 * * * *", timezone="UTC"),
    "plain_cron": "0 * * * *",
    "plain_cron_with_default_interval": "0 * * * *",
    "no_schedule": None,
}

for kind, schedule in SCHEDULES.items():
    with DAG(
        dag_id=kind,
        schedule=schedule,
        start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
        catchup=False,
        params={"bucket": "lake"},
        default_args={"retries": 2, "retry_delay": timedelta(hours=1)},
    ) as dag:
        sites = StemSiteListOperator(task_id="sites", batches=2)
        StemStreamsToS3Operator.partial(
            task_id="land",
            s3_bucket="{{ params.bucket }}",
            default_interval=timedelta(hours=2) if kind.endswith("default_interval") else None,
            outlets=[Asset(f"s3://lake/{kind}")],
        ).expand_kwargs(sites.output)
    globals()[kind] = dag
