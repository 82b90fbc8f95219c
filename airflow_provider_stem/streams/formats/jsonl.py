"""JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from airflow_provider_stem.streams.formats.base import TextFormat

if TYPE_CHECKING:
    import io

    import pyarrow as pa

    from airflow_provider_stem.streams.formats.columns import IsoText, Line


class JsonLines(TextFormat):
    """JSON Lines: one object per row."""

    name = "jsonl"

    def line(self, batch: pa.RecordBatch, instants: IsoText) -> Line:
        from airflow_provider_stem.streams.formats import columns

        parts: Line = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            parts.append(f'{"," if parts else "{"}"{name}":')
            if name in columns.INSTANTS:
                parts += ['"', instants.of(column), 'Z"']
            elif name == "kw_total_avg":
                parts.append(columns.as_floats(column, exponent=True).fill_null("null"))
            else:
                parts.append(columns.texts(column, json.dumps))
        return [*parts, "}\n"]

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file has the format; an empty file is one without rows."""
        return head[:1] in (b"{", b"")

    def tables(self, source: io.BufferedReader) -> Iterator[pa.Table]:
        import io

        import pyarrow.json

        from airflow_provider_stem.streams.formats import columns

        for chunk in columns.chunks(source, quoted=False):
            table = pyarrow.json.read_json(
                io.BytesIO(chunk),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=columns.TEXT_SCHEMA, unexpected_field_behavior="error"
                ),
            )
            yield table.select(columns.TEXT_SCHEMA.names)
