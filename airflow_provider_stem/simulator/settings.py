"""Every switch of the simulator, validated."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from airflow_provider_stem.simulator.faults import parse_random


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the simulated API holds and how it behaves. All instants are UTC, all durations seconds.

    :param api_key: the one key that is accepted.
    :param clients: number of clients.
    :param sites: number of sites, spread evenly over the clients.
    :param seed: everything that is drawn depends on it alone.
    :param forbidden: ids of clients and sites that the key may not see: 403, and left out of lists.
    :param latency: seconds that each answer waits.
    :param settle: an interval shows up this many seconds after its end.
    :param gaps: fraction of 900 s intervals that are missing.
    :param null_values: fraction of 900 s intervals whose kw_total_avg is null.
    :param restate: for this many seconds after its end an interval shows a provisional value.
    :param rate_limit: requests a second before a 429; 0 is no limit.
    :param retry_after: form of the Retry-After header of a 429.
    :param faults: random faults as KIND:PROBABILITY, as in 503:0.01; may be given several times.
    :param reading: A: the range selects streams by interval begin; B: by the shown start and end, which
        is one interval earlier.
    :param rounding: how an instant off the grid is rounded to a stream.
    :param future: refuse answers 400 where end_datetime lies after now.
    :param total_as: what total of a list holds: the number of items, of pages, the number as a string,
        or nothing.
    :param max_per_page: a larger per_page is silently cut to this.
    :param page_as: what page of a list holds: the number of the page, the number as a string, or nothing.
    :param past_end: what a page after the last one is: an empty list, a 404, the last page again, or null.
    :param start_times: what stream_start_times of a site holds: its streams, null, or nothing.
    :param row_zone: how a row's UTC instants end.
    :param row_order: order of rows by time.
    :param unknown_fields: rows, sites and clients carry a field that the guide does not name.
    :param partial_bin: the running interval (with settle: the one after the last visible) is returned too,
        with a provisional value.
    :param now: a fixed instant (ISO 8601 with offset) in place of the clock.
    :param cache_mb: size of the cache of encoded answers in MB; 0 switches it off.
    :raises ValueError: a value is out of its range or not among its choices.
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
            raise ValueError("api_key is empty")
        for name in ("gaps", "null_values"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a fraction, at most 1")
        if self.max_per_page < 1:
            raise ValueError("max_per_page is at least 1")
        if self.sites and not self.clients:
            raise ValueError("sites need at least one client")
        for text in self.faults:
            parse_random(text)
        # An iterable of ids is as good as a frozenset of them.
        object.__setattr__(self, "forbidden", frozenset(self.forbidden))
        object.__setattr__(self, "faults", tuple(self.faults))


def _check(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is one of {', '.join(get_args(hint))}, not {value!r}")
    elif name == "now":
        if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
            raise ValueError("now is a datetime with a time zone, or None")
    elif name in ("forbidden", "faults"):
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{name} is a collection of strings, not {value!r}")
    elif hint in (int, float):
        numeric = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or (value < 0 and name != "seed"):
            raise ValueError(f"{name} is a number, not {value!r}, and not negative")
    elif hint in (str, bool) and not isinstance(value, hint):
        raise ValueError(f"{name} is a {hint.__name__}, not {value!r}")
