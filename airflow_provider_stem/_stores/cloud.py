"""What the stores of Google and Azure share: the check of what was stored, and the errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import (
    DIGEST,
    READ_AT,
    DamagedObjectError,
    Version,
    honours_conditions,
    object_uri,
)
from airflow_provider_stem.streams.windows import iso_exact


class CloudStore:
    """
    A bucket that is used through the client of its vendor; subclasses make the requests.

    :param bucket: name of the bucket or container.
    :param conn_id: id of the connection.
    """

    scheme: ClassVar[str]
    read_at_name: ClassVar[str] = READ_AT
    """Metadata name of the time of the reading."""
    conditions: ClassVar[Mapping[str | None, str]]
    """See :func:`~airflow_provider_stem.streams.store.honours_conditions`."""

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
        with self._errors(probe):
            self._conditional = honours_conditions(
                self._conn_id,
                probe,
                self.conditions,
                lambda key, body, version: self._write(key, body, len(body), {}, version),
                self._delete,
                may_be_unconditional=may_be_unconditional,
            )

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
        metadata = {DIGEST: file.sha256, self.read_at_name: iso_exact(read_at)}
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
