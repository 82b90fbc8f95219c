"""The fleet: clients, sites, and the part of their streams that the API returns at a given time.

Everything is derived from :class:`~airflow_provider_stem.simulator.settings.Settings`. A site is generated on first
use, so a large fleet is as cheap to create as a small one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import numpy as np

from airflow_provider_stem.simulator.curves import (
    BASE,
    Building,
    Floats,
    Ints,
    Series,
    means,
    noise,
    provisional,
)
from airflow_provider_stem.simulator.ranges import first_interval
from airflow_provider_stem.simulator.settings import Settings
from airflow_provider_stem.simulator.stream_types import STREAM_TYPES, has_battery, start_times

_HOUR = 3600
# Cities, and the offset of their standard time from UTC in hours.
_CITIES = (
    ("Oakland", -8), ("San Jose", -8), ("Sacramento", -8), ("Fresno", -8), ("San Diego", -8),
    ("Long Beach", -8), ("Riverside", -8), ("Portland", -8), ("Tacoma", -8), ("Reno", -8),
    ("Phoenix", -7), ("Tucson", -7), ("Denver", -7), ("Salt Lake City", -7), ("Albuquerque", -7),
    ("Austin", -6), ("Houston", -6), ("Chicago", -6), ("Minneapolis", -6), ("Nashville", -6),
    ("Boston", -5), ("Worcester", -5), ("Newark", -5), ("Albany", -5), ("Philadelphia", -5),
    ("Baltimore", -5), ("Atlanta", -5), ("Toronto", -5), ("Honolulu", -10), ("Hilo", -10), ("Anaheim", -8),
)  # fmt: skip
_BUILDINGS = (
    ("Distribution Center", "shift"), ("Corporate Offices", "day"), ("Supermarket", "retail"),
    ("Airport Hotel", "stay"), ("Cold Storage", "shift"), ("Community College", "day"),
    ("Shopping Mall", "retail"), ("Medical Center", "stay"), ("Bottling Plant", "shift"),
    ("Research Campus", "day"), ("Home Improvement Store", "retail"), ("Senior Residence", "stay"),
)  # fmt: skip
_OWNERS = (
    "Acme", "Harbor", "Redwood", "Summit", "Lakeside", "Pioneer", "Golden Gate", "Cascade", "Prairie",
    "Atlas", "Meridian",
)  # fmt: skip
_TRADES = (
    "Foods", "Properties", "Logistics", "Hotels", "Markets", "Health", "Beverages", "Schools", "Retail",
    "Biotech", "Storage", "Manufacturing",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the API. The first ``index`` is 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Site:
    """A site. ``stream_start_times`` are seconds since 1970 in UTC, for each stream type of the site."""

    index: int
    id: str
    name: str
    client_id: str
    stream_start_times: Mapping[str, int]
    building: Building


@dataclass(frozen=True, slots=True)
class View:
    """The visible intervals of one resolution at a given time. All fields are seconds since 1970 in UTC.

    :param last_end: end of the last visible interval.
    :param final_end: 900 s intervals that end later have provisional values.
    """

    last_end: int
    final_end: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Intervals of one stream in ascending order.

    :param ends: interval ends in seconds since 1970 in UTC.
    :param values: mean powers in kW.
    :param nulls: true where the API returns null instead of the value.
    """

    ends: Ints
    values: Floats
    nulls: np.ndarray[tuple[int], np.dtype[np.bool_]]


class Fleet:
    """The clients and sites of a simulator.

    :param settings: size, seed, and the share of missing, null, late and provisional values.
    :raises ValueError: ``settings.forbidden`` names an id that does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._cached_site = lru_cache(maxsize=50_000)(self._site)
        self.clients: Sequence[Client] = tuple(_client(index) for index in range(settings.clients))
        self._clients = {client.id: client for client in self.clients}
        for forbidden_id in settings.forbidden - self._clients.keys():
            try:
                self.site_index(forbidden_id)
            except KeyError:
                raise ValueError(
                    f"Invalid forbidden {forbidden_id!r}: no such client or site. Use ids that the simulator lists"
                ) from None

    def client(self, client_id: str) -> Client:
        """Return the client with an id.

        :raises KeyError: there is none.
        """
        return self._clients[client_id]

    def site_indices(self, client_id: str) -> range:
        """Return the indices of a client's sites, in the order in which the API lists them.

        :raises KeyError: there is no such client.
        """
        index, settings = self._clients[client_id].index, self.settings
        return range(index * settings.sites // settings.clients, (index + 1) * settings.sites // settings.clients)

    def site(self, site_id: str) -> Site:
        """Return the site with an id.

        :raises KeyError: there is none.
        """
        return self._cached_site(site_id)

    @property
    def site_ids(self) -> list[str]:
        """The ids of all sites."""
        return [self.site_id(index) for index in range(self.settings.sites)]

    @staticmethod
    def site_id(index: int) -> str:
        """Return the id of the site at ``index``. The first index is 0."""
        return f"site-{index + 1:05d}"

    def site_index(self, site_id: str) -> int:
        """Return the index of the site with an id.

        :raises KeyError: there is none.
        """
        digits = site_id.removeprefix("site-")
        if digits.isascii() and digits.isdigit() and len(digits) < 10:
            index = int(digits) - 1
            if 0 <= index < self.settings.sites and self.site_id(index) == site_id:
                return index
        raise KeyError(site_id)

    def site_name(self, index: int) -> str:
        """Return the name of the site at ``index``. Names are unique."""
        city, _ = _CITIES[index % len(_CITIES)]
        name = f"{city} {_BUILDINGS[index % len(_BUILDINGS)][0]}"
        repeat = index // (len(_CITIES) * len(_BUILDINGS))  # the lengths have no common divisor
        return f"{name} {repeat + 1}" if repeat else name

    def client_of(self, index: int) -> Client:
        """Return the client of the site at ``index``."""
        client_index = ((index + 1) * self.settings.clients - 1) // self.settings.sites
        return self.clients[client_index]

    def _site(self, site_id: str) -> Site:
        index = self.site_index(site_id)
        draw = random.Random(f"site/{self.settings.seed}/{index}")  # nosec B311 # noqa: S311 - must be reproducible
        return Site(
            index=index,
            id=site_id,
            name=self.site_name(index),
            client_id=self.client_of(index).id,
            stream_start_times=start_times(index, draw),
            building=_building(draw, index),
        )

    def view(self, resolution: int, now: float) -> View:
        """Return which intervals are visible.

        :param resolution: length of the intervals in seconds.
        :param now: the time in seconds since 1970 in UTC.
        """
        settled = now - self.settings.settle
        last = int(settled // resolution) * resolution
        if self.settings.partial_bin and last < settled:
            last += resolution
        return View(last, int((now - max(self.settings.settle, self.settings.restate)) // BASE) * BASE)

    def rows(
        self, site_id: str, stream_types: Sequence[str], resolution: int, first: int, last: int, view: View
    ) -> dict[str, Rows]:
        """Return the visible rows of a site's streams, by stream type.

        Start times, gaps, nulls and provisional values are applied. An interval exists if all of its 900 s parts
        exist, and is null if one of them is null.

        :param site_id: id of the site.
        :param stream_types: the stream types.
        :param resolution: length of the intervals in seconds.
        :param first: end of the first interval in seconds since 1970 in UTC, on the grid.
        :param last: end of the last interval, inclusive.
        :param view: the visible intervals, from :meth:`view`.
        :raises KeyError: there is no such site, or it lacks a stream type.
        """
        site = self.site(site_id)
        last = min(last, view.last_end)
        firsts = {name: max(first, first_interval(site.stream_start_times[name], resolution)) for name in stream_types}
        begin = min(firsts.values())
        if begin > last:
            return dict.fromkeys(stream_types, _no_rows())
        series = Series(site.building, begin - resolution + BASE, last)
        return {
            name: self._rows(series, name, resolution, first_end, view) if first_end <= last else _no_rows()
            for name, first_end in firsts.items()
        }

    def shown(
        self, site_id: str, stream_type: str, resolution: int, first_end: int, last_end: int, now: datetime
    ) -> Rows:
        """Return exactly the rows of a stream that the API returns at ``now``.

        :param site_id: id of the site.
        :param stream_type: the stream type.
        :param resolution: length of the intervals in seconds.
        :param first_end: end of the first interval in seconds since 1970 in UTC, on the grid.
        :param last_end: end of the last interval, inclusive.
        :param now: an aware datetime.
        :raises KeyError: there is no such site, or it lacks the stream type.
        """
        view = self.view(resolution, now.timestamp())
        return self.rows(site_id, [stream_type], resolution, first_end, last_end, view)[stream_type]

    def _rows(self, series: Series, stream_type: str, resolution: int, first: int, view: View) -> Rows:
        parts = resolution // BASE
        begin = int(np.searchsorted(series.ends, first)) + 1 - parts
        ends, units = series.ends[begin:], STREAM_TYPES[stream_type].values(series)[begin:]
        restated = int(np.searchsorted(ends, view.final_end, side="right"))
        if restated < len(units):
            units = np.concatenate([units[:restated], provisional(units[restated:])])
        values, interval_ends = means(units, parts), ends[parts - 1 :: parts]
        missing = self._drawn(series, stream_type, ends, parts, self.settings.gaps, "gaps")
        nulls = self._drawn(series, stream_type, ends, parts, self.settings.null_values, "nulls")
        if missing.any():
            kept = ~missing
            return Rows(interval_ends[kept], values[kept], nulls[kept])
        return Rows(interval_ends, values, nulls)

    def _drawn(
        self, series: Series, stream_type: str, ends: Ints, parts: int, share: float, what: str
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Draw ``share`` of all 900 s intervals, and return which intervals contain one of them."""
        if not share:
            return np.zeros(len(ends) // parts, dtype=np.bool_)
        salt = 1000 * (1 + list(STREAM_TYPES).index(stream_type)) + (what == "gaps")
        drawn = noise(series.building.seed + salt, ends // BASE) < share
        return np.asarray(drawn.reshape(-1, parts).any(axis=1))

    def values(
        self, site_id: str, stream_type: str, resolution: int, first_end: int, last_end: int
    ) -> tuple[Ints, Floats]:
        """Return a stream's final values, before start times, gaps, nulls and settling are applied.

        :param site_id: id of the site.
        :param stream_type: the stream type.
        :param resolution: length of the intervals in seconds.
        :param first_end: lower bound of the interval ends, inclusive, in seconds since 1970 in UTC.
        :param last_end: upper bound of the interval ends, inclusive.
        :returns: the interval ends on the grid, and their kw_total_avg in kW.
        :raises KeyError: there is no such site, or it lacks the stream type.
        """
        site = self.site(site_id)
        site.stream_start_times[stream_type]
        return _truth(site, resolution, first_end, last_end, STREAM_TYPES[stream_type].values)

    def load(self, site_id: str, resolution: int, first_end: int, last_end: int) -> tuple[Ints, Floats]:
        """Return the load of the site without its battery, MONITOR - CONVERTER, in the form of :meth:`values`.

        :raises KeyError: there is no such site.
        """
        return _truth(self.site(site_id), resolution, first_end, last_end, lambda series: series.load)


def _client(index: int) -> Client:
    name = f"{_OWNERS[index % len(_OWNERS)]} {_TRADES[index % len(_TRADES)]}"
    repeat = index // (len(_OWNERS) * len(_TRADES))
    name = f"{name} {repeat + 1}" if repeat else name
    return Client(index, name.lower().replace(" ", "-"), name)


def _truth(
    site: Site, resolution: int, first_end: int, last_end: int, values: Callable[[Series], Ints]
) -> tuple[Ints, Floats]:
    first = -(-first_end // resolution) * resolution
    last = last_end // resolution * resolution
    if first > last:
        rows = _no_rows()
        return rows.ends, rows.values
    series = Series(site.building, first - resolution + BASE, last)
    parts = resolution // BASE
    return series.ends[parts - 1 :: parts], means(values(series), parts)


def _no_rows() -> Rows:
    return Rows(np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.bool_))


def _building(draw: random.Random, index: int) -> Building:
    peak = round(60 * 25 ** draw.random(), 1)  # 60 to 1,500 kW, mostly small
    return Building(
        seed=draw.getrandbits(63),
        utc_offset=_CITIES[index % len(_CITIES)][1] * _HOUR,
        use=_BUILDINGS[index % len(_BUILDINGS)][1],
        shift=draw.randint(-2, 3),
        peak_kw=peak,
        cooling=draw.uniform(0.08, 0.22),
        battery_kw=round(peak * draw.uniform(0.16, 0.28)) if has_battery(index) else 0.0,
        battery_hours=draw.choice((2, 2, 3)),
        efficiency=draw.uniform(0.85, 0.91),
        charge_from=draw.randint(1, 4),
        discharge_from=draw.randint(57, 63),
        solar_kw=peak * draw.uniform(1.1, 1.6) if index % 5 == 3 else 0.0,
        meter_bias=draw.uniform(-0.0025, 0.0025),
    )
