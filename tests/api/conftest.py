"""A client for a chosen server, and a server that sends arbitrary bytes."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.simulator import Simulator
from tests.servers.processes import HUNG_AFTER

KEY = "s3nTinel/Key+9=@:zQ"

Factory = Callable[..., Simulator]
Connect = Callable[..., StemClient]
Answer = bytes | Callable[[socket.socket, bytes], None]


def config_for(url: str, key: str = KEY, **extra: object) -> ClientConfig:
    return ClientConfig.from_connection(host=url, schema=None, port=None, password=key, extra=json.dumps(extra))


def reply(
    body: bytes | str | dict[str, Any] = b"{}", status: int | str = 200, length: int | None = None, **headers: str
) -> bytes:
    """Return an HTTP response; ``length`` overrides Content-Length, underscores in header names become hyphens."""
    if isinstance(body, dict):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    shown = {"Content-Length": str(len(content) if length is None else length), **headers}
    lines = [f"HTTP/1.1 {status} {'' if isinstance(status, str) else 'Status'}".rstrip()]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in shown.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def refusal(message: str, status: int = 400, **headers: str) -> bytes:
    """Return an error response (guide: "Error Payload")."""
    return reply({"errors": [{"message": message, "code": status}]}, status, None, **headers)


class RawServer:
    """
    A TCP server that reads a request's head and sends the next of ``answers``; the last one repeats.

    An answer is the bytes to send, or a function of the connection and the head.
    """

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.answers = list(answers) or [reply()]
        self.heads: list[bytes] = []
        self.connections = 0
        self.stopped = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.address}/api/v1/"

    @property
    def targets(self) -> list[str]:
        return [head.split(b" ")[1].decode("latin-1") for head in self.heads]

    @property
    def authorizations(self) -> list[str]:
        lines = [line for head in self.heads for line in head.decode("latin-1").split("\r\n")]
        return [line.partition(":")[2].strip() for line in lines if line.lower().startswith("authorization:")]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HUNG_AFTER)
            assert not thread.is_alive()

    def hang(self, _connection: socket.socket, _head: bytes) -> None:
        """Never answer."""
        self.stopped.wait()

    def drip(self, start: bytes, drop: bytes = b" ", drops: int | None = None) -> Answer:
        """Return an answer in slow, small pieces, so that no single read times out; without ``drops`` it never ends."""

        def answer(connection: socket.socket, head: bytes) -> None:
            connection.sendall(start)
            for _ in count() if drops is None else range(drops):
                if self.stopped.wait(0.03):
                    return
                connection.sendall(drop)

        return answer

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), ExitStack() as open_sockets:
            open_sockets.enter_context(connection)
            if self._tls:
                connection = open_sockets.enter_context(self._tls.wrap_socket(connection, server_side=True))
            while head := self._head(connection):
                with self._lock:
                    self.heads.append(head)
                    answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                    announced = answer.partition(b"Content-Length: ")[2].split(b"\r\n")[0]
                    if not announced.isdigit() or int(announced) != len(answer.partition(b"\r\n\r\n")[2]):
                        return
                else:
                    answer(connection, head)

    def _head(self, connection: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (data := connection.recv(65536)):
                return b""
            head += data
        return head


@pytest.fixture
def raw_server() -> Iterator[Callable[..., RawServer]]:
    """Start raw servers: ``raw_server(*answers, tls=None)``."""
    with ExitStack() as running:
        yield lambda *answers, **options: running.enter_context(RawServer(*answers, **options))


@pytest.fixture
def waits() -> list[float]:
    """Return the seconds that clients of ``connect`` would have waited before each retry."""
    return []


@pytest.fixture
def connect(waits: list[float]) -> Iterator[Connect]:
    """Make clients that record their waits: ``connect(server or simulator, **extra)``."""
    with ExitStack() as opened:

        def make(server: RawServer | Simulator, **extra: Any) -> StemClient:
            key = server.settings.api_key if isinstance(server, Simulator) else KEY
            config = config_for(server.url, **{"key": key, "timeout": HUNG_AFTER, "max_attempts": 3, **extra})
            return opened.enter_context(StemClient(config, sleep=waits.append))

        yield make


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a self-signed certificate of 127.0.0.1 and its key, in one file."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    """Return the server's TLS context, with ``certificate``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
