"""dbt in its own environment, and warehouses for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import pytest

from airflow_provider_stem.dbt import PROJECT
from tests.warehouse.conftest import engine as any_engine

__all__ = ["any_engine"]

DBT = Path(__file__).parents[2] / ".venv-dbt" / "bin" / "dbt"


class Dbt:
    """
    Runs of dbt.

    :param folder: for the profile, and for what dbt writes.
    :param output: the target in the profile.
    """

    def __init__(self, folder, output):
        self.folder = folder
        profile = {"target": "test", "outputs": {"test": {"schema": "analytics", "threads": 1, **output}}}
        # JSON is YAML.
        (folder / "profiles.yml").write_text(json.dumps({"stem_telemetry": profile}))

    def run(self, *arguments, project=PROJECT, **variables):
        """Run dbt, and return the status of each node by its name."""
        results = self.folder / "target" / ("sources.json" if "freshness" in arguments else "run_results.json")
        results.unlink(missing_ok=True)
        environment = {
            "DBT_PROJECT_DIR": project,
            "DBT_PROFILES_DIR": self.folder,
            "DBT_TARGET_PATH": self.folder / "target",
            "DBT_LOG_PATH": self.folder / "logs",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            "DBT_VERSION_CHECK": "false",
            "STEM_DBT": PROJECT,
        }
        done = subprocess.run(
            [DBT, *arguments, *(["--vars", json.dumps(variables)] if variables else [])],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if arguments == ("deps",):
            assert not done.returncode, done.stdout + done.stderr
            return {}
        assert results.exists(), done.stdout + done.stderr
        assert "deprecat" not in done.stdout.lower(), done.stdout
        nodes = [(one["unique_id"].split("."), one["status"]) for one in json.loads(results.read_text())["results"]]
        return {parts[3 if parts[0] == "source" else 2]: status for parts, status in nodes}


@pytest.fixture
def engine(any_engine, monkeypatch):
    """Return an empty warehouse. dbt's DuckDB may be older than Airflow's, so that the file has an older format."""
    if any_engine.name == "duckdb":
        any_engine.connect = lambda: duckdb.connect(
            any_engine.address, config={"storage_compatibility_version": "v1.5.0"}
        )
    return any_engine


@pytest.fixture
def dbt(engine, tmp_path):
    if engine.name == "duckdb":
        return Dbt(tmp_path, {"type": "duckdb", "path": engine.address})
    url = urlsplit(engine.address)
    server = {"host": url.hostname, "port": url.port, "user": url.username, "password": url.password}
    return Dbt(tmp_path, {"type": "postgres", **server, "dbname": url.path[1:]})
