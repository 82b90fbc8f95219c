"""The environment of all tests: a separate Airflow home, and the plugin with the shared fixtures."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version

import hypothesis
import pytest

# Before anything imports Airflow: the tests must not read or write the user's Airflow.
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

from tests.servers.airflow_api import PATIENCE  # noqa: E402
from tests.support import RUNS_KEY, TALLIES_KEY, at_most, read_botocore_files_once  # noqa: E402

os.environ.update(PATIENCE)
pytest_plugins = ["tests.servers.fixtures"]

# No deadline, because the machine may be busy. The drawn examples are the same in every run.
hypothesis.settings.register_profile(
    "suite",
    max_examples=at_most(100),
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")
read_botocore_files_once()


def pytest_configure(config):
    config.stash[TALLIES_KEY] = {}
    config.stash[RUNS_KEY] = []
    config.pluginmanager.register(_Tallies())


def pytest_report_header():
    return f"airflow: {version('apache-airflow')}"


def pytest_collection_modifyitems(items):
    """Start with the files that take long or mostly wait for an Airflow; at the end they would run alone."""
    long = {item.path for item in items if item.get_closest_marker("airflow") or item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


class _Tallies:
    """Collect what other test processes report at the end of the run."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        output = getattr(node, "workeroutput", {})
        node.config.stash[TALLIES_KEY].update(output.get("tallies", {}))
        node.config.stash[RUNS_KEY] += output.get("runs", [])


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["runs"] = session.config.stash[RUNS_KEY]


def pytest_terminal_summary(terminalreporter, config):
    if tallies := config.stash[TALLIES_KEY]:
        terminalreporter.section("properties of the streams layer")
        for name in sorted(tallies):
            terminalreporter.line(f"{name}: {tallies[name]}")
    if runs := config.stash[RUNS_KEY]:
        terminalreporter.section("runs that Airflow made")
        for line in runs:
            terminalreporter.line(line)
