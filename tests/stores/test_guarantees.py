"""What the operator guarantees in every store: objects are whole, rows and later values stay."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_stem._stores import StoredObjects
from airflow_provider_stem.errors import StemDataError, StemTransportError
from airflow_provider_stem.operators import StemStreamsToObjectStorageOperator
from airflow_provider_stem.streams.objects import ObjectWriter, OvertakenError
from airflow_provider_stem.streams.records import read_objects
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.staging import Staging
from airflow_provider_stem.streams.store import DamagedObjectError, ObjectChangedError
from tests.streams.test_merging import batches_of, rows_of
from tests.streams.test_objects import rows
from tests.support import expected_rows, full_depth_only, landed_rows, run_context, without_rows

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
DAYS = ("2025-07-01T00:00Z", "2025-07-04T00:00Z")
SITES = ["site-00001", "site-00002"]
NAME = "streams.parquet"


def landing(place, **arguments):
    arguments = {"sites": SITES, "path": f"{place.path}{{start}}.{{extension}}", **arguments}
    return StemStreamsToObjectStorageOperator(task_id="land", **arguments)


def table_of(place):
    return pa.concat_tables(pq.read_table(io.BytesIO(body)) for body in place.objects().values())


class Attempt:
    """One attempt to write one object, which has begun to read."""

    def __init__(self, place, if_exists="merge"):
        self.store, self.key = place.store(), place.key(NAME)
        self.seen, read_at = self.store.head(self.key)
        self.writer = ObjectWriter(self.store, "parquet", "zstd", "portable", if_exists, read_at)

    def write(self, read):
        return self.writer.write(self.key, self.seen, lambda: batches_of(read, []))


def rows_in(place):
    [body] = place.objects().values()
    found = rows_of(iter(pq.read_table(io.BytesIO(body)).to_batches()))
    assert len(dict(found)) == len(found)
    return dict(found)


# --- the operator -----------------------------------------------------------------------------------------------------


def test_a_window_lands_exactly_and_again_without_a_change(place, stem):
    receipt = landing(place, path=place.path).execute(run_context(*DAY))
    expected = expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)
    assert landed_rows(table_of(place)) == expected
    [landed] = receipt["objects"]
    [(name, body)] = place.objects().items()
    assert landed["uri"] == place.path + name
    assert name == "stem/adhoc_airflow/land/date=2025-07-01/20250701T000000Z_20250702T000000Z_900s_all.parquet"
    assert (landed["rows"], landed["bytes"], receipt["inserted"]) == (len(expected), len(body), len(expected))
    version, _ = place.store().head(place.key(name))
    assert (version.sha256, version.read_at.isoformat()) == (landed["sha256"], landed["read_at"].replace("Z", "+00:00"))
    again = landing(place, path=place.path).execute(run_context(*DAY))
    assert (again["unchanged"], again["inserted"], again["kept"]) == (len(expected), 0, 0)
    assert again["objects"][0]["sha256"] == landed["sha256"]
    assert place.objects() == {name: body}


def test_the_loads_read_and_verify_what_landed(place, stem):
    receipt = landing(place).execute(run_context(*DAY))
    objects = StoredObjects("aws_default", None)
    with Staging(objects.get) as staging:
        [staged] = [staging.add(landed) for landed in read_objects(receipt)]
        assert staged.rows == receipt["rows"] == 192
        version = objects.head(staged.landed.uri)
        assert version
        assert version.sha256 == staged.sha256
    [name] = place.objects()
    place.write(name, without_rows())
    with Staging(objects.get) as staging, pytest.raises(StemDataError, match="no SHA-256 in its metadata"):
        staging.add(read_objects(receipt)[0])


def test_sites_that_are_read_later_complete_an_object(place, stem):
    landing(place, sites="site-00001").execute(run_context(*DAY))
    receipt = landing(place, sites="site-00002").execute(run_context(*DAY))
    assert landed_rows(table_of(place)) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAY)
    assert (receipt["inserted"], receipt["kept"]) == (96, 96)


@pytest.mark.parametrize("if_exists", ["merge", "replace", "fail"])
def test_an_upload_that_fails_halfway_leaves_whole_objects_and_a_retry_writes_the_rest(
    if_exists, place, stem, monkeypatch
):
    context = run_context(*DAYS)
    receipt = landing(place, partition="day").execute(context)
    undisturbed = place.objects()
    for name in undisturbed:
        place.delete(name)
    put = type(place.store()).put
    calls = []

    def put_twice(self, key, *arguments):
        calls.append(key)
        if len(calls) == 3:
            raise StemTransportError("the store is down")
        put(self, key, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(place.store()), "put", put_twice)
        with pytest.raises(StemTransportError):
            landing(place, partition="day", if_exists=if_exists).execute(context)
    landed = place.objects()
    assert len(landed) == 2
    assert landed.items() <= undisturbed.items()
    retried = landing(place, partition="day", if_exists=if_exists).execute(context)
    assert (retried["inserted"], retried["unchanged"]) == (receipt["rows"] // 3, receipt["rows"] // 3 * 2)
    assert [one["sha256"] for one in retried["objects"]] == [one["sha256"] for one in receipt["objects"]]
    assert place.objects() == undisturbed


def test_an_object_with_other_content_is_replaced_only_if_requested(place, stem):
    path = f"{place.path}taken.{{extension}}"
    place.write("taken.parquet", b"precious")
    with pytest.raises(AirflowFailException, match=r"exists with other content.*if_exists='fail'.*taken.parquet"):
        landing(place, path=path, if_exists="fail").execute(run_context(*DAY))
    with pytest.raises(AirflowFailException, match=r"cannot be merged with.*use if_exists='replace'.*taken.parquet"):
        landing(place, path=path).execute(run_context(*DAY))
    assert place.objects() == {"taken.parquet": b"precious"}
    landing(place, path=path, if_exists="replace").execute(run_context(*DAY))
    assert table_of(place).num_rows > 0


def test_another_number_of_batches_is_an_error(place, stem):
    path = f"{place.path}x/{{batch}}/{{start}}.{{extension}}"
    landing(place, path=path, batch="001-of-002").execute(run_context(*DAY))
    landing(place, path=path, batch="002-of-002").execute(run_context(*DAY))
    with pytest.raises(AirflowFailException, match=r"Objects of batches=2 exist for .*, use another key, or delete"):
        landing(place, path=path, batch="001-of-003").execute(run_context(*DAY))
    assert len(place.objects()) == 2


# A separate program, because the tests' conftest clears the environment with the connections.
TASK = """
import sys, threading
from airflow_provider_stem._stores import open_store
from airflow_provider_stem.operators import StemStreamsToObjectStorageOperator
scheme, bucket, conn_id, path, start, end, after = sys.argv[1:]
store = type(open_store(scheme, bucket, conn_id))
put, calls = store.put, []
def held(self, *arguments):
    calls.append(arguments)
    if len(calls) > int(after):
        print("held", flush=True)
        threading.Event().wait()
    put(self, *arguments)
store.put = held
StemStreamsToObjectStorageOperator(
    task_id="land", sites=["site-00001", "site-00002"], path=path, partition="day", start=start, end=end
).execute({})
"""


def test_a_killed_task_leaves_whole_objects_and_its_retry_writes_the_same(place, stem, tmp_path):
    landing(place, partition="day").execute(run_context(*DAYS))
    undisturbed = place.objects()
    first, *others = undisturbed
    for name in others:
        place.delete(name)
    place.write(first, without_rows())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scheme, bucket, conn_id = place.arguments
    process = subprocess.Popen(
        [sys.executable, "-c", TASK, scheme, bucket, conn_id or "", f"{place.path}{{start}}.{{extension}}", *DAYS, "2"],
        env={**os.environ, **place.env, "TMPDIR": str(scratch), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as printed:
        next((line for line in printed if line == "held\n"), None)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = place.objects()
    assert len(left) == 2
    assert left.items() <= undisturbed.items()
    assert list(scratch.iterdir()) == []
    landing(place, partition="day").execute(run_context(*DAYS))
    assert place.objects() == undisturbed


# --- several attempts that write one object ---------------------------------------------------------------------------


@pytest.mark.parametrize("if_exists", ["merge", "replace"])
def test_a_paused_attempt_never_overwrites_a_later_one(if_exists, place):
    place.store().check(place.key(".probe"), may_be_unconditional=False)
    early = Attempt(place, if_exists)
    Attempt(place, if_exists).write(rows(1.0, "a"))
    with pytest.raises(OvertakenError):
        early.write(rows(0.0, "a"))
    paused = Attempt(place, if_exists)
    Attempt(place, if_exists).write(rows(2.0, "a", "b"))
    with pytest.raises(OvertakenError):
        paused.write(rows(0.0, "a"))
    assert rows_in(place) == rows(2.0, "a", "b")


def test_a_put_is_rejected_unless_the_object_is_the_version_that_it_replaces(place):
    store, key = place.store(), place.key(NAME)
    with ScratchFile() as one, ScratchFile() as two:
        one.write(b"one")
        two.write(b"two")
        assert store.get(key, ScratchFile()) is None
        missing, now = store.head(key)
        assert missing is None
        store.put(key, one, now, None)
        first, _ = store.head(key)
        with pytest.raises(ObjectChangedError):
            store.put(key, two, now, None)
        store.put(key, two, now, first)
        for stale in (None, first):
            with pytest.raises(ObjectChangedError):
                store.put(key, one, now, stale)
        second = store.get(key, one)
        assert (second.sha256, second.read_at, one.sha256) == (two.sha256, now, two.sha256)
        place.delete(NAME)
        with pytest.raises(ObjectChangedError):
            store.put(key, two, now, second)
        assert place.objects() == {}


def test_the_keys_of_a_prefix_are_listed(place):
    for name in ("a/1", "a/10", "a/2", "a/1x/y", "b/1"):
        place.write(name, b"x")
    store = place.store()

    def listed(prefix):
        return sorted(store.keys(place.key(prefix), required=True))

    assert listed("a/1") == [place.key(name) for name in ("a/1", "a/10", "a/1x/y")]
    assert listed("b/") == [place.key("b/1")]
    assert listed("c/") == listed("c/d/e") == []


def test_content_that_is_damaged_on_its_way_is_not_landed(place):
    class Damaging(ScratchFile):
        """Return other bytes the first time that it is read."""

        left = 1

        def readinto(self, buffer):
            count = super().readinto(buffer)
            if self.left and count:
                self.left -= 1
                buffer[0] ^= 1
            return count

    store, key = place.store(), place.key(NAME)
    with Damaging() as file:
        file.write(b"content" * 10)
        try:
            store.put(key, file, store.head(key)[1], None)
        except (DamagedObjectError, StemTransportError):
            # The next attempt replaces whatever is there.
            store.put(key, file, store.head(key)[1], store.head(key)[0])
        assert file.left == 0
    assert list(place.objects().values()) == [b"content" * 10]


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=full_depth_only)])
def test_eight_attempts_that_write_one_object_lose_no_row(rounds, place):
    names = [f"site-{number}" for number in range(8)]
    for number in range(rounds):
        all_have_read = threading.Barrier(len(names))
        rejected: list[str] = []

        def write(site, value=float(number), all_have_read=all_have_read, rejected=rejected):
            attempt = Attempt(place)
            put = attempt.store.put

            def put_together(*arguments):
                all_have_read.wait()
                attempt.store.put = put
                try:
                    put(*arguments)
                except ObjectChangedError:
                    rejected.append(site)
                    raise

            attempt.store.put = put_together
            while True:
                try:
                    attempt.write(rows(value, site))
                except OvertakenError:
                    attempt = Attempt(place)
                else:
                    return

        threads = [threading.Thread(target=write, args=[site]) for site in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rows_in(place) == rows(float(number), *names)
        assert len(rejected) == len(names) - 1
