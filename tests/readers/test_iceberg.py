"""Other engines read the Iceberg table: its current snapshot, and the one before a restatement."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.iceberg.helpers import Target
from tests.readers.read import COLUMNS, as_rows

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-readers-iceberg" / "bin" / "python"
READERS = ("pyiceberg", "duckdb", "duckdb-catalog", "polars", "chdb", "daft")


@pytest.fixture
def request_of_readers(catalog, lake):
    """A table of two days and three sites in the REST catalog, with a restated object."""
    target = Target()
    values = {(site, "MONITOR"): [number / 7 for number in range(96)] for site in ("site-a", "site-b", "site-c")}
    first = [target.bucket.land(f"day-{day}", values, f"0{day}T00:00", f"0{day + 1}T00:00") for day in (1, 2)]
    before = target.load(*first)["snapshot_id"]
    restated = {**values, ("site-b", "MONITOR"): [None, -1.25, *values["site-b", "MONITOR"][2:]]}
    after = target.load(target.bucket.land("day-1", restated, "01T00:00", "02T00:00"))
    assert after["changed"] == 2
    server, table = lake.server, target.table
    request = {
        "metadata": table.metadata_location,
        "endpoint": server.url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "catalog": server.iceberg_url,
        "warehouse": catalog["extra"]["warehouse"],
        "table": target.name,
        "snapshots": [before, after["snapshot_id"]],
    }
    right = [
        as_rows(table.scan(snapshot_id=one, selected_fields=COLUMNS).to_arrow().to_pydict())
        for one in request["snapshots"]
    ]
    assert [len(rows) for rows in right] == [576, 576]
    assert right[0] != right[1]
    return request, right


@pytest.mark.parametrize("catalog", ["rest"], indirect=True)
def test_each_reader_gets_the_rows_of_both_snapshots(request_of_readers):
    request, right = request_of_readers
    versions, wrong = {}, {}
    for reader in READERS:
        done = subprocess.run(
            [PYTHON, "-m", "tests.readers.read_iceberg", reader],
            cwd=ROOT,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env={**os.environ, "TZ": "UTC", "AWS_EC2_METADATA_DISABLED": "true"},
            check=False,
        )
        if done.returncode:
            wrong[reader] = f"{done.returncode} {done.stderr[-1500:]}"
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        versions[reader] = answer["version"]
        if answer["answers"] != right:
            wrong[reader] = "other rows"
    assert not wrong, wrong
    page = (ROOT / "docs" / "iceberg.md").read_text()
    listed = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", page, re.MULTILINE))
    assert listed == versions
