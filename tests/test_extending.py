"""A stream type is an entry of a table, and a file format a class: both are added from outside and work everywhere."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest

from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.stream_types import STREAM_TYPES, since_column
from tests.support import Lake, printed_by

ADDED = "from tests import pretend; pretend.add()\n"


@pytest.fixture(scope="module")
def run(s3_server, tmp_path_factory):
    """What a run with a pretended stream type and a pretended file format printed, and its bucket."""
    lake = Lake(s3_server)
    warehouse = str(tmp_path_factory.mktemp("warehouse") / "telemetry.duckdb")
    printed = printed_by(
        f"import sys\n{ADDED}pretend.main(*sys.argv[1:])",
        lake.bucket,
        warehouse,
        PYTHONPATH=os.pathsep.join(sys.path),
        AIRFLOW_CONN_AWS_DEFAULT=s3_server.connection,
        AIRFLOW_CONN_WAREHOUSE=json.dumps({"conn_type": "duckdb", "host": warehouse}),
        AWS_EC2_METADATA_DISABLED="true",
    )
    return printed, lake


@pytest.mark.s3
def test_a_format_from_outside_is_landed_merged_and_loaded(run):
    printed, lake = run
    first, second = printed["receipts"]
    assert [key.rpartition(".")[2] for key in lake.objects()] == ["arrow"]
    assert [body[:6] for body in lake.objects().values()] == [b"ARROW1"]
    assert first["inserted"] == len(printed["expected"]) == 3 * 2 * 96
    # The second run read one site only. The rows of the others stay in the object.
    assert (second["rows"], second["unchanged"], second["kept"], second["changed"]) == (2 * 96, 2 * 96, 4 * 96, 0)
    assert second["objects"][0]["sha256"] == first["objects"][0]["sha256"]
    assert (printed["loaded"]["objects"], printed["loaded"]["inserted"]) == (1, 3 * 2 * 96)
    assert printed["streams"] == printed["expected"]


@pytest.mark.s3
def test_a_stream_type_from_outside_has_its_columns_and_rows_in_every_view(run):
    printed, _ = run
    assert [site["stream_start_times"].keys() >= {"SOLAR"} for site in printed["sites"]] == [True] * 3
    starts = [datetime.fromisoformat(site["stream_start_times"]["SOLAR"]).timestamp() for site in printed["sites"]]
    assert [since for (since,) in printed["since"]] == [-(-(start - 1) // 900) * 900 for start in starts]
    assert printed["completeness"] == [[96, 96, "late"]] * 3  # loaded long after the day
    [[panels, generation, positive, negative]] = printed["energy"]
    assert (panels, generation) == pytest.approx((positive, negative))
    assert panels > 0


FOLLOWS = (
    ADDED
    + """
import json
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.warehouse.sql import statements, views
sql = {"tables": "".join(statements("postgres", "tables")), "views": "".join(views("postgres"))}
metadata = [LANDING_SCHEMA.field(name).metadata for name in ("stream_type", "kw_total_avg")]
print(json.dumps({
    "metadata": [metadata[0][b"description"].decode(), metadata[1][b"sign"].decode()],
    "tables": sql["tables"].count("solar_since"),
    "views": sql["views"].count("'SOLAR'"),
}))
"""
)


def test_metadata_and_sql_follow_from_the_table():
    printed = printed_by(FOLLOWS, PYTHONPATH=os.pathsep.join(sys.path))
    assert printed["metadata"][0].endswith("; SOLAR: solar panels")
    assert printed["metadata"][1].endswith("; SOLAR: positive is consumption, negative generation")
    assert (printed["tables"], printed["views"]) == (1, 3)


def test_the_documentation_names_every_stream_type_and_format():
    root = Path(__file__).parent.parent
    paths = [root / "README.md", *(path for path in (root / "docs").rglob("*") if path.suffix in {".md", ".rst"})]
    text = "\n".join(path.read_text() for path in paths)
    names = [*STREAM_TYPES, *map(since_column, STREAM_TYPES), *FORMATS]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
