"""Stores of objects by the scheme of an address, and objects by their URI; for operators and the ledger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.store import DEFAULT_CONNECTIONS, ObjectStore, Version, split_uri

if TYPE_CHECKING:
    from airflow_provider_stem.streams.spool import ScratchFile


def open_store(
    scheme: str, bucket: str, conn_id: str | None, s3_extra_args: Mapping[str, Any] | None = None
) -> ObjectStore:
    """
    Return a store. Nothing is sent to it yet.

    :param scheme: one of :data:`~airflow_provider_stem.streams.store.DEFAULT_CONNECTIONS`.
    :param bucket: name of the bucket or container; empty for a folder.
    :param conn_id: connection of the type that the scheme needs; a folder ignores it.
    :param s3_extra_args: more arguments of each PUT to S3, named as in boto3.
    :raises StemConfigError: another store has these arguments.
    """
    if s3_extra_args is not None and scheme != "s3":
        raise StemConfigError(f"s3_extra_args is set, but {scheme}:// is not a store of S3. Remove it.")
    if scheme == "file":
        from airflow_provider_stem._stores.folder import FolderStore

        return FolderStore()
    if scheme == "gs":
        from airflow_provider_stem._stores.gcs import GcsStore

        return GcsStore(bucket, conn_id)
    if scheme == "abfs":
        from airflow_provider_stem._stores.azure import AzureStore

        return AzureStore(bucket, conn_id)
    from airflow_provider_stem._s3 import S3Store

    return S3Store(conn_id, bucket, s3_extra_args)


def allows_unconditional_writes() -> bool:
    """Return whether ``[stem] allow_unconditional_writes`` is set in Airflow's configuration."""
    return bool(conf.getboolean("stem", "allow_unconditional_writes", fallback=False))


def require_folder(uri: str) -> None:
    """
    Check that a folder of this machine exists, since the store would create it. A bucket has no folders.

    :param uri: address of the folder, in any store.
    :raises StemConfigError: it does not exist.
    """
    scheme, _, path = split_uri(uri)
    if scheme == "file" and not os.path.isdir(f"/{path}"):  # noqa: PTH112 - raises no error
        raise StemConfigError(
            f"The folder does not exist. Create it, mount its file system, or correct the address [{one_line(uri)}]"
        )


class StoredObjects:
    """
    Objects of any store, by their URI.

    :param aws_conn_id: connection of type ``aws`` for ``s3://``, or ``None`` for boto3's own credentials.
    :param store_conn_id: connection for ``gs://`` and ``abfs://``; ``None`` for the default one of the scheme.
    """

    def __init__(self, aws_conn_id: str | None, store_conn_id: str | None) -> None:
        def opened(scheme: str, bucket: str) -> ObjectStore:
            conn_id = aws_conn_id if scheme == "s3" else store_conn_id or DEFAULT_CONNECTIONS[scheme]
            return open_store(scheme, bucket, conn_id)

        self._store = cache(opened)

    def get(self, uri: str, file: ScratchFile) -> Version | None:
        """Copy an object into a file, as :meth:`ObjectStore.get`."""
        scheme, bucket, key = split_uri(uri)
        return self._store(scheme, bucket).get(key, file)

    def head(self, uri: str) -> Version | None:
        """Return an object's version, as :meth:`ObjectStore.head`."""
        scheme, bucket, key = split_uri(uri)
        return self._store(scheme, bucket).head(key)[0]
