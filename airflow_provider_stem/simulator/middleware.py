"""ASGI middleware in front of the API: recording, latency, rate limit, faults and authentication."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from airflow_provider_stem.simulator.faults import Fault, FaultPlan, parse_random, retry_after_text

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from airflow_provider_stem.simulator.settings import Settings

_logger = logging.getLogger(__name__)

BASE_PATH = "/api/v1"
_ELSEWHERE = "https://elsewhere.invalid"
_REASONS = {
    400: "The request was incorrect.",
    401: "No valid api_key was provided.",
    403: "The api_key does not have the permission for this call.",
    404: "The resource could not be found.",
    405: "Only GET is allowed.",
    429: "Too many requests.",
    500: "The API could not fulfil a valid request.",
}
_BODILESS = frozenset({204, 304})


def error_body(status: int, *messages: str) -> bytes:
    """Return the guide's error payload, as JSON.

    :param status: the HTTP status, also the ``code`` of each error.
    :param messages: one entry of ``errors`` each; default: the usual message of the status.
    """
    messages = messages or (_REASONS.get(status, f"The request failed with status {status}."),)
    errors = [{"message": message, "code": status} for message in messages]
    return json.dumps({"errors": errors}, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(slots=True)
class RecordedRequest:
    """A request that reached the API.

    :param method: the HTTP method.
    :param path: the decoded path.
    :param target: the path and query as sent.
    :param query: the query's parameters, each with all of its values.
    :param headers: the headers with names in lower case, without ``authorization``.
    :param authorized: whether the key was valid.
    :param arrived: when the request arrived, in seconds of :func:`time.monotonic`.
    :param status: status of the response; None until the response begins, or if there is none.
    """

    method: str
    path: str
    target: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    authorized: bool
    arrived: float = field(default_factory=time.monotonic)
    status: int | None = None


Rewrite = Callable[[RecordedRequest, Any], Any]


@dataclass(slots=True)
class Traffic:
    """Recorded requests, and the faults and rewrites planned for the next ones.

    :param plan: the planned faults.
    :param keep: whether requests are recorded. A long-running server should not record them.
    :param requests: the recorded requests, in order of arrival.
    :param concurrency: number of requests in progress.
    :param peak_concurrency: the highest concurrency since the last reset.
    :param rewrite: function that replaces the payload of each response, or None.
    """

    plan: FaultPlan
    keep: bool = True
    requests: list[RecordedRequest] = field(default_factory=list)
    concurrency: int = 0
    peak_concurrency: int = 0
    rewrite: Rewrite | None = None

    @classmethod
    def of(cls, settings: Settings, *, keep: bool = True) -> Traffic:
        """Return an empty record with the random faults of ``settings``."""
        randoms = tuple(parse_random(text) for text in settings.faults)
        return cls(FaultPlan(randoms, settings.seed), keep)

    def begin(self, request: RecordedRequest) -> None:
        """Record the beginning of a request."""
        self.concurrency += 1
        self.peak_concurrency = max(self.peak_concurrency, self.concurrency)
        if self.keep:
            self.requests.append(request)

    def reset(self) -> None:
        """Remove the recorded requests, and reset the peak."""
        self.requests = []
        self.peak_concurrency = self.concurrency


class _Bucket:
    """A token bucket with a capacity of one second of requests."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size = max(rate, 1.0)
        self._tokens = self._size
        self._at = time.monotonic()

    def take(self) -> float:
        """Take a token and return 0, or return the seconds to wait if there is none."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


@dataclass(slots=True)
class _BufferedResponse:
    """A complete response of the application, not yet sent."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def collect(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")


class Middleware:
    """ASGI middleware in front of the API's paths.

    :param app: the application.
    :param settings: latency, rate limit and key.
    :param traffic: records requests, and holds the planned faults.
    :param abort: closes the connection of a scope immediately, without a response.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, traffic: Traffic, abort: Callable[[Scope], None]) -> None:
        self._app = app
        self._settings = settings
        self._authorization = b"APIKEY " + settings.api_key.encode()
        self._traffic = traffic
        self._abort = abort
        self._bucket = _Bucket(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or respond to it here."""
        path = scope.get("path", "")
        if scope["type"] != "http" or (path != BASE_PATH and not path.startswith(f"{BASE_PATH}/")):
            await self._app(scope, receive, send)
            return
        request = self._record(scope)
        self._traffic.begin(request)

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        try:
            await self._handle(request, scope, receive, send_noting)
        except Exception:
            if request.status is not None:
                raise
            # Starlette's handler would raise again, and the server would then close the connection, sometimes before
            # the client has read the response.
            _logger.exception("The simulator failed on a request")
            await _send(send_noting, 500, error_body(500))
        finally:
            self._traffic.concurrency -= 1

    def _record(self, scope: Scope) -> RecordedRequest:
        headers = dict(scope["headers"])
        query = scope["query_string"].decode("latin-1")
        raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        authorization = headers.pop(b"authorization", b"")
        return RecordedRequest(
            method=scope["method"],
            path=scope["path"],
            target=f"{raw_path}?{query}" if query else raw_path,
            query=parse_qs(query, keep_blank_values=True),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()},
            authorized=hmac.compare_digest(authorization, self._authorization),
        )

    async def _handle(self, request: RecordedRequest, scope: Scope, receive: Receive, send: Send) -> None:
        if self._settings.latency:
            await asyncio.sleep(self._settings.latency)
        wait = self._bucket.take()
        if wait:
            await _send(send, 429, error_body(429), retry_after=self._retry_after(wait))
            return
        fault = self._traffic.plan.next(request.target)
        if fault is None:
            await self._respond(request, scope, receive, send)
        else:
            await self._fail(fault, request, scope, receive, send)

    def _retry_after(self, wait: float) -> str | None:
        seconds = ceil(wait)
        if self._settings.retry_after == "seconds":
            return retry_after_text(seconds)
        # An HTTP date has whole seconds, so rounding down would be too early.
        return retry_after_text(datetime.now(UTC) + timedelta(seconds=seconds + 1))

    async def _respond(self, request: RecordedRequest, scope: Scope, receive: Receive, send: Send) -> None:
        if not request.authorized:
            await _send(send, 401, error_body(401))
        elif self._traffic.rewrite is None:
            await self._app(scope, receive, send)
        else:
            response = _BufferedResponse()
            await self._app(scope, receive, response.collect)
            payload = self._traffic.rewrite(request, json.loads(response.body))
            if not isinstance(payload, (bytes, str)):
                payload = json.dumps(payload, separators=(",", ":"))
            body = payload.encode() if isinstance(payload, str) else payload
            await _send(send, response.status, body)

    async def _fail(self, fault: Fault, request: RecordedRequest, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.kind == "hang":
            await _wait_for_disconnect(receive)
        elif fault.kind == "reset":
            self._abort(scope)
            await _wait_for_disconnect(receive)
        elif fault.kind in ("cut_json", "cut_body"):
            response = _BufferedResponse()
            await self._respond(request, scope, receive, response.collect)
            half = response.body[: len(response.body) // 2]
            if fault.kind == "cut_json":
                await _send(send, response.status, half)
            else:  # the server closes the connection of an incomplete response
                await _send(send, response.status, half, length=len(response.body), more=True)
        elif fault.kind == "html":
            page = b"<!doctype html><html><title>Sign in</title><body>Please sign in.</body></html>"
            await _send(send, 200, page, content_type=b"text/html; charset=utf-8")
        elif fault.kind == "empty":
            await _send(send, 200, b"")
        elif fault.kind == "error_200":
            await _send(send, 200, error_body(500))
        elif fault.kind == "redirect":
            await _send(send, 302, b"", location=fault.location or _ELSEWHERE + request.target)
        else:
            body = b"" if fault.status in _BODILESS else error_body(fault.status)
            await _send(send, fault.status, body, retry_after=fault.retry_after, location=fault.location)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    length: int | None = None,
    more: bool = False,
    retry_after: str | None = None,
    location: str | None = None,
) -> None:
    headers = [(b"content-type", content_type)]
    if status not in _BODILESS:
        headers.append((b"content-length", str(len(body) if length is None else length).encode()))
    if retry_after is not None:
        headers.append((b"retry-after", retry_after.encode()))
    if location is not None:
        headers.append((b"location", location.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
