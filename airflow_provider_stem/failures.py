"""Fail a task without retries where a retry cannot help; for operators, sensors and users' own tasks."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from http import HTTPStatus

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_provider_stem._arguments import check_connection_id
from airflow_provider_stem._text import missing_connection
from airflow_provider_stem.errors import StemApiError, StemAuthError, StemConfigError, StemError, StemNotFoundError

__all__ = ["FINAL_ERRORS", "final_error", "final_errors", "retryable_error"]

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r" \[(GET )?\w+://\S+\]$")

FINAL_ERRORS = (StemAuthError, StemConfigError, StemNotFoundError)
"""Errors that a retry cannot cure."""


@contextmanager
def final_errors(stem_conn_id: str) -> Iterator[None]:
    """
    Fail the task without retries if the ``with`` block raises an error that a retry cannot cure.

    Operators and sensors do this already. In your own task, put the code that uses
    :class:`~airflow_provider_stem.hooks.StemHook` into ``with final_errors("stem_default"):``.

    :param stem_conn_id: connection that the block uses; the message names it.
    :raises AirflowFailException: an argument or the connection is wrong, the key is rejected, or a client or site does
        not exist. The message says what to correct.
    :raises StemError: any other error of this package, for Airflow to retry; see :func:`retryable_error`.
    """
    try:
        check_connection_id("stem_conn_id", stem_conn_id)
        yield
    except AirflowNotFoundException as exc:
        raise final_error(exc, missing_connection(exc)) from exc
    except StemError as exc:
        redact = _redaction(stem_conn_id)
        if isinstance(exc, FINAL_ERRORS):
            raise final_error(exc, redact(_with_remedy(exc, stem_conn_id))) from exc
        # A StemApiError is redacted when it is created. Others may quote a store, an object or a site's id.
        if not isinstance(exc, StemApiError):
            exc.args = tuple(redact(part) if isinstance(part, str) else part for part in exc.args)
        raise retryable_error(exc) from None


def final_error(cause: Exception, message: str) -> AirflowFailException:
    """
    Return the error that fails a task without retries, and log its message first.

    Airflow's log shows tracebacks before the message, so the cause loses its own traceback and its own causes.

    :param cause: the error that ended the task; raise the result ``from`` it.
    :param message: what is wrong and what to do, without secrets.
    """
    _log_remedy(message)
    if not isinstance(cause, StemApiError):
        cause.args = (message,)  # the cause's own text is not redacted
    cause.__traceback__ = cause.__cause__ = cause.__context__ = None
    return AirflowFailException(message)


def retryable_error(error: StemError) -> StemError:
    """
    Return a copy of an error that Airflow may retry, without its traceback, and log its message first.

    Airflow shows an error's message below its traceback, of which a task's has more than 30 lines. The complete one is
    logged at level DEBUG.

    :param error: the error that ended the attempt, without secrets; raise the result ``from None``.
    """
    log.debug("The error below was raised here", exc_info=error)
    _log_remedy(str(error))
    # A copy, since contextlib sets the traceback of an error again that it has seen before.
    return copy(error)


def _log_remedy(message: str) -> None:
    """Log a message without the address at its end, which Airflow shows with the error."""
    log.error("%s", _ADDRESS.sub("", message))


def _with_remedy(exc: StemError, stem_conn_id: str) -> str:
    """Return the message of an error, with what to correct in the connection if the API reported it."""
    if isinstance(exc, StemNotFoundError):
        return exc.describe(f"Check the id, and the Host of connection {stem_conn_id!r}.")
    if not isinstance(exc, StemAuthError):
        return str(exc)
    if exc.status == HTTPStatus.UNAUTHORIZED:
        return exc.describe(f"Check the API key (Password) of connection {stem_conn_id!r}.")
    return exc.describe(f"Ask Stem to grant the key of connection {stem_conn_id!r} this permission.")


def _redaction(stem_conn_id: str) -> Callable[[str], str]:
    """Return a function that removes the API key from a message. A site's id or a wrong argument may contain it."""
    from airflow_provider_stem.hooks import StemHook

    with suppress(Exception), StemHook(stem_conn_id).get_conn() as client:
        return client.redact
    return str
