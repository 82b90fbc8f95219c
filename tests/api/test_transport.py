from __future__ import annotations

import errno
import gzip
import math
import mmap
import os
import random
import re
import selectors
import socket
import tempfile
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import certifi
import pytest

from airflow_provider_stem.api import deadline, transport
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.payloads import Body
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import (
    StemApiError,
    StemAuthError,
    StemCertificateError,
    StemDataError,
    StemError,
    StemNotFoundError,
    StemRateLimitError,
    StemRequestError,
    StemServerError,
    StemTransportError,
)
from airflow_provider_stem.simulator import Simulator, middleware
from tests.servers.processes import HUNG_AFTER
from tests.support import printed_by, time_out_soon, until

from .conftest import KEY, Answer, Connect, Factory, RawServer, config_for, refusal, reply

Start = Callable[..., RawServer]
SITE = reply({"id": "a"})

PASSING: list[tuple[str | int, type[StemError]]] = [
    ("reset", StemTransportError),
    ("hang", StemTransportError),
    ("cut_body", StemTransportError),
    ("cut_json", StemDataError),
    ("html", StemDataError),
    ("empty", StemDataError),
    (429, StemRateLimitError),
    (500, StemServerError),
    (502, StemServerError),
    (503, StemServerError),
    (504, StemServerError),
    (599, StemServerError),
]
LASTING: list[tuple[str | int, type[StemError]]] = [
    (401, StemAuthError),
    (403, StemAuthError),
    (404, StemNotFoundError),
    *((status, StemRequestError) for status in (400, 402, 405, 406, 408, 409, 410, 418, 422, 425, 451, 499)),
    *((status, StemRequestError) for status in (300, 301, 302, 303, 304, 307, 308)),
    ("redirect", StemRequestError),
    ("error_200", StemDataError),
    *((status, StemDataError) for status in (201, 202, 204, 206)),
]


class TestRetries:
    @pytest.mark.parametrize("kind", [kind for kind, _ in PASSING])
    def test_a_temporary_fault_costs_one_retry(
        self,
        stem_simulator: Simulator,
        connect: Connect,
        waits: list[float],
        monkeypatch: pytest.MonkeyPatch,
        kind: str | int,
    ) -> None:
        client = connect(stem_simulator)
        stem_simulator.fail(kind)
        if kind == "hang":
            time_out_soon(monkeypatch, lambda *_: not waits, lambda _: len(stem_simulator.requests))
        assert client.get_site("site-00001")["id"]
        assert len(stem_simulator.requests) == client.requests_sent == 2
        assert len(waits) == 1

    @pytest.mark.parametrize(("kind", "error"), PASSING)
    @pytest.mark.parametrize("max_attempts", [1, 3])
    def test_a_permanent_fault_is_raised_after_the_last_attempt(
        self,
        stem_simulator: Simulator,
        connect: Connect,
        waits: list[float],
        monkeypatch: pytest.MonkeyPatch,
        kind: str | int,
        error: type[StemError],
        max_attempts: int,
    ) -> None:
        client = connect(stem_simulator, max_attempts=max_attempts)
        stem_simulator.fail(kind, times=None)
        if kind == "hang":
            time_out_soon(monkeypatch, lambda *_: True, lambda _: len(stem_simulator.requests))
        with pytest.raises(error) as raised:
            client.get_site("site-00001")
        assert isinstance(raised.value, error)
        if isinstance(raised.value, StemApiError):
            assert raised.value.status == kind
        assert len(stem_simulator.requests) == client.requests_sent == max_attempts
        assert len(waits) == max_attempts - 1

    @pytest.mark.parametrize(("kind", "error"), LASTING)
    def test_errors_that_a_retry_cannot_help_are_not_retried(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float], kind: str | int, error: type[StemError]
    ) -> None:
        stem_simulator.fail(kind, times=None)
        with pytest.raises(error) as raised:
            connect(stem_simulator).get_site("site-00001")
        assert type(raised.value) is error
        assert len(stem_simulator.requests) == 1
        assert waits == []

    def test_faults_of_several_kinds_share_the_attempts(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float]
    ) -> None:
        for kind in ("reset", 503, "html", 429):
            stem_simulator.fail(kind)
        assert next(connect(stem_simulator, max_attempts=5).list_clients())
        assert len(waits) == 4

    def test_an_error_that_is_not_retryable_ends_the_retries(self, stem_simulator: Simulator, connect: Connect) -> None:
        stem_simulator.fail(503)
        stem_simulator.fail(401)
        with pytest.raises(StemAuthError):
            connect(stem_simulator).get_site("site-00001")
        assert len(stem_simulator.requests) == 2

    def test_connection_refused(self, connect: Connect, raw_server: Start, waits: list[float]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        server = raw_server()
        server.url = f"http://127.0.0.1:{port}/"
        client = connect(server)
        with pytest.raises(StemTransportError, match=f"127.0.0.1:{port}"):
            client.get_site("a")
        assert (client.requests_sent, len(waits)) == (3, 2)

    def test_a_host_without_address(self, waits: list[float]) -> None:
        client = StemClient(config_for("https://no-such-host.invalid", max_attempts=2), sleep=waits.append)
        with pytest.raises(StemTransportError, match=r"no-such-host\.invalid"):
            client.get_site("a")
        assert len(waits) == 1

    def test_a_retry_is_logged_with_its_reason(
        self, stem_simulator: Simulator, connect: Connect, caplog: pytest.LogCaptureFixture
    ) -> None:
        stem_simulator.fail(503)
        next(connect(stem_simulator).list_clients())
        assert "HTTP 503" in caplog.text


class TestWaits:
    def test_the_backoff_grows_and_is_jittered(self, raw_server: Start, connect: Connect, waits: list[float]) -> None:
        server = raw_server(refusal("Later.", 503))
        for _ in range(15):
            with pytest.raises(StemServerError):
                connect(server, max_attempts=12).get_site("a")
        for number in range(11):
            drawn = waits[number::11]
            longest = min(60.0, 0.5 * 2**number)
            assert all(0 <= wait <= longest for wait in drawn)
            assert max(drawn) > longest / 4
            assert len(set(drawn)) > 10

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("seconds", [0, 1, 20, 300])
    def test_retry_after_in_seconds(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float], status: int, seconds: int
    ) -> None:
        stem_simulator.fail(status, retry_after=seconds)
        next(connect(stem_simulator).list_clients())
        assert len(waits) == 1
        assert seconds <= waits[0] <= seconds + 0.5

    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_as_a_date(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float], status: int
    ) -> None:
        stem_simulator.fail(status, retry_after=datetime.now(UTC) + timedelta(seconds=120))
        next(connect(stem_simulator).list_clients())
        assert len(waits) == 1
        assert 100 < waits[0] <= 120.5

    def test_clients_with_the_same_retry_after_return_at_different_times(
        self, raw_server: Start, connect: Connect, waits: list[float]
    ) -> None:
        server = raw_server(refusal("Later.", 429, Retry_After="20"))
        with pytest.raises(StemRateLimitError):
            connect(server, max_attempts=9).get_site("a")
        assert len(set(waits)) == 8

    def test_a_date_in_the_past_asks_for_no_wait(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float]
    ) -> None:
        stem_simulator.fail(429, retry_after=datetime(2020, 1, 1, tzinfo=UTC))
        next(connect(stem_simulator).list_clients())
        assert len(waits) == 1
        assert waits[0] <= 0.5

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("retry_after", ["301", "86400", "9" * 40, datetime(2999, 1, 1, tzinfo=UTC)], ids=str)
    def test_a_wait_over_the_cap_raises_at_once(
        self,
        stem_simulator: Simulator,
        connect: Connect,
        waits: list[float],
        status: int,
        retry_after: str | datetime,
    ) -> None:
        stem_simulator.fail(status, retry_after=retry_after, times=None)
        with pytest.raises(StemApiError) as raised:
            connect(stem_simulator).get_site("site-00001")
        assert raised.value.status == status
        assert raised.value.retry_after is not None
        assert raised.value.retry_after > 300
        assert "retry after" in str(raised.value)
        assert len(stem_simulator.requests) == 1
        assert waits == []

    def test_the_last_error_has_the_retry_after_of_the_server(
        self, stem_simulator: Simulator, connect: Connect
    ) -> None:
        stem_simulator.fail(429, retry_after=17, times=None)
        with pytest.raises(StemRateLimitError) as raised:
            connect(stem_simulator).get_site("site-00001")
        assert raised.value.retry_after == 17

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "soon",
            "-5",
            "+5",
            "1.5",
            "1e3",
            "0x10",
            "5 s",
            "5, 6",
            "\xb2",
            "NaN",
            "inf",
            "Mon",
            "Mon, 99 Foo 2030 00:00:00 GMT",
            "Mon, 01 Jan 2030 25:61:61 GMT",
            "Mon, 01 Jan 99999999999 00:00:00 GMT",
            "Mon, 01 Jan 2030 00:00:00 +99999999999999",
            "Mon, 01 Jan 2030 00:00:00 +9999",
            "Mon, 01 Jan 0000 00:00:00 GMT",
        ],
    )
    def test_an_invalid_retry_after_is_ignored(
        self, raw_server: Start, connect: Connect, waits: list[float], value: str
    ) -> None:
        server = raw_server(refusal("Later.", 503, Retry_After=value), SITE)
        assert connect(server).get_site("a") == {"id": "a"}
        assert len(waits) == 1
        assert 0 <= waits[0] <= 0.5

    @pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000", "UTC", ""])
    def test_the_date_is_utc_in_every_spelling(
        self, raw_server: Start, connect: Connect, waits: list[float], zone: str
    ) -> None:
        began = datetime.now(UTC)
        when = format_datetime(began + timedelta(seconds=200), usegmt=True).replace("GMT", zone).strip()
        connect(raw_server(refusal("Later.", 503, Retry_After=when), SITE)).get_site("a")
        # Whole seconds, minus the time that the test has taken, plus the random part of a wait.
        assert 199 - (datetime.now(UTC) - began).total_seconds() <= waits[0] <= 200.5

    def test_a_listing_completes_under_a_real_rate_limit(
        self, stem_simulator_factory: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[float] = []
        # The limiter's clock advances only when the client waits.
        monkeypatch.setattr(middleware, "time", SimpleNamespace(monotonic=lambda: 0.11 * len(asked)))
        simulator = stem_simulator_factory(rate_limit=10, retry_after="seconds", clients=14, sites=0)
        with StemClient(config_for(simulator.url, "demo-key", page_size=1), sleep=asked.append) as client:
            assert len(list(client.list_clients())) == 14
        assert len(asked) >= 4
        assert all(1 <= seconds <= 30 for seconds in asked)


SLOW_DRIPS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "until close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{", b" "),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nX-Drops: ", b"x"),
    "status line": (b"", b"H"),
}


class TestTimeouts:
    def test_a_hung_socket_raises_in_time(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server()
        server.answers = [server.hang]
        began = time.monotonic()
        with pytest.raises(StemTransportError, match=r"(?i)time"):
            connect(server, timeout=0.3, max_attempts=2).get_site("a")
        assert time.monotonic() - began >= 0.6
        until(lambda: len(server.heads) == 2)

    @pytest.mark.parametrize(("start", "drop"), SLOW_DRIPS.values(), ids=SLOW_DRIPS)
    def test_a_slow_drip_raises_in_time(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, start: bytes, drop: bytes
    ) -> None:
        monkeypatch.setattr("http.client._MAXHEADERS", 10**9)  # otherwise 100 headers would end the response
        server = raw_server()
        server.answers = [server.drip(start, drop)]
        began = time.monotonic()
        with pytest.raises(StemTransportError):
            connect(server, timeout=0.3, max_attempts=2).get_site("a")
        assert time.monotonic() - began >= 0.6
        until(lambda: len(server.heads) == 2)

    @pytest.mark.parametrize(("status", "error", "attempts"), [(503, StemServerError, 2), (404, StemNotFoundError, 1)])
    def test_an_error_status_counts_with_a_slow_body(
        self,
        raw_server: Start,
        connect: Connect,
        monkeypatch: pytest.MonkeyPatch,
        status: int,
        error: type[StemError],
        attempts: int,
    ) -> None:
        # The client's clock advances with each read, so that the timeout ends no read of the head.
        ticks = count()
        monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        server = raw_server()
        server.answers = [server.drip(b"HTTP/1.1 %d Status\r\nContent-Length: 100000\r\n\r\n{" % status)]
        with pytest.raises(error):
            connect(server, timeout=20, max_attempts=2).get_site("a")
        assert len(server.heads) == attempts

    @pytest.mark.parametrize("slow", ["hang", "drip"])
    def test_a_slow_response_is_retried(
        self,
        raw_server: Start,
        connect: Connect,
        waits: list[float],
        monkeypatch: pytest.MonkeyPatch,
        slow: str,
    ) -> None:
        server = raw_server()
        drip = server.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
        server.answers = [server.hang if slow == "hang" else drip, SITE]
        time_out_soon(monkeypatch, lambda *_: not waits, lambda _: len(server.heads))
        client = connect(server)
        assert client.get_site("a") == {"id": "a"}
        assert client.requests_sent == 2

    def test_a_slow_response_within_the_timeout_is_complete(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server()
        server.answers = [server.drip(b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"id": "a"}', drops=11)]
        assert connect(server).get_site("a") == {"id": "a"}
        assert len(server.heads) == 1


def tunnel(to: RawServer, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Answer:
    """Serve CONNECT as a proxy does: respond, then forward bytes in both directions."""

    def serve(connection: socket.socket, head: bytes) -> None:
        assert head.startswith(b"CONNECT ")
        connection.sendall(answer)
        with socket.create_connection(("127.0.0.1", to.port)) as behind:
            other = {connection: behind, behind: connection}
            with selectors.DefaultSelector() as selector:
                for one in other:
                    selector.register(one, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select(30):
                        if not (data := key.fileobj.recv(65536)):  # type: ignore[union-attr]
                            return
                        other[key.fileobj].sendall(data)  # type: ignore[index]

    return serve


class TestThroughAProxy:
    """Proxies are used as tunnels only."""

    @pytest.fixture
    def server(self, raw_server: Start, tls: object) -> RawServer:
        return raw_server(SITE, tls=tls)

    @pytest.fixture
    def connect_by(
        self, raw_server: Start, server: RawServer, connect: Connect, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., StemClient]:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)

        def connected(*answers: Answer, **extra: object) -> StemClient:
            proxy = raw_server(*answers)
            monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
            return connect(server, verify=str(certificate), **extra)

        return connected

    def test_a_response_is_complete(self, server: RawServer, connect_by: Callable[..., StemClient]) -> None:
        client = connect_by(tunnel(server))
        assert [client.get_site("a") for _ in range(3)] == [{"id": "a"}] * 3
        assert server.connections == 1

    @pytest.mark.parametrize(("start", "drop"), SLOW_DRIPS.values(), ids=SLOW_DRIPS)
    def test_a_slow_drip_ends(
        self, server: RawServer, connect_by: Callable[..., StemClient], start: bytes, drop: bytes
    ) -> None:
        server.answers = [server.drip(start, drop, drops=2000)]
        with pytest.raises(StemTransportError):
            connect_by(tunnel(server), timeout=0.3, max_attempts=2).get_site("a")
        assert len(server.heads) == 2

    @pytest.mark.parametrize(
        ("start", "drop"), [(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"), (b"", b"H")], ids=["headers", "status line"]
    )
    def test_a_slow_drip_of_the_proxy_itself_ends(
        self, server: RawServer, connect_by: Callable[..., StemClient], start: bytes, drop: bytes
    ) -> None:
        client = connect_by(server.drip(start, drop, drops=2000), timeout=0.3, max_attempts=2)
        with pytest.raises(StemTransportError):
            client.get_site("a")
        assert client.requests_sent == 2
        assert server.connections == 0

    def test_informational_responses_of_the_proxy_are_skipped(
        self, server: RawServer, connect_by: Callable[..., StemClient]
    ) -> None:
        answer = INFORMATIONAL["early hints"] + b"HTTP/1.1 200 OK\r\n\r\n"
        assert connect_by(tunnel(server, answer)).get_site("a") == {"id": "a"}


INFORMATIONAL = {
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "processing": b"HTTP/1.1 102 Processing\r\n\r\n",
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nX: y\r\n\r\n",
    "one of the future": b"HTTP/1.1 199 Whatever\r\n\r\n",
}


class TestInformationalResponses:
    @pytest.mark.parametrize("names", [[name] for name in INFORMATIONAL] + [[*INFORMATIONAL] * 3], ids=str)
    @pytest.mark.parametrize("pieces", [False, True], ids=["at once", "one by one"])
    def test_are_skipped(self, raw_server: Start, connect: Connect, names: list[str], pieces: bool) -> None:
        parts = [*(INFORMATIONAL[name] for name in names), SITE]

        def answer(connection: socket.socket, head: bytes) -> None:
            for part in parts if pieces else [b"".join(parts)]:
                connection.sendall(part)
                time.sleep(0.01 * pieces)

        server = raw_server(answer)
        client = connect(server)
        assert [client.get_site("a") for _ in range(2)] == [{"id": "a"}] * 2
        assert (len(server.heads), server.connections) == (2, 1)

    def test_do_not_hide_an_error_status(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(INFORMATIONAL["processing"] + refusal("No such site.", 404))
        with pytest.raises(StemNotFoundError, match="No such site"):
            connect(server).get_site("a")
        assert len(server.heads) == 1

    def test_without_end_are_a_timeout(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server()
        server.answers = [server.drip(b"", INFORMATIONAL["processing"], drops=2000)]
        with pytest.raises(StemTransportError, match=r"(?i)time"):
            connect(server, timeout=0.3, max_attempts=2).get_site("a")
        assert len(server.heads) == 2


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + lines + b"\r\n" + body + end


def then_reset(start: bytes) -> Answer:
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(start)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()

    return answer


class TestBodies:
    @pytest.mark.parametrize(
        "answer",
        [
            SITE,
            chunked(b'{"id"', b': "a"}'),
            b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"id": "a"}',
            b'HTTP/1.0 200 OK\r\n\r\n{"id": "a"}',
            reply(gzip.compress(b'{"id": "a"}', mtime=0), Content_Encoding="gzip"),
            reply(zlib.compress(b'{"id": "a"}'), Content_Encoding="deflate"),
            chunked(*(bytes([byte]) for byte in gzip.compress(b'{"id": "a"}', mtime=0)), Content_Encoding="gzip"),
            reply(gzip.compress(b'{"id"', mtime=0) + gzip.compress(b': "a"}', mtime=0), Content_Encoding="gzip"),
            reply(b'{"id": "a"}', Content_Type="text/plain; charset=utf-16"),
            reply(b'{"id": "a"}', X_Odd="\xff\x80"),
        ],
    )
    def test_every_transfer_encoding_of_a_body(self, raw_server: Start, connect: Connect, answer: bytes) -> None:
        server = raw_server(answer)
        assert connect(server).get_site("a") == {"id": "a"}
        assert len(server.heads) == 1

    def test_a_large_body_is_whole(self, raw_server: Start, connect: Connect) -> None:
        name = os.urandom(1_500_000).hex()
        body = f'{{"id": "a", "name": "{name}"}}'.encode()
        for answer in (reply(body), reply(gzip.compress(body, 1, mtime=0), Content_Encoding="gzip"), chunked(body)):
            assert connect(raw_server(answer)).get_site("a")["name"] == name

    @pytest.mark.parametrize(
        "answer",
        [
            reply(b'{"id": "a"}', length=12),
            reply(b"", length=1),
            reply(b'{"id": "a"', length=500_000),
            chunked(b'{"id": "a"}', end=b""),
            chunked(b'{"id": "a"}', end=b"5\r\nab"),
            chunked(b'{"id": "a"}', end=b"what?\r\n"),
            then_reset(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
            then_reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
            then_reset(b""),
            reply(b"no gzip at all", Content_Encoding="gzip"),
            reply(
                gzip.compress(b'{"id": "' + random.Random(999).randbytes(999).hex().encode() + b'"}', mtime=0)[:-99],
                Content_Encoding="gzip",
            ),
            reply(gzip.compress(b'{"id": "a"}', mtime=0)[:6], Content_Encoding="gzip"),
            reply(b'{"id": "a"}', length=5, Connection="close"),
            b"garbage\r\n\r\n",
            b"\x16\x03\x01\xff\x00",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 11\r\n\r\n{"id": "a"}',
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            reply(b'{"name": "caf\xe9"}'),
        ],
    )
    def test_a_broken_response_is_retried(self, raw_server: Start, connect: Connect, answer: Answer) -> None:
        server = raw_server(answer, SITE)
        client = connect(server)
        assert client.get_site("a") == {"id": "a"}
        assert client.requests_sent == 2
        with pytest.raises((StemTransportError, StemDataError)):
            connect(raw_server(answer), max_attempts=2).get_site("a")

    @pytest.mark.parametrize("form", ["length", "chunks", "gzip"])
    def test_a_body_over_the_limit_is_not_retried(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        monkeypatch.setattr(transport, "BODY_LIMIT", 10_000)
        body = b'{"id": "a"}' + b" " * 10_000
        forms = {
            "length": reply(body),
            "chunks": chunked(*[body[:1000]] * 12),
            "gzip": reply(gzip.compress(body, mtime=0), Content_Encoding="gzip"),
        }
        server = raw_server(forms[form])
        with pytest.raises(StemDataError, match="10,000 bytes"):
            connect(server).get_site("a")
        assert len(server.heads) == 1

    def test_a_body_at_the_limit_is_accepted(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "BODY_LIMIT", 11)
        assert connect(raw_server(reply(b'{"id": "a"}'))).get_site("a") == {"id": "a"}

    @pytest.mark.parametrize("form", ["length", "chunks", "gzip"])
    @pytest.mark.parametrize("size", [2**20, 2**20 + 1, 5 * 2**20])
    def test_a_long_body_is_complete(self, raw_server: Start, form: str, size: int) -> None:
        body = random.Random(size).randbytes(size)
        forms = {
            "length": reply(body),
            "chunks": chunked(body[:700_000], body[700_000:]),
            "gzip": reply(gzip.compress(body, mtime=0), Content_Encoding="gzip"),
        }
        client = Transport(config_for(raw_server(forms[form]).url))

        def parse(shown: Body) -> bytes:
            # A long body is on disk and takes no memory.
            assert isinstance(shown, mmap.mmap) == (size > 2**20)
            return bytes(shown)

        assert client.get("sites/a", {}, parse) == body
        client.close()

    def test_the_limit_leaves_room_for_a_year(self) -> None:
        assert transport.BODY_LIMIT >= 64 * 2**20

    @pytest.mark.skipif(
        tuple(map(int, version("urllib3").split(".")[:2])) < (2, 6), reason="decodes a chunk of any size at once"
    )
    def test_a_gzip_bomb_does_not_fill_the_memory(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "BODY_LIMIT", 2**20)
        bomb = gzip.compress(bytes(200 * 2**20), 9, mtime=0)
        client = connect(raw_server(reply(bomb, Content_Encoding="gzip")))
        tracemalloc.start()
        try:
            with pytest.raises(StemDataError, match="exceeds"):
                client.get_site("a")
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "answer",
        [
            reply(b'{"errors": [', 404, length=999),
            reply(b"no gzip at all", 404, Content_Encoding="gzip"),
            then_reset(b"HTTP/1.1 404 Status\r\nContent-Length: 999\r\n\r\n{"),
        ],
        ids=["cut off", "no gzip", "reset"],
    )
    def test_an_error_status_counts_even_if_its_body_is_broken(
        self, raw_server: Start, connect: Connect, answer: Answer
    ) -> None:
        server = raw_server(answer)
        with pytest.raises(StemNotFoundError, match="Not Found"):
            connect(server).get_site("a")
        assert len(server.heads) == 1

    def test_an_endless_error_page_is_not_read_to_its_end(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(reply(b"x" * 300_000, 404))
        with pytest.raises(StemNotFoundError, match="Not Found"):
            connect(server).get_site("a")
        assert len(server.heads) == 1


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_to_another_server_is_not_followed(
        self, raw_server: Start, connect: Connect, status: int
    ) -> None:
        elsewhere = raw_server()
        server = raw_server(reply(b"", status, Location=elsewhere.url + "?secret-place"))
        with pytest.raises(StemRequestError, match="redirect") as raised:
            connect(server).get_site("a")
        assert raised.value.status == status
        assert "secret-place" not in str(raised.value)
        assert elsewhere.connections == 0
        assert len(server.heads) == 1

    def test_a_redirect_to_another_path_is_not_followed(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(reply(b"", 302, Location="/api/v2/"), SITE)
        with pytest.raises(StemRequestError):
            connect(server).get_site("a")
        assert len(server.heads) == 1


class TestErrorTexts:
    @pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
    def test_the_message_of_the_api_is_reported(self, raw_server: Start, connect: Connect, status: int) -> None:
        body = {"errors": [{"message": "First: é.", "code": 1}, {"message": "Second."}], "debug": "s3cr3t-body"}
        server = raw_server(reply(body, status, X_Secret="s3cr3t-header", Set_Cookie="id=s3cr3t-cookie"))
        with pytest.raises(StemApiError) as raised:
            connect(server, max_attempts=1).get_site("a")
        assert raised.value.message == "First: é.; Second."
        assert raised.value.request_url_without_secrets == f"{server.url}sites/a"
        assert str(raised.value).startswith(f"HTTP {status}: First: é.; Second. ")
        assert str(raised.value).endswith(f" [GET {server.url}sites/a]")
        assert "s3cr3t" not in repr(raised.value.args)

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>s3cr3t</html>", b"s3cr3t", b'"s3cr3t"', b'{"error": "s3cr3t"}', b'{"errors": "s3cr3t"}',
         b'{"errors": [{"text": "s3cr3t"}]}', b'{"errors": [{"message": {"s3cr3t": 1}}]}', b"\xff\xfe s3cr3t",
         b"[" * 60_000],
    )  # fmt: skip
    def test_without_a_message_the_status_phrase_is_reported(
        self, raw_server: Start, connect: Connect, body: bytes
    ) -> None:
        with pytest.raises(StemNotFoundError) as raised:
            connect(raw_server(reply(body, 404))).get_site("a")
        assert raised.value.message == "Not Found"

    def test_an_unknown_status_has_a_message(self, raw_server: Start, connect: Connect) -> None:
        with pytest.raises(StemRequestError) as raised:
            connect(raw_server(reply(b"", 499))).get_site("a")
        assert raised.value.message

    def test_an_error_payload_with_status_200_is_not_retried(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(reply({"errors": [{"message": "The database is away.", "code": 500}]}))
        with pytest.raises(StemDataError, match=r"The database is away\..*/sites/a\]"):
            connect(server).get_site("a")
        assert len(server.heads) == 1

    @pytest.mark.parametrize("status", [200, 400, 503])
    def test_a_message_contains_no_control_characters(
        self, raw_server: Start, connect: Connect, caplog: pytest.LogCaptureFixture, status: int
    ) -> None:
        nasty = "No\r\n2024-01-01 ERROR forged\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2028\x00 end"
        with pytest.raises(StemError) as raised:
            connect(raw_server(refusal(nasty, status))).get_site("a")
        assert str(raised.value).isprintable()
        assert "No 2024-01-01 ERROR forged [2J" in str(raised.value)
        assert all(record.getMessage().isprintable() for record in caplog.records)

    @pytest.mark.parametrize("status", [200, 400, 503])
    def test_a_message_is_bounded(self, raw_server: Start, connect: Connect, status: int) -> None:
        with pytest.raises(StemError) as raised:
            connect(raw_server(refusal("long " * 9000, status)), max_attempts=1).get_site("a")
        assert len(str(raised.value)) < 1000

    def test_the_address_in_a_message_is_one_line(self, raw_server: Start, connect: Connect) -> None:
        with pytest.raises(StemNotFoundError) as raised:
            connect(raw_server(refusal("No.", 404))).get_site("a\n\x1b[2J b")
        assert str(raised.value).isprintable()
        assert " b" not in raised.value.request_url_without_secrets


ECHOES: dict[str, Callable[[str], Answer]] = {
    "400": lambda text: refusal(text, 400),
    "401": lambda text: refusal(text, 401, WWW_Authenticate=text),
    "429": lambda text: refusal(text, 429, Retry_After="400"),
    "503": lambda text: refusal(text, 503),
    "an error under 200": lambda text: refusal(text, 200),
    "a repeated key under 200": lambda text: reply(f'{{"{text}": 1, "{text}": 2}}'),
    "a page under 200": lambda text: reply(f"<p>{text}"),
    "another page under 500": lambda text: reply(f"<p>{text}", 500),
    "a redirect": lambda text: reply(b"", 302, Location=f"/{text}"),
    "a cut-off body": lambda text: reply(text, length=9999),
    "a status line": lambda text: f"{text}\r\n\r\n".encode(),
    "a status": lambda text: f"HTTP/1.1 {text} OK\r\n\r\n".encode(),
    "a chunk": lambda text: chunked(b"{}", end=f"{text}\r\n".encode()),
    "a length": lambda text: f"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: {text}\r\n\r\n".encode(),
    "a reset": lambda text: then_reset(f"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\nX: {text}\r\n\r\n{text}".encode()),
    "a hang": lambda _text: lambda _connection, _head: None,
    "too large a body": lambda text: reply(text * 100),
}


def whole_chain(error: BaseException) -> str:
    """Return every traceback of ``error`` as a debugger would show it, without the frames of the tests."""
    shown, pending, met = [], [error], set[int]()
    while pending:
        one = pending.pop()
        met.add(id(one))
        told = traceback.TracebackException(type(one), one, one.__traceback__, capture_locals=True)
        told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith(str(Path(__file__).parent))]
        shown += [*told.format(chain=False), repr(one), repr(one.args), repr(vars(one))]
        pending += [other for other in (one.__cause__, one.__context__) if other and id(other) not in met]
    return "\n".join(shown)


class TestTheKey:
    def test_it_is_sent_in_the_header_of_the_guide_only(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(SITE)
        connect(server).get_site("a")
        (head,) = server.heads
        assert server.authorizations == [f"APIKEY {KEY}"]
        assert head.count(KEY.encode()) == 1

    @pytest.mark.parametrize("echo", ECHOES)
    def test_no_message_or_log_contains_it(
        self,
        raw_server: Start,
        connect: Connect,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        echo: str,
    ) -> None:
        monkeypatch.setattr(transport, "BODY_LIMIT", 1000)
        caplog.set_level("DEBUG")
        client = connect(raw_server(ECHOES[echo](KEY)), timeout=0.3 if echo == "a hang" else HUNG_AFTER, max_attempts=2)
        with pytest.raises(StemError) as raised:
            client.get_site("a")
        assert KEY not in str(raised.value)
        assert KEY not in caplog.text
        assert KEY not in whole_chain(raised.value)

    @pytest.mark.parametrize(
        "text", ["x" * 490 + KEY, "x " * 250 + KEY, " " * 990 + KEY, "x" * 499 + KEY], ids=lambda text: f"{len(text)}"
    )
    @pytest.mark.parametrize("status", [200, 400])
    def test_no_part_of_it_is_left_where_a_message_is_cut(
        self, raw_server: Start, connect: Connect, text: str, status: int
    ) -> None:
        with pytest.raises(StemError) as raised:
            connect(raw_server(refusal(text, status))).get_site("a")
        assert KEY[:4] not in str(raised.value)

    @pytest.mark.parametrize("shown", [KEY, "s3nTinel/Key%2B9%3D%40%3AzQ", "s3nTinel%2FKey%2B9%3D%40%3AzQ"])
    def test_a_server_that_repeats_it_in_a_message(self, raw_server: Start, connect: Connect, shown: str) -> None:
        with pytest.raises(StemRequestError) as raised:
            connect(raw_server(refusal(f"The key '{shown}' is odd, {shown}!"))).get_site("a")
        assert raised.value.message == "The key '***' is odd, ***!"

    def test_it_is_not_shown_when_it_was_passed_as_an_argument(self, raw_server: Start, connect: Connect) -> None:
        for name in ("get_site", "list_sites"):
            with pytest.raises(StemNotFoundError) as raised:
                list(getattr(connect(raw_server(refusal("No.", 404))), name)(KEY))
            assert "s3nTinel" not in str(raised.value)

    def test_no_object_shows_it(self, raw_server: Start, connect: Connect) -> None:
        client = connect(raw_server(SITE))
        client.get_site("a")
        assert KEY not in f"{client!r} {vars(client)!r} {vars(client._transport)!r}"

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_netrc_does_not_replace_it(
        self, scheme: str, request: pytest.FixtureRequest, raw_server: Start, connect: Connect,
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    ) -> None:  # fmt: skip
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login someone password else\ndefault login someone password else\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(netrc))
        server = raw_server(SITE, tls=request.getfixturevalue("tls") if scheme == "https" else None)
        connect(server, verify=str(request.getfixturevalue("certificate"))).get_site("a")
        assert server.authorizations == [f"APIKEY {KEY}"]

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
    def test_no_proxy_of_the_environment_receives_it_unencrypted(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        proxy, server = raw_server(SITE), raw_server(SITE)
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        connect(server).get_site("a")
        assert proxy.connections == 0
        assert server.authorizations == [f"APIKEY {KEY}"]

    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
    def test_an_https_proxy_does_not_receive_it(
        self, raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        proxy = raw_server(reply(b"", 403))
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        server = raw_server()
        server.url = "https://api.example/"
        with pytest.raises(StemTransportError):
            connect(server, max_attempts=1).get_site("a")
        (head,) = proxy.heads
        assert head.startswith(b"CONNECT api.example:443 HTTP/1.")
        assert KEY.encode() not in head


class TestTls:
    def test_an_unknown_certificate_is_rejected_before_the_key_is_sent(
        self, raw_server: Start, connect: Connect, tls: object
    ) -> None:
        server = raw_server(SITE, tls=tls)
        with pytest.raises(StemTransportError, match=r"(?i)certificate"):
            connect(server, max_attempts=1).get_site("a")
        assert server.heads == []

    @pytest.mark.parametrize("verify", ["true", True])
    def test_an_unknown_certificate_is_rejected_with_verify_true(
        self, raw_server: Start, connect: Connect, tls: object, verify: object
    ) -> None:
        with pytest.raises(StemTransportError, match=r"(?i)certificate"):
            connect(raw_server(SITE, tls=tls), max_attempts=1, verify=verify).get_site("a")

    def test_a_ca_bundle_is_trusted(self, raw_server: Start, connect: Connect, tls: object, certificate: Path) -> None:
        server = raw_server(SITE, tls=tls)
        assert connect(server, verify=str(certificate)).get_site("a") == {"id": "a"}
        assert server.authorizations == [f"APIKEY {KEY}"]

    def test_a_ca_bundle_without_the_certificate_is_rejected(
        self, raw_server: Start, connect: Connect, tls: object
    ) -> None:
        server = raw_server(SITE, tls=tls)
        with pytest.raises(StemTransportError, match=r"(?i)certificate"):
            connect(server, max_attempts=1, verify=certifi.where()).get_site("a")
        assert server.heads == []

    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    @pytest.mark.parametrize("verify", ["false", False])
    @pytest.mark.parametrize("bundle", ["", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_verification_can_be_switched_off(
        self,
        raw_server: Start,
        connect: Connect,
        monkeypatch: pytest.MonkeyPatch,
        tls: object,
        verify: object,
        bundle: str,
    ) -> None:
        if bundle:
            monkeypatch.setenv(bundle, "/etc/ssl/certs/ca-certificates.crt")
        assert connect(raw_server(SITE, tls=tls), verify=verify).get_site("a") == {"id": "a"}

    def test_https_to_a_server_without_tls(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        server.url = f"https://{server.address}/"
        with pytest.raises(StemTransportError):
            connect(server, max_attempts=1, timeout=0.3).get_site("a")

    @pytest.mark.parametrize("bundle", ["", "others", "no certificates", "gone"])
    def test_a_certificate_error_is_not_retried_and_names_the_remedy(
        self, raw_server: Start, connect: Connect, waits: list[float], tls: object, tmp_path: Path, bundle: str
    ) -> None:
        path = tmp_path / "bundle.pem"
        path.write_text("no certificates")
        extra = {"": {}, "others": {"verify": certifi.where()}}.get(bundle, {"verify": str(path)})
        client = connect(raw_server(SITE, tls=tls), **extra)
        if bundle == "gone":
            path.unlink()
        with pytest.raises(StemCertificateError, match=r"Set verify in the connection's Extra to .* \[GET https://"):
            client.get_site("a")
        assert (client.requests_sent, waits) == (1, [])

    @pytest.mark.parametrize("name", ["localhost"])
    def test_a_certificate_of_another_host_is_rejected(
        self, raw_server: Start, connect: Connect, waits: list[float], tls: object, certificate: Path, name: str
    ) -> None:
        server = raw_server(SITE, tls=tls)
        server.url = server.url.replace("127.0.0.1", name)
        with pytest.raises(StemCertificateError, match="not valid for 'localhost'"):
            connect(server, verify=str(certificate)).get_site("a")
        assert waits == []


LIMITED = """
import json, resource, sys, tempfile
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey

waits = []
url, path, limit = sys.argv[1:]
client = StemClient(ClientConfig(ApiKey("k"), url, max_attempts=3), sleep=waits.append)
if limit == "files":
    files = []
    tempfile.gettempdir()  # finding it needs a file
    try:
        client.get_site("b")  # modules that are imported late open files
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            files.append(open("/dev/null"))
    except OSError:
        client = StemClient(ClientConfig(ApiKey("k"), url, max_attempts=3), sleep=waits.append)
elif limit == "file size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
try:
    client.get_site(path)
    told = "no error"
except Exception as exc:
    told = f"{type(exc).__mro__[1].__name__}: {exc}"
files = []
print(json.dumps([told, len(waits)]))
"""


class TestTheWorkersOwnLimits:
    """They are reported as worker errors and not retried."""

    @pytest.mark.parametrize(
        ("limit", "message"),
        [
            ("files", r".* on this worker: Too many open files\. Raise the worker's limit of open files"),
            ("file size", r".* on this worker: File too large\. Free space in /\S+, or set TMPDIR"),
        ],
    )
    def test_are_not_retried(self, raw_server: Start, limit: str, message: str) -> None:
        site_a, site_b = reply({"id": "a", "name": "x" * 4_000_000}), reply({"id": "b"})
        server = raw_server(*([site_b] if limit == "files" else []), site_a)
        told, waits = printed_by(LIMITED, server.url, "a", limit)
        assert re.match(rf"OSError: \[Errno \d+\] {message}", told), told
        assert waits == 0
        # Without files, the request fails at its socket, or at the file for the response if a socket was left.
        assert len(server.heads) <= (2 if limit == "files" else 1)

    def test_a_missing_temporary_directory_is_not_retried(
        self, raw_server: Start, connect: Connect, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        server = raw_server(reply({"id": "a", "name": "x" * 4_000_000}))
        with pytest.raises(OSError, match=r"on this worker: No such file or directory\. Free space in .*gone"):
            connect(server).get_site("a")
        assert (len(server.heads), waits) == (1, [])

    def test_no_usable_temporary_directory_is_not_retried(
        self, raw_server: Start, connect: Connect, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def is_missing() -> NoReturn:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_get_default_tempdir", is_missing)
        server = raw_server(reply({"id": "a", "name": "x" * 4_000_000}))
        with pytest.raises(
            OSError, match=r"on this worker: No usable temporary directory found\. Free space in the dir"
        ):
            connect(server).get_site("a")
        assert (len(server.heads), waits) == (1, [])


class TestConnections:
    def test_one_thread_uses_one_connection(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(SITE)
        client = connect(server)
        for _ in range(20):
            client.get_site("a")
        assert (len(server.heads), server.connections) == (20, 1)

    @pytest.mark.parametrize(
        "answer",
        [
            chunked(b'{"id"', b': "a"}'),
            reply(gzip.compress(b'{"id": "a"}', mtime=0), Content_Encoding="gzip"),
            reply('{"id": "' + "a" * 700_000 + '"}'),
            refusal("No.", 404),
            refusal("Later.", 503),
            reply(b"", 503),
            reply(b"<html>", 200),
        ],
    )
    def test_the_connection_is_reused_after_every_response(
        self, raw_server: Start, connect: Connect, answer: bytes
    ) -> None:
        def send(connection: socket.socket, head: bytes) -> None:
            connection.sendall(answer)

        server = raw_server(send)
        client = connect(server, max_attempts=2)
        for _ in range(3):
            try:
                client.get_site("a")
            except StemError:
                continue
        assert len(server.heads) >= 3
        assert server.connections == 1

    def test_the_connection_is_reused_under_tls(
        self, raw_server: Start, connect: Connect, tls: object, certificate: Path
    ) -> None:
        server = raw_server(SITE, tls=tls)
        client = connect(server, verify=str(certificate))
        for _ in range(5):
            client.get_site("a")
        assert server.connections == 1

    def test_a_connection_that_the_server_closed_is_replaced(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(reply({"id": "a"}, Connection="close"))
        client = connect(server)
        for _ in range(3):
            client.get_site("a")
        assert server.connections == 3
        assert client.requests_sent == 3

    def test_each_thread_has_its_own_connection(self, raw_server: Start, connect: Connect) -> None:
        server = raw_server(SITE)
        client = connect(server)
        together = threading.Barrier(8, timeout=HUNG_AFTER)

        def work(_: int) -> None:
            together.wait()
            for _ in range(5):
                client.get_site("a")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert (len(server.heads), server.connections) == (40, 8)
        assert client.requests_sent == 40

    def test_requests_are_counted_exactly_by_many_threads(self, stem_simulator: Simulator, connect: Connect) -> None:
        client = connect(stem_simulator, max_attempts=50)
        stem_simulator.fail(503, times=20)
        stem_simulator.fail("html", times=20, after=30)

        def work(_: int) -> None:
            for _ in range(10):
                client.get_site("site-00001")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert client.requests_sent == len(stem_simulator.requests) == 80 + 40

    def test_nothing_is_sent_before_a_request(self, raw_server: Start) -> None:
        server = raw_server()
        client = StemClient(config_for(server.url))
        client.list_clients()
        client.close()
        assert (client.requests_sent, server.connections) == (0, 0)


class TestClose:
    def test_a_wait_is_interrupted_and_nothing_is_sent_after_it(
        self, stem_simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "RETRY_AFTER_CAP", math.inf)
        stem_simulator.fail(503, times=None, retry_after=86_400)
        client = StemClient(config_for(stem_simulator.url, "demo-key"))
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.get_site, "site-00001") for _ in range(3)]
            until(lambda: [request.status for request in stem_simulator.requests] == [503] * 3)
            client.close()
            errors = [future.exception(HUNG_AFTER) for future in waiting]
        assert all(isinstance(error, StemError) for error in errors)
        assert client.requests_sent == len(stem_simulator.requests) == 3

    def test_the_request_is_sent_after_a_real_wait(self, stem_simulator: Simulator) -> None:
        stem_simulator.fail(503, retry_after=1)
        began = time.monotonic()
        with StemClient(config_for(stem_simulator.url, "demo-key")) as client:
            assert next(client.list_clients())
        assert time.monotonic() - began >= 1

    def test_new_requests_are_rejected_unsent(
        self, stem_simulator: Simulator, connect: Connect, waits: list[float]
    ) -> None:
        client = connect(stem_simulator)
        client.get_site("site-00001")
        client.close()
        client.close()
        with pytest.raises(StemTransportError, match="closed"):
            next(client.list_clients())
        assert waits == []
        assert client.requests_sent == len(stem_simulator.requests) == 1

    def test_connections_are_closed(self, raw_server: Start) -> None:
        gone = threading.Event()

        def answer(connection: socket.socket, head: bytes) -> None:
            connection.sendall(SITE)
            if not connection.recv(1):
                gone.set()

        with StemClient(config_for(raw_server(answer).url)) as client:
            client.get_site("a")
        assert gone.wait(HUNG_AFTER)

    def test_a_running_request_may_complete(self, raw_server: Start) -> None:
        arrived, answered = threading.Event(), threading.Event()

        def answer(connection: socket.socket, head: bytes) -> None:
            arrived.set()
            answered.wait(HUNG_AFTER)
            connection.sendall(SITE)

        client = StemClient(config_for(raw_server(answer).url))
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(client.get_site, "a")
            assert arrived.wait(HUNG_AFTER)
            client.close()
            answered.set()
            assert future.result(HUNG_AFTER) == {"id": "a"}


def test_other_errors_of_the_parser_are_unchanged(raw_server: Start) -> None:
    def parse(body: Body) -> None:
        raise LookupError("a bug")

    server = raw_server(SITE)
    with pytest.raises(LookupError, match="a bug"):
        Transport(config_for(server.url)).get("sites/a", {}, parse)
    assert len(server.heads) == 1


def test_requests_have_a_user_agent(raw_server: Start, connect: Connect) -> None:
    server = raw_server(SITE)
    connect(server).get_site("a")
    assert b"User-Agent: airflow-provider-stem/" in server.heads[0]
    assert b"Accept: application/json\r\n" in server.heads[0]
