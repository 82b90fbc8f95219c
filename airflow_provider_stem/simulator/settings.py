"""Settings of the simulator, with their validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from airflow_provider_stem.simulator.faults import parse_random


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Content and behaviour of the simulated API. All times are UTC, all durations are seconds.

    :param api_key: the only valid key.
    :param clients: number of clients.
    :param sites: number of sites, spread evenly over the clients.
    :param seed: seed of all random values.
    :param forbidden: ids of clients and sites that the key has no permission for: 403, and omitted from lists.
    :param latency: seconds before each response.
    :param settle: seconds between the end of an interval and its first appearance.
    :param gaps: fraction of 900 s intervals that are missing.
    :param null_values: fraction of 900 s intervals whose kw_total_avg is null.
    :param restate: seconds after its end during which an interval has a provisional value.
    :param rate_limit: requests per second above which the response is a 429; 0 means no limit.
    :param retry_after: form of the Retry-After header of a 429.
    :param faults: random faults as KIND:PROBABILITY, such as 503:0.01; can be repeated.
    :param reading: A: the range selects intervals by their beginning; B: by their listed start and end, which
        is one interval earlier.
    :param rounding: how a time that is not on the grid is rounded to a stream.
    :param future: refuse: the response is a 400 if end_datetime is in the future.
    :param total_as: total of a list: the number of items, the number of pages, the number as a string,
        or no such field.
    :param max_per_page: upper limit of per_page; larger values are reduced without an error.
    :param page_as: page of a list: the number of the page, the number as a string, or no such field.
    :param past_end: response to a page after the last one: an empty list, a 404, the last page again, or null.
    :param start_times: stream_start_times of a site: its streams, null, or no such field.
    :param row_zone: suffix of the UTC times of rows.
    :param row_order: order of rows by time.
    :param unknown_fields: add to rows, sites and clients a field that the guide does not list.
    :param partial_bin: also return the current interval (with settle: the one after the last visible one),
        with a provisional value.
    :param now: a fixed time (ISO 8601 with offset) instead of the clock.
    :param cache_mb: size of the cache of encoded responses in MB; 0 disables it.
    :raises ValueError: a value is out of range, or not one of its choices.
    """

    api_key: str = "demo-key"
    clients: int = 2
    sites: int = 20
    seed: int = 0
    forbidden: frozenset[str] = frozenset()
    latency: float = 0.0
    settle: float = 0.0
    gaps: float = 0.0
    null_values: float = 0.0
    restate: float = 0.0
    rate_limit: float = 0.0
    retry_after: Literal["seconds", "date"] = "seconds"
    faults: tuple[str, ...] = ()
    reading: Literal["A", "B"] = "A"
    rounding: Literal["half_up", "half_even", "floor", "ceil"] = "half_up"
    future: Literal["accept", "refuse"] = "accept"
    total_as: Literal["items", "pages", "string", "missing"] = "items"
    max_per_page: int = 500
    page_as: Literal["number", "string", "missing"] = "number"
    past_end: Literal["empty", "not_found", "repeat", "null"] = "empty"
    start_times: Literal["shown", "null", "missing"] = "shown"
    row_zone: Literal["+00:00", "Z"] = "+00:00"
    row_order: Literal["ascending", "descending"] = "ascending"
    unknown_fields: bool = False
    partial_bin: bool = False
    now: datetime | None = None
    cache_mb: float = 512.0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check(field.name, hints[field.name], getattr(self, field.name))
        if not self.api_key:
            raise ValueError("api_key must not be empty")
        for name in ("gaps", "null_values"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, got {getattr(self, name)}")
        if self.max_per_page < 1:
            raise ValueError(f"max_per_page must be >= 1, got {self.max_per_page}")
        if self.sites and not self.clients:
            raise ValueError(f"clients must be >= 1 if there are sites, got {self.clients}")
        for text in self.faults:
            parse_random(text)
        # Any iterable of strings is accepted.
        object.__setattr__(self, "forbidden", frozenset(self.forbidden))
        object.__setattr__(self, "faults", tuple(self.faults))


def _check(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {value!r}")
    elif name == "now":
        if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
            raise ValueError(f"now must be a time with an offset, such as 2025-07-01T00:00Z, got {value}")
    elif name in ("forbidden", "faults"):
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{name} must be a collection of strings, got {value!r}")
    elif hint in (int, float):
        numeric = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or (value < 0 and name != "seed"):
            kind = "an integer" if hint is int else "a number"
            raise ValueError(f"{name} must be {kind}{'' if name == 'seed' else ' >= 0'}, got {value!r}")
    elif hint in (str, bool) and not isinstance(value, hint):
        raise ValueError(f"{name} must be a {hint.__name__}, got {value!r}")
