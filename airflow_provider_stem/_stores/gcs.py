"""Objects in Google Cloud Storage, by the client of Airflow's google provider; for operators and the landing."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow_provider_stem._stores.cloud import CloudStore
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import ObjectChangedError, Version, content_type, parse_date, version_of

_MAX_READS = 10


class GcsStore(CloudStore):
    """A bucket of Google Cloud Storage; the version of an object is its generation."""

    scheme = "gs"
    conditions = {None: "ifGenerationMatch=0", "1": "ifGenerationMatch"}  # noqa: RUF012 - constant

    @cached_property
    def _client(self) -> Any:
        try:
            from airflow.providers.google.cloud.hooks.gcs import GCSHook
        except ImportError:
            raise StemConfigError(
                "gs:// needs Airflow's google provider. Install it: pip install 'airflow-provider-stem[google]'"
            ) from None
        client = GCSHook(gcp_conn_id=self._conn_id).get_conn()
        # The client returns no header fields, and only the Date of a response is the time of the store.
        self._last = threading.local()
        client._http.hooks["response"].append(self._note_date)  # noqa: SLF001 - the session of requests
        return client

    def _note_date(self, response: Any, **_: Any) -> None:
        self._last.date = response.headers.get("Date", "")

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """
        Return an object's version and the store's time.

        :return: the version, ``None`` if there is no object, and the time of the response by the store's clock, in UTC.
        :raises StemConfigError: reading it is forbidden.
        :raises StemTransportError: the store did not respond.
        """
        with self._errors(key):
            blob = self._client.bucket(self._bucket).get_blob(key)
            return blob and _version(blob), parse_date(self._last.date, self._conn_id)

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """
        Copy an object into a file, replacing the file's content.

        :return: the object's version, or ``None`` if there is no such object.
        :raises StemConfigError: reading it is forbidden.
        :raises StemTransportError: it did not arrive completely, or other tasks replaced it again and again.
        """
        with self._errors(key):
            from google.api_core.exceptions import NotFound, PreconditionFailed

            for _ in range(_MAX_READS):
                file.clear()
                blob = self._client.bucket(self._bucket).get_blob(key)
                if blob is None:
                    return None
                version = _version(blob)  # the download changes the properties
                try:
                    blob.download_to_file(file, if_generation_match=blob.generation, raw_download=True)
                except (NotFound, PreconditionFailed):
                    continue  # replaced in the meantime
                # A server may ignore the condition of a download, so content that does not match is looked up again.
                if version.sha256 == file.sha256 or self.head(key)[0] == version:
                    return version
        raise StemTransportError(
            f"Other tasks replaced the object {_MAX_READS} times. Try again later [{self.uri(key)}]"
        )

    def keys(self, prefix: str, *, required: bool) -> Iterator[str]:  # noqa: ARG002 - who may write may list
        """Iterate over the keys below a prefix."""
        with self._errors(prefix):
            yield from (blob.name for blob in self._client.list_blobs(self._bucket, prefix=prefix))

    def _write(self, key: str, content: Any, size: int, metadata: dict[str, str], replaces: str | None) -> bytes | None:
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.retry import DEFAULT_RETRY

        blob = self._client.bucket(self._bucket).blob(key)
        blob.metadata = metadata
        try:
            blob.upload_from_file(
                io.BytesIO(content) if isinstance(content, bytes) else content,
                size=size,
                content_type=content_type(key),
                if_generation_match=int(replaces or 0) if self._conditional else None,
                retry=DEFAULT_RETRY,
            )
        except PreconditionFailed:
            raise ObjectChangedError(self.uri(key)) from None
        return base64.b64decode(blob.md5_hash) if blob.md5_hash else None

    def _delete(self, key: str) -> None:
        with self._errors(key):
            self._client.bucket(self._bucket).blob(key).delete()

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        self._client  # noqa: B018 - raises the error of a provider that is missing
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption
        from requests import RequestException

        try:
            yield
        except GoogleAPIError as exc:  # one without a code is a time-out of all attempts
            raise self._failure(getattr(exc, "code", None), one_line(str(exc)), key) from None
        except GoogleAuthError as exc:
            raise self._failure(401, one_line(str(exc)), key) from None
        except (RequestException, DataCorruption) as exc:
            raise self._failure(None, one_line(str(exc)), key) from None


def _version(blob: Any) -> Version:
    return version_of(str(blob.generation), blob.metadata or {})
