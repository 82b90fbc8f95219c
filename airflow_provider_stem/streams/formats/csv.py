"""CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from airflow_provider_stem.streams.formats.base import TextFormat

if TYPE_CHECKING:
    import io

    import pyarrow as pa

    from airflow_provider_stem.streams.formats.columns import IsoText, Line


class Csv(TextFormat):
    """CSV with a header. Strings are quoted, and an empty field is a null value."""

    name = "csv"
    header = b'"site_id","stream_type","resolution","interval_start","interval_end","kw_total_avg"\n'

    def line(self, batch: pa.RecordBatch, instants: IsoText) -> Line:
        from airflow_provider_stem.streams.formats.columns import as_floats, texts

        def quoted(text: str) -> str:
            return '"' + text.replace('"', '""') + '"'

        site_ids, stream_types, resolutions, starts, ends, values = batch.columns
        return [
            texts(site_ids, quoted),
            ",",
            texts(stream_types, quoted),
            ",",
            texts(resolutions, str),
            ',"',
            instants.of(starts),
            'Z","',
            instants.of(ends),
            'Z",',
            as_floats(values, exponent=False).fill_null(""),
            "\n",
        ]

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file has the format; other programs may write a byte order mark, or no quotes."""
        return head.removeprefix(b"\xef\xbb\xbf").lstrip(b'"').startswith(b"site_id")

    def tables(self, source: io.BufferedReader) -> Iterator[pa.Table]:
        import io

        import pyarrow.csv

        from airflow_provider_stem.streams.formats import columns
        from airflow_provider_stem.streams.tables import LANDING_SCHEMA

        names = None
        for chunk in columns.chunks(source, quoted=True):
            table = pyarrow.csv.read_csv(
                io.BytesIO(chunk),
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(chunk) + 1, column_names=names),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                # An empty field is null in a number column only; in a string column it is the empty string.
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=columns.TEXT_SCHEMA, null_values=[""], strings_can_be_null=False, check_utf8=True
                ),
            )
            names = table.schema.names
            if names != LANDING_SCHEMA.names:
                raise columns.wrong_columns(table.schema)
            yield table
