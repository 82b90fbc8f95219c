"""Random sequences of loads, compared with a plain dictionary, on each engine."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .helpers import Bucket, at, counts

STREAMS = [("site-a", "MONITOR"), ("site-a", "CONVERTER"), ("site-b", "MONITOR")]
VALUES = st.sampled_from([..., None, 0.0, -0.0, 1.5, 2.5])
SCHEMAS = count()

one_object = st.tuples(
    st.integers(0, 4),
    st.sampled_from([900, 1800]),
    st.dictionaries(st.sampled_from(STREAMS), st.lists(VALUES, max_size=4), max_size=3),
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(
    loads=st.lists(st.lists(one_object, min_size=1, max_size=3), min_size=1, max_size=4),
    minutes=st.lists(st.sampled_from([-1440, -20, 0, 20]), min_size=4, max_size=4),
)
def test_the_table_and_the_counts_equal_those_of_a_dictionary(engine, loads, minutes):
    bucket, schema, clocks = Bucket(), f"s{next(SCHEMAS)}", iter(minutes)
    known: dict[tuple[Any, ...], float | None] = {}
    states = [dict(known)]
    for number, objects in enumerate(loads):
        expected = dict.fromkeys(counts(0, 0, 0, 0, 0, 0), 0)
        receipts = []
        for place, (start, resolution, streams) in enumerate(objects):
            step = timedelta(seconds=resolution)
            first = at("01T23:00") + start * step
            start_at, end_at = (f"{edge:%dT%H:%M}" for edge in (first, first + 4 * step))
            receipts.append(bucket.land(f"{number}-{place}", streams, start_at, end_at, resolution))
            rows = {
                (*stream, resolution, first + n * step): value
                for stream, values in streams.items()
                for n, value in enumerate(values, 1)
                if value is not ...
            }
            held = {key[:3] for key in rows}
            within = {key for key in known if key[:3] in held and first < key[3] <= first + 4 * step}
            same = {key for key in rows if key in known and known[key] == rows[key]}
            counted = counts(
                1, len(rows), len(rows.keys() - known.keys()), len((rows.keys() & known.keys()) - same), len(same),
                len(within - rows.keys()),
            )  # fmt: skip
            expected = {name: expected[name] + counted[name] for name in expected}
            known |= {key: value for key, value in rows.items() if key not in same}
        # Clocks of workers differ: a later load may have an earlier time.
        loaded_at = at("03T00:10") + timedelta(minutes=next(clocks))
        assert bucket.load(engine, *receipts, at=loaded_at, schema=schema, run_id=str(number)) == expected
        states.append(dict(known))
    found = engine.rows(f"SELECT site_id, stream_type, resolution, interval_end, kw_total_avg FROM {schema}.streams")
    assert sorted(found, key=str) == sorted(
        ((*key[:3], key[3].isoformat(), value) for key, value in known.items()), key=str
    )
    check_history(engine, schema, states)
    check_days(engine, schema)


def check_history(engine, schema, states):
    """Undo the restatements of one run after another: each earlier state must appear."""
    key = "site_id, stream_type, resolution, interval_end"
    current = {row[:4]: row[4] for row in engine.rows(f"SELECT {key}, kw_total_avg FROM {schema}.streams")}
    changed_at = {row[:4]: row[4] for row in engine.rows(f"SELECT {key}, changed_at FROM {schema}.streams")}
    restatements = engine.rows(
        f"SELECT {key}, old_kw, new_kw, changed_at, uri, dag_id, run_id FROM {schema}.restatements"
    )
    assert len({(*row[:4], row[6]) for row in restatements}) == len(restatements)
    last = {row[:4]: row[6] for row in sorted(restatements, key=lambda row: row[6])}
    assert {one: changed_at[one] for one in last} == last
    for number in reversed(range(len(states) - 1)):
        run = sorted((row for row in restatements if row[9] == str(number)), key=lambda row: row[6], reverse=True)
        for *parts, old, new, _, uri, dag_id, _ in run:
            assert current[tuple(parts)] == new != old
            assert (uri.rpartition("/")[2].split("-")[0], dag_id) == (str(number), "dag")
            current[tuple(parts)] = old
        # Rows that the run added were not there before.
        state = {(*one[:3], one[3].isoformat()): value for one, value in states[number].items()}
        current = {one: value for one, value in current.items() if one in state}
        assert current == state


def check_days(engine, schema):
    """Compare the maintained days with a count of the rows."""
    key = "site_id, stream_type, resolution"
    late = "count(CASE WHEN loaded_at > date_trunc('day', interval_start) + INTERVAL '2 days' THEN 1 END)"
    by_hand = engine.rows(
        f"SELECT {key}, CAST(date_trunc('day', interval_start) AS DATE), count(*), {late} FROM {schema}.streams "
        "GROUP BY 1, 2, 3, 4"
    )
    maintained = [
        (*row[:4], sum(map(int.bit_count, row[4:6])), sum(map(int.bit_count, row[6:])))
        for row in engine.rows(
            f"SELECT {key}, day, received_am, received_pm, late_am, late_pm FROM {schema}.stream_days"
        )
    ]
    assert sorted(maintained) == sorted(by_hand)
    assert sorted(engine.rows(f"SELECT {key} FROM {schema}.loaded_streams")) == sorted({row[:3] for row in by_hand})
