from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.simulator.ranges import Reading, Rounding, first_interval, round_to_grid, select

from .conftest import Get, ends, instant, text

RESOLUTIONS = st.sampled_from([900, 1800, 3600])
ROUNDINGS: list[Rounding] = ["half_up", "half_even", "floor", "ceil"]
INSTANTS = st.integers(1_500_000_000, 1_700_000_000)


def nearest(at: int, resolution: int, rounding: Rounding) -> int:
    """Round by comparing all nearby multiples."""
    around = range(at // resolution - 2, at // resolution + 3)
    if rounding == "floor":
        return max(n * resolution for n in around if n * resolution <= at)
    if rounding == "ceil":
        return min(n * resolution for n in around if n * resolution >= at)
    distance = min(abs(n * resolution - at) for n in around)
    best = [n for n in around if abs(n * resolution - at) == distance]
    if rounding == "half_up" or len(best) == 1:
        return best[-1] * resolution
    return next(n for n in best if n % 2 == 0) * resolution


def by_the_guide(start: int, end: int, resolution: int, reading: Reading, rounding: Rounding) -> list[int]:
    """Return the intervals near the range that the wording of the guide selects."""
    start, end = nearest(start, resolution, rounding), nearest(end, resolution, rounding)
    kept = []
    for k in range(start - 3 * resolution, end + 3 * resolution + 1, resolution):
        listed_start, listed_end = k - resolution + 1, k
        if reading == "A":
            chosen = start <= k - resolution < end
        else:
            chosen = start - resolution + 1 <= listed_start and listed_end <= end - resolution
        if chosen:
            kept.append(k)
    return kept


@pytest.mark.parametrize("reading", ["A", "B"])
@given(start=INSTANTS, width=st.integers(900, 40_000), resolution=RESOLUTIONS, data=st.data())
def test_the_selected_intervals_are_those_of_the_guide(
    reading: Reading, start: int, width: int, resolution: int, data: st.DataObject
) -> None:
    rounding = data.draw(st.sampled_from(ROUNDINGS))
    end = start + width
    first, last = select(start, end, resolution, reading=reading, rounding=rounding)
    selected = list(range(first, last + 1, resolution))
    assert selected == by_the_guide(start, end, resolution, reading, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(steps=st.integers(0, 10_000), rest=st.sampled_from([0, 1, 449, 450, 451, 899, 1799, 1800, 1801]))
def test_rounding_to_the_grid(rounding: Rounding, steps: int, rest: int) -> None:
    for resolution in (900, 1800, 3600):
        at = steps * resolution + rest
        assert round_to_grid(at, resolution, rounding) == nearest(at, resolution, rounding)


def test_ties_are_rounded_by_the_setting() -> None:
    tie = 900 * 4 + 450
    assert [round_to_grid(tie, 900, r) // 900 for r in ROUNDINGS] == [5, 4, 4, 5]
    assert [round_to_grid(tie + 900, 900, r) // 900 for r in ROUNDINGS] == [6, 6, 5, 6]


@given(start=INSTANTS, resolution=RESOLUTIONS)
def test_a_stream_begins_with_the_first_listed_start_at_or_after_its_start(start: int, resolution: int) -> None:
    candidates = range(start // resolution * resolution - resolution, start + 3 * resolution, resolution)
    assert first_interval(start, resolution) == min(k for k in candidates if k - resolution + 1 >= start)


@pytest.mark.parametrize(
    ("reading", "first", "last"),
    [
        ("A", "2024-12-31T00:15:00Z", "2025-01-01T00:00:00Z"),
        ("B", "2024-12-31T00:00:00Z", "2024-12-31T23:45:00Z"),
    ],
)
def test_the_example_of_the_guide_selects_a_day(
    reading: str, first: str, last: str, get: Get, stem_simulator_factory: Callable[..., Simulator]
) -> None:
    simulator = stem_simulator_factory(reading=reading)
    response = get(
        simulator,
        "sites/site-00001/streams",
        start_datetime="2024-12-31T00:00:01Z",
        end_datetime="2025-01-01T00:00:01Z",
    )
    assert ends(response) == list(range(instant(first), instant(last) + 1, 900))
    assert len(ends(response)) == 96


@pytest.mark.parametrize("reading", ["A", "B"])
def test_served_intervals_are_those_of_the_guide(
    reading: Reading, get: Get, stem_simulator_factory: Callable[..., Simulator]
) -> None:
    served = {rounding: stem_simulator_factory(reading=reading, rounding=rounding) for rounding in ROUNDINGS}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        start=st.integers(instant("2024-01-01T00:00:00Z"), instant("2024-06-01T00:00:00Z")),
        steps=st.fractions(1, 30, max_denominator=8),
        resolution=RESOLUTIONS,
        rounding=st.sampled_from(ROUNDINGS),
    )
    def check(start: int, steps: Fraction, resolution: int, rounding: Rounding) -> None:
        end = start + int(steps * resolution)
        response = get(
            served[rounding],
            "sites/site-00002/streams",
            start_datetime=text(start),
            end_datetime=text(end),
            resolution=resolution,
        )
        assert ends(response) == by_the_guide(start, end, resolution, reading, rounding)

    check()


@pytest.mark.parametrize("reading", ["A", "B"])
def test_consecutive_aligned_ranges_neither_overlap_nor_leave_gaps(
    reading: str, get: Get, stem_simulator_factory: Callable[..., Simulator]
) -> None:
    simulator = stem_simulator_factory(reading=reading)
    cuts = [instant("2024-03-01T00:00:00Z") + 900 * n for n in (0, 1, 5, 6, 40, 96)]

    def read(start: int, end: int) -> list[int]:
        return ends(get(simulator, "sites/site-00001/streams", start_datetime=text(start), end_datetime=text(end)))

    whole = read(cuts[0], cuts[-1])
    assert [end for pair in pairwise(cuts) for end in read(*pair)] == whole
    assert len(whole) == 96
