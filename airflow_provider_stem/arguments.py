"""What can be known of the arguments of operators and sensors when the DAG is parsed; for their constructors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import check_format
from airflow_provider_stem.streams.keys import check_key_template
from airflow_provider_stem.streams.windows import PARTITIONS, check_lookback, check_resolution, check_stream_types


def check_arguments(**given: Any) -> None:
    """Check what can be known when the DAG is parsed, of the arguments that are there."""
    for argument, value in given.items():
        if argument in _CHECKS:
            _CHECKS[argument](argument, value)
    check_format(given.get("file_format", "parquet"), given.get("compression", "default"))
    check_lookback(given.get("lookback"), given.get("partition", "interval"))


def _one_of(*choices: str) -> Callable[[str, object], None]:
    def check(argument: str, value: object) -> None:
        if value not in choices:
            raise StemConfigError(f"{argument} is {value!r}: choose one of {', '.join(choices)}.")

    return check


def _check_count(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StemConfigError(f"{argument} is {value!r}: give a whole number from 1 on.")


def _check_duration(argument: str, value: object) -> None:
    if value is not None and not (isinstance(value, timedelta) and value > timedelta()):
        raise StemConfigError(f"{argument} is {value!r}: give a timedelta above zero.")


def _check_share(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise StemConfigError(f"{argument} is {value!r}: give a share above 0 and up to 1, such as 0.98.")


def _check_key(_: str, value: object) -> None:
    if isinstance(value, str):  # else an XComArg, whose value is not known yet
        check_key_template(value)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "batches": lambda argument, value: _check_count(argument, 1 if value is None else value),
    "stream_types": lambda _, value: check_stream_types(value),
    "resolution": lambda _, value: check_resolution(value),
    "default_interval": _check_duration,
    "lookback": _check_duration,
    "partition": _one_of(*PARTITIONS),
    "s3_key": _check_key,
    "on_incomplete": _one_of("warn", "fail"),
    "on_unavailable": _one_of("skip", "fail"),
    "on_empty": _one_of("write", "skip", "fail"),
    "on_site_error": _one_of("fail", "skip"),
    "max_workers": _check_count,
    "min_completeness": _check_share,
    "settle": _check_duration,
    "min_delay": _check_duration,
}
