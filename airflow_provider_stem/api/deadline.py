"""A time limit for whole answers, also where single bytes drip; for the transport.

The libraries below apply a timeout to each read from the socket, so an answer of many small pieces could take for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from contextlib import suppress
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter


class WholeAnswerAdapter(HTTPAdapter):
    """
    Counts the timeout from the first read of an answer, its status line and headers included, through proxies too.

    Informational answers (1xx) before the answer proper are passed over.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _bound_answers(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.PoolManager:
        is_new = proxy not in self.proxy_manager
        manager: urllib3.PoolManager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            _bound_answers(manager)
        return manager


def _bound_answers(manager: Any) -> None:
    # Derived from what is there, since a SOCKS proxy has connections of its own kind.
    bound = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():
        connection = type("Connection", (pool.ConnectionCls,), {"response_class": _Response})
        bound[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = bound


class _InTime(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._deadline = time.monotonic() + (self._timeout or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took longer than the connection's timeout")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        with suppress(OSError):  # it may be closed too
            self._sock.settimeout(self._timeout)  # a tunnel's answer is not the last one on its socket
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: Any = io.BufferedReader(_InTime(self.fp.detach(), sock))

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)
