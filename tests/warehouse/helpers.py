"""An in-memory bucket of objects for loads."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.records import read_objects
from airflow_provider_stem.streams.store import Version
from airflow_provider_stem.streams.tables import STREAM_SCHEMA, landing_batch
from airflow_provider_stem.streams.windows import Window, iso
from airflow_provider_stem.warehouse.loading import load_objects


def at(text):
    """Return an instant in UTC, given as ``2025-07-01T00:15``; in July 2025 also as ``01T00:15``."""
    return datetime.fromisoformat(f"{'' if '-' in text else '2025-07-'}{text}+00:00")


class Bucket:
    """Objects in memory, and their receipts."""

    def __init__(self):
        self.bodies = {}
        self.versions = {}
        self.age = timedelta()

    def land(self, name, streams, start, end, resolution=900, file_format="parquet", compression="none"):
        """
        Store an object and return its receipt.

        :param name: its key.
        :param streams: values by site and stream type, beginning with the window's first interval; ``...`` stands for a
            missing row.
        :param start: left edge of the window, as for :func:`at`.
        :param end: right edge of the window, as for :func:`at`.
        :param resolution: in seconds.
        """
        window = Window(at(start), at(end), resolution)
        batches = []
        for (site_id, stream_type), values in sorted(streams.items()):
            ends = [window.start + timedelta(seconds=resolution * number) for number in range(1, len(values) + 1)]
            present = [row for row in zip(ends, values, strict=True) if row[1] is not ...]
            columns = [pa.array([row[n] for row in present], field.type) for n, field in enumerate(STREAM_SCHEMA)]
            batches.append(
                landing_batch(
                    site_id, stream_type, resolution, pa.RecordBatch.from_arrays(columns, schema=STREAM_SCHEMA)
                )
            )
        file = io.BytesIO()
        rows = FORMATS[file_format].write(iter(batches), file, compression, "portable")
        uri = f"s3://lake/{name}"
        self.bodies[uri] = file.getvalue()
        landed = {"uri": uri, "rows": rows, "bytes": len(file.getvalue()), "start": iso(window.start)}
        self.versions[uri] = Version("", hashlib.sha256(file.getvalue()).hexdigest(), at("03T00:00") + self.age)
        self.age += timedelta(seconds=1)
        landed |= {"sha256": self.versions[uri].sha256, "read_at": self.versions[uri].read_at.isoformat()}
        return {"window": window.as_json(), "objects": [{**landed, "end": iso(window.end)}], "rows": rows}

    def fetch(self, uri, file):
        file.clear()
        file.write(self.bodies[uri])
        return self.versions[uri]

    def load(self, engine, *receipts, at=None, fetch=None, schema="stem", run_id="run"):
        return load_objects(
            read_objects(receipts),
            fetch or self.fetch,
            engine.session(schema),
            dag_id="dag",
            run_id=run_id,
            loaded_at=at and at.astimezone(UTC),
        )


def counts(objects, rows, inserted, changed, unchanged, absent, replaced=0):
    return {
        "objects": objects,
        "replaced": replaced,
        "rows": rows,
        "inserted": inserted,
        "changed": changed,
        "unchanged": unchanged,
        "absent": absent,
    }


RECEIPT = {
    "objects": [
        {
            "uri": "s3://lake/x",
            "rows": 1,
            "bytes": 9,
            "sha256": "0" * 64,
            "read_at": "2025-07-02T00:00Z",
            "start": "2025-07-01T00:00Z",
            "end": "2025-07-02T00:00Z",
        }
    ],
    "window": {"resolution": 900},
    "rows": 1,
}
"""A receipt of an object that is not in any store."""
