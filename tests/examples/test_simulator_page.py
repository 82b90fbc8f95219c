"""The test of a DAG in the page on the simulator, as written, with the DAG of the quick start."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.servers.processes import HUNG_AFTER
from tests.test_docs import ROOT, code_blocks

pytestmark = pytest.mark.airflow


def test_the_pages_test_of_a_dag_passes(tmp_path):
    [dag] = [code for code in code_blocks(ROOT / "docs" / "quickstart.md", "python") if "with DAG(" in code]
    page = (ROOT / "docs" / "simulator.md").read_text("utf-8")
    saved = re.findall(r"Save this as\s`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    files = {"dags/telemetry.py": dag, **dict(saved)}
    assert {"conftest.py", "test_telemetry.py"} <= files.keys()
    # As comments in both pages say.
    on_2 = {"from airflow.sdk import DAG": "from airflow import DAG", "logical_date=": "execution_date="}
    for name, code in files.items():
        used = code
        for written, instead in on_2.items() if version("apache-airflow") < "3" else ():
            used = used.replace(written, instead)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(used, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:pytest_airflow_in_a_box"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_AFTER,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(code.count('def test_') for _, code in saved)} passed" in done.stdout
