"""The example DAG that waits for a day and reads it with the hook, run by Airflow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.examples.loading import ROOT
from tests.examples.test_warehouse import RUN
from tests.support import expected_rows


@pytest.mark.airflow
def test_the_example_returns_the_peaks_of_the_api(stem_simulator_factory, tmp_path):
    sim = stem_simulator_factory(sites=2, clients=1)
    examples = ROOT / "example_dags"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(examples / "stem_daily_peaks.py"), ""],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__DAGS_FOLDER": str(examples),
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-4000:]
    peaks: dict[str, float] = {}
    for site_id, *_, kw in expected_rows(
        sim, sim.fleet.site_ids, ("MONITOR",), 900, "2025-07-02T00:00Z", "2025-07-03T00:00Z"
    ):
        peaks[site_id] = max(kw, peaks.get(site_id, kw))
    assert len(peaks) == 2
    assert f"Returned value was: {peaks}" in printed
