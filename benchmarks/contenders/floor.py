"""
The simplest program: requests, pyarrow's JSON reader, one file and boto3, in threads, without any checks.

pyarrow writes CSV and polars writes JSON Lines, both compressed with gzip.
"""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.contenders import files
from benchmarks.contenders.work import Work

if TYPE_CHECKING:
    import pyarrow as pa


def prepare(work: Work) -> Callable[[], None]:
    """Return a function that does the whole work."""
    import boto3.s3.inject
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet
    import requests
    from botocore.config import Config

    sessions = threading.local()

    def fetch(site: str) -> pa.Table:
        if not hasattr(sessions, "session"):
            sessions.session = requests.Session()
            sessions.session.headers["Authorization"] = f"APIKEY {work.api_key}"
        answer = sessions.session.get(
            f"{work.api_url}sites/{site}/streams",
            params={
                "start_datetime": work.start,
                "end_datetime": work.end,
                "stream_type": ",".join(work.stream_types),
            },
            timeout=60,
        )
        options = pyarrow.json.ReadOptions(block_size=len(answer.content) + 1)
        entries = pyarrow.json.read_json(io.BytesIO(answer.content), options)["stream_types"].combine_chunks().flatten()
        tables = []
        for index, name in enumerate(entries.field("stream_type").to_pylist()):
            shown = pa.Table.from_struct_array(entries.field("streams").slice(index, 1).flatten())
            shown = shown.append_column("site_id", pa.repeat(site, shown.num_rows))
            tables.append(shown.append_column("stream_type", pa.repeat(name, shown.num_rows)))
        return pa.concat_tables(tables)

    def run() -> None:
        with ThreadPoolExecutor(work.workers) as pool:
            table = pa.concat_tables(pool.map(fetch, work.sites))
        body = io.BytesIO()
        if work.file_format == "parquet":
            pyarrow.parquet.write_table(table, body, compression="zstd")
        else:
            with gzip.GzipFile(fileobj=body, mode="wb", compresslevel=6) as packed:
                if work.file_format == "csv":
                    pyarrow.csv.write_csv(table, packed)
                else:
                    frame = pl.from_arrow(table)
                    assert isinstance(frame, pl.DataFrame)
                    frame.write_ndjson(packed)
        s3 = boto3.client(
            "s3",
            endpoint_url=work.s3_url,
            aws_access_key_id=work.s3_access_key,
            aws_secret_access_key=work.s3_secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        end = work.file_format if work.file_format == "parquet" else f"{work.file_format}.gz"
        s3.put_object(Bucket=work.bucket, Key=f"{work.prefix}/all.{end}", Body=body.getvalue())

    return run


def rows(key: str, body: bytes) -> pa.Table:
    """Return the rows of an object."""
    return files.rows(key, body, "end_datetime")
