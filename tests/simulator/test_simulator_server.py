from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import requests

from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.simulator.__main__ import described_arguments, main
from tests.servers.processes import HUNG_AFTER

from .conftest import Get

COMMAND = [str(Path(sys.executable).with_name("stem")), "simulate"]


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/", maxsplit=1)[0])


def test_two_servers_run_at_once_and_stop_cleanly(stem_simulator_factory: Callable[..., Simulator], get: Get) -> None:
    first, second = stem_simulator_factory(), stem_simulator_factory(sites=3)
    assert first.url != second.url
    assert get(second, "clients").json()["total"] == 2
    assert get(first, "sites/site-00020").status_code == 200
    assert get(second, "sites/site-00020").status_code == 404
    first.stop()
    first.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port_of(first.url)), timeout=HUNG_AFTER)
    assert get(second, "clients").status_code == 200


def test_a_simulator_starts_fast_and_can_be_restarted_on_its_port(get: Get) -> None:
    simulator = Simulator()
    took = []
    for _ in range(3):
        begin = time.process_time()
        with simulator:
            took.append(time.process_time() - begin)
            assert get(simulator, "clients").status_code == 200
            with pytest.raises(RuntimeError, match="already"):
                simulator.start()
    assert min(took) < 0.3
    assert len(simulator.requests) == 3


def test_a_port_in_use_is_an_error(stem_simulator: Simulator) -> None:
    with pytest.raises(OSError, match="in use"):
        Simulator(port=port_of(stem_simulator.url)).start()


def test_recording_of_requests_can_be_disabled(get: Get) -> None:
    with Simulator(keep_requests=False) as simulator:
        assert get(simulator, "clients").status_code == 200
        assert simulator.requests == []


@pytest.mark.stem_simulator(sites=5, reading="B")
def test_the_marker_sets_the_settings(stem_simulator: Simulator) -> None:
    assert stem_simulator.settings == Settings(sites=5, reading="B")


def test_without_a_marker_the_settings_are_the_defaults(stem_simulator: Simulator) -> None:
    assert stem_simulator.settings == Settings()


def test_the_plugin_and_the_package_import_nothing_heavy() -> None:
    code = (
        "import sys, airflow_provider_stem.simulator.pytest_plugin as plugin, airflow_provider_stem.simulator;"
        "print([name for name in ('fastapi', 'uvicorn', 'numpy', 'pyarrow', 'airflow', 'pydantic')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HUNG_AFTER)
    assert done.stdout.strip() == "[]"


def test_the_message_names_a_missing_extra() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "try:\n    from airflow_provider_stem.simulator import Simulator\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HUNG_AFTER)
    assert "airflow-provider-stem[simulator]" in done.stdout

    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from airflow_provider_stem.simulator.__main__ import main\nmain(['--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HUNG_AFTER)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: The simulator needs fastapi. Run: pip install 'airflow-provider-stem[simulator]'\n"
    )


@pytest.mark.parametrize(
    ("command", "stop"),
    [(COMMAND, signal.SIGTERM), ([sys.executable, "-m", "airflow_provider_stem.simulator"], signal.SIGINT)],
)
def test_the_command_serves_until_a_signal(command: list[str], stop: signal.Signals, tmp_path: Path) -> None:
    options = ["--port", "0", "--api-key", "it's-a-key", "--sites", "3", "--clients", "1", "--reading", "B"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        serving, connection = process.stdout.readline(), process.stdout.readline()
        name, _, value = connection.partition("=")
        assert name == "export AIRFLOW_CONN_STEM_DEFAULT"
        (text,) = shlex.split(value)
        fields_of = json.loads(text)
        assert fields_of["conn_type"] == "stem"
        assert fields_of["password"] == "it's-a-key"
        assert fields_of["host"] in serving
        assert "it's-a-key" in serving
        headers = {"Authorization": f"APIKEY {fields_of['password']}"}
        response = requests.get(f"{fields_of['host']}clients/acme-foods/sites", headers=headers, timeout=HUNG_AFTER)
        assert response.json()["total"] == 3
        process.send_signal(stop)
        out, err = process.communicate(timeout=HUNG_AFTER)
        assert (process.returncode, out, err) == (0, "", "")
        with pytest.raises(ProcessLookupError):  # no process of its group is left
            os.killpg(process.pid, 0)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port_of(fields_of["host"])), timeout=HUNG_AFTER)
    finally:
        process.kill()
        process.wait()


def test_every_setting_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    for flag, described in described_arguments():
        parser.add_argument(flag, **described)
    actions = {action.dest: action for action in parser._actions}
    for field in fields(Settings):
        assert actions[field.name].help, field.name
    arguments = [
        "--api-key=k", "--clients=3", "--sites=9", "--seed=4", "--forbidden=site-00001", "--forbidden=site-00002",
        "--latency=.1", "--settle=2", "--gaps=.3", "--null-values=.4", "--restate=5", "--rate-limit=6",
        "--retry-after=date", "--fault=503:0.5", "--fault=hang:0.1", "--reading=B", "--rounding=ceil",
        "--future=refuse", "--total-as=pages", "--max-per-page=7", "--past-end=null", "--row-zone=Z",
        "--page-as=string", "--start-times=null",
        "--row-order=descending", "--unknown-fields", "--partial-bin", "--now=2024-05-01T12:00:00Z", "--cache-mb=8",
    ]  # fmt: skip
    options = vars(parser.parse_args(arguments))
    del options["host"], options["port"]
    changed, default = Settings(**options), Settings()
    for field in fields(Settings):
        assert getattr(changed, field.name) != getattr(default, field.name), field.name
    assert Settings(**{k: v for k, v in vars(parser.parse_args([])).items() if k not in ("host", "port")}) == default
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--port PORT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--gaps", "2"], ["--fault", "503"], ["--reading", "C"], ["--now", "2024-05-01"], ["--port", "x"]]
)
def test_the_command_rejects_invalid_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_command_reports_a_port_in_use(stem_simulator: Simulator) -> None:
    port = str(port_of(stem_simulator.url))
    done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False, timeout=HUNG_AFTER)
    assert done.returncode == 2
    assert "in use" in done.stderr
