"""Authenticated GET requests with retries; used by the client."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import mmap
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import tenacity
import urllib3
from requests.auth import AuthBase

from airflow_provider_stem import __version__
from airflow_provider_stem._disk import is_of_the_worker, own_disk, worker_error
from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.deadline import TotalTimeoutAdapter
from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.api.pace import pace_of
from airflow_provider_stem.api.payloads import Body, UnreadableResponseError, error_messages
from airflow_provider_stem.errors import (
    StemApiError,
    StemAuthError,
    StemCertificateError,
    StemConfigError,
    StemDataError,
    StemError,
    StemNotFoundError,
    StemRateLimitError,
    StemRequestError,
    StemServerError,
    StemTransportError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_CAP = 300.0
"""Seconds. A request with a longer ``Retry-After`` is not retried within a task."""

BODY_LIMIT = 128 * 2**20
"""Bytes. A year of all types at 900 s is about 13 MB, so a larger body is not from the API."""

_CHUNK = 256 * 1024
_IN_MEMORY = 2**20  # a day of all types is 40 kB
_ERROR_BODY_LIMIT = 64 * 1024


class ApiKeyAuth(AuthBase):
    """
    ``Authorization: APIKEY <key>`` (guide: "Authentication Token").

    An auth object, since requests lets ``.netrc`` replace a header that was set directly.
    """

    def __init__(self, api_key: ApiKey) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:  # noqa: D102
        request.headers["Authorization"] = f"APIKEY {self._api_key.reveal()}"
        return request


class Transport:
    """
    Send GET requests, and retry those that failed temporarily.

    Thread-safe: each thread has its own session, so connections are reused without locks.

    :param config: base URL, API key and limits.
    :param sleep: called with the seconds to wait between attempts and for the pace. By default :meth:`close` interrupts
        the wait.
    """

    def __init__(self, config: ClientConfig, sleep: Callable[[float], None] | None = None) -> None:
        self._config = config
        self._auth = ApiKeyAuth(config.api_key)
        self._pace = pace_of(config)
        self._last_turn = math.inf
        self._closed = threading.Event()
        self._sleep = sleep or self._wait_until_closed
        self._local = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []
        self._requests_sent = 0

    @property
    def requests_sent(self) -> int:
        """The number of requests sent so far, including retries."""
        return self._requests_sent

    def get(self, path: str, params: Mapping[str, str | int], parse: Callable[[Body], T]) -> T:
        """
        Send a GET request and return the parsed body of the 200 response.

        ``parse`` runs within the attempt, so a truncated body is requested again.

        :param path: relative to the base URL, percent-encoded.
        :param params: query parameters.
        :param parse: parses the body; raises :class:`~airflow_provider_stem.errors.StemDataError` if it is invalid.
        :raises StemTransportError: no complete response within ``max_attempts``.
        :raises StemCertificateError: the server's certificate or the CA bundle is wrong; not retried.
        :raises OSError: the worker's disk is full or it has too many open files, with the remedy; not retried.
        :raises StemApiError: an error status. 429 and 5xx are retried up to ``max_attempts``, others are not.
        :raises StemDataError: ``parse`` raised it.
        :raises NoTurnError: the turn of the request is later than :meth:`limit_turns` allows; not retried.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._config.max_attempts),
            retry=tenacity.retry_if_exception(self._is_worth_retrying),
            wait=_wait,
            sleep=self._sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        try:
            result: T = retrying(self._attempt, path, params, parse)
        except UnreadableResponseError as exc:
            message = str(exc)
        else:
            return result
        raise StemDataError(message)

    def limit_turns(self, seconds: float) -> None:
        """Limit the wait for turns of the connection's pace, from now on. Requests whose turn is later fail."""
        self._last_turn = time.monotonic() + seconds

    def close(self) -> None:
        """Interrupt waits, reject new requests and close all connections."""
        self._closed.set()
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()

    def _attempt(self, path: str, params: Mapping[str, str | int], parse: Callable[[Body], T]) -> T:
        result = self._send(path, params, parse)
        # Raised here, so that no traceback or context leads to a frame with the request's header or the body.
        if isinstance(result, (StemError, OSError)):
            raise result
        return result

    def _send(self, path: str, params: Mapping[str, str | int], parse: Callable[[Body], T]) -> T | StemError | OSError:
        url = self._config.base_url + path
        if self._pace is not None:
            self._sleep(self._pace.take_turn(self._last_turn))
        if self._closed.is_set():
            return StemTransportError(f"The client is closed. Create a new one [GET {self._redacted(url)}]")
        try:
            with self._session().get(
                url,
                params=params,
                timeout=self._config.timeout,
                verify=self._config.verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                url = str(response.url)
                if response.status_code != HTTPStatus.OK:
                    return self._status_error(response, self._redacted(url))
                return parse(_read(response, BODY_LIMIT))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            return self._connection_error(exc, url)
        except StemDataError as exc:
            return type(exc)(f"{self._redacted(str(exc))} [GET {self._redacted(url)}]")

    def _status_error(self, response: requests.Response, url: str) -> StemError:
        status = response.status_code
        if 200 <= status < 300:
            return StemDataError(f"HTTP {status} instead of 200. Check the connection's Host [GET {url}]")
        if 300 <= status < 400:
            message = "The API responded with a redirect, which is not followed"
        else:
            message = self._redacted("; ".join(_messages(response))) or _phrase(status)
        return _error_class(status)(status, message, url, _retry_after(response.headers))

    def _connection_error(self, exc: Exception, url: str) -> StemError | OSError:
        causes = list(_causes(exc))
        if local := next((cause for cause in causes if is_of_the_worker(cause)), None):
            return worker_error(local)
        if wrong := next((cause for cause in causes if _is_of_a_certificate(cause)), None):
            reason = getattr(wrong, "verify_message", "") or str(wrong)
            return StemCertificateError(
                f"The certificate of {self._redacted(urlsplit(self._config.base_url).netloc)} cannot be verified: "
                f"{self._redacted(reason).rstrip('.')}. Set verify in the connection's Extra to the path of the CA "
                f"bundle that signed it [GET {self._redacted(url)}]"
            )
        last = causes[-1]
        return StemTransportError(
            f"No complete response ({self._redacted(f'{type(last).__name__}: {last}')}). Check the network and the "
            f"connection's Host, or try again later [GET {self._redacted(url)}]"
        )

    def _redacted(self, text: str) -> str:
        # Redact first: one_line may cut the key in two.
        return one_line(self._config.api_key.redact(text))

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.auth = self._auth
            session.headers["User-Agent"] = f"airflow-provider-stem/{__version__}"
            session.headers["Accept"] = "application/json"
            # Plain http is allowed on loopback only. A proxy from the environment would receive the key.
            session.trust_env = self._config.base_url.startswith("https:")
            session.mount(self._config.base_url, TotalTimeoutAdapter(pool_connections=1, pool_maxsize=1))
            self._local.session = session
            with self._lock:
                self._sessions.append(session)
        with self._lock:
            self._requests_sent += 1
        return session

    def _wait_until_closed(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _is_worth_retrying(self, exc: BaseException) -> bool:
        if self._closed.is_set():
            return False
        if isinstance(exc, (StemRateLimitError, StemServerError)):
            return exc.retry_after is None or exc.retry_after <= RETRY_AFTER_CAP
        return isinstance(exc, (StemTransportError, UnreadableResponseError)) and not isinstance(exc, StemConfigError)


def _read(response: requests.Response, limit: int) -> Body:
    """
    Return a whole body. Read it in pieces, so that an endless one is detected.

    A long body is stored in an unnamed file, since bodies would otherwise take most of a run's memory.

    :param limit: bytes.
    :raises StemDataError: the body exceeds the limit.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="stem-response-") as body:
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            with own_disk():
                body.write(chunk)
            if body.tell() > limit:
                raise StemDataError(f"The response body exceeds {limit:,} bytes. Check the connection's Host")
        if body.tell() > _IN_MEMORY:
            with own_disk():
                body.flush()
                return mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ)
        body.seek(0)
        return body.read()


def _is_of_a_certificate(cause: BaseException) -> bool:
    if isinstance(cause, ssl.SSLError):
        # X509 and PEM: the CA bundle contains no certificates.
        return isinstance(cause, ssl.SSLCertVerificationError) or cause.library in {"X509", "PEM"}
    # The error of requests for a missing CA bundle.
    return type(cause) is OSError and "CA certificate bundle" in str(cause)


def _messages(response: requests.Response) -> list[str]:
    """Return the messages in an error response; none if its body cannot be read, since the status is enough."""
    try:
        return error_messages(json.loads(bytes(_read(response, _ERROR_BODY_LIMIT))))
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        StemDataError,
        ValueError,
        RecursionError,
    ):
        return []


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """
    Iterate over an error of requests or urllib3 and the errors that it wraps, the innermost last.

    Only the innermost is reported: the others mention retries that do not take place.
    """
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        within = [getattr(cause, "reason", None), *cause.args, cause.__cause__]
        cause = next((one for one in within if isinstance(one, BaseException)), None)


def _error_class(status: int) -> type[StemApiError]:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return StemAuthError
    if status == HTTPStatus.NOT_FOUND:
        return StemNotFoundError
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return StemRateLimitError
    return StemServerError if status >= 500 else StemRequestError


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from a ``Retry-After`` in seconds or as an HTTP date."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=60)


def _wait(state: tenacity.RetryCallState) -> float:
    exc: Any = state.outcome.exception() if state.outcome else None
    retry_after = getattr(exc, "retry_after", None)
    # Backoff is added, so that clients with the same Retry-After do not all return at once.
    return float(retry_after + _backoff(state) if retry_after is not None else _backoff(state))


def _log_retry(state: tenacity.RetryCallState) -> None:
    exc = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    log.warning("Attempt %s failed, retrying in %.1f s: %s", state.attempt_number, wait, exc)
