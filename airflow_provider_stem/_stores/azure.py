"""Objects in Azure Blob Storage, by the client of Airflow's microsoft.azure provider; for operators and the landing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow_provider_stem._stores.cloud import CloudStore
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import ObjectChangedError, Version, content_type, parse_date, version_of

_CONFLICTS = (404, 409, 412)


class AzureStore(CloudStore):
    """A container of Azure Blob Storage. Its metadata cannot have a hyphen: the time is ``read_at`` there."""

    scheme = "abfs"
    read_at_name = "read_at"
    conditions = {None: "If-None-Match", '"0x0000000000000000"': "If-Match"}  # noqa: RUF012 - constant

    @cached_property
    def _container(self) -> Any:
        try:
            from airflow.providers.microsoft.azure.hooks.wasb import WasbHook
        except ImportError:
            raise StemConfigError(
                "abfs:// needs Airflow's microsoft.azure provider. Install it: pip install "
                "'airflow-provider-stem[azure]'"
            ) from None
        return WasbHook(wasb_conn_id=self._conn_id).get_conn().get_container_client(self._bucket)

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """
        Return an object's version and the store's time.

        :return: the version, ``None`` if there is no object, and the time of the response by the store's clock, in UTC.
        :raises StemConfigError: reading it is forbidden.
        :raises StemTransportError: the store did not respond.
        """
        dates: list[str] = []
        version = None
        with self._errors(key):
            from azure.core.exceptions import ResourceNotFoundError

            try:
                found = self._container.get_blob_client(key).get_blob_properties(
                    raw_response_hook=lambda response: dates.append(response.http_response.headers.get("Date", ""))
                )
                version = version_of(found.etag, found.metadata, read_at=self.read_at_name)
            except ResourceNotFoundError as exc:
                if exc.response is not None:
                    dates.append(exc.response.headers.get("Date", ""))
            return version, parse_date(dates[-1] if dates else "", self._conn_id)

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """
        Copy an object into a file, replacing the file's content.

        :return: the object's version, or ``None`` if there is no such object.
        :raises StemConfigError: reading it is forbidden.
        :raises StemTransportError: it did not arrive completely.
        """
        file.clear()
        with self._errors(key):
            from azure.core.exceptions import ResourceNotFoundError

            try:
                # Later parts are requested with the ETag of the first.
                download = self._container.get_blob_client(key).download_blob(max_concurrency=1)
                download.readinto(file)
            except ResourceNotFoundError:
                return None
            found = download.properties
            return version_of(found.etag, found.metadata, read_at=self.read_at_name)

    def keys(self, prefix: str, *, required: bool) -> Iterator[str]:  # noqa: ARG002 - who may write may list
        """Iterate over the keys below a prefix."""
        with self._errors(prefix):
            yield from self._container.list_blob_names(name_starts_with=prefix)

    def _write(self, key: str, content: Any, size: int, metadata: dict[str, str], replaces: str | None) -> bytes | None:
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import ContentSettings

        condition: dict[str, Any] = {"overwrite": True}
        if self._conditional and replaces is None:
            condition = {"overwrite": False}
        elif self._conditional:
            condition |= {"etag": replaces, "match_condition": MatchConditions.IfNotModified}
        try:
            written = self._container.get_blob_client(key).upload_blob(
                content,
                length=size,
                metadata=metadata,
                content_settings=ContentSettings(content_type=content_type(key)),
                **condition,
            )
        except HttpResponseError as exc:
            is_missing = exc.status_code == 404 and replaces is None  # it is the container that does not exist
            if exc.status_code in _CONFLICTS and not is_missing:
                raise ObjectChangedError(self.uri(key)) from None
            raise
        return bytes(written.get("content_md5") or b"") or None

    def _delete(self, key: str) -> None:
        with self._errors(key):
            self._container.delete_blob(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        self._container  # noqa: B018 - raises the error of a provider that is missing
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            yield
        except AzureError as exc:
            status = 401 if isinstance(exc, ClientAuthenticationError) else getattr(exc, "status_code", None)
            raise self._failure(status, one_line(str(exc)), key) from None
