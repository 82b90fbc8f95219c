from __future__ import annotations

import threading
from collections import Counter
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.ledger import EARLIEST, Ledger, LedgerStore
from airflow_provider_stem.streams.keys import KeyTemplate
from airflow_provider_stem.streams.windows import Window

DAY = timedelta(days=1)
FIRST = date(2025, 3, 30)
BEGAN = date(2025, 2, 11)
KEY = "{start:%Y-%m-%d}_{end:%Y-%m-%d}_{batch}"


def day(number):
    return FIRST + number * DAY


def listed(count):
    """The first so many sites, in two batches."""
    batches: dict[str, list[dict[str, Any]]] = {}
    for number in range(count):
        site = {"site_id": f"site-{number}", "stream_start_times": {"MONITOR": f"{BEGAN}T08:15:01Z"}}
        batches.setdefault(f"00{number % 2 + 1}-of-002", []).append(site)
    return [{"sites": sites, "batch": batch} for batch, sites in sorted(batches.items())]


def days_of(piece):
    start, end = (date.fromisoformat(piece[bound][:10]) for bound in ("start", "end"))
    return [start + number * DAY for number in range((end - start).days)]


class Lake:
    """Objects of days: whoever writes last is read."""

    def __init__(self):
        self.daily: dict[tuple[str, date], set[str]] = {}
        self.history: Counter[tuple[str, date]] = Counter()

    def land(self, piece):
        for at in days_of(piece):
            self.daily[piece["batch"], at] = {site["site_id"] for site in piece["sites"]}

    def land_history(self, piece):
        self.history.update((site["site_id"], at) for site in piece["sites"] for at in days_of(piece))

    def held(self):
        return self.history + Counter((site, at) for (_, at), sites in self.daily.items() for site in sites)


@settings(max_examples=300)
@given(st.data())
def test_daily_and_history_hold_every_day_of_every_site_exactly_once(data):
    """Whatever the order in which runs begin and their tasks write, however far they look back, whenever sites come."""
    lake, ledger, count = Lake(), Ledger(), 1
    waiting: list[dict[str, Any]] = []
    last = data.draw(st.integers(1, 8))
    runs = data.draw(st.lists(st.integers(0, last - 1), max_size=8))
    for number in [*runs, *range(last)]:  # at last each day has had its run
        count += data.draw(st.integers(0, 2))
        ledger = ledger.with_run(listed(count), day(number + 1), FIRST)
        start = day(number) - data.draw(st.integers(0, 3)) * DAY
        waiting += ledger.pieces(listed(count), start, day(number + 1), lambda batch, at: (batch, at) in lake.daily)
        for _ in range(data.draw(st.integers(0, len(waiting)))):
            lake.land(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
    for piece in waiting:
        lake.land(piece)
    for piece in ledger.history(listed(count + 5), timedelta(), KEY, ()):
        lake.land_history(piece)

    months_start = BEGAN.replace(day=1)
    every_day = [months_start + number * DAY for number in range((day(last) - months_start).days)]
    sites = [f"site-{number}" for number in range(count)]
    assert lake.held() == Counter((site, at) for site in sites for at in every_day)


@settings(max_examples=300)
@given(st.data())
def test_the_history_holds_every_day_of_every_site_exactly_once_however_sites_go_and_return(data):
    """Whenever it is read, whatever of it fails, and however long a site is not listed meanwhile."""
    count = data.draw(st.integers(2, 5))
    every = listed(count)
    ledger, at = Ledger(), 0
    objects: dict[str, tuple[set[str], list[date]]] = {}

    def run_daily(days, batches):
        nonlocal ledger, at
        at += days
        ledger = ledger.with_run(batches, day(at), FIRST)

    def read(batches, of_each):
        nonlocal ledger
        lacking = list(ledger.history(batches, timedelta(), KEY, objects))
        chosen = [piece for piece in lacking if of_each()]
        ledger = ledger.with_history(chosen)
        for piece in chosen:
            # A task may fail, and it may have written some of its objects before.
            start, end = (datetime.fromisoformat(piece[bound]) for bound in ("start", "end"))
            for period in Window.covering(start, end, 900).periods(piece["partition"]):
                if of_each():
                    name = KeyTemplate(KEY, piece["batch"], "", "", "parquet").key(period)
                    days = (period.end - period.start).days
                    sites = {site["site_id"] for site in piece["sites"]}
                    objects[name] = sites, [period.start.date() + number * DAY for number in range(days)]
        return chosen

    run_daily(1, every)
    for _ in range(data.draw(st.integers(0, 6))):
        away = data.draw(st.sets(st.integers(0, count - 1)))
        here = [
            {**batch, "sites": [site for site in batch["sites"] if int(site["site_id"][5:]) not in away]}
            for batch in every
        ]
        for _ in range(data.draw(st.integers(1, 2))):
            run_daily(data.draw(st.integers(1, 9)), here)
        read(here, lambda: data.draw(st.booleans()))
    run_daily(1, every)
    while read(every, lambda: True):
        pass

    held = Counter((site, one) for sites, days in objects.values() for site in sites for one in days)
    months_start = BEGAN.replace(day=1)
    before = [months_start + number * DAY for number in range((FIRST - months_start).days)]
    assert held == Counter((f"site-{number}", one) for number in range(count) for one in before)


def test_what_a_first_run_enters_begins_with_the_first_day_whichever_it_reads():
    ledger = Ledger().with_run(listed(2), day(5), FIRST)
    assert {entry.since for entry in ledger.sites.values()} == {FIRST}
    assert (ledger.number, ledger.end) == (1, day(5))


def test_a_run_that_is_entered_twice_changes_nothing():
    ledger = Ledger().with_run(listed(2), day(1), FIRST)
    assert ledger.with_run(listed(2), day(1), FIRST) is ledger
    assert ledger.with_run(listed(3), day(1), FIRST).sites["site-2"].since == day(1)


def history(ledger, batches, settle=0, there=()):
    return [
        (piece["start"][:10], piece["end"][:10], piece["partition"])
        for piece in ledger.history(batches, timedelta(days=settle), KEY, there)
    ]


def test_history_is_cut_into_whole_months_and_a_rest():
    since = date(2025, 3, 30)
    ledger = Ledger().with_run(listed(1), since + DAY, since)
    assert history(ledger, listed(1)) == [
        ("2025-03-01", "2025-03-30", "interval"),
        ("2025-02-01", "2025-03-01", "month"),
    ]


@pytest.mark.parametrize(
    ("since", "cuts"),
    [
        ("2025-02-12", [("2025-02-01", "2025-02-12", "interval")]),
        ("2025-02-11", []),
        ("2025-02-01", []),
        ("2025-03-01", [("2025-02-01", "2025-03-01", "month")]),
        ("2026-01-01", [("2025-02-01", "2026-01-01", "month")]),
        ("2026-02-01", [("2025-03-01", "2026-02-01", "month"), ("2025-02-01", "2025-03-01", "month")]),
    ],
)
def test_history_begins_with_the_month_in_which_the_streams_do(since, cuts):
    since = date.fromisoformat(since)
    assert history(Ledger().with_run(listed(1), since + DAY, since), listed(1)) == cuts


@pytest.mark.parametrize("starts", [None, {"MONITOR": None}])
def test_history_of_streams_without_a_start_begins_with_the_earliest(starts):
    batches = [{"sites": [{"site_id": "a", "stream_start_times": starts}], "batch": "001-of-001"}]
    assert history(Ledger().with_run(batches, day(1), FIRST), batches)[-1][0] == f"{EARLIEST}"


def test_a_site_without_streams_has_no_history():
    batches = [{"sites": [{"site_id": "a", "stream_start_times": {}}], "batch": "001-of-001"}]
    assert history(Ledger().with_run(batches, day(1), FIRST), batches) == []


def test_history_waits_until_it_is_settled():
    ledger = Ledger().with_run(listed(1), day(1), FIRST)
    assert history(ledger, listed(1), settle=2) == [("2025-02-01", "2025-03-01", "month")]
    assert len(history(ledger.with_run(listed(1), day(2), FIRST), listed(1), settle=2)) == 2


def test_history_that_is_there_is_left_out_and_what_is_there_in_part_is_not():
    since = date(2025, 4, 30)
    ledger = Ledger().with_run(listed(1), since + DAY, since)
    keys = {f"{start}_{end}_00001_001-of-002" for start, end in [("2025-02-01", "2025-03-01")]}
    assert history(ledger, listed(1), there=keys)[1:] == [("2025-02-01", "2025-04-01", "month")]
    keys.add("2025-03-01_2025-04-01_00001_001-of-002")
    assert history(ledger, listed(1), there=keys) == [("2025-04-01", "2025-04-30", "interval")]
    keys.add("2025-04-01_2025-04-30_00001_001-of-002")
    assert history(ledger, listed(1), there=keys) == []


def test_history_waits_a_week_for_a_site_that_is_not_listed():
    """An object is written once: it is not to lack a site for a mishap of the list."""
    ledger = Ledger().with_run(listed(3), day(1), FIRST)
    assert {piece["batch"] for piece in ledger.history(listed(1), timedelta(), KEY, ())} == set()
    for number in range(1, 8):
        assert list(ledger.history(listed(1), timedelta(), KEY, ())) == []
        ledger = ledger.with_run(listed(1), day(number + 1), FIRST)
    assert [piece["sites"] for piece in ledger.history(listed(1), timedelta(), KEY, ())] == [listed(1)[0]["sites"]] * 2
    ledger = ledger.with_run(listed(3), day(9), FIRST)
    assert ledger.sites["site-2"].gone is None


def test_a_day_whose_object_holds_a_site_that_has_gone_is_left():
    ledger = Ledger().with_run(listed(4), day(2), FIRST)
    ledger = ledger.with_run(listed(3), day(3), FIRST)  # site-3 of the second batch
    cut = [(p["batch"], days_of(p)) for p in ledger.pieces(listed(3), day(0), day(3), lambda *at: at[1] < day(2))]
    assert cut == [("001-of-002", [day(0), day(1), day(2)]), ("002-of-002", [day(2)])]
    cut = [(p["batch"], days_of(p)) for p in ledger.pieces(listed(3), day(0), day(3), lambda *_: False)]
    assert cut == [(batch, [day(0), day(1), day(2)]) for batch in ("001-of-002", "002-of-002")]
    later = ledger.with_run(listed(3), day(4), FIRST)
    cut = [(p["batch"], days_of(p)) for p in later.pieces(listed(3), day(2), day(4), lambda *_: True)]
    assert cut == [(batch, [day(2), day(3)]) for batch in ("001-of-002", "002-of-002")]


def test_a_site_does_not_change_its_batch():
    ledger = Ledger().with_run(listed(2), day(1), FIRST)
    moved = [{**listed(1)[0], "batch": "001-of-003"}]
    with pytest.raises(StemConfigError, match="leave the number of batches as it was"):
        ledger.with_run(moved, day(2), FIRST)


def test_the_first_day_does_not_move_past_what_was_read():
    ledger = Ledger().with_run(listed(1), day(1), FIRST)
    assert ledger.with_run(listed(1), day(2), day(1)).end == day(2)
    with pytest.raises(StemConfigError, match="Leave its first day as it was"):
        ledger.with_run(listed(1), day(3), day(2))


@pytest.mark.s3
def test_what_is_kept_is_what_was_entered(lake):
    store = LedgerStore(lake.bucket, "ledger")
    assert store.read() == Ledger()
    store.enter(listed(3), day(1), FIRST)
    entered = store.enter(listed(2), day(2), FIRST)
    assert (entered.number, entered.end) == (2, day(2))
    assert entered.sites["site-2"].gone == day(1)
    assert LedgerStore(lake.bucket, "ledger/").read() == entered
    assert store.enter(listed(2), day(2), FIRST) == entered
    assert sorted(lake.objects()) == ["ledger/00000001.json.gz", "ledger/00000002.json.gz"]


@pytest.mark.s3
def test_the_history_is_entered_by_what_the_newest_state_makes_of_it(lake):
    store = LedgerStore(lake.bucket, "ledger")
    store.enter(listed(3), day(1), FIRST)
    store.enter(listed(1), day(1), FIRST)
    for number in range(2, 10):
        store.enter(listed(1), day(number), FIRST)
    states = []

    def choose(ledger):
        states.append(ledger.number)
        if len(states) == 1:
            LedgerStore(lake.bucket, "ledger").enter(listed(1), day(10), FIRST)
        return list(ledger.history(listed(1), timedelta(), KEY, ()))

    pieces = store.enter_history(choose)
    assert [[site["site_id"] for site in piece["sites"]] for piece in pieces] == [["site-0"], ["site-0"]]
    entered = store.read()
    assert [entered.number - number for number in states] == [2, 1]
    assert entered.sites["site-2"].missed == (BEGAN.replace(day=1), FIRST.replace(day=1))
    assert entered.sites["site-0"].missed == ()
    assert store.enter_history(choose) == pieces
    assert store.read() == entered


@pytest.mark.s3
def test_runs_that_enter_at_once_are_entered_one_after_the_other(lake):
    """Each sees other sites; none is lost, and none begins before a day that another has set out to read."""
    begin = threading.Barrier(6)
    seen = {}

    def enter(number):
        store = LedgerStore(lake.bucket, "ledger")
        store.read()
        begin.wait()
        site = {"site_id": f"site-{number}", "stream_start_times": {}}
        batches = [{"sites": [site], "batch": f"{number:03d}-of-006"}]
        seen[number] = store.enter(batches, day(number + 1), FIRST)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = sorted(seen.values(), key=lambda state: state.number)
    assert [state.number for state in states] == [1, 2, 3, 4, 5, 6]
    for before, after in pairwise(states):
        (new,) = after.sites.keys() - before.sites.keys()
        assert after.sites[new].since == before.end
    assert states[-1].sites.keys() == {f"site-{number}" for number in range(6)}
