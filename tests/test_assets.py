from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_stem.assets import as_alias_extra, combined, event_extras, landed_objects, summary
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.records import read_objects
from airflow_provider_stem.warehouse.sites import read_records
from tests.support import OfMappedTasks, instant

try:
    from airflow.sdk.definitions import xcom_arg
except ImportError:  # Airflow 2
    from airflow.models import xcom_arg  # type: ignore[no-redef]


def landed(name, rows=1):
    return {
        "uri": f"s3://lake/{name}",
        "rows": rows,
        "bytes": 9,
        "sha256": "0123456789abcdef" * 4,
        "read_at": "2025-07-02T00:30:00Z",
        "start": "2025-07-01T00:00:00Z",
        "end": "2025-07-02T00:00:00Z",
    }


def event(at, *objects):
    extra = {"window": {"resolution": 900}, "objects": list(objects)}
    return SimpleNamespace(timestamp=instant(f"2025-07-02T0{at}:00Z"), extra=extra)


@pytest.mark.parametrize("key", ["triggering_asset_events", "triggering_dataset_events"])
def test_objects_are_listed_once_as_in_the_last_event(key):
    events = {
        "one asset": [event(3, landed("b", 3)), event(1, landed("a", 1), landed("b", 1))],
        "another": [event(2, landed("b", 2)), SimpleNamespace(timestamp=instant("2025-07-02T00:00Z"), extra=None)],
    }
    assert landed_objects({key: events}) == [
        landed("a", 1) | {"resolution": 900},
        landed("b", 3) | {"resolution": 900},
    ]


def test_a_listed_object_has_only_known_keys_of_the_right_types():
    """The values may be used in SQL, and anyone who may create an event can write anything into it."""
    entry = landed("a") | {"start": "2025-07-01T02:00:00+02:00", "note": "'; DROP TABLE streams; --"}
    [found] = landed_objects({"triggering_asset_events": {"asset": [event(1, entry)]}})
    assert found == landed("a") | {"resolution": 900}


@pytest.mark.parametrize(
    "wrong",
    [
        {"uri": "https://lake/a"}, {"uri": "s3://lake/a\nb"}, {"rows": "1); DROP TABLE streams; --"}, {"rows": True},
        {"bytes": -1}, {"start": "2025-07-01T00:00:00Z' AS TIMESTAMPTZ)"}, {"end": "2025-07-01T00:00:00"},
        {"sha256": "'; DROP TABLE streams; --"}, {"sha256": None}, {"sha256": "0" * 63}, {"read_at": "yesterday"},
    ],
    ids=str,
)  # fmt: skip
def test_an_object_of_wrong_types_is_an_error(wrong):
    with pytest.raises(StemConfigError, match="An asset event that triggered this run lists invalid objects"):
        landed_objects({"triggering_asset_events": {"asset": [event(1, landed("a") | wrong)]}})


def test_a_run_that_no_event_triggered_has_none():
    assert landed_objects({}) == []
    assert landed_objects({"triggering_asset_events": {"asset": [SimpleNamespace(extra={"other": 1})]}}) == []


DAY = ("2025-07-01T00:00:00Z", "2025-07-02T00:00:00Z")


def receipt(start, end, *objects, resolution=900):
    window = {"start": start, "end": end, "resolution": resolution}
    return {"window": window, "objects": list(objects), "rows": sum(one["rows"] for one in objects), "missing": 1}


def test_the_receipts_of_all_batches_make_one_event():
    receipts = [
        receipt("2025-07-01T00:00:00Z", "2025-07-02T00:00:00Z", landed("a", 2), landed("b", 3)),
        None,  # a batch that was skipped
        receipt("2025-06-30T00:00:00Z", "2025-07-01T12:00:00Z", landed("c", 4)),
    ]
    extra = combined(receipts)
    assert extra == {
        "window": {"start": "2025-06-30T00:00:00Z", "end": "2025-07-02T00:00:00Z", "resolution": 900},
        "objects": [landed("a", 2), landed("b", 3), landed("c", 4)],
        "rows": 9,
    }
    events = {"triggering_asset_events": {"asset": [SimpleNamespace(extra=extra)]}}
    assert [one["uri"][-1] for one in landed_objects(events)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "receipts", [[], [None], [receipt(*DAY, resolution=900), receipt(*DAY, resolution=3600)]], ids=len
)
def test_invalid_receipts_are_an_error(receipts):
    with pytest.raises(StemConfigError, match="receipts"):
        combined(receipts)


@pytest.mark.parametrize("airflow", ["2.11.2", "3.0.6", "3.1.0", "3.3.2"])
def test_the_event_of_an_alias_has_the_same_extra_in_every_airflow(airflow):
    extra = combined([receipt("2025-07-01T00:00:00Z", "2025-07-02T00:00:00Z", landed("a", 2))])
    carried = as_alias_extra(extra, airflow)
    if airflow < "3.1":
        hash(frozenset(carried.items()))  # as that Airflow does
    else:
        assert carried == extra
    assert list(event_extras({"triggering_asset_events": {"alias": [SimpleNamespace(extra=carried)]}})) == [extra]


def test_a_string_that_is_not_json_is_unchanged():
    extra = {"window": "noon to dusk", "objects": "[]"}
    assert list(event_extras({"triggering_asset_events": {"asset": [SimpleNamespace(extra=extra)]}})) == [extra]


def gap(site_id, stream_type="MONITOR"):
    return {"site_id": site_id, "stream_type": stream_type}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({}, "96 of 96 sites complete, 27,648 rows, 0 missing"),
        ({"sites": 1, "rows": 1}, "1 of 1 site complete, 1 row, 0 missing"),
        (
            {"missing": 7, "incomplete": [gap("a"), gap("a", "CONVERTER"), gap("b")], "incomplete_count": 3},
            "94 of 96 sites complete, 27,648 rows, 7 missing",
        ),
        (
            {"missing": 1_200, "incomplete": [gap("a"), gap("b")], "incomplete_count": 5, "failed_count": 2},
            "at most 92 of 96 sites complete, 27,648 rows, 1,200 missing, 2 sites failed",
        ),
    ],
)
def test_a_receipt_is_one_line(counts, line):
    complete = {"sites": 96, "rows": 27_648, "missing": 0, "failed_count": 0, "incomplete_count": 0, "incomplete": []}
    found = receipt(*DAY) | complete | counts
    window = "; window 2025-07-01T00:00:00Z to 2025-07-02T00:00:00Z"
    assert summary(found) == summary([None, found]) == line + window
    if not counts:
        assert summary([found, dict(found)]) == line + window  # one receipt, listed twice
        other_batch = found | {"objects": [landed("b")]}
        # The same window, as another package may write it.
        other_batch["window"] = {"start": "2025-07-01T02:00:00+02:00", "end": f"{DAY[1]} ", "resolution": 900, "a": 1}
        both = "192 of 192 sites complete, 55,296 rows, 0 missing"
        assert summary([found, other_batch]) == both + window
        later = found | receipt("2025-07-02T00:00:00Z", "2025-07-03T00:00:00Z") | complete
        with pytest.raises(StemConfigError, match=r"must be of one window, got several .* Call summary for each"):
            summary([later, found])


@pytest.mark.parametrize(
    "wrong",
    [
        {"sites": 1.9}, {"sites": "3"}, {"sites": True}, {"sites": float("inf")}, {"sites": -5}, {"rows": -5},
        {"missing": -5}, {"failed_count": 5}, {"missing": 50}, {"incomplete": [gap("a")]},
        {"incomplete": [gap("a")], "incomplete_count": 1},
        {"incomplete": [gap(one) for one in "abcd"], "incomplete_count": 4, "missing": 4},
        {"incomplete": [gap("a")], "incomplete_count": 1, "missing": 1, "failed_count": 3},
        {"incomplete": [{"site_id": []}]}, {"incomplete": None}, {"window": {"start": DAY[1], "end": DAY[0]}},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_receipts_are_an_error(wrong):
    counts = {"sites": 3, "missing": 0, "failed_count": 0, "incomplete_count": 0, "incomplete": []}
    with pytest.raises(StemConfigError, match="receipts|window|resolution"):
        summary(receipt(*DAY, landed("a")) | counts | wrong)


def test_the_window_of_an_event_is_compared_by_time():
    receipts = [
        receipt("2025-07-01T00:00:00+00:00", "2025-07-02T00:00:00+00:00", landed("a")),
        receipt("2025-07-01T05:00:00+14:00", "2025-07-02T20:00:00-05:00", landed("b")),
    ]
    window = {"start": "2025-06-30T15:00:00Z", "end": "2025-07-03T01:00:00Z", "resolution": 900}
    assert combined(receipts)["window"] == window


@pytest.mark.parametrize("number", [1, 100, 250])
def test_what_mapped_tasks_returned_is_not_read_past_its_end(number):
    receipts = [receipt(*DAY, landed(f"{one:04}")) for one in range(number)]
    assert combined(OfMappedTasks(receipts)) == combined(receipts)
    assert read_objects(OfMappedTasks(receipts)) == read_objects(receipts)


class LazyXComSequence(OfMappedTasks):
    """What mapped tasks returned, by the name that Airflow has for it."""

    def __init__(self, returned):
        super().__init__(returned)
        self.requests = 0

    def __getitem__(self, key):
        self.requests += 1
        return super().__getitem__(key)


def test_what_mapped_tasks_returned_is_read_in_few_requests():
    receipts = [receipt(*DAY, landed(f"{one:04}")) for one in range(250)]
    returned = LazyXComSequence(receipts)
    assert read_objects(returned) == read_objects(receipts)
    assert returned.requests == 3


def test_combinations_of_what_mapped_tasks_returned_are_read():
    """Airflow's classes for them do not support slices."""
    a, b, c = (receipt(*DAY, landed(name)) for name in "abc")
    ab, bc = LazyXComSequence([a, b]), LazyXComSequence([b, c])
    # A function that would also accept a list of receipts, which is not what it is called with.
    mapped = xcom_arg._MapResult(LazyXComSequence([[a], [b]]), [lambda one: one[0]])
    assert read_objects(mapped) == read_objects([a, b])
    assert read_objects(xcom_arg._ConcatResult([ab, [c]])) == read_objects([a, b, c])
    combinations: list[Any] = [xcom_arg._ZipResult([ab, bc]), [ab, bc], ([a, b], (b, c)), [a, [None, b], bc]]
    for combination in combinations:
        assert read_objects(combination) == read_objects([a, b, c])
        assert combined(combination) == combined([a, b, c])
    records = [{"site_id": site_id, "client_id": "c", "stream_start_times": None} for site_id in "ab"]
    batches = LazyXComSequence([{"sites": records, "batch": "1-of-1"}])
    assert read_records([[records[0]], batches]) == read_records(records)


def test_events_are_read_from_a_context_that_was_made_by_hand():
    events = [
        {"timestamp": "2025-07-02T03:00:00Z", "extra": {"window": {"resolution": 900}, "objects": [landed("b", 3)]}},
        event(2, landed("b", 2)),
        {"extra": {"window": {"resolution": 900}, "objects": [landed("a")]}},
    ]
    events[1].timestamp = events[1].timestamp.replace(tzinfo=None)
    context = {"triggering_asset_events": {"asset": events}}
    assert [extra["objects"] for extra in event_extras(context)] == [[landed("a")], [landed("b", 2)], [landed("b", 3)]]
