"""Reads Parquet, CSV and JSON lines back; for the check of the rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def read(key: str, body: bytes) -> pa.Table:
    """Give an object as a table, by the end of its key; times stay as text where the format has no times."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if key.endswith(".parquet"):
        return pyarrow.parquet.read_table(io.BytesIO(body))
    with pa.CompressedInputStream(io.BytesIO(body), "gzip") as unpacked:
        plain = unpacked.read()
    times = {name: pa.string() for name in ("interval_start", "interval_end", "start_datetime", "end_datetime")}
    if ".csv" in key:
        options = pyarrow.csv.ConvertOptions(column_types=times)
        return pyarrow.csv.read_csv(io.BytesIO(plain), convert_options=options)
    schema = pa.schema(
        [("site_id", pa.string()), ("stream_type", pa.string()), *times.items(), ("kw_total_avg", pa.float64())]
    )
    return pyarrow.json.read_json(io.BytesIO(plain), parse_options=pyarrow.json.ParseOptions(explicit_schema=schema))
