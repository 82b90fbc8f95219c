"""Objects that do not match their receipts are rejected before the warehouse is opened."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.records import LandedObject, read_objects
from airflow_provider_stem.streams.staging import Staging
from airflow_provider_stem.streams.store import Version
from airflow_provider_stem.streams.tables import LANDING_SCHEMA

from .helpers import Bucket, at

STEP = timedelta(minutes=15)


def row(number, site_id="site-a", stream_type="MONITOR", resolution=900, value=1.0, width=STEP):
    end = at("01T00:00") + number * STEP
    return dict(zip(LANDING_SCHEMA.names, (site_id, stream_type, resolution, end - width, end, value), strict=True))


LANDED_AT = at("02T00:30")


def digest_of(body):
    return hashlib.sha256(body).hexdigest()


def staged(body, rows, resolution=None, receipt_digest=None, metadata_digest=None, read_at=LANDED_AT):
    """Stage a body and return its rows. The digests in its receipt and its metadata are by default the right ones."""

    def fetch(_, file):
        file.write(body)
        return Version("", metadata_digest or digest_of(body), read_at)

    landed = LandedObject(
        "s3://lake/x",
        rows,
        len(body),
        receipt_digest or digest_of(body),
        LANDED_AT,
        at("01T00:00"),
        at("02T00:00"),
        resolution,
    )
    with Staging(fetch) as staging:
        one = staging.add(landed)
        return [each for batch in staging.batches(one) for each in batch.to_pylist()]


def parquet(rows, schema=LANDING_SCHEMA):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=2)
    return file.getvalue()


def test_valid_rows_are_staged_unchanged():
    rows = [row(1), row(2, value=None), row(1, "site-b", "CONVERTER"), row(1, "site-b"), row(96, "site-b")]
    assert staged(parquet(rows), 5) == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(1)], "contains a key twice or out of order: MONITOR of site site-a .* 2025-07-01T00:15:00"),
        ([row(1), row(2), row(2)], "contains a key twice .* 2025-07-01T00:30:00"),  # across row groups
        ([row(2), row(1)], "out of order"),
        ([row(1), row(1, stream_type="CONVERTER")], "out of order: CONVERTER"),
        ([row(1, "b"), row(2, "a")], "out of order"),
        ([row(1), row(4, resolution=3600, width=4 * STEP)], "another resolution than 900 s"),
        ([row(1, resolution=60, width=timedelta(minutes=1))], "a resolution that the API does not have"),
        ([row(1, width=2 * STEP)], "an interval of another width"),
        ([row(1.5)], "off the grid"),
        ([row(0)], "outside its period 2025-07-01T00:00:00"),
        ([row(97)], "outside its period"),
    ],
)
def test_invalid_rows_are_rejected(rows, message):
    with pytest.raises(StemDataError, match=rf"The object is invalid: .*{message}.*Land it again \[s3://lake/x\]"):
        staged(parquet(rows), len(rows))


def test_another_resolution_than_the_receipts_is_rejected():
    with pytest.raises(StemDataError, match="another resolution than 3600 s"):
        staged(parquet([row(1)]), 1, 3600)


@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_truncated_object_is_rejected(file_format, compression):
    bucket = Bucket()
    values = [n / 7 for n in range(96)]
    bucket.land("x", {("site-a", "MONITOR"): values}, "01T00:00", "02T00:00", 900, file_format, compression)
    [body] = bucket.bodies.values()
    assert len(staged(body, 96)) == 96
    with pytest.raises(StemDataError, match=r"The object is invalid: .*s3://lake/x\]|its receipt lists 96"):
        staged(body[: len(body) // 2], 96)


def test_an_object_whose_bytes_do_not_match_its_digest_is_rejected():
    """A Parquet file with another value is still a valid file."""
    rows, other = [row(1), row(2)], [row(1), row(2, value=2.0)]
    with pytest.raises(StemDataError, match=r"^The object is damaged: .*Land it again \[s3://lake/x\]"):
        staged(parquet(other), 2, metadata_digest=digest_of(parquet(rows)))


@pytest.mark.parametrize("count", [1, 2])
def test_another_object_than_the_receipts_is_read_only_if_it_is_newer(count, caplog):
    """Also if it has the same number of rows."""
    other, body = parquet([row(1), row(2, value=2.0)]), parquet([row(1), row(2)])
    later = LANDED_AT + timedelta(microseconds=1)
    assert len(staged(body, count, receipt_digest=digest_of(other), read_at=later)) == 2
    assert "s3://lake/x was rewritten since its receipt, and is loaded in its current version" in caplog.text
    for read_at in (LANDED_AT, LANDED_AT - timedelta(days=1), None):
        with pytest.raises(StemDataError, match="The object is not the one in its receipt, and was not read later"):
            staged(body, count, receipt_digest=digest_of(other), read_at=read_at)


def test_an_object_without_a_digest_and_a_missing_object_are_rejected():
    landed = LandedObject("s3://lake/x", 1, 9, "0" * 64, LANDED_AT, at("01T00:00"), at("02T00:00"))
    for version, message in [(Version("", None, LANDED_AT), "has no SHA-256"), (None, "no longer exists")]:
        with Staging(lambda *_, version=version: version) as staging, pytest.raises(StemDataError, match=message):
            staging.add(landed)


def test_an_object_of_another_program_is_rejected_also_if_its_rows_fit():
    """Its rows are those of the receipt, but it has no digest."""
    body = parquet([row(1)])

    def fetch(_, file):
        file.write(body)
        return Version("", None, LANDED_AT)

    landed = LandedObject("s3://lake/x", 1, len(body), digest_of(body), LANDED_AT, at("01T00:00"), at("02T00:00"))
    with Staging(fetch) as staging, pytest.raises(StemDataError, match="has no SHA-256"):
        staging.add(landed)


def test_a_receipt_with_another_number_of_rows_is_rejected():
    with pytest.raises(StemDataError, match="has 1 rows and its receipt lists 2"):
        staged(parquet([row(1)]), 2)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_rejected(value):
    number = float(value)
    times = "2025-07-01T00:00:00Z,2025-07-01T00:15:00Z"
    text = f"{','.join(LANDING_SCHEMA.names)}\nsite-a,MONITOR,900,{times},{value}\n"
    lines = json.dumps(dict(zip(LANDING_SCHEMA.names, ["a", "MONITOR", 900, *times.split(","), number], strict=True)))
    for body, rows in [(parquet([row(1), row(2, value=number)]), 2), (text.encode(), 1), (f"{lines}\n".encode(), 1)]:
        with pytest.raises(StemDataError, match="The object is invalid"):
            staged(body, rows)


def test_other_columns_than_the_landing_schemas_are_rejected():
    other = LANDING_SCHEMA.set(5, pa.field("kw", pa.float64()))
    bodies = [
        parquet([], other),
        parquet([], LANDING_SCHEMA.set(4, pa.field("interval_end", pa.timestamp("us")))),
        b'"site_id","kw"\n"a",1\n',
        b'{"site_id":"a","kw":1}\n',
        b'{"site_id":"a"}\n',
        b"anything",
        b"",
    ]
    for body in bodies:
        with pytest.raises(StemDataError):
            staged(body, 1)


def test_receipts_lists_of_receipts_and_objects_are_read_the_same_way():
    receipt = Bucket().land("x", {("site-a", "MONITOR"): [1.0]}, "01T00:00", "01T01:00")
    digest = receipt["objects"][0]["sha256"]
    period = at("01T00:00"), datetime(2025, 7, 1, 1, tzinfo=UTC)
    expected = [LandedObject("s3://lake/x", 1, receipt["objects"][0]["bytes"], digest, at("03T00:00"), *period, 900)]
    assert read_objects(receipt) == read_objects([None, receipt, None]) == read_objects([receipt, receipt]) == expected
    [landed] = receipt["objects"]
    assert read_objects(landed) == read_objects([landed]) == [replace(expected[0], resolution=None)]
    assert read_objects([]) == read_objects([None]) == read_objects([[], [None]]) == []
    newer = {**landed, "rows": 2}
    assert [one.rows for one in read_objects([receipt, newer])] == [2]


@pytest.mark.parametrize(
    "wrong", [{"uri": "s3://lake/x", "rows": 1, "start": "soon", "end": "later"}, [[[]]], ["s3://x"]]
)
def test_other_values_than_receipts_are_rejected(wrong):
    with pytest.raises(StemConfigError, match="objects"):
        read_objects(wrong)


@pytest.mark.parametrize("end", ["2025-07-01T00:00:00Z", "2025-06-30T00:00:00Z"])
def test_periods_and_windows_that_do_not_end_after_their_start_are_rejected(end):
    receipt = Bucket().land("x", {}, "01T00:00", "01T01:00")
    with pytest.raises(StemConfigError, match=f"objects contains the window '2025-07-01T00:00:00Z/{end}'"):
        read_objects({**receipt, "window": {**receipt["window"], "end": end}})
    with pytest.raises(StemConfigError, match=f"objects contains the period '2025-07-01T00:00:00Z/{end}'"):
        read_objects({**receipt["objects"][0], "end": end})
