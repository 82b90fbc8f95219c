"""What the stores of Google and Azure share: the probe of conditions, and the check of what was stored."""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

from airflow_provider_stem.errors import StemConfigError, StemError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import (
    DIGEST,
    READ_AT,
    DamagedObjectError,
    ObjectChangedError,
    Version,
    object_uri,
    report_ignored,
)

log = logging.getLogger(__name__)

_PROBE_BODY = b"Written to find out whether this store honours conditions. It can be deleted.\n"


class CloudStore:
    """
    A bucket that is used through the client of its vendor; subclasses make the requests.

    :param bucket: name of the bucket or container.
    :param conn_id: id of the connection.
    """

    scheme: ClassVar[str]
    read_at_name: ClassVar[str] = READ_AT
    """Metadata name of the time of the reading."""
    no_such_version: ClassVar[str]
    """An identifier that no version of an object has."""

    def __init__(self, bucket: str, conn_id: str | None) -> None:
        self._bucket, self._conn_id = bucket, conn_id
        self._conditional = True

    def uri(self, key: str) -> str:
        """Return the address of a key."""
        return object_uri(self.scheme, self._bucket, key)

    def check(self, probe: str, *, may_be_unconditional: bool) -> None:
        """
        Check that the bucket exists and that this task may write to it, before anything is read from the API.

        A probe object shows whether the store honours conditional writes. It is deleted again.

        :param probe: key of the probe, in the folder of the objects to write.
        :param may_be_unconditional: write without conditions if the store ignores them, and log a warning.
        :raises StemConfigError: the bucket does not exist, writing is forbidden, or the store ignores conditions.
        :raises StemTransportError: the store cannot be reached.
        """
        # Tasks of the same batch share the probe, and each deletes it. A second one, of this attempt alone, settles it.
        ignored = self._ignored_condition(probe) and self._ignored_condition(f"{probe}-{uuid4().hex}")
        if ignored:
            store = f"The store of connection {self._conn_id!r}"
            report_ignored(store, ignored, may_be_unconditional=may_be_unconditional)
            self._conditional = False

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """
        Write a file to an object, unless the object has changed since it was read.

        :param read_at: when the reading of its newest rows began, by the store's clock.
        :param replaces: version of the object to replace; ``None`` if there is none.
        :raises ObjectChangedError: another task has written the object since.
        :raises StemConfigError: writing is forbidden.
        :raises DamagedObjectError: the store has other content than was sent.
        :raises StemTransportError: the write did not succeed in as many attempts as the client makes.
        """
        metadata = {DIGEST: file.sha256, self.read_at_name: read_at.astimezone(UTC).isoformat()}
        file.seek(0)
        with self._errors(key):
            md5 = self._write(key, file, file.size, metadata, replaces.etag if replaces else None)
        file.seek(0)
        if md5 != hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest():
            # A store computes no MD5 of content that arrives in parts.
            with ScratchFile() as copy:
                if self.get(key, copy) is None or copy.sha256 != file.sha256:
                    raise DamagedObjectError(self.uri(key))

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """Copy an object into a file, as :meth:`ObjectStore.get`."""
        raise NotImplementedError

    def _write(self, key: str, content: Any, size: int, metadata: dict[str, str], replaces: str | None) -> bytes | None:
        """
        Write an object. Return its MD5 as the store computed it, or ``None``.

        :param replaces: the version that it must have, if writes are conditional; ``None`` if it must not exist.
        :raises ObjectChangedError: it has another version.
        """
        raise NotImplementedError

    def _delete(self, key: str) -> None:
        raise NotImplementedError

    def _errors(self, key: str) -> AbstractContextManager[None]:
        """Raise this package's errors instead of those of the client."""
        raise NotImplementedError

    def _ignored_condition(self, key: str) -> str | None:
        """Return the name of a condition that the store ignores, or ``None``."""

        def honours(version: str | None) -> bool:
            try:
                with self._errors(key):
                    self._write(key, _PROBE_BODY, len(_PROBE_BODY), {}, version)
            except ObjectChangedError:
                return True
            return False

        try:
            # The first write creates the object, or fails because another task has left one.
            if not honours(None) and not honours(None):
                return "the condition that an object must not exist"
            return None if honours(self.no_such_version) else "the condition that an object must not have changed"
        finally:
            try:
                with self._errors(key):
                    self._delete(key)
            except StemError as exc:
                log.info("The probe %s cannot be deleted (%s)", self.uri(key), exc)

    def _failure(self, status: int | None, reason: str, key: str) -> StemConfigError | StemTransportError:
        """Return the error for a response that is not a success, or for a request without a response."""
        failed = f"{reason} [{self.uri(key)}]"
        if status in (401, 403):
            return StemConfigError(
                f"Access denied. Check the credentials and permissions of connection {self._conn_id!r}: {failed}"
            )
        if status in (400, 404):
            return StemConfigError(
                f"The store rejects the request. Check the bucket, and connection {self._conn_id!r}: {failed}"
            )
        return StemTransportError(f"The store cannot be used through connection {self._conn_id!r}: {failed}")
