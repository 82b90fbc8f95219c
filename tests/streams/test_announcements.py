from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.streams.announcements import MAX_WINDOWS, Announcement, Announcements
from airflow_provider_stem.streams.arrivals import Arrived, Snapshot
from airflow_provider_stem.streams.windows import from_epoch, iso

from .helpers import examples

HOUR = 3600
FIRST = 480_000
"""Number of the first window of these tests; a window is an hour."""
LOOKBACK = 6
EVERY = timedelta(hours=2)


def numbers(announcement: Announcement) -> tuple[str, list[int]]:
    return announcement.reason, [number - FIRST for number in announcement.digests]


def snapshot(newest: int, values: dict[int, str], at: float | None = None) -> Snapshot:
    """Return a snapshot in which the windows of ``values`` are complete and have these digests."""
    oldest = FIRST + newest - LOOKBACK + 1
    windows = {
        number: Arrived(4, 4 if number - FIRST in values else 3, values.get(number - FIRST, "partial"))
        for number in range(oldest, FIRST + newest + 1)
    }
    return Snapshot(from_epoch(int((FIRST + (newest if at is None else at)) * HOUR)), oldest, FIRST + newest, windows)


def announcements(record: Any = None, share: float = 1.0, every: timedelta | None = EVERY) -> Announcements:
    return Announcements(HOUR, 900, share, every, record)


def all_due(state: Announcements, seen: Snapshot) -> list[Any]:
    due = []
    while announcement := state.next(seen):
        state.confirm(announcement)
        due.append(numbers(announcement))
    return due


def test_complete_windows_are_announced_once_in_consecutive_ranges():
    state = announcements()
    assert all_due(state, snapshot(5, {1: "a", 2: "b", 4: "d"})) == [("complete", [1, 2]), ("complete", [4])]
    assert all_due(state, snapshot(5, {1: "a", 2: "b", 4: "d"})) == []
    assert all_due(state, snapshot(5, dict(enumerate("?abcde")))) == [
        ("complete", [0]),
        ("complete", [3]),
        ("complete", [5]),
    ]


def test_the_window_of_an_announcement_covers_its_range():
    first = announcements().next(snapshot(5, {1: "a", 2: "b"}))
    assert first is not None
    assert first.window.as_json() == {
        "start": "2024-10-04T00:00:00Z",
        "end": "2024-10-04T02:00:00Z",
        "resolution": 900,
    }


def test_values_that_change_back_after_a_kill_are_announced_again():
    state = announcements()
    all_due(state, snapshot(5, {1: "a", 2: "x"}))
    restated = state.next(snapshot(5, {1: "b", 2: "x"}, at=8))
    assert restated is not None
    record = json.loads(json.dumps(state.as_json()))
    # The run lands b. Then the triggerer is killed, and the values are what they were.
    assert all_due(announcements(record), snapshot(5, {1: "a", 2: "x"}, at=9)) == [("restated", [1])]


def test_what_was_not_confirmed_is_announced_again():
    state = announcements()
    seen = snapshot(5, {1: "a"})
    first = state.next(seen)
    assert first is not None
    assert state.next(seen) == first
    state.confirm(first)
    assert state.next(seen) is None


def test_a_window_that_is_not_complete_within_the_look_back_is_announced_as_overdue():
    state = announcements()
    values: dict[int, str] = {0: "a", 1: "b", 3: "d", 4: "e"}
    assert all_due(state, snapshot(5, values)) == [("complete", [0, 1]), ("complete", [3, 4])]
    assert all_due(state, snapshot(7, values)) == []
    assert all_due(state, snapshot(8, values)) == [("overdue", [2])]
    assert all_due(state, snapshot(12, values)) == [("overdue", [5, 6])]
    assert state.as_json() == {"upto": "2024-10-04T06:00:00Z", "announced": {}}


def test_windows_in_which_nothing_is_expected_are_not_announced():
    def without(seen: Snapshot, *numbers: int) -> Snapshot:
        return replace(seen, windows={**seen.windows, **{FIRST + number: Arrived(0, 0, "?") for number in numbers}})

    complete: dict[int, str] = dict(enumerate("abcdefgh"))
    state = announcements()
    assert all_due(state, without(snapshot(5, complete), 0, 1)) == [("complete", [2, 3, 4, 5])]
    # A stream that is found later makes them complete, and those that leave the look-back before are not overdue.
    assert all_due(state, without(snapshot(6, complete), 1)) == [("complete", [6])]
    assert all_due(state, snapshot(6, complete)) == [("complete", [1])]
    assert all_due(state, snapshot(7, complete)) == [("complete", [7])]
    saved = state.as_json()
    assert saved is not None
    assert saved["upto"] == iso(from_epoch((FIRST + 7) * HOUR))


def test_windows_of_a_time_without_a_triggerer_are_announced():
    state = announcements()
    assert all_due(state, snapshot(5, dict.fromkeys(range(6), "a"))) == [("complete", [0, 1, 2, 3, 4, 5])]
    resumed = announcements(state.as_json())
    assert all_due(resumed, snapshot(20, dict.fromkeys(range(15, 21), "a"))) == [
        ("complete", [15, 16, 17, 18, 19, 20]),
        ("overdue", [6, 7, 8, 9, 10, 11, 12, 13, 14]),
    ]


def test_a_change_of_values_is_announced_again_at_its_own_rate():
    state = announcements()
    assert all_due(state, snapshot(5, {1: "a", 2: "b"}, 5)) == [("complete", [1, 2])]
    assert all_due(state, snapshot(5, {1: "A", 2: "b"}, 5.5)) == []
    assert all_due(state, snapshot(5, {1: "A", 2: "b"}, 7)) == [("restated", [1])]
    assert all_due(state, snapshot(5, {1: "A", 2: "b"}, 9)) == []
    assert all_due(state, snapshot(5, {1: "a", 2: "b"}, 9)) == [("restated", [1])]
    assert all_due(announcements(state.as_json()), snapshot(5, {1: "a", 2: "B"}, 9)) == [("restated", [2])]


def test_a_state_that_ends_in_the_future_starts_again(caplog):
    state = announcements({"upto": "9999-12-31T00:00:00Z", "announced": {}})
    assert all_due(state, snapshot(5, dict(enumerate("abcdef")))) == [("complete", [0, 1, 2, 3, 4, 5])]
    assert caplog.text.count("ends in the future, at 9999-12-31T00:00:00Z. It starts again.") == 1
    # A first start while the clock is ahead by more than the look-back.
    state = announcements()
    assert all_due(state, snapshot(20, {})) == []
    assert all_due(state, snapshot(5, {4: "e"})) == [("complete", [4])]


def test_what_was_announced_is_not_repeated_when_the_clock_is_set_back():
    state = announcements()
    all_due(state, snapshot(5, dict(enumerate("abcdef"))))
    assert all_due(state, snapshot(3, dict(enumerate("abcd")))) == []
    assert all_due(state, snapshot(6, dict(enumerate("abcdefg")))) == [("complete", [6])]


def test_changes_are_announced_only_on_request():
    state = announcements(every=None)
    assert all_due(state, snapshot(5, {1: "a"})) == [("complete", [1])]
    assert all_due(state, snapshot(5, {1: "A"}, 100)) == []


def test_a_share_of_the_intervals_can_be_enough():
    assert all_due(announcements(share=0.75), snapshot(5, {}))[0] == ("complete", [0, 1, 2, 3, 4, 5])


def test_an_announcement_is_bounded():
    first = announcements({"upto": "2020-01-01T00:00:00Z", "announced": {}}).next(snapshot(5, {}))
    assert first is not None
    assert len(first.digests) == MAX_WINDOWS


@examples(300)
@given(st.integers(0, 2**32))
def test_no_window_is_lost_or_announced_twice_in_any_history(seed):
    """Windows become complete in any order, values change, and processes end before or after a confirmation."""
    random = Random(seed)
    state = announcements()
    state.next(snapshot(LOOKBACK - 1, {}))
    record: Any = state.as_json()
    new: list[int] = []
    values: dict[int, str] = {}
    repeated: set[int] = set()
    last = LOOKBACK + 14
    for newest in range(LOOKBACK - 1, last + 1):
        for number in range(newest - LOOKBACK + 1, newest + 1):
            if random.random() < 0.3:
                values[number] = random.choice("abc")
        seen = snapshot(newest, values)
        while announcement := state.next(seen):
            found = [number - FIRST for number in announcement.digests]
            assert found == [*range(found[0], found[-1] + 1)]
            new += [number for number in found if announcement.reason != "restated" and number not in repeated]
            if random.random() < 0.1:  # the triggerer is killed before it has saved the announcement
                repeated |= set(found)
                state = announcements(record)
            else:
                state.confirm(announcement)
                record = json.loads(json.dumps(state.as_json()))
                assert len(record["announced"]) <= LOOKBACK
        if random.random() < 0.3:
            state = announcements(record)
    assert len(new) == len(set(new))
    assert set(new) == set(values) | set(range(last - LOOKBACK + 1))
    all_due(state, snapshot(last, values, last + 2))
    ends = {number: iso(from_epoch((FIRST + number) * HOUR)) for number in range(last - LOOKBACK + 1, last + 1)}
    saved = state.as_json()
    assert saved is not None
    known = saved["announced"]
    assert all(known.get(end) == values.get(number) for number, end in ends.items())
