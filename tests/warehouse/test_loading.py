"""What a load changes in the warehouse, on each engine, with counts that were worked out by hand."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import psycopg2  # type: ignore[import-untyped]
import pytest

from airflow_provider_stem.errors import StemConfigError, StemDataError, StemTransportError
from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA, statements
from tests.servers.processes import HUNG_AFTER
from tests.support import until

from .helpers import Bucket, at, counts

ROOT = Path(__file__).parents[2]
A, B = ("site-a", "MONITOR"), ("site-b", "CONVERTER")
FORMATS = [
    ("parquet", "zstd"),
    ("csv", "gzip"),
    ("csv", "zstd"),
    ("csv", "none"),
    ("jsonl", "gzip"),
    ("jsonl", "zstd"),
    ("jsonl", "none"),
]
VALUES = "SELECT site_id, interval_end, kw_total_avg FROM stem.streams ORDER BY 1, 2"


@pytest.fixture
def bucket():
    return Bucket()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_ids_are_stored_as_they_are_whatever_the_client_encoding_is(engine, bucket, encoding):
    ids = ["site-é", "现场-☀"]
    landed = bucket.land("hour", {(one, "MONITOR"): [1.0, 2.0, 3.0, 4.0] for one in ids}, "01T00:00", "01T01:00")
    connect = engine.connect
    engine.connect = lambda: psycopg2.connect(engine.address, client_encoding=encoding)
    assert bucket.load(engine, landed, at=at("01T02:00")) == counts(1, 8, 8, 0, 0, 0)
    assert bucket.load(engine, landed, at=at("01T03:00")) == counts(1, 8, 0, 0, 8, 0)
    engine.connect = connect
    assert engine.rows("SELECT DISTINCT site_id FROM stem.streams ORDER BY 1") == [(one,) for one in sorted(ids)]


def test_loading_again_changes_nothing_and_restated_values_replace_older_ones(engine, bucket):
    # An hour at 900 s: 4 rows of A, and 3 of B, whose third is missing.
    first = bucket.land("hour", {A: [1.0, 2.0, None, 4.0], B: [0.1, 0.2, ..., 0.4]}, "01T00:00", "01T01:00")
    assert bucket.load(engine, first, at=at("01T02:00")) == counts(1, 7, 7, 0, 0, 0)
    everything = "SELECT * FROM stem.streams ORDER BY 1, 5"
    before = engine.rows(everything)
    assert before[1] == (
        "site-a", "MONITOR", 900, "2025-07-01T00:15:00+00:00", "2025-07-01T00:30:00+00:00", 2.0,
        "2025-07-01T02:00:00+00:00", "2025-07-01T02:00:00+00:00",
    )  # fmt: skip
    assert bucket.load(engine, first, at=at("01T03:00")) == counts(1, 7, 0, 0, 7, 0)
    assert engine.rows(everything) == before

    # Three values differ: 2.0 to 2.5, null to 3.0, 4.0 to null. One is new: B's third.
    again = bucket.land("hour", {A: [1.0, 2.5, 3.0, None], B: [0.1, 0.2, 0.3, 0.4]}, "01T00:00", "01T01:00")
    assert bucket.load(engine, again, at=at("02T00:00")) == counts(1, 8, 1, 3, 4, 0)
    assert [row[2] for row in engine.rows(VALUES)] == [1.0, 2.5, 3.0, None, 0.1, 0.2, 0.3, 0.4]
    first_load, second_load = "2025-07-01T02:00:00+00:00", "2025-07-02T00:00:00+00:00"
    assert [row[6:] for row in engine.rows(everything)] == [
        (first_load, first_load),
        *3 * [(first_load, second_load)],
        *2 * [(first_load, first_load)],
        (second_load, second_load),
        (first_load, first_load),
    ]
    assert engine.rows(
        "SELECT uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end, dag_id, "
        "run_id FROM stem.loads ORDER BY loaded_at"
    ) == [
        ("s3://lake/hour", *counted, 0, 900, "2025-07-01T00:00:00+00:00", "2025-07-01T01:00:00+00:00", "dag", "run")
        for counted in [(7, 7, 0, 0), (7, 0, 0, 7), (8, 1, 3, 4)]
    ]


def test_rows_that_the_object_no_longer_has_are_kept_and_counted(engine, bucket):
    both = bucket.land("hour", {A: [1.0, 2.0, 3.0, 4.0], B: [5.0, 6.0, 7.0, 8.0]}, "01T00:00", "01T01:00")
    after = bucket.land("next", {A: [9.0]}, "01T01:00", "01T02:00")
    assert bucket.load(engine, both, after) == counts(2, 9, 9, 0, 0, 0)
    # A lost its 2nd and 4th row; its row of the next hour is outside the period. The object has no rows of B.
    fewer = bucket.land("hour", {A: [1.0, ..., 3.5]}, "01T00:00", "01T01:00")
    assert bucket.load(engine, fewer) == counts(1, 2, 0, 1, 1, 2)
    assert [row[2] for row in engine.rows(VALUES)] == [1.0, 2.0, 3.5, 4.0, 9.0, 5.0, 6.0, 7.0, 8.0]


def test_of_two_objects_with_the_same_keys_the_later_one_wins(engine, bucket):
    one = bucket.land("one", {A: [1.0, 2.0]}, "01T00:00", "01T00:30")
    two = bucket.land("two", {A: [1.0, 5.0]}, "01T00:00", "01T00:30")
    assert bucket.load(engine, one, two) == counts(2, 4, 2, 1, 1, 0)
    assert [row[2] for row in engine.rows(VALUES)] == [1.0, 5.0]


def test_resolutions_are_kept_apart(engine, bucket):
    quarter = bucket.land("900", {A: [1.0, 2.0, 3.0, 4.0]}, "01T00:00", "01T01:00")
    hour = bucket.land("3600", {A: [2.5]}, "01T00:00", "01T01:00", 3600)
    assert bucket.load(engine, quarter, hour) == counts(2, 5, 5, 0, 0, 0)


AWKWARD = [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, None, -12.0, 1 / 3]


@pytest.mark.parametrize(("file_format", "compression"), FORMATS)
def test_every_format_loads_the_same_rows_exactly(file_format, compression, engine, bucket):
    streams = {('site "ä", \\ \' n/a', "MONITOR"): AWKWARD, ("null", "CONVERTER"): [1.5]}
    receipt = bucket.land("object", streams, "01T00:00", "01T02:00", 900, file_format, compression)
    assert bucket.load(engine, receipt) == counts(1, 8, 8, 0, 0, 0)
    stored = engine.rows(VALUES)
    assert [row[0] for row in stored] == ["null", *7 * ['site "ä", \\ \' n/a']]
    assert [repr(row[2]) for row in stored] == ["1.5", *map(repr, AWKWARD)]
    assert stored[1][1] == "2025-07-01T00:15:00+00:00"
    empty = bucket.land("empty", {}, "01T00:00", "01T01:00", 900, file_format, compression)
    assert bucket.load(engine, empty) == counts(1, 0, 0, 0, 0, 0)
    assert engine.rows("SELECT resolution FROM stem.loads WHERE row_count = 0") == [(900,)]


# --- objects that do not match their receipts -------------------------------------------------------------------------


def test_nothing_is_loaded_if_one_object_does_not_match_its_receipt(engine, bucket):
    good = bucket.land("a", {A: [1.0]}, "01T00:00", "01T01:00")
    wrong = bucket.land("b", {B: [1.0, 2.0]}, "01T00:00", "01T01:00")
    bucket.land("b", {B: [1.0, 2.0, 3.0]}, "01T00:00", "01T00:45", 900, "csv")
    bucket.bodies["s3://lake/b"] += b'"site-b","CONVERTER",900,'
    with pytest.raises(StemDataError, match=r"The object is damaged.*s3://lake/b\]"):
        bucket.load(engine, good, wrong)
    assert engine.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'stem'") == []
    assert bucket.load(engine, good) == counts(1, 1, 1, 0, 0, 0)
    assert len(engine.rows("SELECT uri FROM stem.loads")) == 1


def test_a_late_load_reads_the_rewritten_object_and_its_newer_receipt_then_changes_nothing(engine, bucket):
    settled = bucket.land("a", {A: [1.0, 2.0]}, "01T00:00", "01T01:00")
    older = bucket.land("b", {B: [1.0, ...]}, "01T01:00", "01T02:00")
    newer = bucket.land("b", {B: [1.5, 2.0]}, "01T01:00", "01T02:00")
    assert bucket.load(engine, settled, older) == counts(2, 4, 4, 0, 0, 0, replaced=1)
    assert [row[2] for row in engine.rows(VALUES)] == [1.0, 2.0, 1.5, 2.0]
    assert engine.rows("SELECT CAST(sum(row_count) AS INTEGER) FROM stem.loads") == [(4,)]
    assert bucket.load(engine, newer) == counts(1, 2, 0, 0, 2, 0)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [5.0, 2.0], [5.0]])
def test_a_table_with_duplicate_keys_is_an_error_and_is_not_changed(values, engine, bucket):
    """Another program may leave such a table; in PostgreSQL one that was copied without its primary key."""
    receipt = bucket.land("one", {A: values}, "01T00:00", "01T00:30")
    row = "'site-a', 'MONITOR', 900, '2025-07-01T00:00:00Z', '2025-07-01T00:15:00Z', 5, '2025-07-02', '2025-07-02'"
    create, *_ = statements(engine.name, "tables")
    with engine.session()() as session, session.transaction():
        session.create_schema()
        session.execute(re.sub(r",\s*PRIMARY KEY \(.*?\)|PARTITION BY .*", "", create))
        session.execute(f"INSERT INTO {SCHEMA}.streams VALUES ({row}), ({row})")
    with pytest.raises(StemDataError, match=r"holds duplicate keys, .* remove the duplicates.*s3://lake/one\]"):
        bucket.load(engine, receipt)
    assert [value[2] for value in engine.rows(VALUES)] == [5.0, 5.0]


# --- concurrent loads -------------------------------------------------------------------------------------------------

CHILD = """
import base64, json, logging, os, sys
from airflow_provider_stem.streams.store import Version
from airflow_provider_stem.warehouse.loading import load_objects
from airflow_provider_stem.streams.records import read_objects
logging.basicConfig(level=logging.INFO)
bodies = {uri: base64.b64decode(text) for uri, text in json.loads(sys.argv[3]).items()}

def session():
    print("connecting", flush=True)
    session = Session(connect, "stem", float(sys.argv[4]))
    if ON_COMMIT:
        end, done = session.end, []
        def end_or_die(*, commit):
            done.append(commit)
            if len(done) == 2:  # the first transaction creates the tables
                os.kill(os.getpid(), 9)
            end(commit=commit)
        session.end = end_or_die
    return session

def fetch(uri, file):
    file.write(bodies[uri])
    return Version("", file.sha256, None)

counts = load_objects(read_objects(json.loads(sys.argv[2])), fetch, session)
print(json.dumps(counts))
"""


def child(engine, bucket, receipts, *, on_commit=False):
    bodies = {uri: base64.b64encode(body).decode() for uri, body in bucket.bodies.items()}
    program = f"{engine.program}\nON_COMMIT = {on_commit}\n{CHILD}"
    return subprocess.Popen(
        [sys.executable, "-c", program, engine.address, json.dumps(receipts), json.dumps(bodies), str(HUNG_AFTER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_concurrent_loads_neither_deadlock_nor_duplicate_rows(engine, bucket):
    """Both are blocked before they begin, then released; they load the same objects in opposite order."""
    one = bucket.land("one", {A: [float(n) for n in range(96)]}, "01T00:00", "02T00:00")
    two = bucket.land("two", {B: [float(n) for n in range(96)]}, "01T00:00", "02T00:00")
    held = engine.connect()
    if engine.name == "postgres":
        # Neither the schema nor the tables exist, so both loads also try to create them.
        held.cursor().execute("SELECT pg_advisory_xact_lock(hashtext('airflow_provider_stem stem'))")
    children = [child(engine, bucket, receipts) for receipts in ([one, two], [two, one])]
    for waiting in children:
        assert waiting.stdout.readline() == "connecting\n"
    if engine.name == "postgres":
        blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: engine.rows(blocked) == [(2,)])
    else:
        for waiting in children:
            assert "Waiting for another process that has the DuckDB file open" in waiting.stderr.readline()
    held.close()
    results = []
    for waiting in children:
        out, err = waiting.communicate(timeout=HUNG_AFTER)
        assert waiting.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    # 2 x 96 rows: for one load all of them are new, for the other none.
    assert sorted(results, key=lambda counted: counted["unchanged"]) == [
        counts(2, 192, 192, 0, 0, 0),
        counts(2, 192, 0, 0, 192, 0),
    ]
    assert engine.rows("SELECT count(*), count(DISTINCT interval_end) FROM stem.streams") == [(192, 96)]


def test_a_killed_load_leaves_nothing_and_the_next_one_loads_all(engine, bucket):
    """It is killed after everything was merged, just before the commit."""
    receipts = [bucket.land(name, {A: [1.0]}, f"0{name}T00:00", f"0{name}T01:00") for name in ("1", "2")]
    killed = child(engine, bucket, receipts, on_commit=True)
    killed.communicate(timeout=HUNG_AFTER)
    assert killed.returncode == -signal.SIGKILL
    assert engine.rows("SELECT count(*) FROM stem.streams") == [(0,)]
    assert engine.rows("SELECT count(*) FROM stem.loads") == [(0,)]
    assert bucket.load(engine, *receipts) == counts(2, 2, 2, 0, 0, 0)


def test_a_warehouse_that_stays_locked_is_an_error(engine, bucket):
    receipt = bucket.land("one", {A: [1.0]}, "01T00:00", "01T01:00")
    bucket.load(engine, receipt)
    if engine.name == "postgres":
        held = engine.connect()
        held.cursor().execute("LOCK TABLE stem.streams IN ROW EXCLUSIVE MODE")
        message = "Another session has locked schema 'stem' for 0.2 s. Try again later"
        release = held.close
    else:
        holder = subprocess.Popen(
            [sys.executable, "-c", f"{engine.program}\nheld = connect()\nprint('held', flush=True)\nsys.stdin.read()",
             engine.address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = "Another process has had the DuckDB file open for 0.2 s. End it, or try again later"
        release = holder.communicate

    def lock():
        with engine.session(lock_timeout=0.2)() as session, session.transaction():
            session.lock("streams")

    try:
        with pytest.raises(StemTransportError, match=message) as error:
            lock()
        assert "\n" not in str(error.value)
    finally:
        release()
    assert bucket.load(engine, receipt) == counts(1, 1, 0, 0, 1, 0)


@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_a_file_that_cannot_be_opened_is_not_mistaken_for_a_locked_one(engine, bucket, tmp_path):
    """DuckDB's message contains the path, which may contain any word."""
    receipt = bucket.land("one", {A: [1.0]}, "01T00:00", "01T01:00")
    path = tmp_path / "blockstorage" / "lock" / "telemetry.duckdb"
    engine.connect = lambda: duckdb.connect(str(path))
    with pytest.raises(
        StemConfigError, match="Host to the path of a DuckDB file in an existing folder that the worker"
    ):
        bucket.load(engine, receipt)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("lock_timeout", "expected"), [(0.0001, "1ms"), (0.2, "200ms"), (36_500 * 86_400.0, "2147483647ms")]
)
def test_the_wait_for_a_lock_is_always_limited(lock_timeout, expected, engine):
    with engine.session(lock_timeout=lock_timeout)() as session, session.transaction():
        [(setting,)] = session.execute("SELECT setting || unit FROM pg_settings WHERE name = 'lock_timeout'")
    assert setting == expected


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_role_without_the_privilege_to_create_can_load_into_existing_tables(engine, bucket):
    receipt = bucket.land("one", {A: [1.0]}, "01T00:00", "01T01:00")
    bucket.load(engine, receipt)
    session = engine.session()()
    with session, session.transaction():
        session.execute("CREATE ROLE loader")
        session.execute("GRANT USAGE ON SCHEMA stem TO loader")
        session.execute("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA stem TO loader")
    owner = engine.connect

    def as_loader():
        connection = owner()
        connection.cursor().execute("SET ROLE loader")
        connection.commit()
        return connection

    engine.connect = as_loader
    try:
        assert bucket.load(engine, receipt) == counts(1, 1, 0, 0, 1, 0)
    finally:
        engine.connect = owner
        session = engine.session()()
        with session, session.transaction():
            session.execute("DROP OWNED BY loader")
            session.execute("DROP ROLE loader")


PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'stem.streams'::regclass"


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_rows_are_partitioned_by_the_month_in_which_an_interval_begins(engine, bucket):
    parts = "SELECT tableoid::regclass::text, interval_end FROM stem.streams ORDER BY 2"
    # Its period begins in June, and its rows in July.
    june = bucket.land("june", {A: [1.0, 2.0]}, "01T00:00", "01T00:30")
    june["objects"][0]["start"] = "2025-06-30T23:30:00Z"
    last = bucket.land("july", {A: [1.0, 2.0]}, "31T23:30", "31T23:45")
    last["objects"][0]["end"] = "2025-08-01T00:00:00Z"
    bucket.load(engine, june, last)
    assert engine.rows(parts) == [
        ("stem.streams_2025_07", f"2025-{end}:00+00:00")
        for end in ("07-01T00:15", "07-01T00:30", "07-31T23:45", "08-01T00:00")
    ]
    assert engine.rows(f"{PARTITIONS} ORDER BY 1") == [("stem.streams_2025_06",), ("stem.streams_2025_07",)]
    # A month is removed with its partition, and created again by an object of that month.
    session = engine.session()()
    with session, session.transaction():
        session.execute("ALTER TABLE stem.streams DETACH PARTITION stem.streams_2025_07")
    with pytest.raises(StemConfigError, match="streams_2025_07 exists, but is not a partition.* Attach it"):
        bucket.load(engine, last)
    session = engine.session()()
    with session, session.transaction():
        session.execute("DROP TABLE stem.streams_2025_07")
    assert bucket.load(engine, last) == counts(1, 2, 2, 0, 0, 0)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_a_table_of_streams_without_partitions_is_loaded_as_it_is(engine, bucket):
    """For example a hypertable of TimescaleDB."""
    create, *_ = statements(engine.name, "tables")
    with engine.session()() as session, session.transaction():
        session.create_schema()
        session.execute(create.replace(" PARTITION BY RANGE (interval_end)", ""))
    receipt = bucket.land("one", {A: [1.0, None]}, "01T00:00", "01T01:00")
    assert bucket.load(engine, receipt) == counts(1, 2, 2, 0, 0, 0)
    assert engine.rows(PARTITIONS) == []


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
@pytest.mark.parametrize("action", ["RETURN NULL", "NEW.kw_total_avg := NULL; RETURN NEW"])
def test_rows_that_the_database_changes_or_drops_are_an_error(action, engine, bucket):
    receipt = bucket.land("one", {A: [1.0, 2.0]}, "01T00:00", "01T01:00")
    with engine.session()() as session, session.transaction():
        session.create_missing()
        session.execute(f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {action}; END$$")
        session.execute("CREATE TRIGGER meddle BEFORE INSERT ON stem.streams FOR EACH ROW EXECUTE FUNCTION meddle()")
    with pytest.raises(StemDataError, match=r"of 2 rows with 2 values [02] with 0 were added.*s3://lake/one\]"):
        bucket.load(engine, receipt)
    assert engine.rows("SELECT count(*) FROM stem.streams") == [(0,)]


def test_objects_of_one_period_are_merged_together_and_counted_separately(engine, bucket):
    """The second load has a new stream, a changed, an unchanged and a missing row in different objects."""
    names = [f"site-{number}" for number in range(6)]
    first = [bucket.land(name, {(name, "MONITOR"): [1.0, 2.0]}, "01T00:00", "01T00:30") for name in names[:5]]
    assert bucket.load(engine, *first) == counts(5, 10, 10, 0, 0, 0)
    values = [[1.0, 2.0], [1.5, 2.0], [1.0], [..., 2.5], [1.0, None], [7.0, 8.0]]
    second = [
        bucket.land(name, {(name, "MONITOR"): row}, "01T00:00", "01T00:30")
        for name, row in zip(names, values, strict=True)
    ]
    assert bucket.load(engine, *second, run_id="second") == counts(6, 10, 2, 3, 5, 2)
    assert engine.rows(
        "SELECT uri, row_count, inserted, changed, unchanged, absent FROM stem.loads WHERE run_id = 'second' ORDER BY 1"
    ) == [
        (f"s3://lake/{name}", *row)
        for name, row in zip(
            names,
            [(2, 0, 0, 2, 0), (2, 0, 1, 1, 0), (1, 0, 0, 1, 1), (1, 0, 1, 0, 1), (2, 0, 1, 1, 0), (2, 2, 0, 0, 0)],
            strict=True,
        )
    ]  # fmt: skip
    assert engine.rows("SELECT site_id, old_kw, new_kw, uri FROM stem.restatements ORDER BY 1") == [
        ("site-1", 1.0, 1.5, "s3://lake/site-1"),
        ("site-3", 2.0, 2.5, "s3://lake/site-3"),
        ("site-4", 2.0, None, "s3://lake/site-4"),
    ]


def test_a_value_that_two_objects_of_a_load_change_has_two_restatements(engine, bucket):
    receipts = [bucket.land(str(value), {A: [value]}, "01T00:00", "01T00:15") for value in (1.0, 2.0, 1.0)]
    receipts[2] = bucket.land("1.0 again", {A: [1.0]}, "01T00:00", "01T00:15")
    bucket.load(engine, *receipts, at=at("02T00:00"))
    assert engine.rows("SELECT old_kw, new_kw, changed_at FROM stem.restatements ORDER BY changed_at") == [
        (1.0, 2.0, "2025-07-02T00:00:00.000001+00:00"),
        (2.0, 1.0, "2025-07-02T00:00:00.000002+00:00"),
    ]
    assert engine.rows("SELECT changed_at FROM stem.streams") == [("2025-07-02T00:00:00.000002+00:00",)]


def test_intervals_of_the_first_and_the_last_year_are_loaded(engine, bucket):
    for start, end in [("1000-01-01T00:00", "1000-01-01T02:00"), ("9999-12-31T21:00", "9999-12-31T23:00")]:
        receipt = bucket.land(start, {A: [1.0, None]}, start, end, 3600)
        assert bucket.load(engine, receipt) == counts(1, 2, 2, 0, 0, 0)
        assert bucket.load(engine, receipt) == counts(1, 2, 0, 0, 2, 0)
    record = {"site_id": "site-a", "client_id": "c", "stream_start_times": {"MONITOR": "1000-01-01T00:00:01Z"}}
    load_sites(read_records(record), engine.session())
    found = engine.rows("SELECT CAST(day AS VARCHAR), expected, received FROM stem.completeness ORDER BY day")
    assert found == [("1000-01-01", 2, 2), ("9999-12-31", 2, 2)]
