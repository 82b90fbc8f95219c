"""
Exceptions of this package, by what the caller can do about them.

::

    StemError                         base class of all exceptions of this package
    ├── StemConfigError               an argument or the connection is wrong: correct it (also a ValueError)
    ├── StemTransportError            no complete response arrived: try again later
    │   └── StemCertificateError      the server's certificate is not trusted (also a StemConfigError): set verify
    ├── StemApiError                  the API returned an error status
    │   ├── StemAuthError             401, 403: the key is missing, wrong or lacks a permission
    │   ├── StemNotFoundError         404: no such client or site
    │   ├── StemRequestError          any other 4xx, and redirects: the request itself is wrong
    │   │   └── StemUnavailableError  400: the site has no stream of a requested type
    │   ├── StemRateLimitError        429: slow down, then try again
    │   └── StemServerError           5xx: the API failed, try again later
    ├── StemDataError                 a 200 that is not what the API's guide describes
    └── StemIncompleteError           expected rows are missing, and the caller required all of them

None is an ``AirflowException``, so a sensor's ``soft_fail`` does not turn them into a skip.
No message contains the API key, a response body or a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "StemApiError",
    "StemAuthError",
    "StemCertificateError",
    "StemConfigError",
    "StemDataError",
    "StemError",
    "StemIncompleteError",
    "StemNotFoundError",
    "StemRateLimitError",
    "StemRequestError",
    "StemServerError",
    "StemTransportError",
    "StemUnavailableError",
]


_MAX_MESSAGE = 200


class StemError(Exception):
    """Base class of all exceptions of this package."""


class StemConfigError(StemError, ValueError):
    """An argument or the connection is wrong; the message names it, its value and the remedy."""


class StemTransportError(StemError):
    """No complete response arrived: the connection was refused or lost, timed out, or the body was cut off."""


class StemCertificateError(StemConfigError, StemTransportError):
    """The server's certificate or the CA bundle that verifies it is wrong; a retry does not help."""


class StemApiError(StemError):
    """
    The API returned an error status.

    :param status: HTTP status.
    :param message: ``errors[].message`` of the API's response, or the standard phrase of the status.
    :param request_url_without_secrets: URL of the request.
    :param retry_after: seconds to wait, from the response's ``Retry-After``; ``None`` without one.
    """

    _remedy: ClassVar[str] = ""

    def __init__(
        self,
        status: int,
        message: str,
        request_url_without_secrets: str,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, message, request_url_without_secrets, retry_after)
        self.status = status
        self.message = message
        self.request_url_without_secrets = request_url_without_secrets
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.describe(self._remedy)

    def describe(self, remedy: str) -> str:
        """
        Return one line: the status and the API's message, then the remedy, then the URL.

        :param remedy: one or more sentences.
        """
        # The API's message can be of any length, and the remedy must be visible without scrolling.
        message = self.message if len(self.message) <= _MAX_MESSAGE else f"{self.message[: _MAX_MESSAGE - 1]}…"
        wait = "" if self.retry_after is None else f" (retry after {self.retry_after:g} s)"
        problem = f"HTTP {self.status}: {message.rstrip('.')}{wait}."
        return " ".join(filter(None, [problem, remedy, f"[GET {self.request_url_without_secrets}]"]))


class StemAuthError(StemApiError):
    """401 or 403: the key is missing, wrong or lacks a permission."""

    _remedy = "Check the API key and its permissions."


class StemNotFoundError(StemApiError):
    """404: no such client or site."""

    _remedy = "Check the id, and the Host of the connection."


class StemRequestError(StemApiError):
    """Any other 4xx, or a redirect: a retry does not help."""

    _remedy = "Check the Host of the connection, or report the request to Stem."


class StemUnavailableError(StemRequestError):
    """
    The site has no stream of a requested type.

    :param stream_types: the types that the site is known to lack.
    """

    _remedy = "Remove the stream type, or set on_unavailable='skip'."

    def __init__(
        self,
        status: int,
        message: str,
        request_url_without_secrets: str,
        retry_after: float | None = None,
        stream_types: Sequence[str] = (),
    ) -> None:
        super().__init__(status, message, request_url_without_secrets, retry_after)
        # Unpickling calls the class with args.
        self.args = (*self.args, tuple(stream_types))
        self.stream_types = tuple(stream_types)


class StemRateLimitError(StemApiError):
    """429: too many requests."""

    _remedy = "Try again later, or read fewer sites at a time."


class StemServerError(StemApiError):
    """5xx: the API failed to process a valid request."""

    _remedy = "Try again later."


class StemDataError(StemError):
    """A 200 that is not what the API's guide describes; none of its data is used."""


class StemIncompleteError(StemError):
    """Expected rows are missing, and the caller required all of them."""
