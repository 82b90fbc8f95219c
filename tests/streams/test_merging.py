from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

from .helpers import at, examples, seconds, utc

BEGIN = seconds(utc("2025-07-01"))
Key = tuple[str, str, int, int]
Rows = dict[Key, float | None]


def batches_of(rows: Rows, cuts: list[int]) -> Iterator[pa.RecordBatch]:
    """Iterate over rows in the landing schema, split at ``cuts``; equal cuts make an empty batch."""
    ordered = sorted(rows, key=lambda key: (key[0], key[1], key[3], key[2]))
    edges = sorted([0, len(ordered), *(cut % (len(ordered) + 1) for cut in cuts)])
    for begin, end in itertools.pairwise(edges):
        keys = ordered[begin:end]
        columns: list[Any] = [
            [key[0] for key in keys],
            [key[1] for key in keys],
            [key[2] for key in keys],
            [at(key[3] - key[2]) for key in keys],
            [at(key[3]) for key in keys],
            [rows[key] for key in keys],
        ]
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, LANDING_SCHEMA, strict=True)],
            schema=LANDING_SCHEMA,
        )


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[tuple[Key, float | None]]:
    rows: list[tuple[Key, float | None]] = []
    for batch in batches:
        assert batch.schema == LANDING_SCHEMA
        for row in batch.to_pylist():
            end = seconds(row["interval_end"])
            assert seconds(row["interval_start"]) == end - row["resolution"]
            rows.append(((row["site_id"], row["stream_type"], row["resolution"], end), row["kw_total_avg"]))
    return rows


values = st.sampled_from([None, 0.0, -0.0, 1.5, 2.0, -3.25]) | st.floats(allow_nan=False, allow_infinity=False)


def keys(resolutions: list[int]) -> st.SearchStrategy[Key]:
    def key(site: str, kind: str, resolution: int, number: int) -> Key:
        return site, kind, resolution, BEGIN + number * 3600

    return st.builds(
        key,
        st.sampled_from(["a", "a ", "B", "ä", "z\n", "\U0001f50b"]),
        st.sampled_from(["CONVERTER", "MONITOR"]),
        st.sampled_from(resolutions),
        st.integers(0, 12),
    )


@st.composite
def lakes(draw: st.DrawFn) -> tuple[Rows, Rows]:
    held = draw(st.dictionaries(keys([900, 3600]), values, max_size=40))
    read = draw(st.dictionaries(keys([3600]), values, max_size=40))
    # Often the same keys, as a lookback reads them again: with the same values, or with some that changed.
    again = [key for key in held if key[2] == 3600 and key not in read]
    match draw(st.sampled_from(["other", "same", "changed"])):
        case "same":
            read |= {key: held[key] for key in again}
        case "changed":
            read |= {key: draw(st.just(held[key]) | values) for key in again}
    return held, read


KEYS: list[Key] = [("a", "MONITOR", 3600, BEGIN + number * 3600) for number in range(5)]
cuts = st.lists(st.integers(0, 100), max_size=5)


@examples(500)
@given(lakes(), cuts, cuts)
@example(
    (
        dict(zip(KEYS, [None, None, 1.5, 0.0, 1.5], strict=True)),
        dict(zip(KEYS, [2.0, None, None, -0.0, 1.5], strict=True)),
    ),
    [],
    [],
)
def test_the_merge_equals_that_of_two_dictionaries(
    lake: tuple[Rows, Rows], held_cuts: list[int], cuts: list[int]
) -> None:
    held, read = lake
    merge = Merge()
    united = rows_of(merge.merged(batches_of(held, held_cuts), batches_of(read, cuts)))
    assert dict(united) == {**held, **read}
    assert [key for key, _ in united] == sorted({**held, **read}, key=lambda key: (key[0], key[1], key[3], key[2]))
    # The sign of a zero is kept as it was read.
    assert [math.copysign(1, value) for key, value in united if value is not None and key in read] == [
        math.copysign(1, value) for key, _ in united if key in read and (value := read[key]) is not None
    ]
    common = held.keys() & read.keys()
    changed = sum(held[key] != read[key] for key in common)
    assert (merge.inserted, merge.changed) == (len(read.keys() - common), changed)
    assert (merge.unchanged, merge.kept) == (len(common) - changed, len(held.keys() - common))


@examples(200)
@given(lakes(), cuts, cuts)
def test_replaced_rows_are_counted_and_not_kept(lake: tuple[Rows, Rows], held_cuts: list[int], cuts: list[int]) -> None:
    held, read = lake
    merge, union = Merge(keeps=False), Merge()
    assert dict(rows_of(merge.merged(batches_of(held, held_cuts), batches_of(read, cuts)))) == read
    rows_of(union.merged(batches_of(held, held_cuts), batches_of(read, cuts)))
    assert (merge.inserted, merge.changed, merge.unchanged) == (union.inserted, union.changed, union.unchanged)
    assert merge.kept == 0


def test_counts_of_a_second_attempt_are_compared_with_the_rows_before_the_first() -> None:
    first, second = (
        Merge(inserted=5, changed=2, unchanged=3, kept=4),
        Merge(inserted=1, changed=1, unchanged=10, kept=4),
    )
    assert second.after(first) == Merge(inserted=6, changed=3, unchanged=3, kept=4)
    shorter = Merge(unchanged=4, kept=10)
    assert shorter.after(first) == Merge(inserted=4, kept=10)
    assert second.after(None) is second
