"""The operator of this project."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.contenders import files
from benchmarks.contenders.work import Work

if TYPE_CHECKING:
    import pyarrow as pa


def prepare(work: Work) -> Callable[[], None]:
    """Return ``execute``. Imports come first and are not measured, as for the other contenders."""
    import airflow.sdk.execution_time.supervisor  # noqa: F401  # a task's process has it
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    import airflow_provider_stem._s3
    import airflow_provider_stem.streams.landing  # noqa: F401
    from airflow_provider_stem.operators import StemStreamsToS3Operator

    os.environ["AIRFLOW_CONN_STEM_DEFAULT"] = json.dumps(
        {"conn_type": "stem", "host": work.api_url, "password": work.api_key}
    )
    os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = json.dumps(
        {
            "conn_type": "aws",
            "login": work.s3_access_key,
            "password": work.s3_secret_key,
            "extra": {
                "endpoint_url": work.s3_url,
                "region_name": "us-east-1",
                "config_kwargs": {"s3": {"addressing_style": "path"}},
            },
        }
    )
    task = StemStreamsToS3Operator(
        task_id="land",
        sites=work.sites,
        stream_types=work.stream_types,
        start=work.start,
        end=work.end,
        s3_bucket=work.bucket,
        s3_key=f"{work.prefix}/all.{{extension}}",
        file_format=work.file_format,
        max_workers=work.workers,
    )
    # Loads Airflow's plugins, which a worker loads before a task begins.
    get_hook_lineage_collector()  # type: ignore[no-untyped-call]

    def run() -> None:
        task.execute({})

    return run


def rows(key: str, body: bytes) -> pa.Table:
    """Return the rows of an object."""
    return files.rows(key, body, "interval_end")
