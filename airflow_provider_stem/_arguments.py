"""Validation of arguments, when a DAG is parsed and again when templates are rendered; for operators and triggers."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, timedelta
from functools import cache, wraps
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import resolve_compression
from airflow_provider_stem.streams.keys import check_key_template
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.store import check_bucket, resolve_address, split_uri
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import (
    check_lookback,
    check_order,
    check_resolution,
    parse_instant,
)

_SET_BY_THE_OPERATOR = frozenset(
    {"Body", "Bucket", "ChecksumAlgorithm", "ChecksumSHA256", "ContentLength", "IfMatch", "IfNoneMatch", "Key"}
)

_LONGEST = timedelta(days=36_500)
"""Beyond it, sums of times leave the range of ``datetime``."""


Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked(constructor: Constructor) -> Constructor:
    """
    Decorate a constructor: call the object's ``check`` with its keyword-only arguments and their defaults first.

    The constructor's signature is the only list of these arguments.
    """
    signature = inspect.signature(constructor)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    @wraps(constructor)
    def wrapper(self: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, **kwargs)
        bound.apply_defaults()
        self.check(**{name: bound.arguments[name] for name in names})
        constructor(self, **kwargs)

    # An attribute, since Airflow wraps constructors again and copies their attributes.
    wrapper.is_checked = True  # type: ignore[attr-defined]
    return cast(Constructor, wrapper)


Owner = TypeVar("Owner", bound=type)


def with_inherited_arguments(owner: Owner) -> Owner:
    """
    Decorate a class: show the arguments of its first base class in its signature and in its docstring too.

    The constructor of the base class stays the only list of these arguments, and its docstring their only description.
    """
    base = owner.__bases__[0]
    constructor = vars(owner)["__init__"]
    *inherited, variadic = inspect.signature(vars(base)["__init__"]).parameters.values()
    _, *own, _ = inspect.signature(constructor).parameters.values()
    constructor.__signature__ = inspect.Signature([*inherited, *own, variadic])
    _, mark, described = inspect.cleandoc(base.__doc__ or "").partition(":param ")
    owner.__doc__ = f"{inspect.cleandoc(owner.__doc__ or '')}\n{mark}{described}"
    return owner


def check_arguments(owner: type, **arguments: Any) -> None:
    """
    Validate arguments when the DAG is parsed; values that are not known yet are skipped.

    :param owner: the class; the annotations of its :func:`checked` constructor are the choices and flags.
    :raises StemConfigError: an argument is wrong; the message names it, its value and the remedy.
    """
    resolve_compression(arguments.get("file_format", "parquet"), arguments.get("compression", "default"))
    _check(arguments, _annotated_checks(owner) | _CHECKS)
    check_lookback(arguments.get("lookback"), arguments.get("partition", "interval"))
    check_templated(**{name: value for name, value in arguments.items() if is_known(value)})
    s3_bucket, s3_key = arguments.get("s3_bucket"), arguments.get("s3_key")
    if is_known(s3_bucket) and isinstance(s3_key, str) and is_known(split_uri(s3_key)[1]):
        resolve_address(s3_bucket, s3_key)


def check_trigger_arguments(owner: type, **arguments: Any) -> None:
    """
    Validate a trigger's arguments when it is created. Its durations are in seconds.

    :param owner: the class; the annotations of its :func:`checked` constructor are the flags.
    :raises StemConfigError: an argument is wrong.
    """
    _check(arguments, _annotated_checks(owner) | _CHECKS | _TRIGGER_CHECKS)
    check_templated(**{name: value for name, value in arguments.items() if is_known(value)})


def check_templated(**arguments: Any) -> None:
    """
    Validate arguments that may be templates, after they are rendered and before the first request.

    :raises StemConfigError: an argument is wrong.
    """
    _check(arguments, _TEMPLATED_CHECKS)
    if arguments.get("start") is not None and arguments.get("end") is not None:
        check_order(parse_instant("start", arguments["start"]), parse_instant("end", arguments["end"]))


def check_id(argument: str, value: object) -> None:
    """Raise ``StemConfigError`` unless a value can be the id of a site or client."""
    if not isinstance(value, str) or value.strip() in {"", ".", ".."}:
        raise StemConfigError(f"{argument} must be an id that the API lists, got {value!r}.")


def check_connection_id(argument: str, value: object) -> None:
    """Raise ``StemConfigError`` unless a value can be the id of a connection."""
    if not isinstance(value, str) or not value.strip():
        raise StemConfigError(f"{argument} must be the id of a connection, got {value!r}.")


def _check(arguments: Mapping[str, Any], checks: Mapping[str, Callable[[str, Any], object]]) -> None:
    for argument, value in arguments.items():
        if argument in checks:
            checks[argument](argument, value)


_NO_TEMPLATE = re.compile(r"[\w\s:;+.,/=-]*")


def is_known(value: object) -> bool:
    """
    Return whether a value is final when the DAG is parsed.

    Objects of Airflow, such as ``XComArg``, stand for a later value. A string may be a template, and a DAG can choose
    its own delimiters, so only strings of harmless characters count as known.
    """
    if isinstance(value, str):
        return _NO_TEMPLATE.fullmatch(value) is not None
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_known, value))
    if isinstance(value, dict):
        return all(map(is_known, value.values()))
    return isinstance(value, (NoneType, bool, int, float, bytes, date, timedelta))


@cache
def _annotated_checks(owner: type) -> dict[str, Callable[[str, Any], object]]:
    """Return the checks that follow from annotations of constructors: ``Literal`` for a choice, ``bool`` for a flag."""
    # The constructor of a subclass may lack these arguments, and have annotations that cannot be resolved.
    constructors = [vars(one).get("__init__") for one in owner.__mro__]
    hints: dict[str, Any] = {}
    for constructor in constructors:
        hints |= get_type_hints(constructor) if hasattr(constructor, "is_checked") else {}
    checks: dict[str, Callable[[str, Any], object]] = {}
    for argument, annotation in hints.items():
        if annotation is bool:
            checks[argument] = _check_flag
        elif get_origin(annotation) is Literal:
            checks[argument] = _one_of(*get_args(annotation))
    return checks


def _one_of(*choices: str) -> Callable[[str, object], None]:
    def check(argument: str, value: object) -> None:
        if value not in choices:
            raise StemConfigError(f"{argument} must be one of {', '.join(choices)}, got {value!r}.")

    return check


def optional(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    """Return a check that also accepts ``None``."""
    return lambda argument, value: None if value is None else check(argument, value)


def check_count(argument: str, value: object, most: float = math.inf) -> None:
    """Raise ``StemConfigError`` unless a value is an integer from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = f"from 1 to {most:,}" if math.isfinite(most) else ">= 1"
        raise StemConfigError(f"{argument} must be an integer {limit}, got {value!r}.")


def _check_flag(argument: str, value: object) -> None:
    # The string "False" is true in Python.
    if not isinstance(value, bool):
        raise StemConfigError(f"{argument} must be True or False, got {value!r}.")


def check_string(argument: str, value: object) -> None:
    """Raise ``StemConfigError`` unless a value is a string or ``None``."""
    if not (value is None or isinstance(value, str)):
        raise StemConfigError(f"{argument} must be a string or left out, got {value!r}.")


def _check_name(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise StemConfigError(f"{argument} must be a string that is not empty, or left out, got {value!r}.")


def check_duration(argument: str, value: object) -> None:
    """Raise ``StemConfigError`` unless a value is a ``timedelta`` above zero and up to 36,500 days."""
    if not isinstance(value, timedelta) or not timedelta() < value <= _LONGEST:
        raise StemConfigError(
            f"{argument} must be a timedelta above zero and up to {_LONGEST.days:,} days, got {value!r}."
        )


def _seconds(*, above: float = -math.inf, least: float = -math.inf) -> Callable[[str, object], None]:
    def check(argument: str, value: object) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not (above < value and least <= value <= _LONGEST.total_seconds()):  # type: ignore[operator]
            low = f"> {above:g}" if math.isfinite(above) else f">= {least:g}"
            raise StemConfigError(
                f"{argument} must be a number of seconds {low} and up to a hundred years, got {value!r}."
            )

    return check


def check_share(argument: str, value: object) -> None:
    """Raise ``StemConfigError`` unless a value is a number above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise StemConfigError(f"{argument} must be a number > 0 and <= 1, where 0.5 is 50 %, got {value!r}.")


def _check_client_ids(argument: str, value: object) -> None:
    ids = [value] if isinstance(value, str) else value
    if not isinstance(ids, (Sequence, Set)) or isinstance(ids, (bytes, bytearray)):
        raise StemConfigError(f"{argument} must be a client id, a list of them, or left out, got {value!r}.")
    if not ids:
        raise StemConfigError(f"{argument} is empty. Set at least one client id, or leave it out for every client.")
    for one in ids:
        if not isinstance(one, str) or one in {"", ".", ".."}:
            raise StemConfigError(f"{argument} contains {one!r}. Use client ids that the API lists.")


def _check_key_placeholders(argument: str, value: object) -> None:
    if isinstance(value, str):  # its placeholders are known even if it contains Jinja
        check_key_template(argument, value)


def _check_extra_args(argument: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise StemConfigError(
            f'{argument} must be a dict of arguments of a PUT, such as {{"StorageClass": "STANDARD"}}, got {value!r}.'
        )
    if reserved := sorted(_SET_BY_THE_OPERATOR & value.keys()):
        raise StemConfigError(f"{argument} must not contain {reserved[0]!r}, which the operator sets. Remove it.")


def _check_progress(argument: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise StemConfigError(f"{argument} must be the result of Watch.progress or left out, got {value!r}.")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "batches": optional(check_count),
    "stream_types": lambda _, value: parse_stream_types(value),
    "resolution": lambda _, value: check_resolution(value),
    "default_interval": optional(check_duration),
    "lookback": optional(check_duration),
    "s3_key": _check_key_placeholders,
    "path": _check_key_placeholders,
    "max_workers": check_count,
    "min_completeness": check_share,
    "settle": optional(check_duration),
}
_TRIGGER_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "default_interval": optional(_seconds(above=0)),
    "settle": _seconds(least=0),
    "poke_interval": _seconds(least=0),
    "poll_interval": _seconds(least=1),
    "max_wait": optional(_seconds(least=0)),
    "window": _seconds(above=0),
    "lookback": _seconds(above=0),
    "restatement_interval": optional(_seconds(above=0)),
    "deadline": optional(parse_instant),
    "progress": optional(_check_progress),
}
_TEMPLATED_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "sites": lambda _, value: read_sites(value),
    "start": optional(parse_instant),
    "end": optional(parse_instant),
    "client_id": optional(_check_client_ids),
    "name": check_string,
    "batch": optional(_check_name),
    "s3_bucket": optional(check_bucket),
    "s3_key": check_key_template,
    "path": check_key_template,
    "conn_id": optional(check_connection_id),
    "s3_extra_args": optional(_check_extra_args),
    "stem_conn_id": check_connection_id,
    "aws_conn_id": check_string,
    "store_conn_id": optional(check_connection_id),
}
