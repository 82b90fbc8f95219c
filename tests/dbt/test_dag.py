"""The example DAG that runs dbt, run by Airflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA
from tests.dbt.conftest import DBT
from tests.examples.loading import ROOT
from tests.examples.test_warehouse import RUN
from tests.warehouse.helpers import Bucket, at

BILLS = (
    "SELECT import_kwh, known FROM analytics.stem_billing_determinants",
    "SELECT charge_kwh, intervals FROM analytics.stem_battery",
)


class Warehouse:
    """A DuckDB file with a day of a site."""

    def __init__(self, engine):
        self.engine = engine
        starts = dict.fromkeys(["MONITOR", "CONVERTER"], "2025-07-01T00:00:01Z")
        record = {"site_id": "site-a", "name": "a", "client_id": "c", "stream_start_times": starts}
        load_sites(read_records([record]), engine.session(), listed_at=at("01T00:00"))
        self.land(1, [2.0] * 96)

    def land(self, day, values):
        bucket = Bucket()
        streams = {("site-a", stream_type): values for stream_type in ("MONITOR", "CONVERTER")}
        bucket.load(self.engine, bucket.land(f"day-{day}", streams, f"{day:02}T00:00", f"{day + 1:02}T00:00"))

    def change(self, statement):
        with self.engine.session()() as session, session.transaction():
            session.execute(f"{statement} WHERE interval_end = TIMESTAMPTZ '2025-07-01 12:00Z'")

    def bills(self):
        return [self.engine.rows(bill) for bill in BILLS]


# By the test that must find it: what is wrong, and the date of the run.
FAULTS = {
    "stem_streams_are_fresh": (lambda _: None, "2025-07-06"),
    "stem_days_are_complete": (lambda warehouse: warehouse.land(2, [2.0] * 95 + [...]), "2025-07-03"),
    "stem_values_are_in_range": (
        lambda warehouse: warehouse.change(f"UPDATE {SCHEMA}.streams SET kw_total_avg = 1e9"),
        "2025-07-03",
    ),
    "stem_streams_have_each_key_once": (
        lambda warehouse: warehouse.change(f"INSERT INTO {SCHEMA}.streams SELECT * FROM {SCHEMA}.streams"),
        "2025-07-03",
    ),
    "stem_intervals_are_on_the_grid": (
        lambda warehouse: warehouse.change(
            f"UPDATE {SCHEMA}.streams SET interval_start = interval_start - INTERVAL '1 second'"
        ),
        "2025-07-03",
    ),
    "stem_restatements_end_at_the_stored_value": (
        lambda warehouse: (
            warehouse.land(1, [3.0] * 96),
            warehouse.change(f"UPDATE {SCHEMA}.streams SET kw_total_avg = 4"),
        ),
        "2025-07-03",
    ),
}


@pytest.mark.airflow
@pytest.mark.parametrize("any_engine", ["duckdb"], indirect=True)
def test_the_example_fails_before_bad_data_is_billed(engine, dbt, tmp_path):
    warehouse = Warehouse(engine)
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

    def run(date):
        command = [sys.executable, "-c", RUN.replace("2025-07-03", date), str(dag), ""]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, printed = run("2025-07-03")
    assert code == 0, printed[-4000:]
    billed = warehouse.bills()
    assert billed == [[(48.0, 96)], [(48.0, 96)]]
    right = shutil.copy(engine.address, tmp_path / "right.duckdb")
    for test, (plant, date) in FAULTS.items():
        plant(warehouse)
        code, printed = run(date)
        assert code != 0, test
        assert f"Failure in test {test}" in printed
        assert printed.count("Failure in test") == 1, test
        for bill in ("stem_billing_determinants", "stem_battery"):
            assert f"SKIP relation analytics.{bill} " in printed, test
        assert warehouse.bills() == billed, test
        shutil.copy(right, engine.address)
        assert not Path(f"{engine.address}.wal").exists()
