"""
The amazon provider's ``HttpToS3Operator``: one task per site, one after another, stores the response unchanged.

It does not parse rows, so the objects contain the API's JSON.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.contenders.work import Work

if TYPE_CHECKING:
    import pyarrow as pa


def prepare(work: Work) -> Callable[[], None]:
    """Create the connections and a task for each site."""
    home = tempfile.TemporaryDirectory(prefix="contender-")
    atexit.register(home.cleanup)
    aws_extra = {
        "endpoint_url": work.s3_url,
        "region_name": "us-east-1",
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    os.environ |= {
        "AIRFLOW_HOME": home.name,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_HTTP_DEFAULT": json.dumps(
            # Every key of the extra that is not an option is sent as a header.
            {"conn_type": "http", "host": work.api_url, "extra": {"Authorization": f"APIKEY {work.api_key}"}}
        ),
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
            {"conn_type": "aws", "login": work.s3_access_key, "password": work.s3_secret_key, "extra": aws_extra}
        ),
    }

    from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    # Loads the plugins, which a worker loads before a task begins.
    get_hook_lineage_collector()  # type: ignore[no-untyped-call]

    tasks = [
        HttpToS3Operator(
            task_id=f"streams_{number}",
            endpoint=f"sites/{site}/streams",
            data={
                "start_datetime": work.start,
                "end_datetime": work.end,
                "stream_type": ",".join(work.stream_types),
            },
            s3_bucket=work.bucket,
            s3_key=f"{work.prefix}/{site}.json",
            replace=True,  # otherwise a repeated task fails
        )
        for number, site in enumerate(work.sites)
    ]

    def run() -> None:
        while tasks:  # frees the task and its S3 client, as the end of its process would
            tasks.pop(0).execute({})

    return run


def rows(key: str, body: bytes) -> pa.Table:
    """Return the rows of an object."""
    import pyarrow as pa
    import pyarrow.json

    row = pa.struct([("end_datetime", pa.timestamp("s", "UTC")), ("kw_total_avg", pa.float64())])
    entry = pa.struct([("stream_type", pa.string()), ("streams", pa.list_(row))])
    answer = pyarrow.json.read_json(
        io.BytesIO(body),
        pyarrow.json.ReadOptions(block_size=len(body) + 1),
        pyarrow.json.ParseOptions(
            explicit_schema=pa.schema([("id", pa.string()), ("stream_types", pa.list_(entry))]),
            unexpected_field_behavior="ignore",
        ),
    )
    if answer.num_rows != 1:
        raise ValueError(f"{key} holds {answer.num_rows} answers")
    empty = pa.schema(
        [("site_id", pa.string()), ("stream_type", pa.string()), ("end", pa.int64()), ("kw_total_avg", pa.float64())]
    ).empty_table()
    entries = answer["stream_types"].combine_chunks().flatten()
    tables = [empty]
    for index, name in enumerate(entries.field("stream_type").to_pylist()):
        streams = entries.field("streams").slice(index, 1).flatten()
        tables.append(
            pa.table(
                {
                    "site_id": pa.repeat(answer["id"][0], len(streams)),
                    "stream_type": pa.repeat(name, len(streams)),
                    "end": streams.field("end_datetime").cast(pa.int64()),
                    "kw_total_avg": streams.field("kw_total_avg"),
                }
            )
        )
    return pa.concat_tables(tables)
