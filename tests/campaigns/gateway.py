"""An HTTP gateway between tasks and their servers, where a test decides what happens to each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

Headers = list[tuple[str, str]]
_HOP = {"connection", "content-length", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came, with its whole body."""

    method: str
    target: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its whole body."""

    status: int
    headers: Headers
    body: bytes

    def replacing(self, name: str, value: str) -> Answer:
        """Return the answer with another value of one header."""
        kept = [(key, old) for key, old in self.headers if key.lower() != name.lower()]
        return Answer(self.status, [*kept, (name, value)], self.body)


Handler = Callable[[Request], Awaitable[Answer | None]]
"""Answers a request; ``None`` closes the connection without an answer."""


async def listen(handler: Handler, connections: set[asyncio.Task[None]]) -> tuple[asyncio.Server, int]:
    """
    Start a server for one client on a loopback port, and return both.

    :param connections: holds the connections that are open; each ends when its client has gone and all is answered.
    """
    server = await asyncio.start_server(partial(_serve, handler, connections), "127.0.0.1", 0, limit=2**20)
    return server, server.sockets[0].getsockname()[1]


async def forward(port: int, request: Request) -> Answer:
    """Send a request to a server on this machine and return its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        headers = [(name, value) for name, value in request.headers if name.lower() not in (*_HOP, "expect")]
        if request.body or request.method == "PUT":
            headers.append(("Content-Length", str(len(request.body))))
        head = [f"{request.method} {request.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        writer.write("\r\n".join([*head, "Connection: close", "", ""]).encode("latin-1") + request.body)
        first, answered = await _head(reader)
        body = b"" if request.method == "HEAD" else await reader.read()
        if ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in answered]:
            body = _joined(body)
        return Answer(int(first.split()[1]), answered, body)
    finally:
        writer.close()


async def _serve(
    handler: Handler,
    connections: set[asyncio.Task[None]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    connection = asyncio.current_task()
    assert connection
    connections.add(connection)
    connection.add_done_callback(connections.discard)
    try:
        while True:
            first, headers = await _head(reader)
            method, target, _ = first.split(" ")
            lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
            if any(name.lower() == "expect" for name, _ in headers):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(lengths[0]) if lengths else b""
            answer = await handler(Request(method, target, headers, body))
            if answer is None:
                return
            hop = _HOP - {"content-length"} if method == "HEAD" else _HOP
            kept = [(name, value) for name, value in answer.headers if name.lower() not in hop]
            if method != "HEAD":
                kept.append(("Content-Length", str(len(answer.body))))
            head = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in kept), "", ""]
            writer.write("\r\n".join(head).encode("latin-1") + answer.body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):  # the client has gone
        pass
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, Headers]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    split = [line.partition(":") for line in lines]
    return first, [(name.strip(), value.strip()) for name, _, value in split]


def _joined(chunks: bytes) -> bytes:
    body = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        body, chunks = body + rest[:length], rest[length + 2 :] if length else b""
    return body
