"""
A store of objects: addresses, versions and conditional writes; for the landing, the ledger and the loads.

:class:`~airflow_provider_stem._s3.S3Store` and the classes of :mod:`airflow_provider_stem._stores` implement
:class:`ObjectStore`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from uuid import uuid4

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemError, StemTransportError

if TYPE_CHECKING:
    from airflow_provider_stem.streams.spool import ScratchFile

log = logging.getLogger(__name__)

Result = TypeVar("Result")

DEFAULT_CONNECTIONS = {"s3": "aws_default", "gs": "google_cloud_default", "abfs": "wasb_default", "file": None}
"""
Schemes of the addresses of objects, each with the connection that Airflow's own hook uses by default.

They are Amazon S3, Google Cloud Storage, Azure Blob Storage, and a folder, which has no connection.
"""

DIGEST = "sha256"
"""Metadata name of the SHA-256 of an object's content, in hexadecimal digits."""
READ_AT = "read-at"
"""Metadata name of the time at which the reading of an object's newest rows began: ISO 8601, UTC, the store's clock."""

# The check of boto3: a name, or the ARN of an access point.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:[^\s]+")
_MAX_WRITES = 20  # a write is repeated only if another task has written the object in the meantime
_MAX_DAMAGES = 3
_LAST_YEAR = 9000  # so that sums of times stay in the range of datetime
_CONTENT_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json"}
_PROBE_BODY = b"Written to find out whether this store honours conditions. It can be deleted.\n"


def check_bucket(argument: str, bucket: object) -> None:
    """Raise `StemConfigError` unless it is the name of a bucket; an empty string means the connection's bucket."""
    if bucket != "" and not (isinstance(bucket, str) and _BUCKET.fullmatch(bucket)):
        raise StemConfigError(
            f"Invalid {argument} {bucket!r}. Use only the name of a bucket, such as 'my-lake', or leave it out."
        )


def resolve_address(s3_bucket: str | None, s3_key: str) -> tuple[str | None, str]:
    """
    Return the bucket and the key of an object.

    :param s3_bucket: name of the bucket; ``None`` or empty if it is not set.
    :param s3_key: a key, or a full ``s3://bucket/key`` address.
    :return: the bucket, ``None`` if neither argument names one, and the key.
    :raises StemConfigError: the bucket of the address is invalid, or both arguments name a bucket.
    """
    if not s3_key.startswith("s3://"):
        return s3_bucket or None, s3_key
    _, bucket, key = split_uri(s3_key)
    if not _BUCKET.fullmatch(bucket):
        raise StemConfigError(f"Invalid s3_key {s3_key!r}. Use a key, or a full address such as 's3://my-lake/key'.")
    if s3_bucket:
        raise StemConfigError(
            f"s3_bucket is {s3_bucket!r}, but s3_key {s3_key!r} names a bucket too. Remove one of them."
        )
    return bucket, key


def content_type(key: str) -> str:
    """Return the MIME type of an object, by the extension of its key."""
    return _CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


def object_uri(scheme: str, bucket: str, key: str) -> str:
    """Return the URI of an object; a file has no bucket, and its key is its absolute path without the first slash."""
    return f"{scheme}://{bucket}/{key}"


def split_uri(uri: str) -> tuple[str, str, str]:
    """Return the scheme, the bucket and the key of an object's URI."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def is_uri(value: object) -> bool:
    """Return whether a value is the URI of an object in a known kind of store, without control characters."""
    if not isinstance(value, str) or not value.isprintable():
        return False
    scheme, bucket, key = split_uri(value)
    if scheme not in DEFAULT_CONNECTIONS or not value.startswith(f"{scheme}://") or not key:
        return False
    if scheme == "s3":
        return _BUCKET.fullmatch(bucket) is not None
    return (bucket == "") is (scheme == "file")


@dataclass(frozen=True, slots=True)
class Version:
    """
    One version of a stored object.

    :param etag: the store's identifier of its content.
    :param sha256: SHA-256 of its content in hexadecimal; ``None`` if its metadata does not contain it.
    :param read_at: when the reading of its newest rows began, UTC, by the store's clock; ``None`` if its metadata does
        not contain it.
    :param metadata_file: file with its metadata; ``None`` in a store that has metadata itself.
    """

    etag: str
    sha256: str | None
    read_at: datetime | None
    metadata_file: str | None = None


def version_of(
    etag: str, metadata: Mapping[str, str], *, read_at: str = READ_AT, metadata_file: str | None = None
) -> Version:
    """
    Return the version of an object with this metadata.

    :param read_at: metadata name of the time, in a store that does not allow :data:`READ_AT`.
    :param metadata_file: file with the metadata.
    """
    try:
        time = datetime.fromisoformat(metadata[read_at]).astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        time = None
    digest = metadata.get(DIGEST)
    return Version(etag, digest and digest.lower(), time, metadata_file)


def parse_date(date: str, conn_id: str | None) -> datetime:
    """
    Return the time of a response by the store's clock, in UTC, because the worker's may be wrong.

    :param date: its header field ``Date``.
    :param conn_id: connection of the store, for the message.
    :raises StemTransportError: it is not a valid time.
    """
    try:
        sent_at = parsedate_to_datetime(date)
        if sent_at.year <= _LAST_YEAR:
            return sent_at.replace(tzinfo=sent_at.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise StemTransportError(
        f"The store of connection {conn_id!r} sends no valid Date header, so the later of two attempts cannot be "
        "determined. Check the store and the proxies in front of it."
    )


class ObjectStore(Protocol):
    """A store of objects; see :class:`~airflow_provider_stem._s3.S3Store`."""

    def check(self, probe: str, *, may_be_unconditional: bool) -> None:
        """Check that objects can be written with conditions, by means of a probe with this key; else raise an error."""

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """Return an object's version, ``None`` if it does not exist, and the store's time in UTC."""

    def keys(self, prefix: str, *, required: bool) -> Iterable[str]:
        """Iterate over the keys with a prefix; ``required`` raises an error if listing is forbidden."""

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """Copy an object into a file, replacing its content. Return the version; ``None`` if there is no object."""

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """Write a file, or raise `ObjectChangedError` if the object is not the version that it replaces."""

    def uri(self, key: str) -> str:
        """Return the URI of a key."""


def honours_conditions(
    conn_id: str | None,
    probe: str,
    conditions: Mapping[str | None, str],
    write: Callable[[str, bytes, str | None], object],
    delete: Callable[[str], object],
    *,
    may_be_unconditional: bool,
) -> bool:
    """
    Return whether a store honours conditional writes, by means of a probe object, which is deleted again.

    :param conn_id: connection of the store, for the message.
    :param probe: key of the probe.
    :param conditions: names by the version to replace: ``None``, if the object must not exist, and one that none has.
    :param write: called with key, content and version; raises `ObjectChangedError` if the condition is not met.
    :param delete: called with a key.
    :param may_be_unconditional: log a warning if the store ignores conditions, instead of raising an error.
    :raises StemConfigError: writing is forbidden, or the store ignores conditions.
    :raises StemTransportError: the store cannot be reached.
    """

    def ignored(key: str) -> str | None:
        def rejects(version: str | None) -> bool:
            try:
                write(key, _PROBE_BODY, version)
            except ObjectChangedError:
                return True
            return False

        try:
            # The first write creates the object, or is rejected because another task has left one.
            return next((name for one, name in conditions.items() if not rejects(one) and not rejects(one)), None)
        finally:
            try:
                delete(key)
            except StemError as exc:
                log.info("The probe %s cannot be deleted (%s)", one_line(key), exc)

    # Tasks of the same batch share the probe, and each deletes it. A second one, of this attempt alone, decides.
    found = ignored(probe) and ignored(f"{probe}-{uuid4().hex}")
    if found:
        report_ignored(f"The store of connection {conn_id!r}", found, may_be_unconditional=may_be_unconditional)
    return not found


def report_ignored(store: str, ignored: str, *, may_be_unconditional: bool) -> None:
    """
    Log a warning about a condition that a store ignores, or raise an error if writes must be conditional.

    :raises StemConfigError: writes must be conditional.
    """
    message = f"{store} does not honour {ignored}, so two tasks that write one object at the same time can lose rows."
    if not may_be_unconditional:
        raise StemConfigError(
            f"{message} Use a store that honours conditional writes, or set [stem] allow_unconditional_writes = True "
            "and make sure that only one task writes an object at a time."
        )
    log.warning("%s", message)


class ObjectChangedError(Exception):
    """Another task has written the object since it was read."""


class DamagedObjectError(Exception):
    """The store has other bytes than were sent to it."""


@dataclass(frozen=True, slots=True)
class Update(Generic[Result]):
    """
    What to write to an object.

    :param file: its new content; ``None`` leaves the object as it is.
    :param read_at: time for its metadata, UTC.
    :param result: what :func:`update_object` returns.
    """

    file: ScratchFile | None
    read_at: datetime
    result: Result


def update_object(
    store: ObjectStore,
    key: str,
    copy: ScratchFile,
    prepare: Callable[[Version | None], Update[Result]],
    *,
    exists: bool,
) -> Result:
    """
    Write an object whose new content depends on its present content, while other tasks may write it too.

    The object is read, its update is prepared, and it is written only if it is still the version that was read.
    Otherwise all of this is repeated.

    :param copy: receives the object's content.
    :param prepare: called with the object's version when ``copy`` has its content, or with ``None`` if there is no
        object.
    :param exists: whether the object existed when it was looked up. It is not read before the first write if not,
        since S3 denies the reading of a missing object to a role that may not list the bucket.
    :raises StemTransportError: the store failed, damaged the object again and again, or other tasks wrote the object
        during every attempt.
    """
    uri = one_line(store.uri(key))
    update: Update[Result] | None = None
    damages = 0
    etags = set()
    for _ in range(_MAX_WRITES):
        current = store.get(key, copy) if exists else None
        if update is None or update.file is None or not _is_version_of(current, update.file, update.read_at):
            update = prepare(current)
        elif copy.sha256 == update.file.sha256:
            return update.result  # the response to the PUT was lost
        # Otherwise the object that was just written is damaged, and is written again.
        if update.file is None:
            return update.result
        etags.add(current and current.etag)
        try:
            store.put(key, update.file, update.read_at, current)
        except ObjectChangedError:
            exists = True
        except DamagedObjectError:
            exists = True
            damages += 1
            if damages == _MAX_DAMAGES:
                raise StemTransportError(
                    "The store keeps other bytes than were sent to it. Check the store and the network, then "
                    f"delete the object, or land it with if_exists='replace' [{uri}]"
                ) from None
        else:
            return update.result
    if len(etags) == 1:
        raise StemTransportError(
            f"The store rejected {_MAX_WRITES} writes of an object that did not change. Check whether the store or "
            f"a proxy rewrites ETags [{uri}]"
        )
    raise StemTransportError(f"Other tasks changed the object {_MAX_WRITES} times. Try again later [{uri}]")


def _is_version_of(current: Version | None, file: ScratchFile, read_at: datetime) -> bool:
    return current is not None and (current.sha256, current.read_at) == (file.sha256, read_at)
