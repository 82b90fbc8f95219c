from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import (
    Partition,
    Window,
    check_end,
    check_resolution,
    epoch,
    first_expected_end,
    from_epoch,
    iso,
    parse_instant,
)

from .helpers import DAY, RESOLUTIONS, at, examples, grid, seconds, tally, utc, window

NEW_YORK = ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")

any_resolution = st.sampled_from(RESOLUTIONS)
any_second = st.integers(seconds(utc("1990-01-01")), seconds(utc("2045-01-01")))
hours = timedelta(hours=1)


def on_grid(resolution: int) -> st.SearchStrategy[int]:
    return any_second.map(lambda second: second // resolution * resolution)


class TestCovering:
    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @examples(150)
    @given(start=any_second, length=st.integers(1, 3 * DAY), micros=st.integers(0, 999_999))
    def test_an_interval_is_covered_if_it_ends_after_the_start_and_not_after_the_end(
        self, resolution: int, start: int, length: int, micros: int
    ) -> None:
        begin = at(start) + timedelta(microseconds=micros)
        end = begin + timedelta(seconds=length)
        covered = Window.covering(begin, end, resolution)
        by_hand = [
            k
            for k in range(start // 900 * 900, start + length + 900, 900)
            if k % resolution == 0 and begin < at(k) <= end
        ]
        # An interval that ends at the very start belongs to the window before.
        assert grid(covered) == by_hand
        assert covered.intervals == len(by_hand)
        if by_hand:
            assert (covered.first_end, covered.last_end) == (by_hand[0], by_hand[-1])

    @pytest.mark.parametrize(
        ("start", "end", "resolution", "expected"),
        [
            ("2025-07-01T00:00:00", "2025-07-01T01:00:00", 900, "2025-07-01T00:00:00Z/2025-07-01T01:00:00Z"),
            ("2025-07-01T00:14:59", "2025-07-01T00:15:00", 900, "2025-07-01T00:00:00Z/2025-07-01T00:15:00Z"),
            (
                "2025-07-01T00:14:59.999999",
                "2025-07-01T00:29:59.999999",
                900,
                "2025-07-01T00:00:00Z/2025-07-01T00:15:00Z",
            ),
            ("2025-07-01T00:15:00", "2025-07-01T00:59:59", 3600, "2025-07-01T00:00:00Z/2025-07-01T00:00:00Z"),
            ("2025-07-01T00:15:00", "2025-07-01T01:45:00", 1800, "2025-07-01T00:00:00Z/2025-07-01T01:30:00Z"),
            ("1969-12-31T23:50:00", "1970-01-01T00:20:00", 900, "1969-12-31T23:45:00Z/1970-01-01T00:15:00Z"),
        ],
    )
    def test_both_bounds_are_rounded_down_to_the_grid(
        self, start: str, end: str, resolution: int, expected: str
    ) -> None:
        assert str(window(start, end, resolution)) == expected

    def test_the_day_of_the_guide_has_96_intervals(self) -> None:
        day = window("2014-12-31T00:00:01", "2015-01-01T00:00:01")
        assert (day.intervals, type(day.intervals)) == (96, int)
        assert day.as_json() == {"start": "2014-12-31T00:00:00Z", "end": "2015-01-01T00:00:00Z", "resolution": 900}

    @pytest.mark.parametrize(("day", "intervals"), [("2025-03-09", 92), ("2025-07-01", 96), ("2025-11-02", 100)])
    def test_a_local_day_has_as_many_intervals_as_it_has_quarters_of_an_hour(self, day: str, intervals: int) -> None:
        start = datetime.fromisoformat(day).replace(tzinfo=NEW_YORK)
        assert Window.covering(start, start + timedelta(days=1), 900).intervals == intervals

    def test_a_window_without_a_grid_point_has_nothing_to_fetch(self) -> None:
        empty = window("2025-07-01T00:00:01", "2025-07-01T00:14:59")
        assert empty.intervals == 0
        assert list(empty.parts()) == []

    @pytest.mark.parametrize("end", ["2025-07-01T00:00:00", "2025-06-30T23:59:59.999999", "2024-07-01T00:00:00"])
    def test_an_end_that_is_not_after_the_start_is_an_error(self, end: str) -> None:
        with pytest.raises(StemConfigError, match=r"is not after start 2025-07-01T00:00:00\+00:00"):
            window("2025-07-01T00:00:00", end)

    @pytest.mark.parametrize("name", ["start", "end"])
    def test_a_bound_without_a_zone_is_an_error_that_names_it(self, name: str) -> None:
        bounds = {"start": utc("2025-07-01"), "end": utc("2025-07-02")}
        bounds[name] = bounds[name].replace(tzinfo=None)
        with pytest.raises(StemConfigError, match=rf"^Invalid {name} '2025-07-0\dT00:00:00': no UTC offset\. Use one"):
            Window.covering(**bounds, resolution=900)

    @pytest.mark.parametrize(
        ("zone", "first", "second"),
        [
            # The clock goes back: the later instant shows the earlier, or the same, time of day.
            (NEW_YORK, "2025-11-02T01:30", "2025-11-02T01:15"),
            (NEW_YORK, "2025-11-02T01:30", "2025-11-02T01:30"),
            (LORD_HOWE, "2025-04-06T01:45", "2025-04-06T01:45"),
            (pendulum.timezone("America/New_York"), "2025-11-02T01:30", "2025-11-02T01:15"),
        ],
    )
    def test_instants_are_compared_when_summer_time_ends(self, zone: Any, first: str, second: str) -> None:
        start = datetime.fromisoformat(first).replace(tzinfo=zone)
        end = datetime.fromisoformat(second).replace(tzinfo=zone, fold=1)
        as_utc = Window.covering(start.astimezone(UTC), end.astimezone(UTC), 900)
        assert Window.covering(start, end, 900) == as_utc
        with pytest.raises(StemConfigError, match="is not after start"):
            Window.covering(end, start, 900)

    def test_pendulum_instants_are_accepted(self) -> None:
        start = pendulum.datetime(2025, 7, 1, 2, 7, tz="Europe/Berlin")
        assert Window.covering(start, start.add(hours=1), 900) == window("2025-07-01T00:00", "2025-07-01T01:00")


@pytest.mark.parametrize("resolution", [0, -900, 1, 60, 901, 86_400, 900.0, "900", None, True, [900], float("nan")])
def test_an_unknown_resolution_is_an_error_that_lists_the_known_ones(resolution: Any) -> None:
    with pytest.raises(StemConfigError, match=r"Invalid resolution .*Use one of 900, 1800, 3600 s"):
        check_resolution(resolution)


class TestChunks:
    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @examples(300)
    @given(data=st.data())
    def test_the_pieces_tile_the_window_in_the_fewest_requests(self, resolution: int, data: st.DataObject) -> None:
        capacity = (365 * DAY - 2 * resolution) // resolution
        start = data.draw(on_grid(resolution))
        number = data.draw(
            st.integers(1, 8 * capacity)
            | st.builds(lambda n, d: max(1, n * capacity + d), st.integers(1, 5), st.integers(-2, 2))
        )
        whole = Window(at(start), at(start + number * resolution), resolution)
        pieces = list(whole.parts())
        assert len(pieces) == -(-number // capacity)
        assert pieces[0].start == whole.start
        assert pieces[-1].end == whole.end
        assert all(left.end == right.start for left, right in pairwise(pieces))
        for piece in pieces:
            assert piece.resolution == resolution
            assert piece.intervals >= 1
            asked = piece.padded()
            assert asked.end - asked.start <= timedelta(days=365)
            assert seconds(asked.start) % resolution == seconds(asked.end) % resolution == 0
        tally("chunks").add(windows=1, requests=len(pieces))

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @examples(300)
    @given(data=st.data())
    def test_unexpected_intervals_are_omitted_only_if_that_saves_requests(
        self, resolution: int, data: st.DataObject
    ) -> None:
        capacity = (365 * DAY - 2 * resolution) // resolution
        start = data.draw(on_grid(resolution))
        number = data.draw(st.integers(1, 6 * capacity))
        whole = Window(at(start), at(start + number * resolution), resolution)
        needed_from = start + data.draw(st.integers(-2 * resolution, (number + 2) * resolution))
        needed = len(
            range(max(start + resolution, -(-needed_from // resolution) * resolution), whole.last_end + 1, resolution)
        )
        pieces = list(whole.parts(needed_from))
        assert len(pieces) == -(-needed // capacity)
        if not pieces:
            assert needed_from > whole.last_end
            return
        assert pieces[-1].end == whole.end
        assert all(left.end == right.start for left, right in pairwise(pieces))
        assert all(1 <= piece.intervals <= capacity for piece in pieces)
        # As many unexpected intervals as fit into the same number of requests.
        assert sum(piece.intervals for piece in pieces) == min(number, len(pieces) * capacity)

    @pytest.mark.parametrize(
        ("days", "extra_intervals", "resolution", "requests"),
        [
            (1, 0, 900, 1),
            (365, -2, 900, 1),  # padding included, this is 365 days
            (365, -1, 900, 2),
            (365, 0, 900, 2),
            (366, 0, 900, 2),
            (365, -2, 3600, 1),
            (365, -1, 3600, 2),
            (730, -4, 900, 2),
            (730, -3, 900, 3),
            (3653, 0, 900, 11),  # ten years
            (3653, 0, 3600, 11),
        ],
    )
    def test_a_year_is_365_days_padding_included(
        self, days: int, extra_intervals: int, resolution: int, requests: int
    ) -> None:
        start = utc("2015-01-01")
        end = start + timedelta(days=days, seconds=extra_intervals * resolution)
        assert len(list(Window(start, end, resolution).parts())) == requests

    @pytest.mark.parametrize(
        ("began", "requests", "first_start"),
        [
            ("2009-05-05T00:15", 4, "2020-01-01"),  # before the window
            ("2020-01-01T00:15", 4, "2020-01-01"),
            ("2022-12-01T00:15", 1, "2022-01-01T00:30"),  # inside: one request reaches back 365 days
            ("2021-12-01T00:15", 2, "2021-01-01T01:00"),
            ("2023-01-01T00:00", 1, "2022-01-01T00:30"),
            ("2023-01-01T00:15", 0, None),  # after
            ("2030-01-01T00:00", 0, None),
        ],
    )
    def test_a_stream_that_began_late_costs_fewer_requests(
        self, began: str, requests: int, first_start: str | None
    ) -> None:
        pieces = list(window("2020-01-01", "2023-01-01").parts(seconds(utc(began))))
        assert len(pieces) == requests
        assert (pieces[0].start if pieces else None) == (utc(first_start) if first_start else None)


@pytest.mark.parametrize(
    ("start", "end"), [("0999-12-31T23:59", "1000-01-02"), ("0001-01-01", "0001-01-02"), ("0001-01-01", "2025-01-01")]
)
def test_a_window_of_a_year_without_four_digits_is_an_error(start: str, end: str) -> None:
    with pytest.raises(StemConfigError, match="Invalid start .*Use a time in the years 1000 to 9999"):
        window(start, end)


def test_a_lookback_to_such_a_year_is_an_error() -> None:
    first = window("1000-01-02", "1000-01-03")
    assert first.with_lookback(timedelta(days=1), "day").start == utc("1000-01-01")
    with pytest.raises(StemConfigError, match="Invalid start - lookback .*Use a time in the years 1000 to 9999"):
        first.with_lookback(timedelta(days=36_500), "day")


def test_a_padded_window_has_one_interval_more_on_each_side() -> None:
    one = window("2025-07-01T00:00", "2025-07-01T01:00", 1800)
    assert one.padded() == Window(utc("2025-06-30T23:30"), utc("2025-07-01T01:30"), 1800)
    assert one.padded(until=utc("2025-07-01T01:29")) == Window(utc("2025-06-30T23:30"), utc("2025-07-01T01:00"), 1800)


def boundary(instant: datetime, partition: Partition) -> bool:
    """Return whether a UTC period begins at the instant, by its digits."""
    text = f"{instant:%d %H:%M:%S}"
    return text.endswith({"hour": ":00:00", "day": " 00:00:00", "month": "01 00:00:00"}.get(partition, ""))


class TestPeriods:
    @pytest.mark.parametrize("partition", ["hour", "day", "month"])
    @examples(150)
    @given(start=any_second, length=st.integers(0, 40 * DAY), resolution=any_resolution)
    def test_periods_tile_the_window_at_the_boundaries(
        self, partition: Partition, start: int, length: int, resolution: int
    ) -> None:
        length //= 40 if partition == "hour" else 1
        whole = Window(
            at(start // resolution * resolution), at((start + length) // resolution * resolution), resolution
        )
        periods = list(whole.periods(partition))
        edges = [whole.start, *(period.end for period in periods)]
        assert [period.start for period in periods] == edges[:-1]
        assert edges[-1] == whole.end
        assert all(boundary(edge, partition) for edge in edges[1:-1])
        for period in periods:
            assert period.resolution == resolution
            inside = range(seconds(period.start) + 900, seconds(period.end), 900)
            assert not any(boundary(at(second), partition) for second in inside)

    @pytest.mark.parametrize("year", [1999, 2000, 2023, 2024, 2100])
    def test_months_have_their_lengths(self, year: int) -> None:
        months = list(window(f"{year}-01-01", f"{year + 1}-01-01").periods("month"))
        lengths = [month.intervals / 96 for month in months]
        assert lengths == [31, 29 if calendar.isleap(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

    def test_an_interval_partition_keeps_the_window_whole(self) -> None:
        whole = window("2025-07-01T00:15", "2025-09-01T11:45")
        assert list(whole.periods("interval")) == [whole]

    def test_a_window_that_begins_inside_a_period_has_a_short_first_one(self) -> None:
        periods = window("2025-07-01T22:45", "2025-07-03").periods("day")
        assert [str(period) for period in periods] == [
            "2025-07-01T22:45:00Z/2025-07-02T00:00:00Z",
            "2025-07-02T00:00:00Z/2025-07-03T00:00:00Z",
        ]


class TestMovedBack:
    @pytest.mark.parametrize("partition", ["hour", "day", "month"])
    @examples(150)
    @given(
        start=any_second,
        periods=st.integers(1, 40),
        lookback=st.none() | st.timedeltas(timedelta(0), timedelta(days=100)),
        resolution=any_resolution,
    )
    def test_the_start_moves_to_the_last_boundary_not_after_it(
        self, partition: Partition, start: int, periods: int, lookback: timedelta | None, resolution: int
    ) -> None:
        began = at(start // resolution * resolution)
        end = pendulum.instance(began).start_of(partition).add(**{f"{partition}s": periods})
        moved = Window(began, at(seconds(end)), resolution).with_lookback(lookback, partition)
        wanted = began - (lookback or timedelta())
        assert boundary(moved.start, partition)
        assert moved.start <= wanted
        longest = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=31)}[partition]
        assert wanted - moved.start < longest
        assert (moved.end, moved.resolution) == (at(seconds(end)), resolution)
        assert moved.with_lookback(None, partition) == moved
        assert sum(period.intervals for period in moved.periods(partition)) == moved.intervals

    @pytest.mark.parametrize(
        ("start", "end", "lookback", "partition", "expected"),
        [
            ("2025-07-10", "2025-07-11", None, "day", "2025-07-10"),
            ("2025-07-10", "2025-07-11", timedelta(days=3), "day", "2025-07-07"),
            ("2025-07-10", "2025-07-11", timedelta(hours=1), "day", "2025-07-09"),
            ("2025-07-10T10:15", "2025-07-10T11:00", None, "hour", "2025-07-10T10:00"),
            ("2025-07-10T10:00", "2025-07-10T11:00", timedelta(minutes=1), "hour", "2025-07-10T09:00"),
            ("2024-02-29", "2024-03-01", timedelta(days=30), "month", "2024-01-01"),
            ("2024-02-15", "2024-03-01", None, "month", "2024-02-01"),
            ("2024-03-01", "2024-04-01", timedelta(days=1), "month", "2024-02-01"),
            ("2025-07-10T10:15", "2025-07-10T10:30", None, "interval", "2025-07-10T10:15"),
        ],
    )
    def test_examples(
        self, start: str, end: str, lookback: timedelta | None, partition: Partition, expected: str
    ) -> None:
        assert window(start, end).with_lookback(lookback, partition).start == utc(expected)

    @pytest.mark.parametrize(
        ("end", "partition", "fits"),
        [
            ("2025-07-10T11:15", "hour", "interval"),
            ("2025-07-10T11:15", "day", "interval"),
            ("2025-07-10T11:15", "month", "interval"),
            ("2025-07-10T11:00", "day", "hour"),
            ("2025-07-10T11:00", "month", "hour"),
            ("2025-07-10T00:00", "month", "day"),
        ],
    )
    def test_an_end_inside_a_period_is_an_error_that_says_which_partition_fits(
        self, end: str, partition: Partition, fits: Partition
    ) -> None:
        cut = window("2025-07-01", end)
        with pytest.raises(
            StemConfigError, match=f"partition='{partition}' writes whole UTC {partition}s.*{end}"
        ) as error:
            cut.with_lookback(None, partition)
        assert f"Use partition='{fits}'" in str(error.value)
        assert list(cut.with_lookback(None, fits).periods(fits))

    def test_an_end_off_the_grid_is_rounded_down_first(self) -> None:
        assert window("2025-07-01", "2025-07-02T00:14:59").with_lookback(None, "day").end == utc("2025-07-02")

    def test_a_lookback_needs_whole_periods(self) -> None:
        with pytest.raises(StemConfigError, match=r"lookback=1:00:00 needs whole periods.*'hour', 'day' or 'month'"):
            window("2025-07-01", "2025-07-02").with_lookback(hours, "interval")


class TestParseStreamTypes:
    @pytest.mark.parametrize(
        ("given_types", "expected"),
        [
            ("MONITOR", ("MONITOR",)),
            (["MONITOR", "CONVERTER"], ("CONVERTER", "MONITOR")),
            (("MONITOR", "MONITOR"), ("MONITOR",)),
            ({"INTERVAL_REVENUE", "CONVERTER", "MONITOR"}, ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")),
        ],
    )
    def test_types_come_once_and_sorted(self, given_types: Any, expected: tuple[str, ...]) -> None:
        assert parse_stream_types(given_types) == expected

    @pytest.mark.parametrize(
        "wrong", [None, [], (), "", "monitor", ["MONITOR", "X"], [None], [["MONITOR"]], 5, {"MONITOR": 1}]
    )
    def test_anything_else_is_an_error_that_lists_the_known_ones(self, wrong: Any) -> None:
        with pytest.raises(StemConfigError, match=r"stream_types .*MONITOR, CONVERTER, INTERVAL_REVENUE"):
            parse_stream_types(wrong)


class TestCheckEnd:
    NOW = utc("2025-07-01T12:00:00")

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7))])
    def test_one_resolution_in_the_future_is_allowed_and_no_more(self, resolution: int, zone: timezone) -> None:
        latest = (self.NOW + timedelta(seconds=resolution)).astimezone(zone)
        check_end(latest, resolution, self.NOW)
        later = latest + timedelta(microseconds=1)
        with pytest.raises(StemConfigError) as error:
            check_end(later, resolution, self.NOW)
        assert str(error.value) == (
            f"end {later.isoformat()} is in the future (now: 2025-07-01T12:00:00Z). Run after the window is over, or "
            "wait for it with StemStreamsSensor."
        )

    def test_the_default_is_the_current_time(self) -> None:
        check_end(datetime.now(UTC), 900)
        with pytest.raises(StemConfigError, match="future"):
            check_end(datetime.now(UTC) + timedelta(hours=1), 900)


class TestParseInstant:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("2025-07-01T00:00:00Z", "2025-07-01T00:00:00"),
            (" 2025-07-01T00:00:00+00:00\n", "2025-07-01T00:00:00"),
            ("2025-07-01T05:30:00+05:30", "2025-07-01T00:00:00"),
            ("2025-07-01 02:00+02:00", "2025-07-01T00:00:00"),
            ("20250701T000000Z", "2025-07-01T00:00:00"),
            ("2025-07-01T00:00:00.123456Z", "2025-07-01T00:00:00.123456"),
            (datetime(2025, 7, 1, tzinfo=NEW_YORK), "2025-07-01T04:00:00"),
            (datetime(2025, 11, 2, 1, 30, fold=1, tzinfo=NEW_YORK), "2025-11-02T06:30:00"),
            (datetime(2025, 11, 2, 1, 30, tzinfo=NEW_YORK), "2025-11-02T05:30:00"),
            (pendulum.datetime(2025, 7, 1, 2, tz="Europe/Berlin"), "2025-07-01T00:00:00"),
        ],
    )
    def test_aware_times_become_utc(self, value: Any, expected: str) -> None:
        instant = parse_instant("start", value)
        assert instant == utc(expected)
        assert instant.utcoffset() == timedelta(0)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("2025-07-01", "no UTC offset"),
            ("2025-07-01T00:00:00", "no UTC offset"),
            (datetime(2025, 7, 1), "no UTC offset"),  # noqa: DTZ001
            ("", "ISO 8601"),
            ("yesterday", "ISO 8601"),
            ("{{ data_interval_start }}", "ISO 8601"),
            ("None", "ISO 8601"),
            ("2025-02-29T00:00:00Z", "ISO 8601"),
            (1751328000, "aware datetime"),
            (None, "aware datetime"),
            (date(2025, 7, 1), "aware datetime"),
            (["2025-07-01T00:00:00Z"], "aware datetime"),
            # Neither has a UTC time that a datetime can hold.
            ("0001-01-01T00:00:00+14:00", "years 1000 to 9999"),
            ("9999-12-31T23:59:59-12:00", "years 1000 to 9999"),
            ("0001-01-01T00:00:00Z", "years 1000 to 9999"),
            ("0999-12-31T23:59:59.999Z", "years 1000 to 9999"),
            ("1000-01-01T00:00:00+00:01", "years 1000 to 9999"),
            (datetime(202, 5, 1, tzinfo=UTC), "years 1000 to 9999"),
        ],
    )
    def test_anything_else_is_an_error_that_names_argument_value_and_remedy(self, value: Any, message: str) -> None:
        with pytest.raises(StemConfigError, match=f"^Invalid until .*{message}") as error:
            parse_instant("until", value)
        assert isinstance(error.value, ValueError)

    @pytest.mark.parametrize("value", ["2025-07-01T00:00:00", datetime(2025, 7, 1)])  # noqa: DTZ001
    def test_the_message_of_a_time_without_a_zone(self, value: Any) -> None:
        with pytest.raises(StemConfigError) as error:
            parse_instant("until", value)
        assert str(error.value) == f"Invalid until '{value}': no UTC offset. Use one, such as '2025-07-01T00:00Z'."

    @examples(200)
    @given(
        instant=st.datetimes(datetime(1990, 1, 1), datetime(2045, 1, 1)),  # noqa: DTZ001
        offset=st.integers(-14 * 60, 14 * 60),
    )
    def test_an_instant_and_its_text_are_the_same(self, instant: datetime, offset: int) -> None:
        aware = instant.replace(tzinfo=timezone(timedelta(minutes=offset)))
        assert parse_instant("start", aware) == parse_instant("start", aware.isoformat()) == aware


class TestFirstExpectedEnd:
    @pytest.mark.parametrize(
        ("stream_start", "resolution", "expected"),
        [
            ("16:15:01", 900, "16:30"),
            ("16:15:00", 900, "16:30"),
            ("16:15:02", 900, "16:45"),
            ("16:14:59", 900, "16:30"),
            ("16:15:01", 1800, "17:00"),
            ("16:15:01", 3600, "18:00"),
            ("16:00:01", 3600, "17:00"),
            ("00:00:00", 900, "00:15"),
            ("00:00:00", 3600, "01:00"),
            ("00:00:01", 900, "00:15"),
        ],
    )
    def test_examples(self, stream_start: str, resolution: int, expected: str) -> None:
        start = utc(f"2011-03-01T{stream_start}")
        assert from_epoch(first_expected_end(start, resolution)) == utc(f"2011-03-01T{expected}")

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    @examples(300)
    @given(start=any_second, micros=st.just(0) | st.integers(0, 999_999))
    @example(start=seconds(utc("2011-03-01T16:15:01")), micros=0)
    @example(start=seconds(utc("2011-03-01T16:15:01")), micros=1)
    @example(start=seconds(utc("2011-03-01T16:15:01")), micros=500_000)
    def test_it_is_the_first_interval_whose_shown_start_is_not_before_the_streams(
        self, resolution: int, start: int, micros: int
    ) -> None:
        began = at(start) + timedelta(microseconds=micros)
        first = first_expected_end(began, resolution)
        assert first % resolution == 0
        assert at(first - resolution + 1) >= began
        assert at(first - 2 * resolution + 1) < began


@examples(200)
@given(second=any_second, zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu"]))
def test_seconds_instants_and_texts_are_each_others_inverse(second: int, zone: str) -> None:
    assert seconds(from_epoch(second)) == second
    assert epoch(from_epoch(second)) == epoch(at(second).astimezone(ZoneInfo(zone))) == second
    assert epoch(pendulum.from_timestamp(second, tz=zone)) == second
    assert datetime.fromisoformat(iso(pendulum.from_timestamp(second, tz=zone))) == at(second)


class NoOffset(tzinfo):
    """A time zone whose offset is not known; such times are naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


def test_a_bound_whose_zone_has_no_offset_is_an_error() -> None:
    with pytest.raises(StemConfigError, match="Invalid start '2025-07-01T00:00:00': no UTC offset"):
        Window.covering(datetime(2025, 7, 1, tzinfo=NoOffset()), utc("2025-07-02"), 900)


@pytest.fixture
def machine_far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("machine_far_from_utc")
def test_no_result_depends_on_the_machines_time_zone() -> None:
    parsed = parse_instant("start", "2025-07-01T02:00:00+02:00")
    assert (parsed, parsed.utcoffset()) == (utc("2025-07-01"), timedelta(0))
    assert iso(utc("2025-07-01")) == "2025-07-01T00:00:00Z"
    assert parse_instant("start", "1000-01-01T00:00:00Z").year == 1000
    with pytest.raises(StemConfigError, match="years 1000 to 9999"):
        parse_instant("start", "0999-12-31T23:00:00Z")
    assert window("9999-12-31T22:00", "9999-12-31T23:00").intervals == 4
    check_end(datetime.now(UTC), 900)
