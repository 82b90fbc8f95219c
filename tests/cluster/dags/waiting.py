"""Sensors that the triggerer waits for."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_stem.operators import StemSiteListOperator
from airflow_provider_stem.sensors import StemStreamsSensor

with DAG("waiting", schedule=None, start_date=pendulum.datetime(2025, 7, 1, tz="UTC")):
    sites = StemSiteListOperator(task_id="sites", batches=5, stem_conn_id="stem_late")
    StemStreamsSensor.partial(
        task_id="wait",
        start="2025-07-01T00:00Z",
        end="2025-07-02T00:00Z",
        poke_interval=2,
        timeout=1200,
        deferrable=True,
        stem_conn_id="stem_late",
    ).expand_kwargs(sites.output)
