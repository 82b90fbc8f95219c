"""The log of changes between two snapshots of a table."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pyarrow.compute as pc
import pytest
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.iceberg.catalogs import catalog_from
from airflow_provider_stem.iceberg.changes import CHANGES_SCHEMA, changes
from tests.iceberg.tables import FIRST, KEY, commit, create, key, live, row, state
from tests.servers.catalogs import CATALOGS
from tests.support import at_most

LATER = FIRST + timedelta(days=1)


@pytest.fixture
def table(catalog):
    return create(catalog_from("stem_iceberg", "aws_default"))


def summary(found):
    """Return what changed, without the columns that are the same for a whole file."""
    return [
        (one["site_id"], one["kind"], one["old_kw"], one["new_kw"], one["snapshot_id"]) for one in found.to_pylist()
    ]


@pytest.mark.parametrize("catalog", CATALOGS, indirect=True)
def test_each_kind_of_change_is_listed_with_its_snapshot(table):
    first = commit(table, [row("a", 0, 1.0), row("b", 0, None), row("c", 0, 3.0), row("d", 0, 4.0)])
    new = [row("a", 0, 2.0, LATER, "s3://lake/b"), row("b", 0, 0.0), row("c", 0, None), row("e", 0, None)]
    second = commit(table, new, delete=live(table).values(), **{"stem.dag-id": "daily", "stem.run-id": "r1"})
    found = changes(table, first)
    assert found.schema == CHANGES_SCHEMA
    assert summary(found) == [
        ("a", "changed", 1.0, 2.0, second),
        ("b", "changed", None, 0.0, second),
        ("c", "changed", 3.0, None, second),
        ("d", "removed", 4.0, None, second),
        ("e", "inserted", None, None, second),
    ]
    restated = found.to_pylist()[0]
    committed = table.metadata.current_snapshot().timestamp_ms
    assert restated == {
        **{name: row("a", 0, 2.0)[name] for name in KEY},
        "kind": "changed",
        "old_kw": 1.0,
        "new_kw": 2.0,
        "old_read_at": FIRST,
        "new_read_at": LATER,
        "uri": "s3://lake/b",
        "snapshot_id": second,
        "changed_at": restated["changed_at"],
        "dag_id": "daily",
        "run_id": "r1",
    }
    assert restated["changed_at"].timestamp() * 1000 == pytest.approx(committed, abs=0.5)
    assert [one["uri"] for one in found.to_pylist()[3:]] == ["s3://lake/a"] * 2


def test_a_rewritten_file_is_no_change(table):
    first = commit(table, [row("a", 0, 1.0)], [row("a", 1, 2.0)])
    commit(table, [row("a", 0, 1.0, LATER), row("a", 1, 2.0)], delete=live(table).values())
    assert changes(table, first).num_rows == 0
    assert changes(table, first, first).num_rows == 0


def test_a_value_that_returns_is_two_changes(table):
    first = commit(table, [row("a", 0, 1.0)])
    second = commit(table, [row("a", 0, 2.0)], delete=live(table).values())
    third = commit(table, [row("a", 0, 1.0)], delete=live(table).values())
    assert summary(changes(table, first)) == [("a", "changed", 1.0, 2.0, second), ("a", "changed", 2.0, 1.0, third)]
    assert summary(changes(table, first, second)) == [("a", "changed", 1.0, 2.0, second)]


def test_only_files_that_were_added_or_removed_are_read(table, monkeypatch):
    first = commit(table, [row("a", 0, 1.0)], [row("a", 1, 2.0)], [row("a", 2, 3.0)])
    kept, gone, _ = live(table).values()
    commit(table, [row("a", 5, 9.0)], delete=[gone])
    read: list[str] = []
    open_file = type(table.io).new_input

    def new_input(io, path):
        read.append(path)
        return open_file(io, path)

    monkeypatch.setattr(type(table.io), "new_input", new_input)
    assert changes(table, first).num_rows == 2
    data = {path for path in read if path.endswith(".parquet")}
    assert len(data) == 2
    assert gone.file_path in data
    assert kept.file_path not in data


def test_changes_take_each_state_of_random_histories_to_each_later_one(table):
    drawn = random.Random(2025)
    states: list[tuple[dict[Any, Any], int]] = [({}, commit(table))]
    for step in range(max(6, at_most(200) // 10)):
        files = live(table)
        replaced = [file for file in files.values() if drawn.random() < 0.4]
        held = state(table)
        left = {} if len(replaced) == len(files) else state_without(table, replaced)
        gone = {one: held[one] for one in held.keys() - left.keys()}
        new = {one: {**gone[one], "kw_total_avg": value(drawn)} for one in gone if drawn.random() < 0.8}
        for _ in range(drawn.randrange(4)):
            one = row(drawn.choice("abcdef"), drawn.randrange(200), value(drawn), FIRST + timedelta(hours=step))
            if key(one) not in left:
                new[key(one)] = one
        parts = [[one for one in new.values() if one["site_id"] in sites] for sites in ("abc", "def")]
        snapshot = commit(table, *filter(None, parts), delete=replaced)
        states.append((state(table), snapshot))
    for number, (before, since) in enumerate(states):
        for after, until in states[number:]:
            found = dict(before)
            for one in changes(table, since, until).to_pylist():
                old = found.pop(key(one), None)
                assert (one["kind"] == "inserted") == (old is None)
                assert one["old_kw"] == (old and old["kw_total_avg"])
                if one["kind"] != "removed":
                    found[key(one)] = {"kw_total_avg": one["new_kw"]}
                    assert old is None or one["new_kw"] != one["old_kw"]
            assert {each: one["kw_total_avg"] for each, one in found.items()} == {
                each: one["kw_total_avg"] for each, one in after.items()
            }


def value(drawn):
    return drawn.choice([None, 0.0, 1.0, 2.5, -3.0])


def state_without(table, files):
    """Return the rows that no file of a list holds."""
    paths = {file.file_path for file in files}
    kept = [task for task in table.scan().plan_files() if task.file.file_path not in paths]
    rows = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue()).to_table(kept)
    return {key(one): one for one in rows.to_pylist()}


def expire(table, *snapshots):
    table.maintenance.expire_snapshots().by_ids([*snapshots]).commit()
    table.refresh()


def test_an_expired_snapshot_is_named_with_the_oldest_that_is_kept(table):
    first = commit(table, [row("a", 0, 1.0)])
    second = commit(table, [row("a", 1, 1.0)])
    commit(table, [row("a", 2, 1.0)])
    expire(table, first)
    with pytest.raises(
        StemConfigError,
        match=f"Invalid since {first}: this snapshot has expired .* The oldest that is kept is {second} ",
    ):
        changes(table, first)
    with pytest.raises(StemConfigError, match="Invalid until 7: this snapshot has expired or never existed"):
        changes(table, second, 7)
    assert changes(table, second).num_rows == 1


def test_changes_of_expired_snapshots_in_between_are_listed_with_the_next_one(table):
    first = commit(table, [row("a", 0, 1.0)])
    table.manage_snapshots().create_tag(first, "billed").commit()
    second = commit(table, [row("a", 0, 2.0)], delete=live(table).values())
    properties = {"stem.dag-id": "daily", "stem.run-id": "r1"}
    third = commit(table, [row("a", 0, 3.0), row("b", 0, 0.0)], delete=live(table).values(), **properties)
    assert changes(table, second)["run_id"].to_pylist() == ["r1", "r1"]
    expire(table, second)
    found = changes(table, first)
    assert summary(found) == [("a", "changed", 1.0, 3.0, third), ("b", "inserted", None, 0.0, third)]
    # Some of these are changes of other runs.
    assert found["dag_id"].to_pylist() == found["run_id"].to_pylist() == [None, None]


def test_a_starting_point_that_was_rolled_back_is_compared_with_what_came_after_it(table):
    first = commit(table, [row("a", 0, 1.0)])
    rolled_back = commit(table, [row("a", 0, 2.0)], delete=live(table).values())
    table.manage_snapshots().rollback_to_snapshot(first).commit()
    assert summary(changes(table, rolled_back)) == [("a", "changed", 2.0, 1.0, first)]
    third = commit(table, [row("b", 0, 5.0)])
    assert summary(changes(table, rolled_back)) == [
        ("a", "changed", 2.0, 1.0, third),
        ("b", "inserted", None, 5.0, third),
    ]


def test_snapshots_in_the_wrong_order_are_an_error(table):
    first = commit(table, [row("a", 0, 1.0)])
    second = commit(table, [row("a", 1, 1.0)])
    with pytest.raises(StemConfigError, match=f"until={first} is older than since={second}. Exchange them"):
        changes(table, second, first)


def test_a_table_without_snapshots_says_so(table):
    with pytest.raises(StemConfigError, match="The table has no snapshot yet: load something first"):
        changes(table, 1)


def test_a_key_that_is_there_twice_is_an_error(table):
    first = commit(table, [row("a", 0, 1.0)])
    commit(table, [row("b", 0, 1.0)], [row("b", 0, 2.0)])
    with pytest.raises(StemDataError, match="holds a key twice. Find the program that writes it"):
        changes(table, first)


def test_changes_are_sorted_by_key_within_a_snapshot(table):
    first = commit(table, [row("z", 0, 0.0)])
    commit(table, *([row(site, number, 1.0)] for site in "cab" for number in (190, 0, 100)))
    found = changes(table, first)
    assert found.num_rows == 9
    assert found.equals(found.take(pc.sort_indices(found, [(name, "ascending") for name in KEY])))
