"""The example DAG of a warehouse, run by Airflow, from the API to the warehouse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.processes import HUNG_AFTER
from tests.support import Lake, expected_rows
from tests.warehouse.conftest import engine

__all__ = ["engine"]

EXAMPLES = Path(__file__).parents[2] / "example_dags"
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
RUN = """
import importlib.util, sys
from datetime import datetime, UTC
from airflow import __version__
from airflow.utils.db import initdb

initdb()
spec = importlib.util.spec_from_file_location("example", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
date = datetime.fromisoformat("2025-07-03T00:00Z")
when = {"execution_date" if __version__.startswith("2.") else "logical_date": date}
run = module.dag.test(**when, run_conf={"bucket": sys.argv[2]})
assert run.state == "success", run.state
"""


@pytest.mark.airflow
@pytest.mark.s3
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_the_example_loads_all_rows_of_the_api(engine, s3_server, stem_simulator_factory, tmp_path):
    sim = stem_simulator_factory(sites=2, clients=1)
    lake = Lake(s3_server)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(EXAMPLES / "stem_warehouse.py"), lake.bucket],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
            "AIRFLOW_CONN_STEM_WAREHOUSE": engine.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        capture_output=True,
        text=True,
        timeout=HUNG_AFTER,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    # The run of 3 July reads the 2nd and, by its look-back, the two days before.
    expected = expected_rows(sim, sim.fleet.site_ids, TYPES, 900, "2025-06-30T00:00Z", "2025-07-03T00:00Z")
    found = engine.rows(
        "SELECT site_id, stream_type, resolution, CAST(extract(EPOCH FROM interval_start) AS BIGINT), "
        "CAST(extract(EPOCH FROM interval_end) AS BIGINT), kw_total_avg FROM stem.streams ORDER BY 1, 2, 5"
    )
    assert found == expected
    assert engine.rows("SELECT count(*), min(dag_id) FROM stem.sites, stem.loads") == [(12, "stem_warehouse")]
    [complete] = engine.rows("SELECT count(*) FROM stem.completeness WHERE received = expected AND expected = 96")
    assert complete == (len(expected) // 96,)
