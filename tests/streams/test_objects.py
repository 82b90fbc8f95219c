"""Several attempts that write one object, on a store in memory whose steps a test controls."""

from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.objects import ObjectWriter, OvertakenError, Written
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import DamagedObjectError, ObjectChangedError, Version

from .test_merging import BEGIN, Rows, batches_of, rows_of

KEY = "streams.parquet"
EPOCH = datetime(2025, 7, 1, tzinfo=UTC)


class MemoryStore:
    """
    A store like S3: the ETag depends on the bytes only, and times are in whole seconds.

    :param step: called before each request, with its method.
    """

    def __init__(self, step: Callable[[str], None] = lambda _: None) -> None:
        self.objects: dict[str, tuple[bytes, Version]] = {}
        self.seconds = 0.0
        self.requests: list[str] = []
        self.step = step

    def check(self, probe: str, *, may_be_unconditional: bool) -> None:  # noqa: ARG002
        raise AssertionError("only a task checks its store")

    def uri(self, key: str) -> str:
        return f"s3://lake/{key}"

    def keys(self, prefix: str, *, required: bool) -> Iterator[str]:
        assert not required
        return (key for key in self.objects if key.startswith(prefix))

    def head(self, key: str) -> tuple[Version | None, datetime]:
        self._request("head")
        return self.objects[key][1] if key in self.objects else None, EPOCH + timedelta(seconds=int(self.seconds))

    def get(self, key: str, file: ScratchFile) -> Version | None:
        self._request("get")
        file.clear()
        if key not in self.objects:
            return None
        body, version = self.objects[key]
        file.write(body)
        return version

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        self._request("put")
        there = self.objects.get(key)
        if (there and there[1].etag) != (replaces and replaces.etag):
            raise ObjectChangedError
        file.seek(0)
        body = file.read()
        self.objects[key] = body, Version(hashlib.sha1(body).hexdigest(), file.sha256, read_at)

    def rows(self) -> Rows:
        table = pq.read_table(io.BytesIO(self.objects[KEY][0]))
        rows = rows_of(iter(table.to_batches()))
        assert len(dict(rows)) == len(rows)
        return dict(rows)

    def _request(self, method: str) -> None:
        self.step(method)
        self.requests.append(method)


def rows(value: float | None, *sites: str, count: int = 3) -> Rows:
    return {(site, "MONITOR", 900, BEGIN + 900 * number): value for site in sites for number in range(count)}


class Attempt:
    """One attempt that has begun to read."""

    def __init__(self, store: Any, if_exists: Any = "merge") -> None:
        self.seen, read_at = store.head(KEY)
        self.writer = ObjectWriter(store, "parquet", "zstd", "portable", if_exists, read_at)

    def write(self, read: Rows) -> Any:
        return self.writer.write(KEY, self.seen, lambda: batches_of(read, []))


def land(store: MemoryStore, read: Rows, if_exists: str = "merge") -> Any:
    return Attempt(store, if_exists).write(read)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_new_object_costs_one_head_and_one_put_and_an_existing_one_also_a_get(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    assert store.requests == ["head", "put"]
    store.requests.clear()
    store.seconds = 3600
    written = land(store, rows(2.0, "a", "b"))
    assert store.requests == ["head", "get", "put"]
    assert (written.merge.inserted, written.merge.changed, written.rows) == (3, 3, 6)
    assert store.rows() == rows(2.0, "a", "b")
    assert store.objects[KEY][1].read_at == EPOCH + timedelta(hours=1)


def test_rows_that_were_not_read_again_are_kept(store: MemoryStore) -> None:
    land(store, rows(1.0, "a", "b"))
    written = land(store, rows(None, "b", count=2))
    assert store.rows() == {**rows(1.0, "a", "b"), **rows(None, "b", count=2)}
    assert (written.merge.changed, written.merge.kept) == (2, 4)
    written = land(store, {})
    assert (written.merge.kept, written.rows) == (6, 6)


def test_an_attempt_that_began_earlier_does_not_overwrite_a_later_one(store: MemoryStore) -> None:
    land(store, rows(0.0, "a"))
    store.seconds = 100
    paused = Attempt(store)
    store.seconds = 200
    land(store, rows(2.0, "a", "b"))
    with pytest.raises(OvertakenError, match="s3://lake/streams.parquet"):
        paused.write(rows(1.0, "a"))
    assert store.rows() == rows(2.0, "a", "b")


def test_an_attempt_on_a_new_object_does_not_overwrite_a_later_one(store: MemoryStore) -> None:
    paused = Attempt(store)
    store.seconds = 200
    land(store, rows(2.0, "a", "b"))
    with pytest.raises(OvertakenError):
        paused.write(rows(1.0, "a"))
    assert store.rows() == rows(2.0, "a", "b")


def test_the_same_bytes_written_again_are_later(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    store.seconds = 100
    paused = Attempt(store)
    store.seconds = 200
    land(store, rows(1.0, "a"))
    with pytest.raises(OvertakenError):
        paused.write(rows(5.0, "a"))
    assert store.rows() == rows(1.0, "a")


def test_an_attempt_that_began_later_merges_with_an_earlier_one_without_reading_again(store: MemoryStore) -> None:
    early = Attempt(store)
    store.seconds = 100
    late = Attempt(store)
    early.write(rows(1.0, "a", "b"))
    written = late.write(rows(2.0, "b", "c"))
    assert store.rows() == {**rows(1.0, "a"), **rows(2.0, "b", "c")}
    assert (written.merge.inserted, written.merge.changed, written.merge.kept) == (3, 3, 3)
    assert written.read_at == EPOCH + timedelta(seconds=100)


def test_the_order_of_two_attempts_in_the_same_second_is_unknown(store: MemoryStore) -> None:
    first, second = Attempt(store), Attempt(store)
    first.write(rows(1.0, "a"))
    with pytest.raises(OvertakenError):
        second.write(rows(2.0, "a"))
    assert land(store, rows(2.0, "a")).merge.changed == 3


def test_no_attempt_becomes_older_when_the_clock_of_the_store_is_set_back(store: MemoryStore) -> None:
    land(store, rows(0.0, "a"))
    store.seconds = 200
    paused = Attempt(store)
    store.seconds = 170
    land(store, rows(2.0, "a"))
    with pytest.raises(OvertakenError):
        paused.write(rows(1.0, "a"))
    assert store.rows() == rows(2.0, "a")


def test_a_time_never_goes_back(store: MemoryStore) -> None:
    store.seconds = 50
    land(store, rows(1.0, "a"))
    store.seconds = 20
    assert land(store, rows(2.0, "a")).read_at == EPOCH + timedelta(seconds=50, microseconds=1)
    assert store.rows() == rows(2.0, "a")


def test_a_put_whose_response_is_lost_is_complete(store: MemoryStore) -> None:
    put = store.put

    def lossy(*arguments: Any) -> None:
        put(*arguments)
        store.put = put  # type: ignore[method-assign]
        raise ObjectChangedError  # the response to the repeated request

    store.put = lossy  # type: ignore[method-assign, assignment]
    written = land(store, rows(1.0, "a"))
    assert (written.merge.inserted, written.merge.unchanged) == (3, 0)
    assert store.requests == ["head", "put", "get"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_merge_that_another_task_overtakes_is_repeated_in_each_format(name: str, store: MemoryStore) -> None:
    def write(value: float, site: str) -> Any:
        seen, read_at = store.head(KEY)
        writer = ObjectWriter(store, name, "none", "portable", "merge", read_at)
        return writer.write(KEY, seen, lambda: batches_of(rows(value, site), []))

    def overtake(method: str) -> None:
        if method == "put" and store.requests.count("put") == 1:
            body, version = store.objects[KEY]
            store.objects[KEY] = body, Version(version.etag + "x", version.sha256, version.read_at)

    write(1.0, "a")
    store.seconds, store.step = 100, overtake
    merge = write(2.0, "b").merge
    assert (merge.inserted, merge.kept) == (3, 3)
    assert store.requests == ["head", "put", "head", "get", "put", "get", "put"]


def test_an_object_that_is_deleted_in_the_meantime_is_written_again(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    attempt = Attempt(store)
    store.objects.clear()
    assert attempt.write(rows(2.0, "b")).merge.inserted == 3
    assert store.rows() == rows(2.0, "b")


def test_a_store_that_rejects_writes_of_an_unchanged_object_is_an_error(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    store.seconds = 100

    def refuse(method: str) -> None:
        if method == "put":
            raise ObjectChangedError

    store.step = refuse
    with pytest.raises(StemTransportError, match="rejected 20 writes of an object that did not change. Check whether"):
        land(store, rows(2.0, "a"))


def test_an_object_that_changes_repeatedly_is_an_error(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    store.seconds = 100

    def touch(method: str) -> None:
        if method == "put":
            body, version = store.objects[KEY]
            store.objects[KEY] = body, Version(version.etag + "x", version.sha256, version.read_at)

    store.step = touch
    with pytest.raises(StemTransportError, match=r"Other tasks changed the object 20 times. Try again later"):
        land(store, rows(2.0, "a"))


def test_replace_keeps_no_rows_and_never_overwrites_later_ones(store: MemoryStore) -> None:
    land(store, rows(1.0, "a", "b"))
    store.seconds = 100
    paused = Attempt(store, "replace")
    store.seconds = 200
    written = land(store, rows(2.0, "b"), "replace")
    assert store.rows() == rows(2.0, "b")
    assert (written.merge.changed, written.merge.kept) == (3, 0)
    with pytest.raises(OvertakenError):
        paused.write(rows(1.0, "a"))


def test_fail_accepts_the_same_content_and_rejects_any_other(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = Attempt(store, "fail")
    store.seconds = 100
    second = Attempt(store, "fail")
    first.write(rows(1.0, "a"))
    written = second.write(rows(1.0, "a"))
    assert (written.merge.unchanged, written.read_at) == (3, EPOCH)
    assert written == described(store, EPOCH, Merge(unchanged=3))
    assert caplog.messages == ["s3://lake/streams.parquet exists with the same content"]
    with pytest.raises(StemConfigError) as raised:
        land(store, rows(2.0, "a"), "fail")
    assert str(raised.value) == (
        "The object exists with other content and is not changed (if_exists='fail'). Use if_exists='merge' or "
        "'replace', or delete it [s3://lake/streams.parquet]"
    )
    assert store.rows() == rows(1.0, "a")


@pytest.mark.parametrize("body", [b"", b"precious", b"PAR1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b'{"a": 1}\n'])
def test_an_object_with_other_content_is_only_replaced(
    body: bytes, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.objects[KEY] = body, Version("etag", None, None)
    message = ""
    if body:
        with pytest.raises(StemConfigError) as raised:
            land(store, rows(1.0, "a"))
        message, _, remedy = str(raised.value).partition(". Restore")
        assert message.startswith("The object cannot be merged with, since its content is not valid rows: ")
        assert remedy == " or delete it, or use if_exists='replace' [s3://lake/streams.parquet]"
        assert store.objects[KEY][0] == body
    written = land(store, rows(1.0, "a"), "replace" if body else "merge")
    assert caplog.messages == ([f"{message} [s3://lake/streams.parquet]"] if body else [])
    assert (written.merge.inserted, store.rows()) == (3, rows(1.0, "a"))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.set_column(1, "stream_type", table["stream_type"].dictionary_encode()),
        lambda table: table.set_column(0, "site_id", table["site_id"].cast(pa.large_string())),
        lambda table: table.set_column(2, "resolution", table["resolution"].cast(pa.int64())),
        lambda table: table.set_column(4, "interval_end", table["interval_end"].cast(pa.timestamp("ms", "UTC"))),
        lambda table: table.set_column(5, "kw_total_avg", table["kw_total_avg"].cast(pa.float32())),
        lambda table: table.select(table.column_names[::-1]),
        lambda table: table.cast(pa.schema([field.with_nullable(True) for field in table.schema])),
    ],
)
def test_rows_that_another_program_wrote_are_kept(change: Callable[[pa.Table], pa.Table], store: MemoryStore) -> None:
    body = io.BytesIO()
    pq.write_table(change(pa.Table.from_batches(batches_of(rows(1.5, "a", "b"), []))), body)
    store.objects[KEY] = body.getvalue(), Version("etag", None, None)
    assert land(store, rows(2.0, "b")).merge.kept == 3
    assert store.rows() == {**rows(1.5, "a"), **rows(2.0, "b")}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("a", "MONITOR", 900, BEGIN + 1), "off the grid"),
        (("a", "MONITOR", 60, BEGIN), "resolution that the API does not have"),
        (("a", "METER", 900, BEGIN), "stream type that the API does not have"),
        (("", "MONITOR", 900, BEGIN), "empty site id"),
    ],
)
def test_rows_that_the_api_cannot_return_are_not_merged_with(key: Any, message: str, store: MemoryStore) -> None:
    body = io.BytesIO()
    pq.write_table(pa.Table.from_batches(batches_of({key: 1.0}, [])), body)
    store.objects[KEY] = body.getvalue(), Version("etag", None, None)
    with pytest.raises(StemConfigError, match=message):
        land(store, rows(2.0, "b"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_object_with_a_value_that_is_not_finite_is_not_merged_with(value: float, store: MemoryStore) -> None:
    body = io.BytesIO()
    pq.write_table(pa.Table.from_batches(batches_of(rows(value, "a"), [])), body)
    store.objects[KEY] = body.getvalue(), Version("etag", None, None)
    with pytest.raises(StemConfigError, match="not a finite number"):
        land(store, rows(2.0, "b"))


def test_a_damaged_object_is_not_merged_with(store: MemoryStore) -> None:
    land(store, rows(1.0, "a"))
    other = MemoryStore()
    land(other, rows(7.0, "a"))
    store.objects[KEY] = other.objects[KEY][0], store.objects[KEY][1]
    with pytest.raises(StemConfigError, match="its SHA-256 is .* instead of .*, as in its metadata"):
        land(store, rows(2.0, "a"))


def described(store: MemoryStore, read_at: datetime, merge: Merge) -> Written:
    """Return what an attempt reports of the object that it wrote."""
    body, version = store.objects[KEY]
    assert version.sha256 == hashlib.sha256(body).hexdigest()
    return Written(len(store.rows()), len(body), version.sha256, read_at, merge)


def test_an_attempt_describes_the_object_that_it_wrote(store: MemoryStore) -> None:
    assert land(store, rows(1.0, "a")) == described(store, EPOCH, Merge(inserted=3))
    store.seconds = 100
    written = land(store, rows(2.0, "a", "b"))
    assert written == described(store, EPOCH + timedelta(seconds=100), Merge(inserted=3, changed=3))


@pytest.mark.parametrize(
    ("read_at", "is_later"),
    [
        (EPOCH + timedelta(seconds=40), True),
        (EPOCH + timedelta(seconds=40) - timedelta(microseconds=1), False),
        (None, True),
    ],
)
def test_an_object_that_changed_is_later_unless_it_is_older_by_more_than_a_minute(
    read_at: datetime | None, is_later: bool, store: MemoryStore
) -> None:
    land(store, rows(0.0, "a"))
    store.seconds = 100
    attempt = Attempt(store)
    store.objects[KEY] = store.objects[KEY][0], Version("another", None, read_at)
    if is_later:
        with pytest.raises(OvertakenError):
            attempt.write(rows(1.0, "a"))
    else:
        assert attempt.write(rows(1.0, "a")).merge.changed == 3


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_damaged_bytes_are_written_again_twice(damaged: int, store: MemoryStore) -> None:
    left, put = [damaged], store.put

    def damage(key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        put(key, file, read_at, replaces)
        if left[0]:
            left[0] -= 1
            body, version = store.objects[key]
            store.objects[key] = body[:-1], Version(f"damaged {left[0]}", version.sha256, version.read_at)
            raise DamagedObjectError

    store.put = damage  # type: ignore[method-assign]
    if damaged < 3:
        assert land(store, rows(1.0, "a")) == described(store, EPOCH, Merge(inserted=3))
        assert store.requests == ["head", "put", *["get", "put"] * damaged]
        return
    with pytest.raises(StemTransportError) as raised:
        land(store, rows(1.0, "a"))
    assert str(raised.value) == (
        "The store keeps other bytes than were sent to it. Check the store and the network, then delete the object, or "
        "land it with if_exists='replace' [s3://lake/streams.parquet]"
    )


def test_a_file_that_is_written_already_is_used(store: MemoryStore) -> None:
    attempt = Attempt(store)
    with ScratchFile() as file:
        count = attempt.writer.write_file(file, batches_of(rows(1.0, "a"), []))
        attempt.writer.write(KEY, None, lambda: batches_of({}, []), (file, count))
    assert (count, store.rows()) == (3, rows(1.0, "a"))


@pytest.mark.parametrize(
    ("file_format", "compression", "encoding", "start"),
    [
        ("csv", "none", "portable", b'"site_id",'),
        ("jsonl", "gzip", "portable", b"\x1f\x8b"),
        ("parquet", "none", "smallest", b"PAR1"),
    ],
)
def test_an_object_is_written_and_merged_with_in_the_format_of_the_writer(
    file_format: str, compression: str, encoding: str, start: bytes, store: MemoryStore
) -> None:
    writer = ObjectWriter(store, file_format, compression, encoding, "merge", EPOCH)
    writer.write(KEY, None, lambda: batches_of(rows(1.0, "a"), []))
    body, version = store.objects[KEY]
    assert body.startswith(start)
    if file_format == "parquet":
        end = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(0).column(4)
        assert (end.compression, "DELTA_BINARY_PACKED" in end.encodings) == ("UNCOMPRESSED", True)
    assert writer.write(KEY, version, lambda: batches_of(rows(1.0, "b"), [])).merge == Merge(inserted=3, kept=3)


# --- any order --------------------------------------------------------------------------------------------------------


class Scheduler:
    """Let one of several threads continue at a time, in a chosen order."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._condition = threading.Condition()
        self._waiting: set[int] = set()
        self._running = 0
        self._next: int | None = None

    def step(self, _: str = "") -> None:
        me = threading.get_ident()
        with self._condition:
            self._waiting.add(me)
            self._running -= 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._next == me)
            self._next = None
            self._waiting.remove(me)
            self._running += 1

    def run(self, tasks: list[Callable[[], None]]) -> None:
        def whole(task: Callable[[], None]) -> None:
            try:
                self.step()
                task()
            finally:
                with self._condition:
                    self._running -= 1
                    self._condition.notify_all()

        threads = [threading.Thread(target=whole, args=[task]) for task in tasks]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: not self._running and self._next is None)
                if not self._waiting:
                    break
                self._next = self._choose.choice(sorted(self._waiting))
                self._condition.notify_all()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("seed", range(150))
def test_in_any_order_each_row_is_the_last_one_read(seed: int) -> None:
    choose = random.Random(seed)
    scheduler = Scheduler(choose)
    store = MemoryStore()
    now, reads = [0], []

    def step(method: str) -> None:
        scheduler.step(method)
        now[0] += 1
        store.seconds += choose.choice([0, 0.1, 0.7, 2, 30])

    store.step = step

    def task(sites: list[str]) -> None:
        for _ in range(30):
            attempt = Attempt(store)
            began = now[0]
            step("read")  # the API's value changes with each step
            read = rows(float(now[0]), *sites)
            try:
                attempt.write(read)
            except OvertakenError:
                continue
            reads.append((began, read))
            return
        raise AssertionError("never landed")

    groups = [choose.sample("abcd", choose.randint(1, 3)) for _ in range(choose.randint(2, 5))]
    scheduler.run([lambda group=group: task(group) for group in groups])  # type: ignore[misc]
    assert len(reads) == len(groups)
    explained: Rows = {}
    for _, read in sorted(reads, key=lambda one: one[0]):
        explained |= read
    assert store.rows() == explained


def test_the_order_can_be_wrong_without_the_check() -> None:
    """Without the GET before the PUT the same schedules find a value that goes back."""

    class Blind(MemoryStore):
        def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
            del replaces
            there = self.objects.get(key)
            super().put(key, file, read_at, there and there[1])

    store = Blind()
    land(store, rows(0.0, "a"))
    paused = Attempt(store)
    paused.seen = None
    store.seconds = 100
    land(store, rows(2.0, "a"))
    paused.write(rows(1.0, "a"))
    assert store.rows() == rows(1.0, "a")
