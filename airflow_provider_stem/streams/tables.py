"""The landing schema; used by all modules that read, write or describe rows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from airflow_provider_stem.streams.stream_types import STREAM_TYPES

INSTANT = pa.timestamp("us", "UTC")

LANDING_SCHEMA = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field(
            "stream_type",
            pa.string(),
            nullable=False,
            metadata={"description": "; ".join(f"{name}: {one.meaning}" for name, one in STREAM_TYPES.items())},
        ),
        pa.field("resolution", pa.int32(), nullable=False, metadata={"unit": "s"}),
        pa.field(
            "interval_start",
            INSTANT,
            nullable=False,
            metadata={"description": "exclusive left edge: interval_end - resolution"},
        ),
        pa.field("interval_end", INSTANT, nullable=False, metadata={"description": "inclusive right edge"}),
        pa.field(
            "kw_total_avg",
            pa.float64(),
            metadata={
                "unit": "kW",
                "description": "average power over the interval; energy in kWh = kw_total_avg * resolution / 3600",
                "sign": "; ".join(f"{name}: {one.sign}" for name, one in STREAM_TYPES.items() if one.sign),
            },
        ),
    ]
)
"""One row per site, stream type and interval, sorted by ``site_id, stream_type, interval_end``, no duplicates."""

KEY = ("site_id", "stream_type", "resolution", "interval_end")
"""The columns of which no two rows of a site, an object or a table have the same values."""

STREAM_SCHEMA = pa.schema([LANDING_SCHEMA.field("interval_end"), LANDING_SCHEMA.field("kw_total_avg")])
"""The two columns that are not constant within one stream; sorted by ``interval_end``, no duplicates."""

EMPTY_STREAM = pa.RecordBatch.from_pylist([], STREAM_SCHEMA)
"""A stream without rows."""

SHOWN_ROW = pa.struct([("start_datetime", pa.string()), ("end_datetime", pa.string()), ("kw_total_avg", pa.float64())])
"""A row as the API shows it (guide: "Reading stream Data")."""

Streams = dict[str, pa.RecordBatch]
"""One site's rows by stream type, each in :data:`STREAM_SCHEMA`."""


def landing_batch(site_id: str, stream_type: str, resolution: int, stream: pa.RecordBatch) -> pa.RecordBatch:
    """
    Return the rows of one stream in the landing schema.

    :param resolution: seconds.
    :param stream: rows in :data:`STREAM_SCHEMA`.
    """
    rows = stream.num_rows
    ends = stream.column(0)
    starts = pc.subtract(ends, pa.scalar(resolution, pa.duration("s"))).cast(INSTANT)
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(site_id, pa.string()), rows),
            pa.repeat(pa.scalar(stream_type, pa.string()), rows),
            pa.repeat(pa.scalar(resolution, pa.int32()), rows),
            starts,
            ends,
            stream.column(1),
        ],
        schema=LANDING_SCHEMA,
    )


def description_of(field: pa.Field) -> str | None:
    """Return a column's description, unit and sign, as one line of text, or ``None`` if it has none."""
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    parts = [metadata.pop("description")] if "description" in metadata else []
    return "; ".join([*parts, *(f"{name}: {text}" for name, text in metadata.items())]) or None


def iso_texts(instants: pa.Array) -> pa.Array:
    """Return UTC instants as ISO 8601 strings in whole seconds, without a zone."""
    # Without a zone: strftime and a cast with a zone take forty times as long.
    texts = instants.cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("s")).cast(pa.string())
    return pc.binary_replace_slice(texts, 10, 11, "T")
