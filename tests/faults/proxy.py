"""A proxy on the wire before a real server: counts what passes, and lets chosen requests go wrong."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self
from urllib.parse import urlsplit

from tests.servers.processes import HUNG_AFTER, readable
from tests.support import until


@dataclass(frozen=True)
class Exchange:
    """
    One request on its way.

    :param number: counts from 0.
    :param send: takes the next bytes of the answer.
    :param forward: asks the server behind, and gives its whole answer.
    :param hang_up: ends the connection with a reset.
    :param gone: waits so many seconds at the most for the client to end it.
    """

    number: int
    method: str
    target: str
    send: Callable[[bytes], None]
    forward: Callable[[], bytes]
    hang_up: Callable[[], None]
    gone: Callable[[float], bool]


Fault = Callable[[Exchange], None]


class FaultyProxy:
    """
    Stands before an HTTP server, with one connection for each request.

    :param url: of the server behind.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._behind = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self._lock = threading.Lock()
        self._under_way = 0
        self._fault: Fault | None = None
        self._wrong: Callable[[Exchange], bool] = lambda _: False
        self.targets: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def behave(self) -> None:
        """Let everything pass, and count anew."""
        self.go_wrong(None, lambda _: False)

    def go_wrong(self, fault: Fault | None, wrong: Callable[[Exchange], bool]) -> None:
        """Let the requests that are meant go wrong, and count anew."""
        until(lambda: not self._under_way)
        with self._lock:
            self._fault, self._wrong, self.targets = fault, wrong, []

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._under_way += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError), connection:
                self._exchange(connection)
        finally:
            with self._lock:
                self._under_way -= 1

    def _exchange(self, connection: socket.socket) -> None:
        request = _read_request(connection)
        if request is None:
            return
        head, body = request
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")

        def hang_up() -> None:
            # With what is unread thrown away: the other side sees a reset, not an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        with self._lock:
            number = len(self.targets)
            self.targets.append(f"{method} {target}")
        exchange = Exchange(
            number,
            method,
            target,
            connection.sendall,
            lambda: self._answer_from_behind(head, body),
            hang_up,
            lambda seconds: readable(connection, seconds),
        )
        if self._fault is not None and self._wrong(exchange):
            self._fault(exchange)
        else:
            connection.sendall(exchange.forward())
            # The next request of this client comes on a connection of its own.
            connection.shutdown(socket.SHUT_WR)
            exchange.gone(1)

    def _answer_from_behind(self, head: bytes, body: bytes) -> bytes:
        with socket.create_connection(self._behind) as behind:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
            behind.sendall(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
            answer = b""
            while piece := behind.recv(2**16):
                answer += piece
        head, _, rest = answer.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + rest


def _read_request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(2**16)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"100-continue" in fields.get(b"expect", b""):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        begin = size = 0
        # The last chunk is empty; its trailer ends with an empty line, as does an absent one.
        while begin == 0 or size:
            while (end := body.find(b"\r\n", begin)) < 0 or len(body) < end + int(body[begin:end], 16) + 4:
                piece = connection.recv(2**16)
                if not piece:
                    return None
                body += piece
            size = int(body[begin:end], 16)
            begin = end + size + 4
        return head, body
    length = int(fields.get(b"content-length", b"0"))
    while len(body) < length:
        piece = connection.recv(2**16)
        if not piece:
            return None
        body += piece
    return head, body


# --- what can go wrong ------------------------------------------------------------------------------------------------


def answer(
    status: int, body: bytes = b"", fields: Mapping[str, str] = MappingProxyType({"Content-Type": "text/html"})
) -> Fault:
    """Answer so in place of the server."""
    shown = {"Content-Length": str(len(body)), "Connection": "close", **fields}
    head = "\r\n".join([f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in shown.items())])
    return lambda exchange: exchange.send(head.encode() + b"\r\n\r\n" + body)


def altered(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Fault:
    """Let the server answer, and change head and body on their way."""

    def fault(exchange: Exchange) -> None:
        head, _, body = exchange.forward().partition(b"\r\n\r\n")
        head, body = change(head, body)
        exchange.send(head + b"\r\n\r\n" + body)

    return fault


def reset(exchange: Exchange) -> None:
    """Hang up before the server hears of it."""
    exchange.hang_up()


def reset_behind(exchange: Exchange) -> None:
    """Hang up when the server has done what it was asked."""
    exchange.forward()
    exchange.hang_up()


def reset_within(exchange: Exchange) -> None:
    """Hang up in the middle of the body."""
    whole = exchange.forward()
    head = whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    exchange.send(whole[: (len(head) + len(whole)) // 2])
    exchange.hang_up()


def hang(exchange: Exchange) -> None:
    """Send nothing at all."""
    exchange.gone(HUNG_AFTER)


def drip(exchange: Exchange) -> None:
    """Send byte by byte, so that no single wait is long, and never the last one."""
    for byte in exchange.forward()[:-1]:
        if exchange.gone(0.02):
            return
        exchange.send(bytes([byte]))
    exchange.gone(HUNG_AFTER)
