"""The test of a DAG in the page on the simulator, as written, with the DAG of the quick start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.servers.processes import HUNG_AFTER
from tests.test_docs import ROOT, code_blocks

pytestmark = pytest.mark.airflow


def test_the_pages_test_of_a_dag_passes(tmp_path):
    [dag] = [code for code in code_blocks(ROOT / "docs" / "quickstart.md", "python") if "with DAG(" in code]
    [test] = [code for code in code_blocks(ROOT / "docs" / "simulator.md", "python") if "DagBag" in code]
    if version("apache-airflow") < "3":  # as comments in both pages say
        dag = dag.replace("from airflow.sdk import DAG", "from airflow import DAG")
        test = test.replace("logical_date=", "execution_date=")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "telemetry.py").write_text(dag)
    (tmp_path / "test_telemetry.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:pytest_airflow_in_a_box"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_AFTER,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{test.count('def test_')} passed" in done.stdout
