"""Retry policy for tasks that read the API: the ``retry_policy`` of a task in Airflow 3.3 or later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_stem._arguments import check_duration
from airflow_provider_stem.errors import StemConfigError, StemRateLimitError
from airflow_provider_stem.failures import FINAL_ERRORS

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        "StemRetryPolicy needs Airflow 3.3 or later. Leave retry_policy out: operators and sensors fail without "
        "retries where a retry cannot help, and airflow_provider_stem.failures.final_errors does the same in your own "
        "tasks."
    ) from None

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["StemRetryPolicy"]


MAX_DELAY = timedelta(hours=1)
"""The longest wait, even if ``Retry-After`` is longer."""


class StemRetryPolicy(RetryPolicy):
    """
    Fail without retries where a retry cannot help, and honour the API's ``Retry-After``.

    If an argument or the connection is wrong, the key is rejected, or a client or site does not exist, the task fails
    without retries. After a 429 (too many requests) the next try starts after the server's ``Retry-After``, but not
    before ``min_delay`` and at most an hour later. All other errors follow the task's ``retries`` and ``retry_delay``.

    .. code-block:: python

        @task(retries=5, retry_policy=StemRetryPolicy())
        def newest(site_id: str): ...

    :param min_delay: the shortest wait after a 429, above zero and up to an hour; default: ``Retry-After``.
    :raises StemConfigError: ``min_delay`` is not a positive ``timedelta`` of at most an hour.
    """

    def __init__(self, min_delay: timedelta | None = None) -> None:
        if min_delay is not None:
            check_duration("min_delay", min_delay)
            if min_delay > MAX_DELAY:
                raise StemConfigError(f"min_delay must be a timedelta of at most an hour, got {min_delay!r}.")
        self.min_delay = min_delay or timedelta()

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Return the decision for an error, or for the first of its causes that has a rule."""
        for cause in _causes(exception):
            if isinstance(cause, FINAL_ERRORS):
                return RetryDecision.fail(f"A retry cannot help: {cause}")
            if isinstance(cause, StemRateLimitError) and cause.retry_after is not None:
                retry_after = timedelta(seconds=min(MAX_DELAY.total_seconds(), cause.retry_after))
                delay = max(self.min_delay, retry_after)
                return RetryDecision.retry(delay, f"The API limits the rate: {cause}")
        return RetryDecision()

    def serialize(self) -> dict[str, Any]:
        """Return the policy as JSON types; ``min_delay`` in seconds."""
        return {"min_delay": self.min_delay.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> StemRetryPolicy:
        """Return the policy that :meth:`serialize` described."""
        return cls(timedelta(seconds=data["min_delay"]) or None)


def _causes(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = exception
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__
