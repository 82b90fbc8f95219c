"""
Send a mail if yesterday's telemetry is not complete by 08:00 UTC (Airflow 3.2 or later).

The sensor waits in the triggerer until yesterday is complete at the API. If it still waits eight hours after the run
has begun, the deadline sends what is missing in the warehouse so far. Connections: ``stem_default``, ``stem_warehouse``
and ``smtp_default``; any other notifier of Airflow can send it too.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.operators import StemSiteListOperator
from airflow_provider_stem.sensors import StemStreamsSensor

deadline: dict[str, Any] = {}
try:
    from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback  # type: ignore[attr-defined]
except ImportError:
    pass  # before Airflow 3.2 there are no deadlines: the DAG only waits
else:
    # [START deadline]
    alert = SyncCallback(
        "airflow_provider_stem.notifiers.StemCompletenessNotifier",
        kwargs={
            "notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
            "arguments": {
                "from_email": "airflow@example.com",
                "to": os.environ.get("STEM_ALERTS_TO", "operations@example.com"),
                "subject": "{subject}",
                "html_content": "{html}",
            },
            "page": "https://example.com/completeness.html",
        },
    )
    deadline["deadline"] = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=float(os.environ.get("STEM_ALERTS_AFTER_HOURS", "8"))),
        callback=alert,
    )
    # [END deadline]

with DAG(
    dag_id="stem_alerts",
    description="Mail if yesterday's telemetry is not complete by 08:00",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    tags=["stem", "energy"],
    **deadline,
) as dag:
    sites = StemSiteListOperator(task_id="list_sites", stream_types=["MONITOR"])
    StemStreamsSensor(
        task_id="wait_for_yesterday",
        sites=sites.output,
        poke_interval=600,
        timeout=20 * 3600,
        deferrable=True,
    )
