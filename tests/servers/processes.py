"""
Programs that end together with the process that started them.

Run as a program, this file is the guard of one such program. It ends the program, and everything that the program
started, as soon as the pipe from the caller is closed, which the kernel does even if the caller is killed.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

HUNG_AFTER = 1800.0
"""Seconds after which a wait ends in an error. Only a hang takes that long, however busy the machine is."""
_ATTEMPTS = 10
_IN_USE = re.compile("(address already|connection) in use", re.IGNORECASE)

Started = TypeVar("Started")


class PortTakenError(RuntimeError):
    """Another program listens on a port that was free when it was chosen."""


class Stopped(BaseException):
    """The process received SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class ServerProcess:
    """
    A program and its guard, in a separate session, by which all of its processes are found.

    :param command: the program and its arguments.
    :param log: file to which the output is appended. None: the output is a pipe, ``guard.stdout``.
    :param environment: all environment variables.
    :param folder: working directory.
    :param user: name of the user that runs the program. Empty: the caller's.
    :param stdin: standard input of the program. ``subprocess.PIPE`` makes it a pipe, ``guard.stdin``.
    """

    guard: subprocess.Popen[str]
    """The guard. Its standard streams and its exit code are those of the program."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None,
        environment: Mapping[str, str],
        folder: Path,
        user: str = "",
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._log = log
        self._begin = log.stat().st_size if log and log.exists() else 0
        guarded, caller = os.pipe()
        # The guard ends the program when this end is closed.
        self._lifeline = os.fdopen(caller, "wb")
        with ExitStack() as interrupted, ExitStack() as stack:
            interrupted.callback(self._lifeline.close)
            stack.callback(os.close, guarded)
            self.guard = subprocess.Popen(
                [sys.executable, "-P", __file__, str(guarded), user, *command],
                stdin=stdin,
                stdout=stack.enter_context(log.open("ab")) if log else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                pass_fds=[guarded],
                start_new_session=True,
                text=True,
                errors="replace",
            )
            interrupted.pop_all()

    @property
    def is_running(self) -> bool:
        """Whether the program has not ended."""
        return self.guard.poll() is None

    def processes(self) -> list[int]:
        """Return the process ids of the guard, the program and its children."""
        return _members(self.guard.pid)

    def listens_on(self, *ports: int) -> bool:
        """
        Return whether the program accepts connections on these ports of the loopback interface.

        :raises PortTakenError: another program has one of the ports.
        """
        import psutil

        if not all(map(_accepts, ports)):
            if _IN_USE.search(self._printed()):
                raise PortTakenError(f"One of the ports {ports} is in use. Try again with others.")
            return False
        # Ports are compared after they have accepted a connection: those of this program are in the list by then.
        own = set(self.processes())
        found = {one.laddr.port for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.pid in own}
        if not found.issuperset(ports):
            raise PortTakenError(f"Another program listens on one of the ports {ports}. Try again with others.")
        return True

    def wait_until_ready(self, ports: Sequence[int], is_ready: Callable[[], bool] = lambda: True) -> None:
        """
        Return when the program listens on these ports and is ready. Stop it if that fails.

        :param is_ready: called repeatedly once the program listens.
        :raises PortTakenError: another program has one of the ports.
        :raises RuntimeError: the program ended, or did not get ready within :data:`HUNG_AFTER`.
        """
        deadline = time.monotonic() + HUNG_AFTER
        try:
            while time.monotonic() < deadline:
                was_running = self.is_running
                if self.listens_on(*ports) and is_ready():
                    return
                if not was_running:
                    break
                time.sleep(0.1)
            raise RuntimeError(f"The server did not start. Its log ends with:\n{self._printed()[-2000:]}")
        except BaseException:
            self.stop()
            raise

    def stop(self, patience: float = 0) -> None:
        """
        Kill the program and everything that it started, as when a machine is lost.

        :param patience: seconds in which the program may shut down before it is killed.
        """
        if patience and self.is_running:
            os.killpg(self.guard.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.guard.wait(patience)
        self.guard.kill()
        self.guard.wait()
        self._lifeline.close()
        for stream in (self.guard.stdin, self.guard.stdout):
            if stream is not None:
                stream.close()
        _end_session(self.guard.pid)

    def _printed(self) -> str:
        if self._log is None:
            return ""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")


def readable(file: FileDescriptorLike, seconds: float) -> bool:
    """Return whether a file or socket becomes readable, or is closed, in a time. It may be one of thousands."""
    poll = select.poll()  # select.select rejects descriptors above 1023
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback interface that nobody listens on."""
    with ExitStack() as stack:
        # All are bound at once, so that none is returned twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def retry_on_other_ports(start: Callable[[], Started]) -> Started:
    """Call a function that chooses free ports and starts a server. Call it again if another program takes a port."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(PortTakenError):
            return start()
    return start()


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` on the first SIGINT, SIGTERM or SIGHUP, and ignore later ones during the cleanup."""

    def stop(signum: int, _frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


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
    # Repeated, because a process that is being killed may just have started another.
    while members := [pid for pid in _members(session) if pid != os.getpid()]:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _guard(lifeline: int, user: str, command: Sequence[str]) -> int:
    # The program receives SIGTERM too. It does not inherit a handler, as it would inherit SIG_IGN; the guard waits.
    signal.signal(signal.SIGTERM, lambda *_: None)
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    with subprocess.Popen(command, **as_user) as child, ExitStack() as stack:  # type: ignore[call-overload]
        # Popen waits for the program when it is left, so an error in this block must not leave the program alive.
        stack.callback(child.kill)
        # Nothing is ever written to the pipe, so it becomes readable when it is closed.
        while child.poll() is None and not readable(lifeline, 0.2):
            pass
        _end_session(os.getpid())
    return int(child.returncode)


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
