from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_stem.simulator import Settings
from airflow_provider_stem.simulator.curves import Building, Series
from airflow_provider_stem.simulator.model import Fleet

from .conftest import instant

YEAR = (instant("2024-01-01T00:15:00Z"), instant("2025-01-01T00:00:00Z"))
FLEET = Fleet(Settings())


def decimals(values: object) -> list[Fraction]:
    """Return floats as exact fractions of their shortest decimal form."""
    return [Fraction(repr(float(value))) for value in np.asarray(values)]


def local_hours(building: Building, ends: object) -> np.ndarray:
    """Return the hour of the local day at the middle of each 900 s interval."""
    return ((np.asarray(ends) - 450 + building.utc_offset) % 86_400) / 3600


def test_the_first_twenty_sites_are_comparable() -> None:
    starts = [FLEET.site(site_id).stream_start_times for site_id in FLEET.site_ids]
    assert len(starts) == 20
    assert all({"MONITOR", "CONVERTER"} <= times.keys() for times in starts)
    assert any("INTERVAL_REVENUE" not in times for times in starts)
    assert any("INTERVAL_REVENUE" in times for times in starts)
    for times in starts:
        assert instant("2011-01-01T00:00:00Z") <= min(times.values()) == times["MONITOR"]
        assert max(times.values()) < instant("2024-01-01T00:00:00Z")


def test_a_large_fleet_is_lazy_and_varied() -> None:
    fleet = Fleet(Settings(sites=12_000, clients=300))
    names = [fleet.site_name(index) for index in range(12_000)]
    assert len(set(names)) == 12_000
    assert len({client.id for client in fleet.clients}) == 300
    sites = [fleet.site(site_id) for site_id in fleet.site_ids[:600]]
    without = [sum(name not in site.stream_start_times for site in sites) for name in ("CONVERTER", "INTERVAL_REVENUE")]
    assert 20 <= without[0] <= 120
    assert 150 <= without[1] <= 250
    assert len({site.stream_start_times["MONITOR"] // (365 * 86_400) for site in sites}) >= 8
    indices = [index for client in fleet.clients for index in fleet.site_indices(client.id)]
    assert indices == list(range(12_000))
    assert all(fleet.client_of(i).id == c.id for c in fleet.clients[::37] for i in fleet.site_indices(c.id))


@pytest.mark.parametrize(
    "site_id",
    [
        "",
        "site-00000",
        "site-00021",
        "site-1",
        "site-0001",
        "site-000001",
        "Site-00001",
        "site-\u0660\u0660\u0660\u0660\u0661",
    ],
)
def test_other_spellings_of_ids_do_not_exist(site_id: str) -> None:
    with pytest.raises(KeyError):
        FLEET.site(site_id)


@pytest.mark.parametrize("site_id", ["site-00001", "site-00004", "site-00010"])
def test_monitor_is_exactly_load_plus_converter(site_id: str) -> None:
    for resolution in (900, 1800, 3600):
        ends, load = FLEET.load(site_id, resolution, *YEAR)
        _, converter = FLEET.values(site_id, "CONVERTER", resolution, *YEAR)
        _, monitor = FLEET.values(site_id, "MONITOR", resolution, *YEAR)
        assert len(ends) == (YEAR[1] - instant("2024-01-01T00:00:00Z")) // resolution
        together = [a + b for a, b in zip(decimals(load), decimals(converter), strict=True)]
        assert decimals(monitor) == together


@pytest.mark.parametrize("resolution", [1800, 3600])
@pytest.mark.parametrize("stream_type", ["MONITOR", "CONVERTER", "INTERVAL_REVENUE"])
def test_coarser_values_are_the_exact_means_of_finer_values(stream_type: str, resolution: int) -> None:
    _, fine = FLEET.values("site-00001", stream_type, 900, *YEAR)
    ends, coarse = FLEET.values("site-00001", stream_type, resolution, *YEAR)
    count = resolution // 900
    listed = decimals(fine)
    means = [sum(listed[n : n + count]) / count for n in range(0, len(listed), count)]
    assert decimals(coarse) == means
    assert not np.any(ends % resolution)


def test_values_have_five_decimals() -> None:
    _, monitor = FLEET.values("site-00001", "MONITOR", 900, *YEAR)
    assert all((value * 100_000).denominator == 1 for value in decimals(monitor))


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(-5_000, 35_000),
    count=st.integers(1, 400),
    site=st.integers(1, 20),
    stream_type=st.sampled_from(["MONITOR", "CONVERTER"]),
)
def test_a_value_does_not_depend_on_the_range(first: int, count: int, site: int, stream_type: str) -> None:
    site_id = f"site-{site:05d}"
    begin = YEAR[0] + first * 900
    ends, values = FLEET.values(site_id, stream_type, 900, begin, begin + (count - 1) * 900)
    assert len(ends) == count
    middle = count // 2
    _, alone = FLEET.values(site_id, stream_type, 900, int(ends[middle]), int(ends[middle]))
    assert alone.tolist() == [values[middle]]


def test_values_depend_on_the_seed() -> None:
    same, other = Fleet(Settings()), Fleet(Settings(seed=1))
    mine = FLEET.values("site-00003", "MONITOR", 900, *YEAR)[1]
    assert np.array_equal(mine, same.values("site-00003", "MONITOR", 900, *YEAR)[1])
    assert not np.array_equal(mine, other.values("site-00003", "MONITOR", 900, *YEAR)[1])
    assert same.site("site-00003") == FLEET.site("site-00003") != other.site("site-00003")


@pytest.mark.parametrize("site_id", FLEET.site_ids)
def test_a_year_looks_like_a_building_with_a_battery(site_id: str) -> None:
    building = FLEET.site(site_id).building
    ends, converter = FLEET.values(site_id, "CONVERTER", 900, *YEAR)
    _, load = FLEET.load(site_id, 900, *YEAR)
    hours = local_hours(building, ends)
    assert 0.5 * building.peak_kw < load.max() < 1.2 * building.peak_kw
    assert (load.min() < 0) == bool(building.solar_kw)
    if not building.solar_kw:
        afternoon, night = load[(hours > 10) & (hours < 16)].mean(), load[(hours > 1) & (hours < 4)].mean()
        assert afternoon > 1.2 * night
    charging, discharging = converter > 0.1 * building.battery_kw, converter < -0.1 * building.battery_kw
    assert hours[charging].max() < 8
    assert hours[discharging].min() > 13
    assert np.abs(converter).max() < 1.01 * building.battery_kw
    discharged, charged = -converter[converter < 0].sum() / 4, converter[converter > 0].sum() / 4
    assert 0.7 < discharged / charged < 0.92
    assert discharged / 366 < building.battery_kw * building.battery_hours
    daily = -converter.clip(max=0).sum() / 4 / 366
    assert daily > 0.3 * building.battery_kw * building.battery_hours


def test_some_sites_export_at_noon() -> None:
    site = FLEET.site("site-00004")
    ends, monitor = FLEET.values(site.id, "MONITOR", 900, *YEAR)
    noon = (local_hours(site.building, ends) > 11) & (local_hours(site.building, ends) < 13)
    assert (monitor[noon] < 0).mean() > 0.5
    assert (monitor[local_hours(site.building, ends) < 4] > 0).all()


def test_the_revenue_meter_is_close_but_not_equal() -> None:
    _, monitor = FLEET.values("site-00001", "MONITOR", 900, *YEAR)
    _, revenue = FLEET.values("site-00001", "INTERVAL_REVENUE", 900, *YEAR)
    apart = np.abs(revenue / monitor - 1)
    assert apart.max() <= 0.005
    assert (apart > 0).mean() > 0.99


def test_weekends_and_seasons_differ() -> None:
    building = FLEET.site("site-00002").building  # offices
    ends, load = FLEET.load("site-00002", 900, *YEAR)
    weekday = ((ends - 450 + building.utc_offset) // 86_400 + 3) % 7
    assert load[weekday < 5].mean() > 1.3 * load[weekday >= 5].mean()
    july = (ends >= instant("2024-07-01T00:00:00Z")) & (ends < instant("2024-08-01T00:00:00Z"))
    january = ends < instant("2024-02-01T00:00:00Z")
    assert load[july].mean() > 1.05 * load[january].mean()


def test_values_of_an_empty_range_and_of_missing_streams() -> None:
    ends, values = FLEET.values("site-00001", "MONITOR", 900, YEAR[0] + 1, YEAR[0] + 899)
    assert (len(ends), len(values)) == (0, 0)
    with pytest.raises(KeyError):
        FLEET.values("site-00003", "INTERVAL_REVENUE", 900, *YEAR)
    with pytest.raises(KeyError):
        FLEET.load("nowhere", 900, *YEAR)


def test_series_can_be_computed_in_parts() -> None:
    """The concatenated parts of a day equal the whole day."""
    building = FLEET.site("site-00001").building
    day = Series(building, YEAR[0], YEAR[0] + 95 * 900)
    halves = [Series(building, YEAR[0], YEAR[0] + 30 * 900), Series(building, YEAR[0] + 31 * 900, YEAR[0] + 95 * 900)]
    for name in ("load", "converter", "monitor", "revenue"):
        joined = np.concatenate([getattr(half, name) for half in halves])
        assert np.array_equal(joined, getattr(day, name))


@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_a_stream_that_begins_after_the_range_has_no_rows(resolution):
    fleet = Fleet(Settings(sites=20))
    for site_id in fleet.site_ids:
        starts = fleet.site(site_id).stream_start_times
        last = starts["CONVERTER"] // 3600 * 3600
        rows = fleet.rows(
            site_id, ["MONITOR", "CONVERTER"], resolution, last - 7200 + resolution, last, fleet.view(resolution, 2e9)
        )
        assert len(rows["CONVERTER"].ends) == 0
        began = starts["MONITOR"] <= last - 7200
        assert len(rows["MONITOR"].ends) == 7200 // resolution or not began
