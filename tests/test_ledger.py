from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.ledger import EARLIEST, Ledger
from airflow_provider_stem.streams.store import ObjectChangedError, Version
from tests.support import at_most

DAY = timedelta(days=1)
CUT = date(2025, 3, 1)
LOOKBACK = timedelta(days=3)
TYPES = ("MONITOR", "CONVERTER")
BEGAN = {"MONITOR": date(2023, 11, 11), "CONVERTER": date(2024, 12, 30)}


def at(number):
    return CUT + number * DAY


def starts(**days):
    return {name: f"{day}T08:15:01Z" for name, day in days.items()}


def listing(*sites):
    """Two batches of sites, each ``(site_id, stream_start_times)``."""
    batches: dict[str, list[dict[str, Any]]] = {}
    for site_id, times in sites:
        batches.setdefault(f"00{int(site_id) % 2 + 1}-of-002", []).append(
            {"site_id": site_id, "stream_start_times": times}
        )
    return [{"batch": batch, "sites": sites} for batch, sites in sorted(batches.items())]


def receipt_of(batch, start, end, failed=(), unavailable=()):
    start, end = (bound if isinstance(bound, str) else f"{bound}T00:00:00Z" for bound in (start, end))
    uri = f"s3://lake/a_b/900s_{batch}.csv.gz"
    landed = {"uri": uri, "rows": 1, "bytes": 1, "sha256": "0" * 64, "read_at": end, "start": start, "end": end}
    return {
        "window": {"start": start, "end": end, "resolution": 900},
        "objects": [landed],
        "rows": 1,
        "failed_sites": [{"site_id": site, "error": "forbidden"} for site in failed],
        "failed_count": len(failed),
        "unavailable": [{"site_id": site, "stream_type": name} for site, name in unavailable],
        "unavailable_count": len(unavailable),
    }


def bounds(piece):
    return tuple(date.fromisoformat(piece[bound][:10]) for bound in ("start", "end"))


def bits(start, end):
    return (1 << max(0, (end - EARLIEST).days)) - (1 << (min(start, end) - EARLIEST).days)


class MemoryStore:
    """A store with conditional writes in memory, because the property tests make thousands of them."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}

    def _version(self, key):
        return Version(hashlib.sha256(self.objects[key]).hexdigest(), None, None) if key in self.objects else None

    def check(self, probe, *, may_be_unconditional):
        assert probe == "ledger/.stem-probe.json"
        assert not may_be_unconditional

    def head(self, key):
        return self._version(key), datetime(2025, 1, 1, tzinfo=UTC)

    def uri(self, key):
        return f"s3://lake/{key}"

    def get(self, key, file):
        file.clear()
        file.write(self.objects[key])  # S3 denies the reading of a missing object to a role that may not list
        return self._version(key)

    def put(self, key, file, _read_at, replaces):
        if self._version(key) != replaces:
            raise ObjectChangedError(key)
        file.seek(0)
        self.objects[key] = file.read()


def ledger_in_memory():
    ledger = Ledger("s3://lake/ledger", TYPES)
    ledger._store = MemoryStore()  # type: ignore[assignment]
    return ledger


class Fleet:
    """A model of the lake and the API: the days of each stream under both prefixes, as bits."""

    def __init__(self):
        self.ledger = ledger_in_memory()
        self.days: dict[str, Counter[tuple[str, str]]] = {"day": Counter(), "month": Counter()}
        self.began: dict[str, dict[str, date]] = {}
        self.unlisted: set[str] = set()
        """Sites whose types and starts the API does not report."""
        self.withdrawn: set[tuple[str, str]] = set()
        """Streams that the listing has and the API denies."""

    def listed(self, *without):
        return listing(
            *(
                (site, None if site in self.unlisted else starts(**self.began[site]))
                for site in sorted(self.began)
                if site not in without
            )
        )

    def land(self, piece, failed=(), listed_unavailable=100):
        """Land a piece, and return the receipt."""
        start, end = bounds(piece)
        if piece["partition"] == "month":
            assert start.day == end.day == 1
            assert end <= CUT
        else:
            assert start >= CUT
        assert timedelta(0) < end - start <= timedelta(days=363)  # one request, padding included
        unavailable = []
        for site_id, times in ((site["site_id"], site["stream_start_times"]) for site in piece["sites"]):
            for name in TYPES if site_id not in failed else ():
                is_there = name in self.began[site_id] and (site_id, name) not in self.withdrawn
                if is_there and (times is None or name in times):
                    self.days[piece["partition"]][site_id, name] |= bits(max(start, self.began[site_id][name]), end)
                else:
                    unavailable.append((site_id, name))
        receipt = receipt_of(piece["batch"], start, end, failed, unavailable)
        return {**receipt, "unavailable": receipt["unavailable"][:listed_unavailable]}

    def daily(self, listed, end, lookback=LOOKBACK):
        window = {"start": f"{max(CUT, end - DAY - lookback)}T00:00:00Z", "end": f"{end}T00:00:00Z"}
        return [{**batch, **window, "partition": "day"} for batch in listed]

    def finish(self, listed, limit=60):
        """Run the history without failures until nothing is missing."""
        for _ in range(limit):
            pieces = self.ledger.missing(listed, CUT, LOOKBACK)
            assert len({piece["batch"] for piece in pieces}) == len(pieces)
            if not pieces:
                return
            self.ledger.enter(pieces, [self.land(piece) for piece in pieces], count_tries=True)
        pytest.fail("the history does not end")

    def check(self, end):
        """Check that each day of each stream has landed under exactly one of the prefixes."""
        for site, streams in self.began.items():
            for name, began in streams.items():
                in_days, in_months = (days[site, name] for days in self.days.values())
                assert in_days & in_months == 0
                assert in_days | in_months == bits(began, end)


@settings(max_examples=at_most(200))
@given(st.data())
def test_every_day_of_every_stream_lands_under_exactly_one_prefix(data):
    """
    Runs in any order, outdated listings, sites that are added, removed and added again, new types that have a past,
    starts that move back, and tasks that fail for some sites or completely, or land without being recorded. The API
    reports no types of some sites for a while, or denies types that it lists.
    """
    fleet, draw = Fleet(), data.draw
    waiting: list[tuple[dict[str, Any], bool]] = []
    for _ in range(draw(st.integers(1, 20))):
        action = draw(st.sampled_from(["site", "stream", "listing", "denial", "daily", "history", "run", "run"]))
        if action == "site":
            fleet.began[str(len(fleet.began))] = {"MONITOR": BEGAN["MONITOR"] + draw(st.integers(0, 500)) * DAY}
        elif action == "stream" and fleet.began:
            site = draw(st.sampled_from(sorted(fleet.began)))
            name = draw(st.sampled_from(TYPES))
            began = BEGAN[name] + draw(st.integers(0, 100)) * DAY
            if site not in fleet.unlisted or name not in fleet.began[site]:
                fleet.began[site][name] = min(began, fleet.began[site].get(name, began))
        elif action == "listing" and fleet.began:
            fleet.unlisted ^= {draw(st.sampled_from(sorted(fleet.began)))}
        elif action == "denial" and fleet.began:
            fleet.withdrawn ^= {(draw(st.sampled_from(sorted(fleet.began))), draw(st.sampled_from(TYPES)))}
        elif action in ("daily", "history"):
            listed = fleet.listed(*draw(st.sets(st.sampled_from(sorted(fleet.began) or ["-"]))))
            lookback = draw(st.sampled_from([LOOKBACK, timedelta()]))
            pieces: list[Any] = (
                fleet.daily(listed, at(draw(st.integers(1, 9))), lookback)
                if action == "daily"
                else fleet.ledger.missing(listed, CUT, LOOKBACK)
            )
            waiting += [(piece, action == "history") for piece in pieces]
        elif waiting:
            piece, count_tries = waiting.pop(draw(st.integers(0, len(waiting) - 1)))
            sites = [site["site_id"] for site in piece["sites"]]
            failed = draw(st.sets(st.sampled_from(sites), max_size=len(sites) - 1))
            outcome = draw(st.sampled_from(["failed", "landed", "entered", "entered"]))
            receipts = [fleet.land(piece, failed, draw(st.sampled_from([0, 100])))] if outcome != "failed" else []
            if outcome != "landed":
                fleet.ledger.enter([piece], receipts, count_tries=count_tries)
    everything = fleet.listed()
    if draw(st.booleans()):
        fleet.finish(everything)  # although types are denied
    fleet.withdrawn.clear()
    for number in (12, 13):
        pieces = fleet.daily(everything, at(number))
        fleet.ledger.enter(pieces, [fleet.land(piece) for piece in pieces])
    fleet.finish(everything)
    fleet.check(at(13))


@settings(max_examples=6)
@given(st.sets(st.integers(0, 19), min_size=1), st.booleans())
def test_sites_that_always_fail_do_not_block_the_others(broken, alone):
    """``alone``: the task skips such a site. Otherwise the site fails its task, with all other sites, every time."""
    fleet = Fleet()
    fleet.began = {str(number): {"MONITOR": BEGAN["MONITOR"]} for number in range(20)}
    bad = {str(number) for number in broken}
    pieces = fleet.daily(fleet.listed(), at(1))
    fleet.ledger.enter(pieces, [fleet.land(piece) for piece in pieces])
    for number in range(2, 102):  # a site that fails may succeed on other days
        pieces = fleet.daily(fleet.listed(), at(number))
        fleet.ledger.enter(pieces, [fleet.land(piece) for piece in pieces])
        history = fleet.ledger.missing(fleet.listed(), CUT, LOOKBACK)
        receipts = []
        for piece in history:
            failed = bad & {site["site_id"] for site in piece["sites"]}
            if len(failed) < len(piece["sites"]) and (alone or not failed):
                receipts.append(fleet.land(piece, failed))
        fleet.ledger.enter(history, receipts, count_tries=True)
    assert {piece["partition"] for piece in history} == {"month"}
    assert {site["site_id"] for piece in history for site in piece["sites"]} <= bad
    fleet.finish(fleet.listed())
    fleet.check(at(101))


def read_by(ledger, end, *sites):
    """Record the first day of a daily load that has read up to a day, and return what is missing."""
    batches = listing(*sites)
    ledger.enter(batches, [receipt_of(batch["batch"], CUT, CUT + DAY) for batch in batches])
    far = listing(("9", starts(MONITOR=CUT)))
    ledger.enter(far, [receipt_of(far[0]["batch"], CUT, end)])
    pieces = ledger.missing([*batches, *far], CUT, LOOKBACK)
    return [(*map(str, bounds(piece)), piece["partition"], len(piece["sites"])) for piece in pieces]


@pytest.mark.parametrize(
    ("began", "end", "piece"),
    [
        # Days that the daily load may read again are left to it, and so is a month that it has started.
        ("2025-01-15", at(2), ("2025-01-01", "2025-02-01", "month", 1)),
        ("2025-02-15", at(2), None),
        ("2025-01-15", at(3), ("2025-01-01", "2025-03-01", "month", 1)),
        ("2024-01-15", at(3), ("2024-04-01", "2025-03-01", "month", 1)),
        ("2025-02-28", at(10), ("2025-03-02", "2025-03-08", "day", 1)),
        ("2025-03-05", at(10), ("2025-03-05", "2025-03-08", "day", 1)),
        ("2025-03-08", at(10), None),
        ("2023-01-01", date(2027, 1, 18), ("2026-02-01", "2027-01-15", "day", 1)),
    ],
)
def test_a_piece_has_whole_months_before_the_cut_and_days_after_it(began, end, piece):
    assert read_by(ledger_in_memory(), end, ("2", starts(MONITOR=began))) == ([piece] if piece else [])


def test_a_single_day_is_missing_between_two_spans():
    ledger, batches = ledger_in_memory(), listing(("0", starts(MONITOR=CUT)))
    for start, end in ((at(4), at(10)), (CUT, at(3))):
        ledger.enter(batches, [receipt_of("001-of-002", start, end)])
    (piece,) = ledger.missing(batches, CUT, LOOKBACK)
    assert bounds(piece) == (at(3), at(4))


def test_the_newest_piece_comes_first():
    ledger = ledger_in_memory()
    batches = listing(("0", starts(MONITOR="2024-01-15")), ("1", starts(MONITOR="2025-02-03")))
    ledger.enter(batches, [receipt_of(batch["batch"], CUT, at(4)) for batch in batches])
    assert [piece["start"][:7] for piece in ledger.missing(batches, CUT, LOOKBACK)] == ["2025-02", "2024-04"]


def test_sites_of_a_batch_are_read_together_if_their_gaps_overlap():
    ledger = ledger_in_memory()
    sites = [(str(n), starts(MONITOR=began)) for n, began in ((0, "2024-12-03"), (2, "2020-01-01"), (4, "2025-03-01"))]
    assert read_by(ledger, at(4), *sites) == [("2024-04-01", "2025-03-01", "month", 2)]


@pytest.mark.parametrize("listed_before", [None, starts(MONITOR=CUT, CONVERTER=at(5))])
def test_a_type_that_the_api_does_not_have_is_read_when_it_appears(listed_before):
    """Until then its days are not missing, since each run would read them again."""
    ledger = ledger_in_memory()
    before, after = (listing(("0", times)) for times in (listed_before, starts(MONITOR=CUT, CONVERTER=at(4))))
    ledger.enter(before, [receipt_of("001-of-002", EARLIEST, at(20), unavailable=[("0", "CONVERTER")])])
    assert ledger.missing(before, CUT, LOOKBACK) == []
    [piece] = ledger.missing(after, CUT, LOOKBACK)
    assert bounds(piece) == (at(4), at(17))
    ledger.enter(before, [receipt_of("001-of-002", at(16), at(21))])
    [piece] = ledger.missing(before, CUT, LOOKBACK)
    assert bounds(piece) == (at(5) if listed_before else CUT, at(16))


def test_a_type_may_be_unavailable_if_the_receipt_does_not_list_all_that_are():
    ledger, site = ledger_in_memory(), starts(MONITOR=CUT)
    receipt = receipt_of("001-of-002", EARLIEST, at(9), unavailable=[("2", "CONVERTER")])
    ledger.enter(listing(("0", None), ("2", site), ("4", site)), [{**receipt, "unavailable_count": 101}])
    unlisted, listed = listing(("0", None)), listing(("0", site), ("2", site), ("4", site))
    assert ledger.missing(unlisted, CUT, LOOKBACK) == []
    [piece] = ledger.missing(listed, CUT, LOOKBACK)
    assert [site["site_id"] for site in piece["sites"]] == ["0"]


def test_the_history_is_read_although_no_receipt_lists_all_unavailable_streams():
    ledger, batches = ledger_in_memory(), listing(("0", None))
    ledger.enter(batches, [{**receipt_of("001-of-002", CUT, at(9)), "unavailable_count": 101}])
    for _ in range(30):
        pieces = ledger.missing(batches, CUT, LOOKBACK)
        if not pieces:
            break
        start, end = bounds(pieces[0])
        ledger.enter(pieces, [{**receipt_of("001-of-002", start, end), "unavailable_count": 101}])
    assert (pieces, start) == ([], EARLIEST)


@pytest.mark.parametrize("times", [None, {"MONITOR": None}, starts(MONITOR="0001-01-01"), starts(MONITOR=EARLIEST)])
def test_a_stream_with_an_unknown_start_starts_at_the_earliest_day(times):
    ledger = ledger_in_memory()
    batches = listing(("0", times))
    ledger.enter(batches, [receipt_of("001-of-002", date(2010, 2, 1), at(10))])
    (piece,) = ledger.missing(batches, CUT, LOOKBACK)
    assert bounds(piece) == (EARLIEST, date(2010, 2, 1))


def test_a_site_without_streams_has_no_history():
    assert read_by(ledger_in_memory(), at(10), ("0", {})) == []


def test_a_start_that_moves_back_makes_days_missing_although_other_streams_have_them():
    ledger = ledger_in_memory()
    before, after = (
        listing(("0", starts(MONITOR="2023-01-01", CONVERTER=day))) for day in ("2024-12-30", "2024-02-10")
    )
    ledger.enter(before, [receipt_of("001-of-002", date(2023, 1, 1), at(10))])
    assert ledger.missing(before, CUT, LOOKBACK) == []
    (piece,) = ledger.missing(after, CUT, LOOKBACK)
    assert bounds(piece) == (date(2024, 2, 1), date(2025, 1, 1))


def test_a_type_that_is_added_later_is_missing_since_its_start():
    ledger = Ledger("s3://lake/ledger/", ["MONITOR"])
    ledger._store = store = MemoryStore()  # type: ignore[assignment]
    batches = listing(("0", starts(MONITOR="2023-01-01", CONVERTER="2025-02-07")))
    ledger.enter(batches, [receipt_of("001-of-002", date(2023, 1, 1), at(10))])
    assert ledger.missing(batches, CUT, LOOKBACK) == []
    ledger = ledger_in_memory()
    ledger._store = store
    assert [piece["partition"] for piece in ledger.missing(batches, CUT, LOOKBACK)] == ["day"]


def test_a_receipt_that_does_not_list_all_failed_sites_records_none():
    ledger = ledger_in_memory()
    batches = listing(("0", starts(MONITOR=CUT)), ("2", starts(MONITOR=CUT)))
    ledger.enter(batches, [{**receipt_of("001-of-002", CUT, at(9), ["0"]), "failed_count": 2}])
    assert ledger.missing(batches, CUT, LOOKBACK) == []
    ledger.enter(batches, [receipt_of("001-of-002", CUT, at(9), ["0"])])
    (piece,) = ledger.missing(batches, CUT, LOOKBACK)
    assert [site["site_id"] for site in piece["sites"]] == ["0"]


@pytest.mark.parametrize(
    ("start", "end", "landed"),
    [
        ("2025-03-01T12:00Z", "2025-03-03T12:00Z", [["2025-03-02", "2025-03-03"]]),
        ("2025-03-01T00:00-07:00", "2025-03-03T00:00-07:00", [["2025-03-02", "2025-03-03"]]),
        ("2025-03-01T02:00+02:00", "2025-03-03T02:00+02:00", [["2025-03-01", "2025-03-03"]]),
        ("2025-03-01T12:00Z", "2025-03-02T12:00Z", None),
    ],
)
def test_only_whole_days_in_utc_count_as_landed(start, end, landed):
    assert entered("001-of-002", receipt_of("001-of-002", start, end))["0"]["streams"].get("MONITOR") == landed


def entered(batch, *receipts, others=()):
    """Record receipts for a site of one batch among others, and return the object of that batch."""
    ledger = ledger_in_memory()
    batches = [{"batch": name, "sites": [{"site_id": "0", "stream_start_times": None}]} for name in (batch, *others)]
    ledger.enter(batches, receipts)
    content: Any = ledger._store.objects
    return json.loads(content.get(f"ledger/{batch}.json", "null"))


def test_each_receipt_counts_for_the_batch_at_the_end_of_its_keys():
    receipt = receipt_of("west_1", CUT, at(2))
    assert entered("west_1", receipt, others=("1", "st_1", "east_1"))
    assert not entered("1", receipt, others=("west_1",))
    assert entered("a.b_c", receipt_of("a.b_c", CUT, at(2)), others=("c", "a"))
    assert entered("a/b", receipt_of("a%2Fb", CUT, at(2)))
    pieces = [receipt_of("1", at(start), at(start + 2)) for start in (0, 5)]
    assert len(entered("1", *pieces, None)["0"]["streams"]["MONITOR"]) == 2


@pytest.mark.parametrize("uris", [["s3://lake/900s_2.parquet"], ["s3://lake/900s_1.parquet", "s3://lake/2_x.csv"], []])
def test_a_receipt_of_no_batch_is_an_error(uris):
    receipt = receipt_of("1", CUT, at(2))
    landed = [{**receipt["objects"][0], "uri": uri} for uri in uris]
    with pytest.raises(StemConfigError, match=r"which is of none of the batches. Use the batches.*_\{batch\}"):
        entered("1", {**receipt, "objects": landed})


ONE = receipt_of("001-of-002", CUT, at(1))


@pytest.mark.parametrize(
    ("batches", "receipts", "message"),
    [
        (None, [ONE], "batches contains None. Use what StemSiteListOperator"),
        ("001-of-002", [ONE], "batches contains"),
        ([{"batch": "001-of-002"}], [ONE], "batches contains"),
        ([{"batch": 1, "sites": []}], [ONE], "batches contains"),
        ([{"batch": "001-of-002", "sites": ["0"]}], [ONE], "batches contains"),
        ([{"batch": "001-of-002", "sites": {"site_id": "0"}}], [ONE], "batches contains"),
        ([], None, "receipts must be a list of what the tasks returned, got 'None'"),
        ([], ONE, "receipts must be a list of what the tasks returned"),
        ([], ["x"], "receipts contains 'x'"),
        ([], [{**ONE, "window": {**ONE["window"], "start": "2025-03-01T00:00"}}], "window.start"),
        ([], [{name: value for name, value in ONE.items() if name != "failed_count"}], "without its counts"),
        ([], [{**ONE, "unavailable": [{"site_id": "0"}]}], "without its counts"),
    ],
)
def test_batches_and_receipts_are_validated_before_a_request(batches, receipts, message):
    ledger = Ledger("s3://lake/ledger", TYPES)
    ledger._store = None  # type: ignore[assignment]
    with pytest.raises(StemConfigError, match=message):
        ledger.enter(batches, receipts, count_tries=True)


@pytest.mark.parametrize(
    ("daily_start", "settle", "message"),
    [
        (datetime(2025, 3, 1, tzinfo=UTC), LOOKBACK, "daily_start must be a date, the first of a month"),
        ("2025-03-01", LOOKBACK, "daily_start must be"),
        (date(2025, 3, 10), LOOKBACK, "daily_start must be"),
        (CUT, 3, "settle must be a timedelta of 0 to 3,650 whole days, got 3"),
        (CUT, timedelta(days=-30), "settle must be"),
        (CUT, timedelta(hours=12), "settle must be"),
        (CUT, timedelta.max, "settle must be"),
    ],
)
def test_the_times_of_the_history_are_validated_before_a_request(daily_start, settle, message):
    ledger = Ledger("s3://lake/ledger", TYPES)
    ledger._store = None  # type: ignore[assignment]
    with pytest.raises(StemConfigError, match=message):
        ledger.missing([], daily_start, settle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, "path must be a string, got None"),
        ({"stream_types": "MONITR"}, "Use one or more of MONITOR"),
        ({"stream_types": []}, "Use one or more of MONITOR"),
        ({"conn_id": 5}, "conn_id must be the id of a connection"),
        ({"s3_extra_args": ["a"]}, "s3_extra_args must be a dict"),
        ({"s3_extra_args": {1: "x"}}, "s3_extra_args must be a dict"),
        ({"s3_extra_args": {"IfMatch": "x"}}, "must not contain 'IfMatch'"),
        ({"path": "gs://lake", "s3_extra_args": {}}, "s3_extra_args is set, but gs:// is not a store of S3. Remove it"),
    ],
)
def test_the_arguments_of_the_ledger_are_validated(arguments, message):
    with pytest.raises(StemConfigError, match=message):
        Ledger(**{"path": "s3://lake/ledger", "stream_types": TYPES, **arguments})


def test_one_stream_type_may_be_a_string():
    ledger = Ledger("s3://lake/ledger", "MONITOR")
    ledger._store = store = MemoryStore()  # type: ignore[assignment]
    ledger.enter(listing(("0", None)), [receipt_of("001-of-002", CUT, at(1))])
    assert list(json.loads(store.objects["ledger/001-of-002.json"])["0"]["streams"]) == ["MONITOR"]


SITE = '{"0": {"absent": {}, "streams": {"MONITOR": %s}, "tries": %s}}'


@pytest.mark.parametrize(
    "content",
    [
        "", "\xff", "[]", "null", '{"0": 5}', '{"0": {"streams": {}}}',
        SITE % ("[]", 0), SITE % ('[["2025-03-08", "2025-03-01"]]', 0), SITE % ('[["x", "2025-03-01"]]', 0),
        SITE % ('[["2025-03-05", "2025-03-09"], ["2025-01-01", "2025-03-01"]]', 0), SITE % ("5", 0),
        SITE % ('[["2025-03-01", "2025-03-05"]]', -1), SITE % ('[["2025-03-01", "2025-03-05"]]', '"x"'),
    ],
)  # fmt: skip
def test_a_damaged_object_is_an_error_with_its_address(content):
    ledger, batches = ledger_in_memory(), listing(("0", None))
    ledger._store.objects["ledger/001-of-002.json"] = content.encode("latin-1" if content == "\xff" else "utf-8")
    for use in (lambda: ledger.missing(batches, CUT, LOOKBACK), lambda: ledger.enter(batches, [ONE])):
        with pytest.raises(StemConfigError, match="is damaged. Delete it.*s3://lake/ledger/001-of-002.json"):
            use()


def test_recording_the_same_again_writes_nothing(monkeypatch):
    ledger, batches = ledger_in_memory(), listing(("0", starts(MONITOR=CUT)))
    for _ in range(2):
        ledger.enter(batches, [receipt_of("001-of-002", CUT, at(1))])
        monkeypatch.setattr(ledger._store, "put", None)


def test_a_ledger_that_changes_all_the_time_is_a_retryable_error(monkeypatch):
    ledger = ledger_in_memory()
    tries = iter(range(100))

    def changed(key, *_):
        ledger._store.objects[key] = b'{"other": {"absent": {}, "streams": {}, "tries": %d}}' % next(tries)
        raise ObjectChangedError

    monkeypatch.setattr(ledger._store, "put", changed)
    with pytest.raises(StemTransportError, match="changed the object 20 times. Try again later"):
        ledger.enter(listing(("0", None)), [receipt_of("001-of-002", CUT, at(1))])


@pytest.mark.parametrize(
    ("path", "conn_id", "message"),
    [
        ("lake/ledger", None, "Use an address that begins with s3://"),
        ("s3://", None, "Use the name of a bucket or container"),
        ("file:///", None, "Use three slashes and an absolute path"),
        ("file:///ledger", "aws_default", "a folder has no connection"),
        ("gs://one@lake/ledger", "other", "path has 'one'"),
    ],
)
def test_an_address_that_is_not_one_of_a_folder_is_an_error(path, conn_id, message):
    with pytest.raises(StemConfigError, match=message):
        Ledger(path, TYPES, conn_id=conn_id)


@pytest.mark.parametrize("folder", ["a//b", "a/../b", ".stem", "a\nb"])
def test_a_folder_that_is_not_valid_in_every_store_is_an_error(folder):
    with pytest.raises(StemConfigError, match="path renders to"):
        Ledger(f"s3://lake/{folder}", TYPES).missing(listing(("0", {})), CUT, LOOKBACK)


def test_the_ledger_of_a_bucket_is_at_its_top():
    assert [Ledger(f"s3://lake{end}", TYPES)._key("001-of-002") for end in ("", "/")] == ["001-of-002.json"] * 2


@pytest.mark.s3
def test_nothing_is_missing_in_an_empty_bucket_and_a_bucket_that_does_not_exist_is_an_error(lake):
    assert Ledger(f"s3://{lake.bucket}/ledger", TYPES).missing(listing(("0", None)), CUT, LOOKBACK) == []
    with pytest.raises(StemConfigError, match="'no-such-bucket' does not exist. Create it"):
        Ledger("s3://no-such-bucket/ledger", TYPES).missing(listing(("0", None)), CUT, LOOKBACK)


@pytest.mark.s3
def test_arguments_of_each_put_are_those_of_boto3(lake):
    ledger = Ledger(f"s3://{lake.bucket}/stem/ledger", TYPES, s3_extra_args={"Metadata": {"team": "energy"}})
    ledger.enter(listing(("0", starts(MONITOR="2025-03-02"))), [receipt_of("001-of-002", CUT, at(5))])
    [key] = lake.objects()
    assert lake.client.head_object(Bucket=lake.bucket, Key=key)["Metadata"]["team"] == "energy"
