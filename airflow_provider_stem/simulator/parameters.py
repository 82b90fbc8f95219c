"""The API's query parameters: their syntax, validation and documentation."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from airflow_provider_stem.simulator.ranges import RESOLUTIONS
from airflow_provider_stem.simulator.stream_types import STREAM_TYPES


class ApiError(Exception):
    """A response with an error payload.

    :param status: the HTTP status, also the ``code`` of each error.
    :param messages: one entry of ``errors`` each.
    """

    def __init__(self, status: int, *messages: str) -> None:
        super().__init__(status, *messages)
        self.status = status
        self.messages = messages


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that rejects parameters other than ``names``, and repeated ones other than stream_type."""

    async def check(request: Request) -> None:
        sent = [name for name, _ in request.query_params.multi_items()]
        unknown = [name for name in dict.fromkeys(sent) if name not in names]
        repeated = [name for name in names if name != "stream_type" and sent.count(name) > 1]
        if unknown or repeated:
            raise ApiError(
                400,
                *(f"Unknown parameter {name}." for name in unknown),
                *(f"The parameter {name} is given more than once." for name in repeated),
            )

    return check


def _parse_integer(value: Any) -> Any:
    """Return the integer of one to nine digits. Pydantic would also accept ``1.0`` and `` 1``."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"{value!r} is not an integer of at most nine digits")
        return int(value)
    return value


def _check_positive(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is less than 1")
    return value


def _check_resolution(value: int) -> int:
    if value not in RESOLUTIONS:
        raise ValueError(f"{value} is not one of {', '.join(map(str, RESOLUTIONS))}")
    return value


def _parse_instant(value: Any) -> Any:
    match = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", str(value))
    if match:
        try:
            return int(datetime(*map(int, match.groups()), tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a UTC time of the form YYYY-MM-DDTHH:MM:SSZ")


def _parse_stream_types(value: list[str]) -> list[str]:
    """Return the stream types of repeated or comma-separated values, without duplicates, in their order."""
    stream_types = list(dict.fromkeys(",".join(value).split(",")))
    for name in stream_types:
        if name not in STREAM_TYPES:
            raise ValueError(f"{name!r} is not one of {', '.join(STREAM_TYPES)}")
    return stream_types


Name = Annotated[str, Query(description="List only entries whose name has this substring. Case-sensitive.")]
Page = Annotated[
    int,
    BeforeValidator(_parse_integer),
    AfterValidator(_check_positive),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999}),
    Query(description="Number of the page, 1 or more."),
]
PerPage = Annotated[
    int,
    BeforeValidator(_parse_integer),
    AfterValidator(_check_positive),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999}),
    Query(description="Items per page. The server may limit it."),
]
Resolution = Annotated[
    int,
    BeforeValidator(_parse_integer),
    AfterValidator(_check_resolution),
    WithJsonSchema({"type": "integer", "enum": list(RESOLUTIONS)}),
    Query(description="Length of each interval in seconds."),
]
_ANY_TYPE = "|".join(STREAM_TYPES)
_INSTANT_SCHEMA = {
    "type": "string",
    "format": "date-time",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
}
StartDatetime = Annotated[
    int,
    BeforeValidator(_parse_instant),
    WithJsonSchema({**_INSTANT_SCHEMA, "examples": ["2014-12-31T00:00:01Z"]}),
    Query(description="Start of the range in UTC, rounded to the nearest stream."),
]
EndDatetime = Annotated[
    int,
    BeforeValidator(_parse_instant),
    WithJsonSchema({**_INSTANT_SCHEMA, "examples": ["2015-01-01T00:00:00Z"]}),
    Query(
        description="End of the range in UTC, rounded to the nearest stream. At least one"
        " resolution and at most 365 days after start_datetime."
    ),
]
StreamTypes = Annotated[
    list[str],
    AfterValidator(_parse_stream_types),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "pattern": f"^({_ANY_TYPE})(,({_ANY_TYPE}))*$"},
            "minItems": 1,
        }
    ),
    Query(
        description=f"One or more of {', '.join(STREAM_TYPES)}: repeat the parameter, or separate its values"
        " by commas. A type that the site lacks fails the whole request with a 400."
    ),
]
