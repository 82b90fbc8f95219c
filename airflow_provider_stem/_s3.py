"""Objects in S3, read and conditionally written through Airflow's S3 hook; for operators and the landing."""

from __future__ import annotations

import base64
import hashlib
import inspect
import logging
import shutil
from collections.abc import Container, Iterator, Mapping
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import tenacity
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import (
    DIGEST,
    READ_AT,
    DamagedObjectError,
    ObjectChangedError,
    Version,
    content_type,
    honours_conditions,
    object_uri,
    parse_date,
    version_of,
)
from airflow_provider_stem.streams.windows import iso_exact

log = logging.getLogger(__name__)

_CONDITIONS = {None: "If-None-Match", '"00000000000000000000000000000000"': "If-Match"}
_ANY_STATUS = range(300, 600)
# AWS returns 409 for one of two simultaneous conditional requests for one key.
_CONFLICTS = (409, 412)
_REJECTED = (400, 405, 501)
# Error codes of a rejected PUT that a retry can cure.
_PASSING = {"BadDigest", "ExpiredToken", "RequestTimeout", "TokenRefreshRequired", "XAmzContentChecksumMismatch"}
_WRONG_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
_MAX_DOWNLOADS = 4
_FOR_READS = (
    "ExpectedBucketOwner",
    "RequestPayer",
    "SSECustomerAlgorithm",
    "SSECustomerKey",
    "SSECustomerKeyMD5",
)
"""Arguments of a PUT that HEAD and GET also need."""


class _Hook(S3Hook):
    """Airflow's S3 hook, which names the task's class in the user agent."""

    def _get_caller(self, target_function_name: str = "execute") -> str:
        # With inspect.stack(), as in the base class, this takes as long as making the client: it resolves the paths of
        # all loaded modules.
        frame = inspect.currentframe()
        while frame and frame.f_code.co_name != target_function_name:
            frame = frame.f_back
        return type(frame.f_locals.get("self")).__name__ if frame else "Unknown"


class S3Store:
    """
    A bucket whose objects are written with a single PUT.

    An object is visible completely or not at all, and no incomplete multipart upload can be left behind.

    :param aws_conn_id: connection of type ``aws``.
    :param bucket: name of the bucket, or ``None`` for the one in the connection's ``service_config``.
    :param extra_args: more arguments of each PUT, named as in boto3's ``put_object``.
    """

    def __init__(
        self, aws_conn_id: str | None, bucket: str | None, extra_args: Mapping[str, Any] | None = None
    ) -> None:
        self._aws_conn_id = aws_conn_id
        self._bucket = bucket
        self._extra_args = dict(extra_args or {})
        self._for_reads = {name: value for name, value in self._extra_args.items() if name in _FOR_READS}
        self._conditional = True

    @cached_property
    def _hook(self) -> S3Hook:
        return _Hook(aws_conn_id=self._aws_conn_id)

    @cached_property
    def _client(self) -> Any:
        return self._hook.get_conn()

    @cached_property
    def bucket(self) -> str:
        """
        The bucket's name.

        :raises StemConfigError: neither the task nor the connection names one.
        """
        bucket = self._bucket or self._hook.service_config.get("bucket_name")
        if not bucket:
            raise StemConfigError(
                "s3_bucket is missing. Set it, or use a full s3://bucket/key as s3_key, or set bucket_name for s3 in "
                f"the service_config of connection {self._aws_conn_id!r}."
            )
        return str(bucket)

    def uri(self, key: str) -> str:
        """Return the address of a key."""
        return object_uri("s3", self.bucket, key)

    def check(self, probe: str, *, may_be_unconditional: bool) -> None:
        """
        Check that the bucket exists and that this task may write to it, before anything is read from the API.

        A probe object shows whether the store honours conditional writes. It is deleted again.

        :param probe: key of the probe, in the folder of the objects to write.
        :param may_be_unconditional: write without conditions if the store ignores them, and log a warning.
        :raises StemConfigError: the bucket does not exist, a PUT is forbidden or its arguments are wrong, or the store
            ignores conditions.
        :raises StemTransportError: the store cannot be reached, or no credentials were found.
        """
        try:
            self._call("head_bucket", expected=_ANY_STATUS, **self._only("ExpectedBucketOwner"))
        except ClientError as exc:
            # A role that may write may lack permission to list, so only a 404 is conclusive.
            if _status(exc) == 404:
                raise StemConfigError(
                    f"s3_bucket {self.bucket!r} does not exist. Create it, or correct s3_bucket or connection "
                    f"{self._aws_conn_id!r}."
                ) from None

        def write(key: str, body: bytes, etag: str | None) -> None:
            try:
                self._put(key, body, etag, expected=_REJECTED, **self._extra_args)
            except ClientError:
                # The store rejects either the condition or another argument.
                self._call("put_object", key, expected=(), Body=body, **self._extra_args)

        delete = partial(self._call, "delete_object", expected=(), **self._only("ExpectedBucketOwner"))
        self._conditional = honours_conditions(
            self._aws_conn_id, probe, _CONDITIONS, write, delete, may_be_unconditional=may_be_unconditional
        )

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """
        Return an object's version and the store's time.

        :return: the version, ``None`` if there is no object, and the time of the response by the store's clock, in UTC.
        :raises StemTransportError: the store did not respond in as many attempts as the connection allows.
        """
        try:
            response = self._call("head_object", key, expected=(403, 404), **self._for_reads)
        except ClientError as exc:
            # Without permission to list, S3 returns 403 for a key that does not exist. A later PUT with If-None-Match
            # fails if the object does exist.
            return None, self._time_of(exc.response)
        return _version(response), self._time_of(response)

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """
        Copy an object into a file, replacing the file's content.

        :return: the object's version, or ``None`` if there is no such object.
        :raises StemConfigError: reading it is forbidden.
        :raises StemTransportError: it did not arrive completely in as many attempts as the connection allows.
        """

        # boto3 retries a request without a response, but not one whose response is cut off.
        @tenacity.retry(
            stop=tenacity.stop_after_attempt(_MAX_DOWNLOADS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            retry=tenacity.retry_if_exception_type((IncompleteReadError, ReadTimeoutError, ResponseStreamingError)),
            reraise=True,
        )
        def download() -> Version:
            file.clear()
            response = self._call("get_object", key, expected=(404,), **self._for_reads)
            shutil.copyfileobj(response["Body"], file, 2**20)
            return _version(response)

        try:
            return download()
        except ClientError:
            return None
        except (BotoCoreError, HTTPError) as exc:
            raise self._unusable(exc, key) from None

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """
        Write a file to an object, unless the object has changed since it was read.

        :param read_at: when the reading of its newest rows began, by the store's clock.
        :param replaces: version of the object to replace; ``None`` if there is none.
        :raises ObjectChangedError: another task has written the object since.
        :raises StemConfigError: the PUT is forbidden, or its arguments are wrong.
        :raises DamagedObjectError: the store has other content than was sent.
        :raises StemTransportError: the write did not succeed in as many attempts as the connection allows.
        """
        file.seek(0)
        metadata = {DIGEST: file.sha256, READ_AT: iso_exact(read_at)}
        response = self._put(
            key,
            file,
            replaces.etag if replaces else None,
            ContentLength=file.size,
            # By default boto3 sends a checksum after the body, which not every store supports.
            ChecksumSHA256=base64.b64encode(bytes.fromhex(file.sha256)).decode(),
            **{"ContentType": content_type(key)}
            | self._extra_args
            | {"Metadata": self._extra_args.get("Metadata", {}) | metadata},
        )
        if not self._is_stored(key, response, file):
            raise DamagedObjectError(self.uri(key))
        get_hook_lineage_collector().add_output_asset(  # type: ignore[no-untyped-call]
            context=self._hook, scheme="s3", asset_kwargs={"bucket": self.bucket, "key": key}
        )

    def keys(self, prefix: str, *, required: bool) -> Iterator[str]:
        """
        Iterate over the keys below a prefix.

        :param required: raise an error if listing is forbidden, instead of logging a warning.
        :raises StemConfigError: listing is forbidden.
        :raises StemTransportError: the store did not respond.
        """
        tokens: list[str] = []
        handled = () if required else (403,)
        owner = self._only("ExpectedBucketOwner")
        while True:
            try:
                token = {"ContinuationToken": tokens[-1]} if tokens else {}
                page = self._call("list_objects_v2", expected=handled, Prefix=prefix, **token, **owner)
            except ClientError:
                log.warning(
                    "Listing %s is forbidden. Allow it, so that other objects there are noticed.", self.uri(prefix)
                )
                return
            yield from (listed["Key"] for listed in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not following or following in tokens:
                raise StemTransportError(
                    f"The listing of {self.uri(prefix)} never ends. Check the store and the proxies in front of it."
                )
            tokens.append(following)

    def _put(self, key: str, body: Any, etag: str | None, *, expected: tuple[int, ...] = (), **arguments: Any) -> Any:
        condition: dict[str, str] = {}
        conflicts: tuple[int, ...] = ()
        if self._conditional:
            condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
            # S3 returns 404 for an If-Match whose object has been deleted.
            conflicts = _CONFLICTS if etag is None else (*_CONFLICTS, 404)
        try:
            return self._call("put_object", key, expected=(*conflicts, *expected), Body=body, **condition, **arguments)
        except ClientError as exc:
            if _status(exc) in conflicts:
                raise ObjectChangedError(self.uri(key)) from None
            raise

    def _is_stored(self, key: str, response: Mapping[str, Any], file: ScratchFile) -> bool:
        """Return whether the store has what was sent: by its checksum, else by its ETag, else by reading it back."""
        checksum = response.get("ChecksumSHA256")
        if checksum == base64.b64encode(bytes.fromhex(file.sha256)).decode():
            return True
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if checksum is None and str(response.get("ETag")).strip('"') == digest.hexdigest():
            return True
        # With SSE-KMS or SSE-C the ETag is not an MD5.
        with ScratchFile() as copy:
            return self.get(key, copy) is not None and copy.sha256 == file.sha256

    def _call(self, method: str, key: str = "", *, expected: Container[int], **arguments: Any) -> Any:
        """
        Call a method of boto3's client.

        :param expected: statuses that raise ``ClientError``, for the caller to handle.
        """
        if key:
            arguments["Key"] = key
        try:
            return getattr(self._client, method)(Bucket=self.bucket, **arguments)
        except ClientError as exc:
            if _status(exc) in expected:
                raise
            raise self._failure(exc, method, key) from None
        except ParamValidationError as exc:
            raise StemConfigError(f"s3_extra_args is invalid. Correct it: {one_line(str(exc))}") from None
        except (BotoCoreError, HTTPError) as exc:
            raise self._unusable(exc, key) from None

    def _failure(self, exc: ClientError, method: str, key: str) -> StemConfigError | StemTransportError:
        """Return the error for a response that is not a success."""
        status, code = _status(exc), exc.response.get("Error", {}).get("Code")
        failed = f"{method} failed: {_reason(exc)} [{self.uri(key)}]"
        if code == "RequestTimeTooSkewed":
            return StemTransportError(f"The worker's clock is wrong. Correct it: {failed}")
        if code in _WRONG_CREDENTIALS:
            return StemConfigError(
                f"The credentials are wrong. Correct access key and secret of connection {self._aws_conn_id!r}: "
                f"{failed}"
            )
        if status == 403:
            return StemConfigError(
                f"Access denied. Check the permissions of connection {self._aws_conn_id!r}, and whether the bucket "
                f"requires s3_extra_args such as ServerSideEncryption: {failed}"
            )
        if status == 400 and method == "put_object" and code not in _PASSING:
            return StemConfigError(
                f"S3 rejects the PUT. Check s3_extra_args, and region and endpoint of connection "
                f"{self._aws_conn_id!r}: {failed}"
            )
        if status >= 500 and method == "put_object" and self._extra_args:
            return StemTransportError(
                f"S3 failed on a PUT with s3_extra_args {', '.join(self._extra_args)}. If this persists, check that "
                f"the store supports them: {failed}"
            )
        return StemTransportError(failed)

    def _unusable(self, exc: Exception, key: str) -> StemTransportError:
        return StemTransportError(
            f"S3 cannot be used through connection {self._aws_conn_id!r}: {one_line(str(exc))} [{self.uri(key)}]"
        )

    def _time_of(self, response: Mapping[str, Any]) -> datetime:
        return parse_date(
            response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""), self._aws_conn_id
        )

    def _only(self, name: str) -> dict[str, Any]:
        return {name: self._extra_args[name]} if name in self._extra_args else {}


def _version(response: Mapping[str, Any]) -> Version:
    if "ETag" not in response:
        raise StemTransportError(
            "The store sends no ETag, so conditional writes are not possible. Use a store that sends it, and "
            "check the proxies in front of it."
        )
    return version_of(response["ETag"], response.get("Metadata", {}))


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(exc: ClientError) -> str:
    error = exc.response.get("Error", {})
    return one_line(f"HTTP {_status(exc)} {error.get('Code', '')}: {error.get('Message', '')}")
