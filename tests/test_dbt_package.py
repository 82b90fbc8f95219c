"""The dbt package without dbt: its path, its variables, and what its page lists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from airflow_provider_stem.dbt import PROJECT
from airflow_provider_stem.streams.stream_types import STREAM_TYPES

PAGE = (Path(__file__).parents[1] / "docs" / "dbt.md").read_text("utf-8")


def read(name):
    return yaml.safe_load((PROJECT / name).read_text("utf-8"))


def test_the_command_prints_the_path_of_the_package():
    command = [sys.executable, "-m", "airflow_provider_stem.dbt"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert path == PROJECT
    assert read("dbt_project.yml")["name"] == "stem_telemetry"


def test_the_stream_types_are_those_of_the_provider():
    assert read("dbt_project.yml")["vars"]["stem_types"] == {
        name: list(one.energy or ()) for name, one in STREAM_TYPES.items()
    }


def test_the_page_lists_each_model_with_its_columns_each_variable_and_each_test():
    listed = set(re.findall(r"`(stem_\w+)`", PAGE))
    assert set(read("dbt_project.yml")["vars"]) <= listed
    assert {path.stem for path in (PROJECT / "models").glob("*.sql")} <= listed
    assert {path.stem for path in (PROJECT / "tests").glob("*.sql")} <= listed
    shared = {"site_id", "stream_type", "resolution", "day", "month", "interval_start", "interval_end", "time_zone"}
    for model in read("models/models.yml")["models"]:
        [row] = [line for line in PAGE.splitlines() if re.match(rf"\| [^|]*`{model['name']}`", line)]
        assert {column["name"] for column in model["columns"]} - shared <= set(re.findall(r"`(\w+)`", row))
