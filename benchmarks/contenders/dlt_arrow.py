"""
dlt with Arrow tables: pyarrow's JSON reader parses the responses in threads of dlt, and dlt writes Parquet.

dlt passes Arrow tables through unchanged, whereas it would process rows one by one in Python.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from benchmarks.contenders.dlt_rest_api import pipeline, rows
from benchmarks.contenders.work import Work

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["prepare", "rows"]


def prepare(work: Work) -> Callable[[], None]:
    """Create the resources and the pipeline."""
    ours = pipeline(work, "dlt_arrow")

    import dlt
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.json
    from dlt.sources.helpers import requests

    instant = pa.timestamp("s", "UTC")
    row = pa.struct([("start_datetime", instant), ("end_datetime", instant), ("kw_total_avg", pa.float64())])
    entry = pa.struct([("stream_type", pa.string()), ("streams", pa.list_(row))])
    # dlt applies the types of the first table to all others, so they must not depend on the values.
    typed = pyarrow.json.ParseOptions(explicit_schema=pa.schema([("stream_types", pa.list_(entry))]))

    def sites() -> Iterator[str]:
        yield from work.sites

    def streams(site: str) -> list[pa.Table]:
        answer = requests.get(
            f"{work.api_url}sites/{site}/streams",
            params={
                "start_datetime": work.start,
                "end_datetime": work.end,
                "stream_type": ",".join(work.stream_types),
            },
            headers={"Authorization": f"APIKEY {work.api_key}"},
        )
        options = pyarrow.json.ReadOptions(block_size=len(answer.content) + 1)
        entries = pyarrow.json.read_json(io.BytesIO(answer.content), options, typed)["stream_types"]
        entries = entries.combine_chunks().flatten()
        tables = []
        for index, name in enumerate(entries.field("stream_type").to_pylist()):
            shown = pa.Table.from_struct_array(entries.field("streams").slice(index, 1).flatten())
            shown = shown.append_column("site_id", pa.repeat(site, shown.num_rows))
            tables.append(shown.append_column("stream_type", pa.repeat(name, shown.num_rows)))
        return tables

    parent = dlt.resource(sites, selected=False)
    source = dlt.transformer(streams, data_from=parent, parallelized=True, write_disposition="append")
    return lambda: ours.run(source, loader_file_format="parquet").raise_on_failed_jobs()
