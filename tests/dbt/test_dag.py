"""The example DAG that runs dbt, run by Airflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA
from tests.dbt.conftest import DBT
from tests.examples.loading import ROOT
from tests.examples.test_warehouse import RUN
from tests.warehouse.helpers import Bucket, at


@pytest.mark.airflow
@pytest.mark.parametrize("any_engine", ["duckdb"], indirect=True)
def test_the_example_fails_before_bad_data_is_billed(engine, dbt, tmp_path):
    record = {
        "site_id": "site-a",
        "name": "a",
        "client_id": "c",
        "stream_start_times": {"MONITOR": "2025-07-01T00:00:01Z"},
    }
    load_sites(read_records([record]), engine.session(), listed_at=at("01T00:00"))
    bucket = Bucket()
    bucket.load(engine, bucket.land("day", {("site-a", "MONITOR"): [2.0] * 96}, "01T00:00", "02T00:00"))
    dag = tmp_path / "dags" / "stem_dbt.py"
    dag.parent.mkdir()
    text = (ROOT / "example_dags" / dag.name).read_text()
    assert '"retries": 2' in text
    dag.write_text(text.replace('"retries": 2', '"retries": 0'))  # it would wait before the next try
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dag.parent),
        "STEM_DBT_COMMAND": str(DBT),
        "STEM_DBT_PROFILES": str(tmp_path),
    }

    def run():
        command = [sys.executable, "-c", RUN, str(dag), ""]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, printed = run()
    assert code == 0, printed[-4000:]
    bill = "SELECT import_kwh, known FROM analytics.stem_billing_determinants"
    assert engine.rows(bill) == [(48.0, 96)]
    with engine.session()() as session, session.transaction():
        session.execute(f"UPDATE {SCHEMA}.streams SET kw_total_avg = 1e9 WHERE interval_end = '2025-07-01 12:00Z'")
    code, printed = run()
    assert code != 0
    assert "Failure in test stem_values_are_in_range" in printed
