"""Power of a building with a battery, for each interval of 900 s.

Power is an integer in units of 10 mW, the fifth decimal of a kW, so that sums and means of listed values are exact.
A value depends only on the building and the interval, not on the range that is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

BASE = 900  # seconds; the finest resolution
PER_KW = 100_000
_PER_DAY = 96
_PER_WEEK = 7 * _PER_DAY
_THURSDAY = 3  # 1970-01-01
_YEAR = 365.2425  # days

# Share of the peak load at each hour of a weekday, and the weekend days on which the building is open.
_HOURLY: dict[str, tuple[str, str]] = {
    "day": (".30 .29 .28 .28 .30 .38 .52 .70 .86 .94 .98 1 .99 1 .98 .95 .90 .78 .62 .50 .42 .38 .34 .31", ""),
    "shift": (".46 .45 .44 .45 .55 .74 .92 .97 .99 1 1 .96 .90 .97 1 .99 .96 .90 .86 .84 .80 .72 .58 .50", "5"),
    "retail": (".40 .38 .38 .38 .40 .46 .55 .66 .76 .84 .90 .95 .98 1 1 1 .99 .98 .97 .94 .88 .76 .56 .45", "56"),
    "stay": (".60 .56 .54 .53 .55 .64 .80 .90 .88 .82 .80 .80 .81 .82 .83 .86 .91 .97 1 .99 .95 .88 .78 .68", "56"),
}


@dataclass(frozen=True, slots=True)
class Building:
    """Physical parameters of a site. Powers are in kW, and ``utc_offset`` in seconds."""

    seed: int
    utc_offset: int
    use: str
    shift: int  # quarter hours by which the day starts later
    peak_kw: float
    cooling: float  # share of the peak that is added on summer afternoons
    battery_kw: float  # 0: no battery
    battery_hours: int
    efficiency: float
    charge_from: int  # quarter hour of the local day
    discharge_from: int
    solar_kw: float  # 0: no solar
    meter_bias: float  # relative error of the revenue meter


def noise(seed: int, index: Ints) -> Floats:
    """Return reproducible noise, uniform in [0, 1), which depends only on ``seed`` and ``index`` (splitmix64)."""
    mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache
def _week(use: str) -> Floats:
    """Return the share of the peak in each quarter hour from Monday 00:00."""
    hourly, open_on = _HOURLY[use]
    weekday = np.array(hourly.split(), dtype=np.float64)
    closed = weekday.min() + 0.12 * (weekday - weekday.min())
    half_open = weekday.min() + 0.82 * (weekday - weekday.min())
    days = [weekday] * 5 + [half_open if day in open_on else closed for day in "56"]
    hours = np.concatenate(days)
    quarters = np.arange(_PER_WEEK) / 4 + 0.125
    return np.asarray(np.interp(quarters, np.arange(len(hours)) + 0.5, hours, period=len(hours)))


@lru_cache
def _trapezoid(quarters: int, ramp: int) -> Floats:
    """Return the power in kW that moves 1 kWh over a number of quarter hours, with a zero at each end."""
    steps = np.arange(quarters)
    shape = np.minimum(1.0, np.minimum(steps + 1, quarters - steps) / (ramp + 1))
    return np.pad(shape / (shape.sum() / 4), 1)


class Series:
    """The streams of one building over contiguous 900 s intervals.

    :param building: its parameters.
    :param first: end of the first interval in seconds since 1970 in UTC, a multiple of 900.
    :param last: end of the last interval, inclusive.
    """

    def __init__(self, building: Building, first: int, last: int) -> None:
        self.building = building
        self.ends: Ints = np.arange(first, last + 1, BASE, dtype=np.int64)
        self._index = self.ends // BASE
        slots = (self.ends - BASE + building.utc_offset) // BASE
        self._slots = slots
        days = slots // _PER_DAY
        self._quarter = slots - days * _PER_DAY
        self._days = np.arange(days[0], days[-1] + 1)
        self._day = days - days[0]

    def _noise(self, salt: int, index: Ints) -> Floats:
        return noise(self.building.seed + salt, index)

    @cached_property
    def _summer(self) -> Floats:
        """1 at midsummer, -1 at midwinter, for each local day."""
        return np.cos((self._days - 200) * (2 * np.pi / _YEAR))

    @cached_property
    def load(self) -> Ints:
        """The site without its battery: consumption minus solar, in 10 mW."""
        building = self.building
        share = np.take(_week(building.use), (self._slots - building.shift + _THURSDAY * _PER_DAY) % _PER_WEEK)
        afternoon = np.exp(-(((np.arange(_PER_DAY) / 4 - 15.25) / 3.6) ** 2))
        drawn = share * (0.84 - building.cooling + 0.05 * self._summer)[self._day]
        drawn += (building.cooling * np.maximum(self._summer, -0.2))[self._day] * share * afternoon[self._quarter]
        drawn *= (0.94 + 0.12 * self._noise(1, self._days))[self._day]
        hours = self._index // 4
        drift = self._noise(2, np.arange(hours[0], hours[-1] + 2))
        at = hours - hours[0]
        drawn *= 0.97 + 0.05 * (drift[at] + (drift[at + 1] - drift[at]) * ((self._index % 4) / 4))
        drawn *= 0.985 + 0.03 * self._noise(3, self._index)
        kw = drawn * building.peak_kw
        if building.solar_kw:
            kw -= self._solar()
        return _units(kw)

    def _solar(self) -> Floats:
        day_hours = 12 + 2.4 * np.cos((self._days - 172) * (2 * np.pi / _YEAR))
        begin = (12.6 - day_hours / 2)[self._day]
        height = np.sin(np.clip((self._quarter / 4 + 0.125 - begin) / day_hours[self._day], 0, 1) * np.pi)
        clear = 1 - 0.6 * self._noise(4, self._days) ** 3
        flicker = 1 - (0.9 * (1 - clear))[self._day] * self._noise(5, self._index)
        shine: Floats = self.building.solar_kw * np.maximum(height, 0) * height * clear[self._day] * flicker
        return shine

    @cached_property
    def converter(self) -> Ints:
        """The battery, positive while it charges, in 10 mW; all zeros without a battery."""
        building = self.building
        if not building.battery_kw:
            return np.zeros(len(self.ends), dtype=np.int64)
        weekend = (self._days + _THURSDAY) % 7 >= 5
        depth = (0.62 + 0.33 * self._noise(6, self._days)) * np.where(weekend, 0.45, 1.0)
        energy = building.battery_kw * building.battery_hours * depth
        later = (self._noise(7, self._days) * 5).astype(np.int64)
        out = _trapezoid(building.battery_hours * 5, 2)
        into = _trapezoid(22, 3)
        quarter = self._quarter
        discharge = np.take(out, np.clip(quarter - building.discharge_from - later[self._day] + 1, 0, len(out) - 1))
        charge = np.take(into, np.clip(quarter - building.charge_from + 1, 0, len(into) - 1)) / building.efficiency
        ripple = 0.96 + 0.08 * self._noise(8, self._index)
        kw = energy[self._day] * (charge - discharge) * ripple
        np.clip(kw, -building.battery_kw, building.battery_kw, out=kw)
        kw += building.battery_kw * (0.004 + 0.004 * self._noise(9, self._index))  # consumption of its electronics
        return _units(kw)

    @cached_property
    def monitor(self) -> Ints:
        """The site with its battery, in 10 mW."""
        total: Ints = self.load + self.converter
        return total

    @cached_property
    def revenue(self) -> Ints:
        """The revenue meter's measurement of :attr:`monitor`, within 0.5 %, in 10 mW."""
        error = self.building.meter_bias + 0.004 * (self._noise(10, self._index) - 0.5)
        return np.rint(self.monitor * (1 + error)).astype(np.int64)


def _units(kw: Floats) -> Ints:
    return np.rint(kw * PER_KW).astype(np.int64)


def provisional(units: Ints) -> Ints:
    """Return values as they are before they are restated: lower by 3 %, and always different."""
    return np.asarray(units - 1 - np.abs(units) * 3 // 100)


def means(units: Ints, count: int) -> Floats:
    """Return the exact mean of each group of ``count`` consecutive values in kW, correctly rounded to a float."""
    sums = units if count == 1 else units.reshape(-1, count).sum(axis=1)
    return sums / float(count * PER_KW)
