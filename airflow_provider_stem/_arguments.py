"""What can be known of arguments when a DAG is parsed, and what when templates are rendered; for whoever takes some."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, timedelta
from functools import wraps
from types import NoneType
from typing import Any, TypeVar, cast

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import PARQUET_ENCODINGS, check_format
from airflow_provider_stem.streams.keys import check_bucket, check_key_template
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.windows import (
    PARTITIONS,
    check_lookback,
    check_order,
    check_resolution,
    check_stream_types,
    parse_instant,
)

_SET_BY_THE_OPERATOR = frozenset(
    {"Body", "Bucket", "ChecksumAlgorithm", "ChecksumSHA256", "ContentLength", "IfMatch", "IfNoneMatch", "Key"}
)

_LONGEST = timedelta(days=36_500)
"""Beyond it sums of times leave the calendar."""


Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked(constructor: Constructor) -> Constructor:
    """
    Decorate a constructor: its own keyword arguments, defaults included, pass the object's ``check`` before it runs.

    The signature is the only list of these arguments.
    """
    signature = inspect.signature(constructor)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    @wraps(constructor)
    def checking(self: Any, **kwargs: Any) -> None:
        given = signature.bind(self, **kwargs)
        given.apply_defaults()
        self.check(**{name: given.arguments[name] for name in names})
        constructor(self, **kwargs)

    return cast(Constructor, checking)


def check_arguments(**given: Any) -> None:
    """Check what can be known when the DAG is parsed, of the arguments that are there."""
    _check(given, _CHECKS)
    check_format(given.get("file_format", "parquet"), given.get("compression", "default"))
    check_lookback(given.get("lookback"), given.get("partition", "interval"))
    check_templated(**{name: value for name, value in given.items() if is_known(value)})


def check_trigger_arguments(**given: Any) -> None:
    """Check what can be known of a trigger's arguments when it is made: durations are seconds there."""
    _check(given, _CHECKS | _TRIGGER_CHECKS)
    check_templated(**{name: value for name, value in given.items() if is_known(value)})


def check_templated(**given: Any) -> None:
    """Check arguments that templates may have given, once these are rendered and before anything is asked for."""
    _check(given, _TEMPLATED_CHECKS)
    if given.get("start") is not None and given.get("end") is not None:
        check_order(parse_instant("start", given["start"]), parse_instant("end", given["end"]))


def check_id(argument: str, value: object) -> None:
    """Refuse what is no site's or client's id."""
    if not isinstance(value, str) or value.strip() in {"", ".", ".."}:
        raise StemConfigError(f"{argument} is {value!r}: give the identifier that the API lists.")


def check_connection_id(argument: str, value: object) -> None:
    """Refuse what names no connection."""
    if not isinstance(value, str) or not value.strip():
        raise StemConfigError(f"{argument} is {value!r}: give the id of a connection.")


def _check(given: Mapping[str, Any], checks: Mapping[str, Callable[[str, Any], object]]) -> None:
    for argument, value in given.items():
        if argument in checks:
            checks[argument](argument, value)


_NO_TEMPLATE = re.compile(r"[\w\s:+.,/=-]*")


def is_known(value: object) -> bool:
    """
    Tell whether a value stays as it is until the task runs.

    An object of Airflow's stands for another value; a text may be a template, whose marks a DAG can choose.
    """
    if isinstance(value, str):
        return _NO_TEMPLATE.fullmatch(value) is not None
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_known, value))
    if isinstance(value, dict):
        return all(map(is_known, value.values()))
    return isinstance(value, (NoneType, bool, int, float, bytes, date, timedelta))


def _one_of(*choices: str) -> Callable[[str, object], None]:
    def check(argument: str, value: object) -> None:
        if value not in choices:
            raise StemConfigError(f"{argument} is {value!r}: choose one of {', '.join(choices)}.")

    return check


def _or_none(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    return lambda argument, value: None if value is None else check(argument, value)


def _check_count(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StemConfigError(f"{argument} is {value!r}: give a whole number from 1 on.")


def _check_flag(argument: str, value: object) -> None:
    # A text such as "False" would count as true.
    if not isinstance(value, bool):
        raise StemConfigError(f"{argument} is {value!r}: give True or False.")


def _check_text(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise StemConfigError(f"{argument} is {value!r}: give a text, or leave it out.")


def _check_name(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise StemConfigError(f"{argument} is {value!r}: give a text that is not empty, or leave it out.")


def check_duration(argument: str, value: object) -> None:
    """Refuse what is no length of time that can be waited or read."""
    if not isinstance(value, timedelta) or not timedelta() < value <= _LONGEST:
        raise StemConfigError(f"{argument} is {value!r}: give a timedelta above zero, up to {_LONGEST.days:,} days.")


def _seconds(*, above: float = -math.inf, least: float = -math.inf) -> Callable[[str, object], None]:
    def check(argument: str, value: object) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not (above < value and least <= value <= _LONGEST.total_seconds()):  # type: ignore[operator]
            low = f"above {above:g}" if math.isfinite(above) else f"from {least:g} on"
            raise StemConfigError(f"{argument} is {value!r}: give a number of seconds {low}, up to a hundred years.")

    return check


def _check_share(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise StemConfigError(f"{argument} is {value!r}: give a share above 0 and up to 1, such as 0.98.")


def _check_client_ids(argument: str, value: object) -> None:
    ids = [value] if isinstance(value, str) else value
    if not isinstance(ids, (Sequence, Set)) or isinstance(ids, (bytes, bytearray)):
        raise StemConfigError(f"{argument} is {value!r}: give a client id, a list of them, or leave it out.")
    if not ids:
        raise StemConfigError(f"{argument} is empty: give at least one client id, or leave it out for every client.")
    for one in ids:
        if not isinstance(one, str) or one in {"", ".", ".."}:
            raise StemConfigError(f"{argument} holds {one!r}: give the client ids that the API lists.")


def _check_key_text(_: str, value: object) -> None:
    if isinstance(value, str):  # its placeholders are known, whatever Jinja is in it
        check_key_template(value)


def _check_extra_args(argument: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise StemConfigError(
            f'{argument} must be a dict of arguments of a PUT, such as {{"StorageClass": "STANDARD"}}, got {value!r}.'
        )
    if reserved := sorted(_SET_BY_THE_OPERATOR & value.keys()):
        raise StemConfigError(f"{argument} must not hold {reserved[0]!r}, which the operator sets itself. Remove it.")


def _check_progress(argument: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise StemConfigError(f"{argument} is {value!r}: give what Watch.progress gave, or leave it out.")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "batches": _or_none(_check_count),
    "stream_types": lambda _, value: check_stream_types(value),
    "resolution": lambda _, value: check_resolution(value),
    "default_interval": _or_none(check_duration),
    "lookback": _or_none(check_duration),
    "partition": _one_of(*PARTITIONS),
    "s3_key": _check_key_text,
    "on_incomplete": _one_of("warn", "fail"),
    "on_unavailable": _one_of("skip", "fail"),
    "on_empty": _one_of("write", "skip", "fail"),
    "on_site_error": _one_of("fail", "skip"),
    "partition_events": _check_flag,
    "if_exists": _one_of("merge", "replace", "fail"),
    "parquet_encoding": _one_of(*PARQUET_ENCODINGS),
    "deferrable": _check_flag,
    "start_from_trigger": _check_flag,
    "max_workers": _check_count,
    "min_completeness": _check_share,
    "settle": _or_none(check_duration),
    "min_delay": _or_none(check_duration),
}
_TRIGGER_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "default_interval": _or_none(_seconds(above=0)),
    "settle": _seconds(least=0),
    "poke_interval": _seconds(least=0),
    "exponential_backoff": _check_flag,
    "max_wait": _or_none(_seconds(least=0)),
    "silent_fail": _check_flag,
    "deadline": _or_none(parse_instant),
    "progress": _or_none(_check_progress),
}
_TEMPLATED_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "sites": lambda _, value: read_sites(value),
    "start": _or_none(parse_instant),
    "end": _or_none(parse_instant),
    "client_id": _or_none(_check_client_ids),
    "name": _or_none(_check_text),
    "batch": _or_none(_check_name),
    "s3_bucket": _or_none(check_bucket),
    "s3_key": lambda _, value: check_key_template(value),
    "s3_extra_args": _or_none(_check_extra_args),
    "stem_conn_id": check_connection_id,
    "aws_conn_id": _or_none(_check_text),
}
