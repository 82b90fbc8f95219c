"""Programs that tests start end with the process that started them, in whatever way it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import psutil
import pytest
from processes import HUNG_AFTER, Guarded

from tests.support import until

SCRIPTS = str(Path(processes.__file__).parent)

# It prints that it has started, and the signal that ends it.
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
from processes import Guarded
server = Guarded([sys.executable, "-c", sys.argv[2]], log=pathlib.Path("log"), environment=os.environ,
                 folder=pathlib.Path.cwd())
time.sleep(60)
"""


def at_work_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_program_ends_if_its_caller_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CALLER, SCRIPTS, SERVER], cwd=tmp_path) as caller:
        until((tmp_path / "began").exists)
        assert len(at_work_in(tmp_path)) == 3
        caller.kill()
    until(lambda: not at_work_in(tmp_path))
    assert not (tmp_path / "ended").exists()


@pytest.mark.parametrize("patience", [0, HUNG_AFTER])
def test_a_program_may_shut_down_before_it_is_killed(patience, tmp_path):
    log = tmp_path / "log"
    server = Guarded([sys.executable, "-c", SERVER], log=log, environment=os.environ, folder=tmp_path)
    until((tmp_path / "began").exists)
    server.stop(patience)
    assert not server.is_running
    assert not at_work_in(tmp_path)
    assert (tmp_path / "ended").exists() is bool(patience)
