"""Emulators of the object stores of Google and Azure, on free loopback ports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.servers.processes import ServerProcess, free_ports, retry_on_other_ports

_AZURITE = Path(__file__).parents[1] / "stores/azurite/node_modules/.bin/azurite-blob"
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# gcp-storage-emulator, with the precondition ifGenerationMatch, which it ignores. It serves one request at a time.
_GCS = """
import sys
from urllib.parse import parse_qs, urlsplit

from gcp_storage_emulator import exceptions, server, storage

create, handle, query = storage.Storage.create_file, server.RequestHandler.do_POST, {}


class Changed(Exception):
    pass


def create_file(self, bucket, name, *content):
    wanted = query.get("ifGenerationMatch")
    try:
        there = self.get_file_obj(bucket, name)["generation"]
    except exceptions.NotFound:
        there = "0"
    if wanted and wanted != [there]:
        raise Changed
    return create(self, bucket, name, *content)


def post(self):
    query.clear()
    query.update(parse_qs(urlsplit(self.path).query))
    try:
        handle(self)
    except Changed:
        body = b'{"error": {"code": 412, "message": "conditionNotMet"}}'
        self.send_response(412)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if sys.argv[2] == "strict":
    storage.Storage.create_file = create_file
    server.RequestHandler.do_POST = post
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()
"""


class GcsServer:
    """
    gcp-storage-emulator, as a context manager.

    :param strict: honour preconditions, which the emulator itself ignores.
    """

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self._folder, self._strict = folder, strict
        self.url = ""

    def __enter__(self) -> GcsServer:
        self._server = retry_on_other_ports(self._start)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop()

    def _start(self) -> ServerProcess:
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        server = ServerProcess(
            [sys.executable, "-c", _GCS, str(port), "strict" if self._strict else "lax"],
            log=self._folder / "gcs.log",
            environment=os.environ,
            folder=self._folder,
        )
        server.wait_until_ready([port])
        return server


class AzureServer:
    """Azurite, as a context manager; ``make test-stores`` installs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = ""

    @property
    def connection(self) -> str:
        """The Airflow connection of type ``wasb`` to this server, as JSON."""
        address = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={self.url};"
        return json.dumps({"conn_type": "wasb", "extra": {"connection_string": address}})

    def __enter__(self) -> AzureServer:
        self._server = retry_on_other_ports(self._start)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop()

    def _start(self) -> ServerProcess:
        if not _AZURITE.exists():
            raise RuntimeError("Azurite is missing: make test-stores installs it.")
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}/{_ACCOUNT}"
        command = [str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(self._folder)]
        server = ServerProcess(
            [*command, "--silent", "--skipApiVersionCheck", "--disableTelemetry"],
            log=self._folder / "azurite.log",
            environment=os.environ,
            folder=self._folder,
        )
        server.wait_until_ready([port])
        return server
