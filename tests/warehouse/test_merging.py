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
@given(loads=st.lists(st.lists(one_object, min_size=1, max_size=3), min_size=1, max_size=4))
def test_the_table_and_the_counts_equal_those_of_a_dictionary(engine, loads):
    bucket, schema = Bucket(), f"s{next(SCHEMAS)}"
    known: dict[tuple[Any, ...], float | None] = {}
    for number, objects in enumerate(loads):
        expected = dict.fromkeys(counts(0, 0, 0, 0, 0, 0), 0)
        receipts = []
        for place, (start, resolution, streams) in enumerate(objects):
            step = timedelta(seconds=resolution)
            first = at("01T00:00") + start * step
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
        assert bucket.load(engine, *receipts, schema=schema) == expected
    found = engine.rows(f"SELECT site_id, stream_type, resolution, interval_end, kw_total_avg FROM {schema}.streams")
    assert sorted(found, key=str) == sorted(
        ((*key[:3], key[3].isoformat(), value) for key, value in known.items()), key=str
    )
