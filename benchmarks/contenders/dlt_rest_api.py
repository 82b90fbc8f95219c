"""
dlt with its declarative REST API source, set up as its documentation shows.

A list of sites, which is not an endpoint, is the parent of the streams, which are fetched concurrently. dlt infers the
types and writes Parquet.
"""

from __future__ import annotations

import atexit
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.work import Work

if TYPE_CHECKING:
    import pyarrow as pa

_DATASET, _TABLE = "stem", "streams"


def prepare(work: Work) -> Callable[[], None]:
    """Create the source and the pipeline."""
    ours = pipeline(work, "dlt_rest_api")

    import dlt
    from dlt.sources.rest_api import rest_api_source

    def sites() -> Iterator[list[dict[str, str]]]:
        yield [{"id": site} for site in work.sites]

    authorization = {
        "type": "api_key",
        "name": "Authorization",
        "api_key": f"APIKEY {work.api_key}",
        "location": "header",
    }
    streams = {
        "name": _TABLE,
        "parallelized": True,
        "write_disposition": "append",
        # Without it, a first value without a fraction creates a column of integers, and later a second column.
        "columns": {"kw_total_avg": {"data_type": "double"}},
        "endpoint": {
            "path": "sites/{resources.sites.id}/streams",
            "params": {
                "start_datetime": work.start,
                "end_datetime": work.end,
                "stream_type": ",".join(work.stream_types),
            },
            "data_selector": "stream_types",
        },
        "include_from_parent": ["id"],
        "processing_steps": [{"yield_map": _flat}],
    }
    source = rest_api_source(
        {
            "client": {"base_url": work.api_url, "auth": authorization, "paginator": "single_page"},
            "resources": [dlt.resource(sites, selected=False), streams],
        },
        name="stem",
    )
    return lambda: ours.run(source, loader_file_format="parquet").raise_on_failed_jobs()


def _flat(entry: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    # If nested, the rows would be in a separate table that refers to its site by a key only. One list, because dlt
    # processes yielded items one at a time.
    named = {"site_id": entry["_sites_id"], "stream_type": entry["stream_type"]}
    yield [named | row for row in entry["streams"]]


def pipeline(work: Work, name: str) -> Any:
    """Import dlt and create a pipeline into the bucket. Its files on disk are deleted when the process ends."""
    home = tempfile.TemporaryDirectory(prefix="contender-")
    atexit.register(home.cleanup)
    os.environ |= {
        "DLT_PROJECT_DIR": home.name,
        "DLT_DATA_DIR": home.name,
        "DLT_LOCAL_DIR": home.name,
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "EXTRACT__WORKERS": str(work.workers),
    }

    import dlt
    import pyarrow.parquet  # noqa: F401 - dlt imports these two on first use
    import s3fs  # noqa: F401

    credentials = {
        "aws_access_key_id": work.s3_access_key,
        "aws_secret_access_key": work.s3_secret_key,
        "endpoint_url": work.s3_url,
        "region_name": "us-east-1",
    }
    return dlt.pipeline(
        pipeline_name=name,
        pipelines_dir=home.name,
        dataset_name=_DATASET,
        destination=dlt.destinations.filesystem(f"s3://{work.bucket}/{work.prefix}", credentials=credentials),
    )


def rows(key: str, body: bytes) -> pa.Table:
    """Return the rows of an object. The objects of dlt's own tables have none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("site_id", pa.string()), ("stream_type", pa.string()), ("end", pa.int64()), ("kw_total_avg", pa.float64())]
    )
    if f"/{_DATASET}/{_TABLE}/" not in key or not body:
        return schema.empty_table()
    table = pq.read_table(io.BytesIO(body))
    return pa.table(
        {
            "site_id": table["site_id"],
            "stream_type": table["stream_type"],
            "end": table["end_datetime"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()),
            "kw_total_avg": table["kw_total_avg"],
        }
    ).cast(schema)
