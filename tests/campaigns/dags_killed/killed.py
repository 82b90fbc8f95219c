"""One task that is worth killing: as many days as objects, each with answers to wait for."""

from __future__ import annotations

import os
from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_stem.operators import StemStreamsToS3Operator

with DAG("killed", schedule=None, start_date=pendulum.datetime(2025, 7, 1, tz="UTC")):
    StemStreamsToS3Operator(
        task_id="land",
        sites=os.environ["STEM_TEST_SITES"].split(),
        stream_types=["CONVERTER", "MONITOR"],
        start="2025-07-01T00:00Z",
        end="2025-07-05T00:00Z",
        partition="day",
        s3_bucket=os.environ["STEM_TEST_BUCKET"],
        s3_key="{start}.{extension}",
        max_workers=2,
        retries=3,
        retry_delay=timedelta(seconds=1),
    )
