"""
Wait until yesterday's telemetry is available, then return each site's highest average power, every day.

Uses the hook in its own task and needs no bucket, only the connection ``stem_default``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.operators import StemSiteListOperator
from airflow_provider_stem.sensors import StemStreamsSensor

with DAG(
    dag_id="stem_daily_peaks",
    description="Highest 15-minute average power of each of Stem's sites, daily",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["stem", "energy"],
) as dag:
    # [START list_sites]
    sites = StemSiteListOperator(task_id="list_sites", stream_types=["MONITOR"])
    # [END list_sites]

    # [START wait_for_streams]
    wait = StemStreamsSensor(
        task_id="wait_for_streams",
        sites=sites.output,
        stream_types=["MONITOR"],
        min_completeness=0.99,
        settle=timedelta(minutes=30),
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=6),
        deferrable=True,
    )
    # [END wait_for_streams]

    # [START read_with_the_hook]
    @task
    def find_peaks(sites: list[dict[str, Any]], **context: Any) -> dict[str, float]:
        """Return the highest average kW of each site that has values."""
        import pyarrow.compute as pc

        from airflow_provider_stem.failures import final_errors
        from airflow_provider_stem.hooks import StemHook
        from airflow_provider_stem.intervals import wall_time_of_run

        peaks = {}
        with final_errors("stem_default"):
            hook = StemHook("stem_default")
            start, end = wall_time_of_run(context)
            for site in sites:
                rows = hook.get_streams(site["site_id"], start, end, stream_types=["MONITOR"])
                peaks[site["site_id"]] = pc.max(rows["kw_total_avg"]).as_py()
        return {site_id: peak for site_id, peak in peaks.items() if peak is not None}

    # [END read_with_the_hook]

    wait >> find_peaks(sites.output)
