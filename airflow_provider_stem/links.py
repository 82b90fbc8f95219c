"""Links from a task in Airflow's UI to the objects that it landed and to their completeness; for the operators."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from posixpath import commonprefix
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom, conf

from airflow_provider_stem.streams.store import split_uri

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["CompletenessLink", "LandedObjectsLink"]

log = logging.getLogger(__name__)

_KEY = "landed_objects_link"
_CONSOLES = {
    "aws": "https://console.aws.amazon.com/s3",
    "aws-cn": "https://console.amazonaws.cn/s3",
    "aws-us-gov": "https://console.amazonaws-us-gov.com/s3",
}
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


class LandedObjectsLink(BaseOperatorLink):
    """
    Link to what a task landed, an object or the common prefix of several.

    It opens the console of S3 or of Google Cloud Storage, or an S3-compatible server. Azure and folders have no link.
    """

    name = "Landed objects"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the task stored; empty if it landed nothing."""
        # Airflow 3 calls this in the worker, also after a failure, and logs an error if the XCom does not exist.
        if hasattr(operator, "receipt") and not (operator.receipt and operator.receipt["objects"]):
            return ""
        return XCom.get_value(ti_key=ti_key, key=_KEY) or ""

    @staticmethod
    def persist(context: Mapping[str, Any], conn_id: str | None, uris: Sequence[str]) -> None:
        """
        Store the link for the task's page. Only the task can read the connection; the API server cannot.

        :param context: context of the task.
        :param conn_id: connection of the store.
        :param uris: URIs of the objects; if empty, no link is stored.
        """
        try:
            address = _address(conn_id, uris)
        except Exception as exc:  # noqa: BLE001 - a missing link must not fail a task that has landed its objects
            log.warning("The link to the landed objects could not be created: %s", type(exc).__name__)
        else:
            context["ti"].xcom_push(key=_KEY, value=address)


class CompletenessLink(BaseOperatorLink):
    """Link to the heat map of completeness in Airflow's UI, for the days of the window that a task landed."""

    name = "Completeness"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """
        Return the address; empty if the task landed nothing, or no ``[stem] completeness_conn_id`` is configured.

        Airflow 3 calls this in the worker, with the operator that ran.
        """
        receipt = getattr(operator, "receipt", None)
        if receipt is None or not conf.get("stem", "completeness_conn_id", fallback=""):
            return ""
        first, end = (datetime.fromisoformat(receipt["window"][bound]) for bound in ("start", "end"))
        days = {"first_day": first.date(), "last_day": (end - timedelta.resolution).date()}
        return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/stem/completeness?{urlencode(days)}"


def _address(conn_id: str | None, uris: Sequence[str]) -> str | None:
    """Return the address of an object, or of the common prefix of several, without credentials."""
    if not uris:
        return None
    scheme, bucket, _ = split_uri(uris[0])
    keys = [split_uri(uri)[2] for uri in uris]
    common = commonprefix(keys).rpartition("/")[0]
    prefix = f"{common}/" if common else ""
    if scheme == "gs":
        page = f"_details/{bucket}/{quote(keys[0])}" if len(keys) == 1 else f"{bucket}/{quote(prefix)}"
        return f"https://console.cloud.google.com/storage/browser/{page}"
    # A folder has no page; that of Azure needs the id of a subscription, which the connection lacks; the console of S3
    # has none for the alias of an access point.
    if scheme != "s3" or bucket.startswith("arn:"):
        return None
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    client = S3Hook(aws_conn_id=conn_id).get_conn()
    # The endpoint in use, from the connection, the environment or botocore's configuration.
    endpoint = urlsplit(client.meta.endpoint_url)
    host = endpoint.hostname or ""
    console = _CONSOLES.get(client.meta.partition)
    if console is None:
        return None
    if host.endswith(_AWS_HOSTS):
        region = client.meta.region_name
        query = {} if region in (None, "aws-global") else {"region": region}
        page, target = ("object", keys[0]) if len(keys) == 1 else ("buckets", prefix)
        return f"{console}/{page}/{bucket}?{urlencode({**query, 'prefix': target}, quote_via=quote, safe='')}"
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{endpoint.port}" if endpoint.port else ""
    root = f"{endpoint.scheme}://{netloc}{endpoint.path.rstrip('/')}/{bucket}"  # without user and password
    return f"{root}/{quote(keys[0])}" if len(keys) == 1 else f"{root}/?prefix={quote(prefix, safe='')}"
