"""The API's query parameters: how each is written, checked and documented."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from airflow_provider_stem.simulator.model import STREAM_TYPES
from airflow_provider_stem.simulator.ranges import RESOLUTIONS


class ApiError(Exception):
    """An answer with an error payload.

    :param status: the HTTP status, also the ``code`` of each error.
    :param messages: one entry of ``errors`` each.
    """

    def __init__(self, status: int, *messages: str) -> None:
        super().__init__(status, *messages)
        self.status = status
        self.messages = messages


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses parameters other than ``names``, and any but stream_type given twice."""

    async def check(request: Request) -> None:
        given = [name for name, _ in request.query_params.multi_items()]
        unknown = [name for name in dict.fromkeys(given) if name not in names]
        twice = [name for name in names if name != "stream_type" and given.count(name) > 1]
        if unknown or twice:
            raise ApiError(
                400,
                *(f"Unknown parameter {name}." for name in unknown),
                *(f"The parameter {name} is given more than once." for name in twice),
            )

    return check


def _whole_number(value: Any) -> Any:
    """Take plain digits only, where pydantic would also take ``1.0`` or `` 1``; nine, which is plenty."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"{value!r} is not a whole number of at most nine digits")
        return int(value)
    return value


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is not at least 1")
    return value


def _resolution(value: int) -> int:
    if value not in RESOLUTIONS:
        raise ValueError(f"{value} is not one of {', '.join(map(str, RESOLUTIONS))}")
    return value


def _instant(value: Any) -> Any:
    match = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", str(value))
    if match:
        try:
            return int(datetime(*map(int, match.groups()), tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a UTC time of the form YYYY-MM-DDTHH:MM:SSZ")


def _stream_types(value: list[str]) -> list[str]:
    """Split comma-separated items; each type once, in the order asked for."""
    asked = list(dict.fromkeys(",".join(value).split(",")))
    for name in asked:
        if name not in STREAM_TYPES:
            raise ValueError(f"{name!r} is not one of {', '.join(STREAM_TYPES)}")
    return asked


Name = Annotated[str, Query(description="Lists only what has this substring in its name; case matters.")]
Page = Annotated[
    int,
    BeforeValidator(_whole_number),
    AfterValidator(_positive),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999}),
    Query(description="Number of the page, from 1."),
]
PerPage = Annotated[
    int,
    BeforeValidator(_whole_number),
    AfterValidator(_positive),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999}),
    Query(description="Items on a page. The server may cap it."),
]
Resolution = Annotated[
    int,
    BeforeValidator(_whole_number),
    AfterValidator(_resolution),
    WithJsonSchema({"type": "integer", "enum": list(RESOLUTIONS)}),
    Query(description="Seconds of each interval."),
]
_ANY_TYPE = "|".join(STREAM_TYPES)
_INSTANT_SCHEMA = {
    "type": "string",
    "format": "date-time",
    "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
}
StartDatetime = Annotated[
    int,
    BeforeValidator(_instant),
    WithJsonSchema({**_INSTANT_SCHEMA, "examples": ["2014-12-31T00:00:01Z"]}),
    Query(description="UTC time from which data is wanted, rounded to the nearest stream."),
]
EndDatetime = Annotated[
    int,
    BeforeValidator(_instant),
    WithJsonSchema({**_INSTANT_SCHEMA, "examples": ["2015-01-01T00:00:00Z"]}),
    Query(
        description="UTC time up to which data is wanted, rounded to the nearest stream. At least one"
        " resolution and at most 365 days after start_datetime."
    ),
]
StreamTypes = Annotated[
    list[str],
    AfterValidator(_stream_types),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "pattern": f"^({_ANY_TYPE})(,({_ANY_TYPE}))*$"},
            "minItems": 1,
        }
    ),
    Query(
        description=f"One or many of {', '.join(STREAM_TYPES)}: the parameter repeated, or its values"
        " separated by commas. A type that the site lacks makes the whole request a 400."
    ),
]
