from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import (
    DamagedObjectError,
    ObjectChangedError,
    Update,
    Version,
    check_bucket,
    is_uri,
    object_uri,
    resolve_address,
    split_uri,
    update_object,
)
from tests.streams.test_objects import KEY, MemoryStore


class Appender:
    """Append a line to an object, as another task could do at the same time."""

    def __init__(self, store: MemoryStore, line: bytes) -> None:
        self.store, self.line = store, line
        self.prepared = 0

    def append(self) -> str:
        version, read_at = self.store.head(KEY)
        with ScratchFile() as copy, ScratchFile() as changed:

            def prepare(current: Version | None) -> Update[str]:
                self.prepared += 1
                copy.seek(0)
                before = copy.read() if current else b""
                changed.clear()
                changed.write(before + self.line)
                return Update(None if self.line in before else changed, read_at, "done")

            return update_object(self.store, KEY, copy, prepare, exists=version is not None)


def content(store: MemoryStore) -> bytes:
    return store.objects[KEY][0]


def test_an_update_without_a_change_writes_nothing() -> None:
    store = MemoryStore()
    assert Appender(store, b"a\n").append() == "done"
    assert store.requests == ["head", "put"]
    assert Appender(store, b"a\n").append() == "done"
    assert store.requests == ["head", "put", "head", "get"]
    assert content(store) == b"a\n"


def test_an_update_is_prepared_again_if_another_task_has_written_in_between() -> None:
    store = MemoryStore()
    first = Appender(store, b"a\n")

    def other(method: str) -> None:
        if method == "put":
            store.step = lambda _: None
            Appender(store, b"b\n").append()

    store.step = other
    first.append()
    assert content(store) == b"b\na\n"
    assert first.prepared == 2


@pytest.mark.parametrize("damages", [0, 1, 2, 3])
def test_an_object_that_arrives_damaged_is_written_again_and_not_read(damages: int) -> None:
    store = MemoryStore()
    Appender(store, b"a\n").append()
    put = store.put
    left = [DamagedObjectError] * damages

    def damaging(key: str, file: ScratchFile, *rest: Any) -> None:
        put(key, file, *rest)
        if left:
            body, version = store.objects[key]
            store.objects[key] = b"x" + body, Version(f"{version.etag}{len(left)}", version.sha256, version.read_at)
            raise left.pop()

    store.put = damaging  # type: ignore[method-assign, assignment]
    appender = Appender(store, b"b\n")
    if damages == 3:
        with pytest.raises(StemTransportError, match="keeps other bytes than were sent"):
            appender.append()
        return
    appender.append()
    assert content(store) == b"a\nb\n"
    assert appender.prepared == 1


def test_a_write_whose_response_is_lost_is_not_repeated() -> None:
    store = MemoryStore()
    put = store.put

    def lossy(*arguments: Any) -> None:
        put(*arguments)
        raise ObjectChangedError

    store.put = lossy  # type: ignore[method-assign, assignment]
    appender = Appender(store, b"a\n")
    assert appender.append() == "done"
    assert (store.requests, appender.prepared) == (["head", "put", "get"], 1)


@pytest.mark.parametrize(
    ("s3_bucket", "s3_key", "resolved"),
    [
        (None, "a/b", (None, "a/b")),
        ("", "a/b", (None, "a/b")),
        ("lake", "a/b", ("lake", "a/b")),
        (None, "s3://lake/a/b", ("lake", "a/b")),
        ("", "s3://lake/a/b", ("lake", "a/b")),
    ],
)
def test_an_address_is_a_bucket_and_a_key(s3_bucket: str | None, s3_key: str, resolved: tuple[str | None, str]) -> None:
    assert resolve_address(s3_bucket, s3_key) == resolved


def test_two_buckets_are_an_error() -> None:
    with pytest.raises(StemConfigError, match="s3_bucket is 'lake', but s3_key 's3://other/x' names a bucket too"):
        resolve_address("lake", "s3://other/x")


@pytest.mark.parametrize("s3_key", ["s3://", "s3:///x", "s3://my lake/x", "s3://lake?/x"])
def test_an_address_without_a_valid_bucket_is_an_error(s3_key: str) -> None:
    with pytest.raises(StemConfigError) as raised:
        resolve_address(None, s3_key)
    assert str(raised.value) == (f"Invalid s3_key {s3_key!r}. Use a key, or a full address such as 's3://my-lake/key'.")


@pytest.mark.parametrize("bucket", ["", "my-lake", "a" * 255, "arn:aws:s3:eu-west-1:1234:accesspoint/lake"])
def test_a_bucket_is_a_name_or_an_arn_or_not_set(bucket: str) -> None:
    check_bucket("s3_bucket", bucket)


@pytest.mark.parametrize("bucket", [None, 5, b"lake", " ", "my lake", "lake/a", "s3://lake", "a" * 256])
def test_another_bucket_is_an_error(bucket: object) -> None:
    with pytest.raises(StemConfigError) as raised:
        check_bucket("s3_bucket", bucket)
    assert str(raised.value) == (
        f"Invalid s3_bucket {bucket!r}. Use only the name of a bucket, such as 'my-lake', or leave it out."
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("s3://lake/a/b ü", True),
        ("s3://lake//a", True),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:lake/a", True),
        ("abfs://$root/a", True),
        ("gs://lake/a", True),
        ("file:///lake/a", True),
        ("s3://", False),
        ("s3://lake", False),
        ("s3://lake/", False),
        ("s3:///a", False),
        ("s3://my lake/a", False),
        ("gs:///a", False),
        ("abfs://lake", False),
        ("file://lake/a", False),
        ("file:///", False),
        ("lake/a", False),
        ("s3://lake/a\nb", False),
        ("lake\n", False),
        ("", False),
        (5, False),
    ],
)
def test_a_uri_is_recognized(value: object, expected: bool) -> None:
    assert is_uri(value) is expected


@pytest.mark.parametrize("key", ["a", "a/b", "a//b", "s3://x/y", "a b/ü?#%2F"])
def test_a_uri_is_split_into_what_it_was_made_of(key: str) -> None:
    assert split_uri(object_uri("s3", "lake", key)) == ("s3", "lake", key)
