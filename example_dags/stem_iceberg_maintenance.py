"""
Maintain the Iceberg table of ``stem_to_iceberg`` every Sunday. Loads may run at the same time.

Needs the connections ``aws_default`` and ``stem_iceberg``. No row changes. A snapshot that is removed can no longer be
read or compared with others: choose how long to keep them, and tag those that bills were made from (docs/iceberg.md).
"""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.iceberg.operators import StemIcebergMaintenanceOperator

with DAG(
    dag_id="stem_iceberg_maintenance",
    description="Compaction and retention of the Iceberg table of Stem's telemetry",
    schedule=CronDataIntervalTimetable("0 5 * * 0", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=15)},
    tags=["stem", "energy"],
) as dag:
    # [START maintain]
    StemIcebergMaintenanceOperator(
        task_id="maintain",
        table="stem.streams",
        compact_after=timedelta(days=7),  # more than the look-back of three days, which replaces files
        expire_after=timedelta(days=90),  # how far back you can read the table, and list what changed
        keep_snapshots=10,
        remove_after=timedelta(days=3),  # more than the longest load: it has files that no snapshot refers to yet
    )
    # [END maintain]
