"""Objects that are not as they were landed are refused before any warehouse is touched."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.objects import Version
from airflow_provider_stem.streams.records import LandedObject, read_objects
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.warehouse.staging import Staging

from .helpers import Bucket, at

STEP = timedelta(minutes=15)


def row(number, site_id="site-a", stream_type="MONITOR", resolution=900, value=1.0, width=STEP):
    end = at("01T00:00") + number * STEP
    return dict(zip(LANDING_SCHEMA.names, (site_id, stream_type, resolution, end - width, end, value), strict=True))


LANDED_AT = at("02T00:30")


def digest_of(body):
    return hashlib.sha256(body).hexdigest()


def staged(body, rows, resolution=None, of_receipt=None, of_object=None, read_at=LANDED_AT):
    """Stage a body: with the digest of its receipt and the one in its metadata, by default its own."""

    def fetch(_, file):
        file.write(body)
        return Version("", of_object or digest_of(body), read_at)

    landed = LandedObject(
        "s3://lake/x",
        rows,
        len(body),
        of_receipt or digest_of(body),
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


def test_good_rows_pass_as_they_are():
    rows = [row(1), row(2, value=None), row(1, "site-b", "CONVERTER"), row(1, "site-b"), row(96, "site-b")]
    assert staged(parquet(rows), 5) == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(1)], "holds a key twice or out of order: MONITOR of site site-a .* 2025-07-01T00:15:00"),
        ([row(1), row(2), row(2)], "holds a key twice .* 2025-07-01T00:30:00"),  # across row groups
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
def test_wrong_rows_are_told(rows, message):
    with pytest.raises(StemDataError, match=f"s3://lake/x is not as it was landed: .*{message}"):
        staged(parquet(rows), len(rows))


def test_a_resolution_that_the_receipt_does_not_tell_is_refused():
    with pytest.raises(StemDataError, match="another resolution than 3600 s"):
        staged(parquet([row(1)]), 1, 3600)


@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_an_object_that_was_cut_off_is_told(file_format, compression):
    bucket = Bucket()
    values = [n / 7 for n in range(96)]
    bucket.land("x", {("site-a", "MONITOR"): values}, "01T00:00", "02T00:00", 900, file_format, compression)
    [body] = bucket.bodies.values()
    assert len(staged(body, 96)) == 96
    with pytest.raises(StemDataError, match="s3://lake/x is not as it was landed|its receipt lists 96"):
        staged(body[: len(body) // 2], 96)


def test_an_object_whose_bytes_are_not_those_of_its_digest_is_refused():
    """A Parquet file with another value in it is a whole one all the same."""
    rows, other = [row(1), row(2)], [row(1), row(2, value=2.0)]
    with pytest.raises(StemDataError, match=r"^The object is damaged: .*Land it again \[s3://lake/x\]"):
        staged(parquet(other), 2, of_object=digest_of(parquet(rows)))


@pytest.mark.parametrize("count", [1, 2])
def test_an_object_that_is_not_the_one_of_its_receipt_is_read_only_if_it_is_later(count, caplog):
    """Another object with as many rows is one too."""
    other, body = parquet([row(1), row(2, value=2.0)]), parquet([row(1), row(2)])
    later = LANDED_AT + timedelta(microseconds=1)
    assert len(staged(body, count, of_receipt=digest_of(other), read_at=later)) == 2
    assert "s3://lake/x was rewritten since its receipt, and is loaded as it is now" in caplog.text
    for read_at in (LANDED_AT, LANDED_AT - timedelta(days=1), None):
        with pytest.raises(StemDataError, match="The object is not the one of its receipt, and was not read later"):
            staged(body, count, of_receipt=digest_of(other), read_at=read_at)


def test_an_object_without_a_digest_and_one_that_is_gone_are_refused():
    landed = LandedObject("s3://lake/x", 1, 9, "0" * 64, LANDED_AT, at("01T00:00"), at("02T00:00"))
    for version, message in [(Version("", None, LANDED_AT), "has no SHA-256"), (None, "does not exist any more")]:
        with Staging(lambda *_, version=version: version) as staging, pytest.raises(StemDataError, match=message):
            staging.add(landed)


def test_a_receipt_with_another_number_of_rows_is_refused():
    with pytest.raises(StemDataError, match="holds 1 rows and its receipt lists 2"):
        staged(parquet([row(1)]), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(StemDataError, match="not a finite number"):
        staged(parquet([row(1), row(2, value=value)]), 2)


def test_columns_that_are_no_landing_schema_are_told():
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


def test_receipts_lists_of_them_and_objects_are_read_alike():
    receipt = Bucket().land("x", {("site-a", "MONITOR"): [1.0]}, "01T00:00", "01T01:00")
    digest = receipt["objects"][0]["sha256"]
    period = at("01T00:00"), datetime(2025, 7, 1, 1, tzinfo=UTC)
    expected = [LandedObject("s3://lake/x", 1, receipt["objects"][0]["bytes"], digest, at("03T00:00"), *period, 900)]
    assert read_objects(receipt) == read_objects([None, receipt, None]) == read_objects([receipt, receipt]) == expected
    [landed] = receipt["objects"]
    assert read_objects(landed) == read_objects([landed]) == [replace(expected[0], resolution=None)]
    assert read_objects([]) == read_objects([None]) == []
    newer = {**landed, "rows": 2}
    assert [one.rows for one in read_objects([receipt, newer])] == [2]


@pytest.mark.parametrize(
    "given", [{"uri": "s3://lake/x", "rows": 1, "start": "soon", "end": "later"}, [[]], ["s3://x"]]
)
def test_what_is_no_receipt_is_told(given):
    with pytest.raises(StemConfigError, match="objects"):
        read_objects(given)
