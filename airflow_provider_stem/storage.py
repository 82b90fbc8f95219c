"""Finished files to S3, through Airflow's own hook; for the operator."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_stem.errors import StemConfigError, StemTransportError

if TYPE_CHECKING:
    from airflow_provider_stem.streams.spool import ShelvedFile

log = logging.getLogger(__name__)

DIGEST = "sha256"
"""Under which metadata of an object the SHA-256 of its content is kept."""


class S3Store:
    """
    Stores files in one bucket, each with a single PUT: visible whole or not at all, and no multipart upload to orphan.

    :param aws_conn_id: connection of type ``aws``.
    :param bucket: the bucket's name, or ``None`` for the one in the connection's ``service_config``.
    :param replace: whether an object that is there already is replaced. If not, one with the same content is taken
        as landed, so that a retry can complete what an earlier attempt began; any other is an error.
    """

    def __init__(self, aws_conn_id: str | None, bucket: str | None, *, replace: bool) -> None:
        self._aws_conn_id = aws_conn_id
        self._bucket = bucket
        self._replace = replace

    @cached_property
    def _hook(self) -> S3Hook:
        return S3Hook(aws_conn_id=self._aws_conn_id)

    @cached_property
    def bucket(self) -> str:
        """
        The bucket's name.

        :raises StemConfigError: neither the task nor the connection names one.
        """
        bucket = self._bucket or self._hook.service_config.get("bucket_name")
        if not bucket:
            raise StemConfigError(
                "s3_bucket is not given: give it, or a full s3://bucket/key as s3_key, or a bucket_name for s3 in the "
                f"service_config of connection {self._aws_conn_id!r}."
            )
        return str(bucket)

    def check(self) -> None:
        """
        See that the bucket is there, before anything is read for it.

        :raises StemConfigError: there is no such bucket.
        :raises StemTransportError: S3 cannot be reached, or no credentials are found.
        """
        bucket = self.bucket
        try:
            self._hook.get_conn().head_bucket(Bucket=bucket)
        except ClientError as exc:
            # Who may write need not be allowed to look: only "not there" is a clear answer.
            if _status(exc) == 404:
                raise StemConfigError(
                    f"s3_bucket is {bucket!r}, which does not exist: create it, or mend s3_bucket or the connection "
                    f"{self._aws_conn_id!r}."
                ) from None
        except BotoCoreError as exc:
            raise StemTransportError(f"S3 cannot be used through connection {self._aws_conn_id!r}: {exc}") from None

    def uri(self, key: str) -> str:
        """Give the address of a key."""
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, file: ShelvedFile) -> None:
        """
        Store a file.

        :raises StemConfigError: there is another object under the key, and ``replace`` is off.
        :raises StemTransportError: S3 did not take it, in as many attempts as the connection allows.
        """
        try:
            self._put(key, file)
        except (BotoCoreError, ClientError) as exc:
            raise StemTransportError(f"{self.uri(key)} was not stored: {exc}") from exc
        get_hook_lineage_collector().add_output_asset(  # type: ignore[no-untyped-call]
            context=self._hook, scheme="s3", asset_kwargs={"bucket": self.bucket, "key": key}
        )

    def _put(self, key: str, file: ShelvedFile) -> None:
        client = self._hook.get_conn()
        condition = {}
        if not self._replace:
            if self._has_same(client, key, file):
                return
            condition = {"IfNoneMatch": "*"}
        file.seek(0)
        try:
            client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=file,
                ContentLength=file.size,
                Metadata={DIGEST: file.sha256},
                **condition,
            )
        except ClientError as exc:
            # Another run was faster.
            if not (condition and _status(exc) == 412 and self._has_same(client, key, file)):
                raise

    def _has_same(self, client: Any, key: str, file: ShelvedFile) -> bool:
        try:
            found = client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as exc:
            if _status(exc) == 404:
                return False
            raise
        if found["Metadata"].get(DIGEST) != file.sha256:
            raise StemConfigError(
                f"{self.uri(key)} is there already, with other content: it stays as it is (replace=False)."
            )
        log.info("%s is there already, with the same content", self.uri(key))
        return True


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
