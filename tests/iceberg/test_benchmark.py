"""The benchmark of the Iceberg table at its smallest: the table equals the objects after each of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.catalogs import HAS_SQL
from tests.support import full_depth_only

ROOT = Path(__file__).parents[2]


@pytest.mark.s3
@full_depth_only
def test_no_row_is_wrong_after_any_step_of_the_benchmark():
    size = ["--sites=8", "--batches=2", "--buckets=2", "--rounds=2", "--kills=1", "--upsert-sites=1"]
    catalog = "--catalogs=sqlite" if HAS_SQL else "--catalogs=rest"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.iceberg", *size, catalog],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [wrong for wrong in rows if wrong] == 11 * ["0"]
