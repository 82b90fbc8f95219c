from __future__ import annotations

import json
from datetime import timedelta

import pytest

from airflow_provider_stem.errors import (
    StemAuthError,
    StemConfigError,
    StemDataError,
    StemNotFoundError,
    StemRateLimitError,
    StemServerError,
    StemTransportError,
)

URL = "https://app.stem.com/api/v1/clients"

try:
    from airflow_provider_stem.retry_policies import StemRetryPolicy
except ImportError as exc:
    ABSENT = str(exc)
else:
    ABSENT = ""

with_policies = pytest.mark.skipif(bool(ABSENT), reason="Airflow has retry policies from 3.3 on")


def chained(outer, inner):
    outer.__cause__ = inner
    return outer


def test_the_policy_exists_exactly_if_airflow_has_retry_policies():
    from airflow import __version__

    has = tuple(int(part) for part in __version__.split(".")[:2]) >= (3, 3)
    assert has is not bool(ABSENT)
    assert has or ("Airflow 3.3" in ABSENT and "final_errors" in ABSENT)


@with_policies
@pytest.mark.parametrize(
    ("error", "action", "delay"),
    [
        (StemAuthError(401, "No valid api_key was provided.", URL), "fail", None),
        (StemAuthError(403, "Forbidden", URL), "fail", None),
        (StemNotFoundError(404, "The requested site could not be found.", URL), "fail", None),
        (StemConfigError("resolution is 7"), "fail", None),
        (chained(RuntimeError("mine"), StemNotFoundError(404, "gone", URL)), "fail", None),
        (StemRateLimitError(429, "Too Many Requests", URL, 740.5), "retry", 740.5),
        (chained(RuntimeError("mine"), StemRateLimitError(429, "slow", URL, 9.0)), "retry", 9.0),
        (StemRateLimitError(429, "Too Many Requests", URL), "default", None),
        (StemServerError(503, "Service Unavailable", URL), "default", None),
        (StemTransportError("no whole answer"), "default", None),
        (StemDataError("no JSON"), "default", None),
        (ValueError("none of ours"), "default", None),
    ],
    ids=lambda value: None if isinstance(value, BaseException) else str(value),
)
def test_each_error_has_the_right_decision(error, action, delay):
    decision = StemRetryPolicy().evaluate(error, try_number=1, max_tries=5)
    assert decision.action.value == action
    assert (decision.retry_delay and decision.retry_delay.total_seconds()) == delay
    assert (action == "default") or str(error.__cause__ or error) in (decision.reason or "")


@with_policies
@pytest.mark.parametrize("asked", [3599.0, 3600.0, 3600.5, 86_400.0, 999_999_999.0, 1e300, float("inf")])
def test_no_wait_is_longer_than_an_hour(asked):
    decision = StemRetryPolicy(timedelta(minutes=2)).evaluate(StemRateLimitError(429, "slow", URL, asked), 1, 5)
    assert decision.retry_delay == timedelta(seconds=min(asked, 3600))


@with_policies
def test_a_cycle_of_causes_ends():
    error, other = RuntimeError("a"), RuntimeError("b")
    error.__cause__, other.__cause__ = other, error
    assert StemRetryPolicy().evaluate(error, 1, 1).action.value == "default"


@with_policies
def test_a_short_retry_after_is_extended_to_the_minimum_also_after_serialization():
    policy = StemRetryPolicy.deserialize(json.loads(json.dumps(StemRetryPolicy(timedelta(minutes=2)).serialize())))
    for asked, waited in ((30.0, 120.0), (200.0, 200.0)):
        decision = policy.evaluate(StemRateLimitError(429, "slow", URL, asked), 1, 5)
        assert decision.retry_delay == timedelta(seconds=waited)


@with_policies
@pytest.mark.parametrize("wrong", [5, "1m", timedelta(0), timedelta(seconds=-1), timedelta(hours=1, seconds=1)])
def test_a_wrong_delay_is_rejected(wrong):
    with pytest.raises(StemConfigError, match="min_delay"):
        StemRetryPolicy(wrong)


@with_policies
def test_an_operator_accepts_the_policy(stem_simulator):
    from airflow_provider_stem.operators import StemStreamsToS3Operator

    operator = StemStreamsToS3Operator(task_id="land", sites="site-00001", retry_policy=StemRetryPolicy())
    assert isinstance(operator.retry_policy, StemRetryPolicy)
