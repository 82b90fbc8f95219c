"""A real PostgreSQL server on a free loopback port, with Debian's programs."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.servers.processes import ServerProcess, free_ports, retry_on_other_ports


class PostgresServer:
    """
    ``postgres`` on a temporary folder, as a context manager. The data is removed when the server stops.

    It runs as the user ``postgres`` if the caller is root, because it does not start as root.

    :param log: file to which the output is appended.
    :raises RuntimeError: a program is missing, or the server does not start.
    """

    user = "airflow"

    def __init__(self, log: Path) -> None:
        self.port = 0
        self.password = secrets.token_hex(16)
        self._log = log
        self._server: ServerProcess | None = None

    def address(self, database: str) -> str:
        """Return the address of a database, as ``USER:PASSWORD@HOST:PORT/DATABASE``."""
        return f"{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended."""
        return self._server is not None and self._server.is_running

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        initdb, postgres = postgres_program("initdb"), postgres_program("postgres")
        user = "postgres" if os.geteuid() == 0 else ""
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        # Below a folder that anyone may enter.
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

        def launch() -> ServerProcess:
            (self.port,) = free_ports(1)
            # Left by a server that was killed because its port was taken.
            (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": self.port,
                "unix_socket_directories": "",
                # Shared memory outside of the folder would remain after a kill.
                "dynamic_shared_memory_type": "mmap",
                "fsync": "off",
                "max_connections": 200,
            }
            server = ServerProcess(
                [postgres, "-D", str(folder / "data"), *(f"--{name}={value}" for name, value in settings.items())],
                log=self._log,
                environment=os.environ,
                folder=folder,
                user=user,
            )
            server.wait_until_ready([self.port], self._is_ready)
            return server

        try:
            self._server = retry_on_other_ports(launch)
        except BaseException:
            self._folder.cleanup()
            raise

    def stop(self) -> None:
        """Stop the server, and remove its data."""
        if self._server is not None:
            self._server.stop()
            self._folder.cleanup()

    def processes(self) -> list[int]:
        """Return the process ids of the server."""
        return [] if self._server is None else self._server.processes()

    def create(self, database: str) -> None:
        """Create a database."""
        self._run("createdb", database)

    def _is_ready(self) -> bool:
        try:
            self._run("psql", "--command=SELECT 1", "postgres")
        except subprocess.CalledProcessError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        server = ["--host=127.0.0.1", f"--port={self.port}", f"--username={self.user}"]
        subprocess.run(
            [postgres_program(program), *server, *arguments],
            env={**os.environ, "PGPASSWORD": self.password},
            check=True,
            capture_output=True,
        )


def postgres_program(name: str) -> str:
    """
    Return the path of one of PostgreSQL's programs.

    :raises RuntimeError: it is missing.
    """
    # Debian installs the server's programs of each version in a separate folder that is not on the path.
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    program = str(found[-1]) if found else shutil.which(name)
    if not program:
        raise RuntimeError(f"{name} is missing. Install Debian's postgresql, or set CLUSTER_POSTGRES.")
    return program
