"""What the tests share: a home for Airflow, a real S3 server, and the simulator as a connection."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version

import hypothesis
import pytest

# Before anything imports Airflow: the tests must neither read nor write the user's own.
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

from airflow_api import PATIENCE  # noqa: E402

os.environ.update(PATIENCE)

from s3_server import S3Server  # noqa: E402

from tests.support import RUNS_KEY, TALLIES_KEY, Lake  # noqa: E402

# The machine may be busy; what is drawn is the same each time.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    config.stash[TALLIES_KEY] = {}
    config.stash[RUNS_KEY] = []
    config.pluginmanager.register(_Tallies())


def pytest_report_header():
    return f"airflow: {version('apache-airflow')}"


def pytest_collection_modifyitems(items):
    """Begin with the files that wait for an Airflow most of the time; begun last, they would be waited for alone."""
    long = {item.path for item in items if item.get_closest_marker("airflow")}
    items.sort(key=lambda item: item.path not in long)


class _Tallies:
    """Gathers what is to be told at the end from other processes, where the tests are spread over several."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        told = getattr(node, "workeroutput", {})
        node.config.stash[TALLIES_KEY].update(told.get("tallies", {}))
        node.config.stash[RUNS_KEY] += told.get("runs", [])


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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def lake(s3_server, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.connection)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Lake(s3_server)


@pytest.fixture
def stem(stem_simulator, monkeypatch):
    """The simulator, as the connection ``stem_default``."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    return stem_simulator
