"""The simulator's server, which runs the application in a thread."""

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
from airflow_provider_stem.simulator.middleware import BASE_PATH, RecordedRequest, Rewrite, Traffic
from airflow_provider_stem.simulator.model import Fleet
from airflow_provider_stem.simulator.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Scope

_STOP_WITHIN = 1800.0  # seconds; long enough for a busy machine


class Simulator:
    """The simulated API on a local port. A context manager that starts and stops it.

    :param settings: content and behaviour; default: 20 sites and the key ``demo-key``.
    :param host: address to listen on.
    :param port: port to listen on; 0 selects a free one.
    :param keep_requests: whether to record requests in :attr:`requests`.
    :raises ValueError: ``settings.forbidden`` names an id that does not exist.
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
        #: A fixed time (aware) instead of the clock, or None. It can be set while the server runs.
        self.now: datetime | None = self.settings.now
        self._traffic = Traffic.of(self.settings, keep=keep_requests)
        self._address = (host, port)
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None

    def start(self) -> Self:
        """Start the server, and return when it accepts requests.

        :return: the simulator itself.
        :raises OSError: the port is in use.
        :raises RuntimeError: the simulator is already running, or the server did not start.
        """
        if self._thread is not None:
            raise RuntimeError("The simulator is already running")
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
        """Close all connections and stop the server. Do nothing if it is not running.

        :raises RuntimeError: the server did not stop within 30 minutes.
        """
        if self._server is None or self._thread is None:
            return
        self._server.stop()
        self._thread.join(_STOP_WITHIN)
        if self._thread.is_alive():
            raise RuntimeError("The simulator did not stop")
        self._server = self._thread = None

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, with a trailing slash."""
        host, port = self._address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{BASE_PATH}/"

    @property
    def connection(self) -> str:
        """The Airflow connection to this server as JSON, for ``AIRFLOW_CONN_STEM_DEFAULT``."""
        return json.dumps({"conn_type": "stem", "host": self.url, "password": self.settings.api_key})

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests since the start or the last :meth:`reset_requests`, in order of arrival."""
        return self._traffic.requests

    @property
    def peak_concurrency(self) -> int:
        """The highest number of concurrent requests since the start or the last :meth:`reset_requests`."""
        return self._traffic.peak_concurrency

    def reset_requests(self) -> None:
        """Clear :attr:`requests`, and reset :attr:`peak_concurrency`."""
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
        """Make the next matching requests fail.

        :param kind: a status code, or ``hang`` (no response until the client disconnects), ``html`` (an HTML page with
            status 200), ``cut_json`` (half of the JSON, with a matching Content-Length), ``cut_body`` (half of the
            body, then the connection is closed), ``reset`` (the connection is reset without a response), ``empty`` (an
            empty 200), ``error_200`` (the error payload with status 200) or ``redirect`` (302 to another host).
        :param times: number of requests that fail; None means all.
        :param path: substring or regular expression of the path and query as sent; None means any.
        :param after: number of matching requests that succeed first.
        :param retry_after: Retry-After header of a status: seconds, an aware datetime, or a string.
        :param location: Location header of a redirect.
        :raises ValueError: the kind is unknown, or a count is out of range.
        """
        fault = parse_kind(kind)
        fault = type(fault)(fault.kind, fault.status, retry_after_text(retry_after), location)
        self._traffic.plan.add(fault, times=times, path=path, after=after)

    def clear_faults(self) -> None:
        """Remove all faults planned by :meth:`fail`."""
        self._traffic.plan.clear()

    @property
    def rewrite(self) -> Rewrite | None:
        """A function that is called with a request and its decoded payload, and returns the payload to send instead.

        ``bytes`` and ``str`` are sent unchanged. A NaN is encoded as ``NaN``.
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
    """A uvicorn server that can be stopped from another thread, without waiting for requests."""

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
                await self.on_tick(0)  # updates the Date header

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def abort(self, client: tuple[str, int]) -> None:
        """Close the connection of ``client`` with a TCP reset."""
        for connection in list(self.server_state.connections):
            if getattr(connection, "client", None) == client:
                transport = connection.transport
                # The event loop's socket object does not allow options, so they are set on a duplicate.
                with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as copy:
                    copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
