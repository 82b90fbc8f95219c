"""
Check the warehouse with dbt every day, and build the models that bills are computed from.

``stem_warehouse`` or ``stem_to_warehouse`` load the warehouse. The task fails if telemetry is old, missing, duplicate
or out of range; dbt then skips the models that depend on it. It checks the month of the run and the one before.

dbt is in a separate environment, because its dependencies conflict with Airflow's. Environment variables:

- ``STEM_DBT_COMMAND``: path of dbt, such as ``/opt/dbt/bin/dbt``.
- ``STEM_DBT_PROFILES``: folder of a ``profiles.yml`` with the profile ``stem_telemetry``.
"""

from __future__ import annotations

import os

import pendulum
from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.dbt import PROJECT

with DAG(
    dag_id="stem_dbt",
    description="Checks of Stem's telemetry, and models for bills, by dbt",
    schedule=CronDataIntervalTimetable("0 3 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # One at a time can have a DuckDB file open.
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": pendulum.duration(minutes=10)},
    tags=["stem", "energy"],
) as dag:
    # [START dbt_build]
    @task.bash(
        env={
            "DBT": os.environ.get("STEM_DBT_COMMAND", "/opt/dbt/bin/dbt"),
            "DBT_PROFILES_DIR": os.environ.get("STEM_DBT_PROFILES", "/opt/dbt"),
            "DBT_PROJECT_DIR": str(PROJECT),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "TEST_FROM": "{{ data_interval_end.subtract(months=1).start_of('month') | ds }}",
            "NOW": "{{ data_interval_end }}",
        },
        append_env=True,
    )
    def build() -> str:
        """Run ``dbt build``, as of the end of the data interval. It writes into the task's temporary folder."""
        return (
            'DBT_TARGET_PATH="$PWD/target" DBT_LOG_PATH="$PWD/logs" '
            "\"$DBT\" build --vars \"{stem_test_from: '$TEST_FROM', stem_now: '$NOW'}\""
        )

    build()
    # [END dbt_build]
