"""When Airflow itself should try a task again (Airflow 3.3); for ``retry_policy`` of any task that reads the API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_stem._arguments import check_arguments
from airflow_provider_stem.errors import StemConfigError, StemRateLimitError
from airflow_provider_stem.failures import FINAL_ERRORS

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        "StemRetryPolicy needs Airflow 3.3 or later. Before that leave retry_policy out: operators and sensors fail at "
        "once by themselves where another attempt cannot help, and airflow_provider_stem.failures.final_errors does "
        "the same in a task of your own."
    ) from None

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["StemRetryPolicy"]


MAX_DELAY = timedelta(hours=1)
"""The longest wait; a server that asks for a longer one is asked again then."""


class StemRetryPolicy(RetryPolicy):
    """
    Fails at once where another attempt cannot help, and waits as long as the API says where it limits the rate.

    A wrong argument or connection, a key that is refused, a client or site that is not there: the task fails without
    retries. Too many requests (429): the next try begins when the server's ``Retry-After`` is over, though never
    before ``min_delay``, and at the latest after :data:`MAX_DELAY`. Whatever else happens is left to the task's
    ``retries`` and ``retry_delay``.

    .. code-block:: python

        @task(retries=5, retry_policy=StemRetryPolicy())
        def newest(site_id: str): ...

    :param min_delay: the least wait after a 429, up to :data:`MAX_DELAY`; default: as long as the server asks for.
    :raises StemConfigError: ``min_delay`` is not a positive ``timedelta`` of at most an hour.
    """

    def __init__(self, min_delay: timedelta | None = None) -> None:
        check_arguments(min_delay=min_delay)
        if min_delay is not None and min_delay > MAX_DELAY:
            raise StemConfigError(f"min_delay is {min_delay!r}: give a timedelta of at most an hour.")
        self.min_delay = min_delay or timedelta()

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Judge by the error, or by the one that it was raised from."""
        for cause in _causes(exception):
            if isinstance(cause, FINAL_ERRORS):
                return RetryDecision.fail(f"Another attempt cannot help: {cause}")
            if isinstance(cause, StemRateLimitError) and cause.retry_after is not None:
                asked = timedelta(seconds=min(MAX_DELAY.total_seconds(), cause.retry_after))
                delay = max(self.min_delay, asked)
                return RetryDecision.retry(delay, f"The API asks to wait: {cause}")
        return RetryDecision()

    def serialize(self) -> dict[str, Any]:
        """Give the policy as plain JSON."""
        return {"min_delay": self.min_delay.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> StemRetryPolicy:
        """Make the policy from :meth:`serialize`."""
        return cls(timedelta(seconds=data["min_delay"]) or None)


def _causes(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = exception
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__
