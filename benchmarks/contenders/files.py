"""Reading of Parquet, CSV and JSON Lines as the same columns; for the check of the rows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def read(key: str, body: bytes) -> pa.Table:
    """Return an object as a table; its format follows from the suffix of its key. CSV and JSON times stay strings."""
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


def rows(key: str, body: bytes, end: str) -> pa.Table:
    """
    Return the rows of an object.

    :param end: the column with the ends of the intervals, as times or as ISO 8601 strings in UTC.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read(key, body)
    ends = table[end]
    if pa.types.is_string(ends.type):
        ends = pc.replace_substring(pc.utf8_slice_codeunits(ends, 0, 19), " ", "T")
        ends = pc.strptime(ends, "%Y-%m-%dT%H:%M:%S", "s")
    ends = ends.cast(pa.timestamp("s", ends.type.tz)).cast(pa.int64())
    return table.select(["site_id", "stream_type", "kw_total_avg"]).add_column(2, "end", ends)
