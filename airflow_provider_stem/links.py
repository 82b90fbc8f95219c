"""What a task's page in Airflow's UI links to; for the operators."""

from __future__ import annotations

from posixpath import commonprefix
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

_CONSOLE = "https://console.aws.amazon.com/s3"


class LandedObjectsLink(BaseOperatorLink):
    """Opens what a task landed in the console of S3: its object, or the prefix that its objects share."""

    name = "Landed objects"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        """Give the address from the task's receipt; empty where nothing landed."""
        receipt = XCom.get_value(ti_key=ti_key, key="return_value")
        uris = [landed["uri"] for landed in (receipt or {}).get("objects", ())]
        if not uris:
            return ""
        bucket = uris[0].removeprefix("s3://").partition("/")[0]
        keys = [uri.removeprefix(f"s3://{bucket}/") for uri in uris]
        if len(keys) == 1:
            return f"{_CONSOLE}/object/{bucket}?prefix={quote(keys[0], safe='')}"
        prefix = commonprefix(keys).rpartition("/")[0]
        return f"{_CONSOLE}/buckets/{bucket}?prefix={quote(prefix + '/' if prefix else '', safe='')}"
