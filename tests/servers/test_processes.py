"""Programs that tests start end with the process that started them, in whatever way it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.servers.processes import HUNG_AFTER, ServerProcess, Stopped, stoppable
from tests.support import until

ROOT = str(Path(__file__).parents[2])
# It creates one file when it has started, and another when it shuts down.
SERVER = """
import pathlib, signal, sys, time
def ended(*_):
    pathlib.Path("ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, ended)
pathlib.Path("began").touch()
while True:
    time.sleep(60)
"""
CALLER = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from tests.servers.processes import ServerProcess
server = ServerProcess([sys.executable, "-c", sys.argv[2]], log=pathlib.Path("log"), environment=os.environ,
                       folder=pathlib.Path.cwd())
time.sleep(60)
"""


def processes_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_program_ends_if_its_caller_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CALLER, ROOT, SERVER], cwd=tmp_path) as caller:
        until((tmp_path / "began").exists)
        assert len(processes_in(tmp_path)) == 3
        caller.kill()
    until(lambda: not processes_in(tmp_path))
    assert not (tmp_path / "ended").exists()


@pytest.mark.parametrize("patience", [0, HUNG_AFTER])
def test_a_program_may_shut_down_before_it_is_killed(patience, tmp_path):
    log = tmp_path / "log"
    server = ServerProcess([sys.executable, "-c", SERVER], log=log, environment=os.environ, folder=tmp_path)
    until((tmp_path / "began").exists)
    server.stop(patience)
    assert not server.is_running
    assert not processes_in(tmp_path)
    assert (tmp_path / "ended").exists() is bool(patience)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_a_start_leaves_no_process(signum, tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(signum)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(Stopped) as stopped, stoppable():
        ServerProcess([sys.executable, "-c", SERVER], log=tmp_path / "log", environment={}, folder=tmp_path)
    # The exception and its traceback still refer to the object here.
    assert stopped.value.signum == signum
    until(lambda: started[0].poll() is not None)
    assert not processes_in(tmp_path)


def test_a_caller_may_have_many_files_open(tmp_path):
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open())
        server = ServerProcess(
            [sys.executable, "-c", SERVER], log=tmp_path / "log", environment=os.environ, folder=tmp_path
        )
        until((tmp_path / "began").exists)
        server.stop()
    assert not processes_in(tmp_path)
