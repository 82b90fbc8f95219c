"""Link from a task in Airflow's UI to what it landed; for the operators."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from posixpath import commonprefix
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from airflow_provider_stem.streams.keys import split_uri

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)

_KEY = "landed_objects_link"
_CONSOLES = {
    "aws": "https://console.aws.amazon.com/s3",
    "aws-cn": "https://console.amazonaws.cn/s3",
    "aws-us-gov": "https://console.amazonaws-us-gov.com/s3",
}
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


class LandedObjectsLink(BaseOperatorLink):
    """Opens what a task landed, in the console of S3 or at the server of its own: an object, or the common prefix."""

    name = "Landed objects"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Return the address that the task stored; empty where it landed nothing."""
        return XCom.get_value(ti_key=ti_key, key=_KEY) or ""

    @staticmethod
    def persist(context: Mapping[str, Any], aws_conn_id: str | None, uris: Sequence[str]) -> None:
        """
        Store the link for the task's page, where the connection can be read: in the task, not in the API server.

        :param uris: of the objects; without any, no link is stored.
        """
        push = getattr(context.get("ti"), "xcom_push", None)
        if push is None or not context["ti"].task.do_xcom_push:
            return
        try:
            address = _address(aws_conn_id, uris)
        except Exception as exc:  # noqa: BLE001 - what has landed is not to fail for want of a link
            log.warning("No link to the landed objects: %s", type(exc).__name__)
        else:
            push(key=_KEY, value=address)


def _address(aws_conn_id: str | None, uris: Sequence[str]) -> str | None:
    """Return the address of an object or of the prefix that several share, without credentials."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    if not uris:
        return None
    bucket, _ = split_uri(uris[0])
    if bucket.startswith("arn:"):  # the console has no page for the alias of an access point
        return None
    keys = [split_uri(uri)[1] for uri in uris]
    common = commonprefix(keys).rpartition("/")[0]
    prefix = f"{common}/" if common else ""
    client = S3Hook(aws_conn_id=aws_conn_id).get_conn()
    # The endpoint in use, whether it comes from the connection, the environment or botocore's own configuration.
    endpoint = urlsplit(client.meta.endpoint_url)
    host = endpoint.hostname or ""
    console = _CONSOLES.get(client.meta.partition)
    if console is None:
        return None
    if host.endswith(_AWS_HOSTS):
        region = client.meta.region_name
        query = {} if region in (None, "aws-global") else {"region": region}
        page, shown = ("object", keys[0]) if len(keys) == 1 else ("buckets", prefix)
        return (
            console and f"{console}/{page}/{bucket}?{urlencode({**query, 'prefix': shown}, quote_via=quote, safe='')}"
        )
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{endpoint.port}" if endpoint.port else ""
    own = f"{endpoint.scheme}://{netloc}{endpoint.path.rstrip('/')}/{bucket}"  # not what may stand before an "@"
    return f"{own}/{quote(keys[0])}" if len(keys) == 1 else f"{own}/?prefix={quote(prefix, safe='')}"
