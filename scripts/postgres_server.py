"""A real PostgreSQL server on a free loopback port, with Debian's programs; for the cluster and the tests."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from processes import HUNG_AFTER, Guarded, free_port


class PostgresServer:
    """
    Runs ``postgres`` on a folder of its own, as a context manager; what it holds goes with it.

    :param log: gets what it prints.
    :raises RuntimeError: the programs are missing, or the server does not come up.
    """

    user = "airflow"

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._log = log
        self._server: Guarded | None = None

    def address(self, database: str) -> str:
        """Give a database of it as ``USER:PASSWORD@HOST:PORT/DATABASE``."""
        return f"{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._server is not None and self._server.is_running

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it answers."""
        initdb, postgres = postgres_program("initdb"), postgres_program("postgres")
        # It refuses to run as root, and then needs a folder that is its own, below folders that anyone may enter.
        user = "postgres" if os.geteuid() == 0 else ""
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        self._folder = tempfile.TemporaryDirectory(prefix="stem-postgres-")
        folder = Path(self._folder.name)
        (folder / "password").write_text(self.password)
        for path in (folder, folder / "password") if user else ():
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        options = {"pgdata": folder / "data", "username": self.user, "pwfile": folder / "password"}
        subprocess.run(  # type: ignore[call-overload]
            [
                initdb,
                *(f"--{name}={value}" for name, value in options.items()),
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **as_user,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            # What it keeps outside of its folder would stay when it is killed.
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
            "max_connections": 200,
        }
        self._server = Guarded(
            [postgres, "-D", str(folder / "data"), *(f"--{name}={value}" for name, value in settings.items())],
            log=self._log,
            environment=os.environ,
            folder=folder,
            user=user,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and remove what it holds."""
        if self._server is not None:
            self._server.stop()
            self._folder.cleanup()

    def processes(self) -> list[int]:
        """Give the process ids of the server."""
        return [] if self._server is None else self._server.processes()

    def create(self, database: str) -> None:
        """Create a database."""
        self._run("createdb", database)

    def _run(self, program: str, *arguments: str) -> None:
        server = ["--host=127.0.0.1", f"--port={self.port}", f"--username={self.user}"]
        subprocess.run(
            [postgres_program(program), *server, *arguments],
            env={**os.environ, "PGPASSWORD": self.password},
            check=True,
            capture_output=True,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + HUNG_AFTER
        while time.monotonic() < deadline and self.is_running:
            try:
                return self._run("psql", "--command=SELECT 1", "postgres")
            except subprocess.CalledProcessError:
                time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL did not come up:\n{self._log.read_text(errors='replace')[-2000:]}")


def postgres_program(name: str) -> str:
    """
    Find a program of PostgreSQL.

    :raises RuntimeError: it is missing.
    """
    # Debian keeps the server's own programs of each version in a folder of their own.
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    if not program:
        raise RuntimeError(f"{name} is missing: install Debian's postgresql, or set CLUSTER_POSTGRES.")
    return program
