"""Other engines read the Iceberg table: its current snapshot, and the one before a restatement; also as documented."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.iceberg.helpers import Target
from tests.readers.read import COLUMNS, as_rows

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-readers-iceberg" / "bin" / "python"
READERS = ("pyiceberg", "duckdb", "duckdb-catalog", "polars", "chdb", "daft")


# The DuckDB that can read the REST catalog.
QUERY = """
import json, sys
from tests.readers.read_iceberg import DuckDBCatalog
request = json.load(sys.stdin)
reader = DuckDBCatalog()
reader.open(request)
rows = reader.database.execute(request["query"]).to_arrow_table().to_pylist()
print(json.dumps(rows, default=lambda value: value.isoformat()))
"""


def request_to(catalog, server):
    """Return the part of a request that says where the catalog is."""
    return {
        "endpoint": server.url,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "catalog": server.iceberg_url,
        "warehouse": catalog["extra"]["warehouse"],
        "table": "stem.streams",
    }


def run_reader(*arguments, **request):
    return subprocess.run(
        [PYTHON, *arguments],
        cwd=ROOT,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "TZ": "UTC", "AWS_EC2_METADATA_DISABLED": "true"},
        check=False,
    )


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
    table = target.table
    request = {
        **request_to(catalog, lake.server),
        "metadata": table.metadata_location,
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
        done = run_reader("-m", "tests.readers.read_iceberg", reader, **request)
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


@pytest.mark.parametrize("catalog", ["rest"], indirect=True)
def test_the_documented_comparison_with_a_billed_snapshot_finds_each_restatement_in_both_engines(catalog, lake):
    section = (ROOT / "docs" / "iceberg.md").read_text().partition("## List what changed")[2].partition("\n## ")[0]
    tag, compare, query = re.findall(r"^```(?:python|sql)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    target = Target()
    values = {(site, "MONITOR"): [1.0, 2.0, None, 4.0] for site in ("site-a", "site-b")}
    target.load(target.bucket.land("day", values, "01T00:00", "01T01:00"))
    exec(compile(tag, "docs/iceberg.md", "exec"), {})

    # 4 kW more, 2 kW that are unknown, and 8 kW that were, for a quarter of an hour each.
    restated = {**values, ("site-b", "MONITOR"): [5.0, None, 8.0, 4.0]}
    target.load(target.bucket.land("day", restated, "01T00:00", "01T01:00"))
    target.load(target.bucket.land("next", values, "01T01:00", "01T02:00"))
    found: dict[str, Any] = {}
    exec(compile(compare, "docs/iceberg.md", "exec"), found)
    [by_run] = found["by_run"].to_pylist()
    committed = by_run.pop("changed_at_max")
    assert by_run == {
        "site_id": "site-b", "stream_type": "MONITOR", "dag_id": "dag", "run_id": "run",
        "kwh_sum": 4 / 4 - 2 / 4 + 8 / 4,
    }  # fmt: skip
    assert committed.timestamp() * 1000 == pytest.approx(target.table.metadata.snapshots[1].timestamp_ms, abs=0.5)
    as_billed = found["as_billed"].sort_by("interval_end")
    assert as_billed["kw_total_avg"].to_pylist() == values["site-b", "MONITOR"]

    # The restatements as rows: by the change log, and by DuckDB, which joins the table with itself as it was.
    billed = query.replace("8172635463728190000", str(found["billed"]))
    assert billed != query
    done = run_reader("-c", QUERY, **request_to(catalog, lake.server), query=billed)
    assert done.returncode == 0, done.stderr[-3000:]
    log = found["restated"].select(["site_id", "stream_type", "resolution", "interval_end", "old_kw", "new_kw"])
    assert log.num_rows == 3
    assert json.loads(done.stdout) == json.loads(json.dumps(log.to_pylist(), default=lambda value: value.isoformat()))
