"""
Each interval exactly once and never before it is over, for any windows, reading of the guide and rounding.

Once against the guide in arithmetic, once through the whole reading of a site with the same arithmetic as its server,
once over HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.streams.reading import SiteReading
from airflow_provider_stem.streams.sites import Site
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window, parse_instant

from .guide import READINGS, ROUNDINGS, GuideClient, Reading, Rounding, selected
from .helpers import DAY, RESOLUTIONS, at, ends_of, examples, rows_of, seconds, tally, utc

MICRO = 1_000_000

ZONES: list[tzinfo] = [
    UTC,
    *map(ZoneInfo, ["America/New_York", "Europe/London", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]),
    timezone(timedelta(hours=5, minutes=30)),
    timezone(timedelta(hours=-3, minutes=-7, seconds=-13)),
    pendulum.timezone("America/Los_Angeles"),
]
# Shortly before the clocks change in these zones; and the ends of a leap day and of a year.
TURNS = [
    seconds(utc(text))
    for text in (
        "2024-03-10T06:00",
        "2024-11-03T05:00",
        "2024-03-31T00:00",
        "2024-10-27T00:00",
        "2024-04-06T14:00",
        "2024-10-05T14:00",
        "2024-02-29T22:00",
        "2023-12-31T22:00",
    )
]


@st.composite
def cuts(draw: st.DrawFn, resolution: int, *, longest: int) -> list[datetime]:
    """Consecutive instants in any time zones, as the bounds of scheduled runs."""
    first = draw(
        st.integers(seconds(utc("2024-01-01")), seconds(utc("2024-12-01"))).map(lambda s: s * MICRO)
        | st.sampled_from(TURNS).map(lambda s: s * MICRO)
        | st.integers(1_704_067_200 * MICRO, 1_730_000_000 * MICRO)
    )
    width = st.one_of(
        st.integers(1, 2 * resolution * MICRO),
        st.sampled_from([resolution, 3600, DAY, DAY + 3600, DAY - 3600]).map(lambda s: s * MICRO),
        st.integers(1, 8 * 3600).map(lambda s: s * MICRO),
        st.integers(1, longest * MICRO),
    )
    instants = [first]
    for step in draw(st.lists(width, min_size=1, max_size=8)):
        instants.append(instants[-1] + step)
    one_zone = draw(st.booleans())
    zone = draw(st.sampled_from(ZONES))
    zones = [zone if one_zone else draw(st.sampled_from(ZONES)) for _ in instants]
    return [
        (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).astimezone(its_zone)
        for micros, its_zone in zip(instants, zones, strict=True)
    ]


def windows_of(instants: Sequence[datetime], resolution: int) -> list[Window]:
    return [
        Window.covering(parse_instant("start", start), parse_instant("end", end), resolution)
        for start, end in pairwise(instants)
    ]


def whole_period(instants: Sequence[datetime], resolution: int) -> range:
    """Return the ends of the intervals that end after the first instant and not after the last."""
    first, last = (int(instant.astimezone(UTC).timestamp()) // resolution for instant in (instants[0], instants[-1]))
    return range((first + 1) * resolution, last * resolution + 1, resolution)


def is_over(end: int, instant: datetime) -> bool:
    return at(end) <= instant


def wrong(arrived: Sequence[range], expected: range) -> int:
    """Return the number of intervals that were not read exactly once, in order."""
    pieces = [piece for piece in arrived if piece]
    edges = [expected.start, *(piece.stop for piece in pieces)]
    if [piece.start for piece in pieces] == edges[:-1] and sum(map(len, pieces)) == len(expected):
        return 0
    came = Counter(k for piece in pieces for k in piece)
    return max(1, sum(came[k] != 1 for k in came.keys() | set(expected)))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("reading", READINGS)
def test_by_the_guide(reading: Reading, resolution: int) -> None:
    counts = tally(f"tiling, guide in arithmetic, reading {reading}, {resolution:>4} s")

    @examples(600)
    @given(instants=cuts(resolution, longest=900 * DAY))
    def check(instants: list[datetime]) -> None:
        expected = whole_period(instants, resolution)
        windows = windows_of(instants, resolution)
        mistakes = 0
        for rounding in ROUNDINGS:
            # If the future is rejected, a window that ends now is requested without its padding on the right. The
            # second reading cannot return its last interval then.
            for right in (True, False) if reading == "A" else (True,):
                arrived = []
                for window, read_at in zip(windows, instants[1:], strict=True):
                    for part in window.parts():
                        asked = part.padded(until=None if right else part.end)
                        shown = selected(seconds(asked.start), seconds(asked.end), resolution, reading, rounding)
                        first, last = max(shown.start, part.first_end), min(shown[-1], part.last_end)
                        arrived.append(range(first, last + resolution, resolution))
                        mistakes += not is_over(arrived[-1][-1], read_at)
                mistakes += wrong(arrived, expected)
        counts.add(
            cases=1, windows=len(windows), intervals_by_4_roundings=len(expected) * len(ROUNDINGS), wrong=mistakes
        )
        assert not mistakes

    check()


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("reading", READINGS)
def test_without_padding_the_second_reading_is_wrong(reading: Reading, resolution: int) -> None:
    """Show that the test above can fail: without the padding, the result is wrong."""
    window = Window(utc("2025-07-01"), utc("2025-07-02"), resolution)
    shown = selected(seconds(window.start), seconds(window.end), resolution, reading, "half_up")
    expected = range(window.first_end, window.last_end + 1, resolution)
    assert (wrong([shown], expected) == 0) == (reading == "A")


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("reading", READINGS)
def test_through_the_reading_of_a_site(reading: Reading, resolution: int) -> None:
    counts = tally(f"tiling, reading of a site,     reading {reading}, {resolution:>4} s")
    types = ["CONVERTER", "MONITOR"]

    @examples(60)
    @given(instants=cuts(resolution, longest=DAY), rounding=st.sampled_from(ROUNDINGS))
    def check(instants: list[datetime], rounding: Rounding) -> None:
        expected = list(whole_period(instants, resolution))
        windows = windows_of(instants, resolution)
        client = GuideClient(reading, rounding)
        arrived: dict[str, list[int]] = {name: [] for name in types}
        mistakes = 0
        for window, read_at in zip(windows, instants[1:], strict=True):
            result = SiteReading(
                StreamsSource(client.as_client()), Site("site"), types, window, lambda rows: rows, "fail"
            ).run()
            for name in types:
                for rows in result.kept.get(name, []):
                    arrived[name] += ends_of(rows)
                    mistakes += sum(end != value or not is_over(end, read_at) for end, value in rows_of(rows))
        mistakes += sum(came != expected for came in arrived.values())
        assert client.requests == sum(window.intervals > 0 for window in windows)
        counts.add(cases=1, windows=len(windows), intervals=len(expected) * len(types), wrong=mistakes)
        assert not mistakes

    check()


@pytest.fixture(scope="module", params=READINGS)
def servers(request: pytest.FixtureRequest) -> Iterator[dict[Rounding, tuple[Simulator, StemClient]]]:
    """Return a simulator for each rounding; they also show the running interval, with a preliminary value."""
    with ExitStack() as stack:
        running: dict[Rounding, tuple[Simulator, StemClient]] = {}
        for rounding in ROUNDINGS:
            settings = Settings(sites=1, clients=1, reading=request.param, rounding=rounding, partial_bin=True)
            simulator = stack.enter_context(Simulator(settings))
            client = stack.enter_context(
                StemClient(ClientConfig(ApiKey(settings.api_key), simulator.url), sleep=lambda _: None)
            )
            running[rounding] = simulator, client
        yield running


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_over_http(servers: dict[Rounding, tuple[Simulator, StemClient]], resolution: int) -> None:
    reading = servers["floor"][0].settings.reading
    counts = tally(f"tiling, simulator over HTTP,   reading {reading}, {resolution:>4} s")

    @examples(60)
    @given(instants=cuts(resolution, longest=3 * DAY), rounding=st.sampled_from(ROUNDINGS))
    def check(instants: list[datetime], rounding: Rounding) -> None:
        simulator, client = servers[rounding]
        site_id = simulator.fleet.site_id(0)
        expected = whole_period(instants, resolution)
        truth: list[tuple[int, float | None]] = []
        if expected:
            ends, values = simulator.fleet.values(site_id, "MONITOR", resolution, expected[0], expected[-1])
            truth = list(zip(ends.tolist(), values.tolist(), strict=True))
        windows = windows_of(instants, resolution)
        arrived = []
        for window, read_at in zip(windows, instants[1:], strict=True):
            simulator.now = read_at
            result = SiteReading(
                StreamsSource(client), Site(site_id), ["MONITOR"], window, lambda rows: rows, "fail"
            ).run()
            arrived += [row for rows in result.kept.get("MONITOR", []) for row in rows_of(rows)]
        mistakes = sum(came != wanted for came, wanted in zip(arrived, truth, strict=False))
        mistakes += abs(len(arrived) - len(truth))
        counts.add(cases=1, windows=len(windows), intervals=len(truth), wrong=mistakes)
        assert arrived == truth

    check()
