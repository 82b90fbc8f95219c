"""A running simulator: the application on a port of this machine, in a thread."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

import uvicorn

from airflow_provider_stem.simulator.api import create_app
from airflow_provider_stem.simulator.faults import RetryAfter, parse_kind, retry_after_text
from airflow_provider_stem.simulator.gate import BASE_PATH, RecordedRequest, Rewrite, Traffic
from airflow_provider_stem.simulator.model import Fleet
from airflow_provider_stem.simulator.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Scope

_STOP_WITHIN = 1800.0  # seconds; only a server that hangs takes as long, however busy the machine is


class Simulator:
    """The simulated API on a port of this machine; a context manager.

    :param settings: what it holds and how it behaves; by default 20 sites and the key ``demo-key``.
    :param host: address to listen on.
    :param port: port to listen on; 0 takes a free one.
    :param keep_requests: whether :attr:`requests` is filled.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_requests: bool = True,
    ) -> None:
        self.settings = settings or Settings()
        self.fleet = Fleet(self.settings)
        #: A fixed instant (aware) in place of the clock, or None; may be set while the server runs.
        self.now: datetime | None = self.settings.now
        self._traffic = Traffic.of(self.settings, keep=keep_requests)
        self._address = (host, port)
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None

    def start(self) -> Self:
        """Start to serve, and return when requests are answered.

        :raises OSError: the port is taken.
        :raises RuntimeError: it runs already, or the server did not come up.
        """
        if self._thread is not None:
            raise RuntimeError("The simulator runs already")
        host, port = self._address
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
        self._address = (host, listener.getsockname()[1])
        app = create_app(self.fleet, traffic=self._traffic, clock=self._clock, abort=self._abort)
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                timeout_keep_alive=75,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="stem-simulator", daemon=True)
        self._thread.start()
        while not self._server.ready.wait(0.1):
            if not self._thread.is_alive():
                listener.close()
                raise RuntimeError("The simulator did not start")
        return self

    def stop(self) -> None:
        """Close every connection and end the server; does nothing where none runs."""
        if self._server is None or self._thread is None:
            return
        self._server.stop()
        self._thread.join(_STOP_WITHIN)
        if self._thread.is_alive():
            raise RuntimeError("The simulator did not stop")
        self._server = self._thread = None

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, with a slash at its end."""
        host, port = self._address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{BASE_PATH}/"

    @property
    def connection(self) -> str:
        """The Airflow connection to this server in JSON, for ``AIRFLOW_CONN_STEM_DEFAULT``."""
        return json.dumps({"conn_type": "stem", "host": self.url, "password": self.settings.api_key})

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests since the start or the last :meth:`reset_requests`, in order of arrival."""
        return self._traffic.requests

    @property
    def peak_concurrency(self) -> int:
        """The most requests that were under way at once since then."""
        return self._traffic.peak_concurrency

    def reset_requests(self) -> None:
        """Empty :attr:`requests` and :attr:`peak_concurrency`."""
        self._traffic.reset()

    def fail(
        self,
        kind: str | int,
        *,
        times: int | None = 1,
        path: str | None = None,
        after: int = 0,
        retry_after: RetryAfter = None,
        location: str | None = None,
    ) -> None:
        """Let the next matching requests go wrong.

        :param kind: a status code, or ``hang`` (no answer until the client goes), ``html`` (a page under
            200), ``cut_json`` (half the JSON, of the right length), ``cut_body`` (half the body, then the
            connection closes), ``reset`` (the connection breaks without an answer), ``empty`` (an empty
            200), ``error_200`` (the error payload under 200) or ``redirect`` (302 to another host).
        :param times: how many requests; None is all from now on.
        :param path: a substring or regular expression of the path and query as sent; None is any.
        :param after: how many matching requests pass before.
        :param retry_after: the Retry-After header of a status: seconds, an aware datetime, or the text.
        :param location: the Location header of a redirect.
        :raises ValueError: there is no such kind, or a count is out of range.
        """
        fault = parse_kind(kind)
        fault = type(fault)(fault.kind, fault.status, retry_after_text(retry_after), location)
        self._traffic.plan.add(fault, times=times, path=path, after=after)

    def clear_faults(self) -> None:
        """Forget what :meth:`fail` planned."""
        self._traffic.plan.clear()

    @property
    def rewrite(self) -> Rewrite | None:
        """A function of a request and its decoded payload that returns the payload to send in its place.

        It may return ``bytes`` or ``str`` to be sent as they are; NaN becomes a NaN literal.
        """
        return self._traffic.rewrite

    @rewrite.setter
    def rewrite(self, rewrite: Rewrite | None) -> None:
        self._traffic.rewrite = rewrite

    def _clock(self) -> float:
        return time.time() if self.now is None else self.now.timestamp()

    def _abort(self, scope: Scope) -> None:
        if self._server is not None:
            self._server.abort(tuple(scope["client"]))


class _Server(uvicorn.Server):
    """A uvicorn server that is told to stop, and then does so at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def stop(self) -> None:
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def main_loop(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        await self.on_tick(0)
        self.ready.set()
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(1):
                    await self._stopping.wait()
            except TimeoutError:
                await self.on_tick(0)  # the Date header

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def abort(self, client: tuple[str, int]) -> None:
        """Break the connection of ``client`` with a TCP reset."""
        for connection in list(self.server_state.connections):
            if getattr(connection, "client", None) == client:
                transport = connection.transport
                # Through a copy of the descriptor: the event loop's own socket object takes no options.
                with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as copy:
                    copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
