"""
What can go wrong, cut by what the caller can do about it.

::

    StemError                         everything that this package raises on purpose
    ├── StemConfigError               an argument or the connection is wrong: mend it (a ValueError too)
    ├── StemTransportError            no whole answer came: try again later
    │   └── StemCertificateError      the server's certificate is not trusted (a StemConfigError too): set verify
    ├── StemApiError                  the API answered, and refused
    │   ├── StemAuthError             401, 403: the key is missing, wrong or lacks a permission
    │   ├── StemNotFoundError         404: no such client or site
    │   ├── StemRequestError          any other 4xx, and redirects: the request itself is wrong
    │   │   └── StemUnavailableError  400: the site has no stream of a type that was asked for
    │   ├── StemRateLimitError        429: slow down, then try again
    │   └── StemServerError           5xx: the API's own trouble, try again later
    ├── StemDataError                 a 200 that is not what the API's guide describes
    └── StemIncompleteError           rows that should be there are not, and the caller wanted all of them

None of them is an ``AirflowException``, so a sensor's ``soft_fail`` does not turn them into a skip.
No message holds the API key, a response body or a header.
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
    """Everything that this package raises on purpose."""


class StemConfigError(StemError, ValueError):
    """An argument or the connection is wrong; the message names it, its value and the remedy."""


class StemTransportError(StemError):
    """No whole answer came: connection refused or lost, timed out, or the body was cut off."""


class StemCertificateError(StemConfigError, StemTransportError):
    """The server's certificate, or the CA bundle to check it with, is wrong; another attempt would not help."""


class StemApiError(StemError):
    """
    The API answered with an error status.

    :param status: the HTTP status.
    :param message: the API's own ``errors[].message``, or the status's standard phrase.
    :param request_url_without_secrets: what was asked for.
    :param retry_after: seconds that the server asked to wait, where it did.
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
        Return one line: the status and the API's message, the remedy, and last the address.

        :param remedy: one or more sentences.
        """
        # The API's message is foreign text of any length, and the remedy is to be seen without scrolling.
        message = self.message if len(self.message) <= _MAX_MESSAGE else f"{self.message[: _MAX_MESSAGE - 1]}…"
        wait = "" if self.retry_after is None else f" (retry after {self.retry_after:g} s)"
        problem = f"HTTP {self.status}: {message.rstrip('.')}{wait}."
        return " ".join(filter(None, [problem, remedy, f"[GET {self.request_url_without_secrets}]"]))


class StemAuthError(StemApiError):
    """401 or 403: the key is missing, wrong or lacks a permission."""

    _remedy = "Check the API key and its permissions."


class StemNotFoundError(StemApiError):
    """404: no such client or site."""

    _remedy = "Check the id and the API's address."


class StemRequestError(StemApiError):
    """Any other 4xx, or a redirect: asking again would not help."""


class StemUnavailableError(StemRequestError):
    """
    The site has no stream of a type that was asked for.

    :param stream_types: the types that are known to be lacking.
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
        # Exceptions are rebuilt from args when they cross a process boundary.
        self.args = (*self.args, tuple(stream_types))
        self.stream_types = tuple(stream_types)


class StemRateLimitError(StemApiError):
    """429: too many requests."""

    _remedy = "Try again later, or read fewer sites at a time."


class StemServerError(StemApiError):
    """5xx: the API could not fulfil a valid request."""

    _remedy = "Try again later."


class StemDataError(StemError):
    """A 200 that is not what the API's guide describes; nothing of it is used."""


class StemIncompleteError(StemError):
    """Rows that should be there are not, and the caller asked to have all of them."""
