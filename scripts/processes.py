"""
Programs that end with whoever started them, and with everything that they started; for the servers of tests.

Run as a program, this file is the guard of one: it ends the program and its children once its standard input is closed,
which it is too when the process that started it is killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

HUNG_AFTER = 1800.0
"""Seconds after which a wait ends in an error. Only a hang takes that long, however busy the machine is."""


class Guarded:
    """
    A program with a guard, in a session of its own: that is how all of its processes are found.

    :param log: gets what they print; what is there stays.
    :param user: who runs it, where it must not be the caller.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path, user: str = ""
    ) -> None:
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, __file__, user, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the program has not ended."""
        return self._guard.poll() is None

    def processes(self) -> list[int]:
        """Give the process ids of the guard, the program and its children."""
        return _members(self._guard.pid)

    def stop(self, patience: float = 0) -> None:
        """
        Kill it with all that it started, as when a machine is lost.

        :param patience: how many seconds the program has to end in its own way first.
        """
        if patience and self.is_running:
            os.killpg(self._guard.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._guard.wait(patience)
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        _end_session(self._guard.pid)


def free_port() -> int:
    """Give a port of the loopback interface that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _members(session: int) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _end_session(session: int) -> None:
    # Again and again: what is killed may have started something since.
    while members := [pid for pid in _members(session) if pid != os.getpid()]:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _guard(user: str, command: Sequence[str]) -> int:
    # The program gets it, too, and a handler, unlike "ignore", is not handed on to it; who guards waits for its end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **as_user) as child:  # type: ignore[call-overload]
        # Nothing is ever written to it, so it is readable when it is closed.
        while child.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
            pass
        _end_session(os.getpid())
        return int(child.wait())


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1], sys.argv[2:]))
