"""
Land each hour as soon as it is complete, and again when values of the last week change (Airflow 3.0 or later).

A watcher in the triggerer looks for complete hours and emits an asset event, which starts a run that lands the window
of the event. Connections: ``stem_default``, with the API key as Password, and ``aws_default``. The environment
variables ``STEM_SITES`` (ids, separated by commas) and ``STEM_BUCKET`` replace the values below.
"""

from __future__ import annotations

import os

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.watchers import StemWindowsTrigger

SITES = os.environ.get("STEM_SITES", "site-00001,site-00002").split(",")
TYPES = ["MONITOR"]

try:
    from airflow.sdk import AssetWatcher
except ImportError:
    hours = None  # Airflow 2 has no watchers: the DAG runs only when it is triggered
else:
    # [START watcher]
    # Seconds. Hours are watched for a week; their values are read again every six hours.
    trigger = StemWindowsTrigger(
        sites=SITES,
        stream_types=TYPES,
        window=3600,
        lookback=float(os.environ.get("STEM_LOOKBACK", "604800")),
        restatement_interval=float(os.environ.get("STEM_RESTATEMENT_INTERVAL", "21600")),
        poll_interval=float(os.environ.get("STEM_POLL_INTERVAL", "60")),
    )
    hours = Asset("stem_complete_hours", watchers=[AssetWatcher(name="hours", trigger=trigger)])
    # [END watcher]

with DAG(
    dag_id="stem_as_soon_as_complete",
    description="Stem's telemetry, hour by hour, as soon as it is complete",
    schedule=None if hours is None else [hours],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    # No later run lands the window of a run that failed for good, so these are almost three days.
    default_args={
        "retries": 70,
        "retry_delay": pendulum.duration(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": pendulum.duration(hours=1),
    },
    tags=["stem", "energy"],
) as dag:
    # [START land]
    # One object per hour, so a restated hour replaces its object. A run may be repeated: it changes nothing then.
    StemStreamsToS3Operator(
        task_id="land_streams",
        sites=SITES,
        stream_types=TYPES,
        partition="hour",
        s3_bucket=os.environ.get("STEM_BUCKET", "stem-telemetry"),
    )
    # [END land]
