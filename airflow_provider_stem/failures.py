"""Which errors end a task for good, and what to mend then; for operators, sensors and users' own tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_provider_stem.arguments import check_connection_id
from airflow_provider_stem.errors import StemAuthError, StemConfigError, StemNotFoundError

FINAL_ERRORS = (StemAuthError, StemConfigError, StemNotFoundError)
"""Where another attempt cannot help."""


@contextmanager
def final_errors(stem_conn_id: str) -> Iterator[None]:
    """
    Fail without retries, and say what to mend, where another attempt cannot help.

    Operators and sensors do so by themselves. In a task of your own put the work with
    :class:`~airflow_provider_stem.hooks.StemHook` into ``with final_errors("stem_default"):``.

    :param stem_conn_id: the connection that the message names.
    :raises AirflowFailException: a wrong argument or connection, a key that is refused, a client or site that is not
        there. Whatever may pass goes through as it is, for Airflow to retry.
    """
    try:
        check_connection_id("stem_conn_id", stem_conn_id)
        yield
    except StemAuthError as exc:
        remedy = (
            f"check the API key (Password) of connection {stem_conn_id!r}"
            if exc.status == HTTPStatus.UNAUTHORIZED
            else f"ask Stem to grant the key of connection {stem_conn_id!r} this permission"
        )
        raise AirflowFailException(f"{exc}: {remedy}.") from exc
    except StemNotFoundError as exc:
        raise AirflowFailException(f"{exc}: check the id, and the Host of connection {stem_conn_id!r}.") from exc
    except AirflowNotFoundException as exc:
        raise AirflowFailException(f"{exc}: create the connection, or name another.") from exc
    except StemConfigError as exc:
        raise AirflowFailException(str(exc)) from exc
