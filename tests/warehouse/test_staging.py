"""Objects that are not as they were landed are refused before any warehouse is touched."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.warehouse.objects import LandedObject, read_objects
from airflow_provider_stem.warehouse.staging import Staging

from .helpers import Bucket, at

STEP = timedelta(minutes=15)


def row(number, site_id="site-a", stream_type="MONITOR", resolution=900, value=1.0, width=STEP):
    end = at("01T00:00") + number * STEP
    return dict(zip(LANDING_SCHEMA.names, (site_id, stream_type, resolution, end - width, end, value), strict=True))


def staged(body, rows, resolution=None, digest=None):
    def fetch(_, file):
        file.write(body)
        return digest

    landed = LandedObject("s3://lake/x", rows, at("01T00:00"), at("02T00:00"), resolution)
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
        ([row(1, resolution=60, width=timedelta(minutes=1))], "another resolution than 60 s"),
        ([row(1, width=2 * STEP)], "not 900 s wide"),
        ([row(1.5)], "off the grid of 900 s"),
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
    with pytest.raises(StemDataError, match="s3://lake/x (is not as it was landed|holds .* its receipt tells of 96)"):
        staged(body[: len(body) // 2], 96)


def test_an_object_that_is_not_what_was_uploaded_is_told():
    """A Parquet file with another value in it is a whole one all the same."""
    rows, other = [row(1), row(2)], [row(1), row(2, value=2.0)]
    digest = hashlib.sha256(parquet(rows)).hexdigest()
    assert staged(parquet(rows), 2, digest=digest) == rows
    with pytest.raises(StemDataError, match=rf"s3://lake/x is not as it was landed: its SHA-256 is \w+, not {digest}"):
        staged(parquet(other), 2, digest=digest)


def test_an_object_that_was_landed_anew_is_taken_as_it_is_now_where_it_is_known_to_be_whole(caplog):
    body = parquet([row(1), row(2)])
    assert len(staged(body, 1, digest=hashlib.sha256(body).hexdigest())) == 2
    assert "s3://lake/x holds 2 rows, its receipt tells of 1: it was landed anew since" in caplog.text
    with pytest.raises(StemDataError, match="s3://lake/x holds 2 rows, its receipt tells of 1, and it has no SHA-256"):
        staged(body, 1)


def test_columns_that_are_no_landing_schema_are_told():
    other = LANDING_SCHEMA.set(5, pa.field("kw", pa.float64()))
    bodies = [
        parquet([], other),
        parquet([], pa.schema([field.with_nullable(True) for field in LANDING_SCHEMA])),
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
    expected = [LandedObject("s3://lake/x", 1, at("01T00:00"), datetime(2025, 7, 1, 1, tzinfo=UTC), 900)]
    assert read_objects(receipt) == read_objects([None, receipt, None]) == read_objects([receipt, receipt]) == expected
    [landed] = receipt["objects"]
    assert read_objects(landed) == read_objects([landed]) == [LandedObject("s3://lake/x", 1, *_period(expected[0]))]
    assert read_objects([]) == read_objects([None]) == []
    newer = {**landed, "rows": 2}
    assert [one.rows for one in read_objects([receipt, newer])] == [2]


def _period(landed):
    return landed.start, landed.end


@pytest.mark.parametrize(
    "given", [{"uri": "s3://lake/x", "rows": 1, "start": "soon", "end": "later"}, [[]], ["s3://x"]]
)
def test_what_is_no_receipt_is_told(given):
    with pytest.raises(StemConfigError, match="objects"):
        read_objects(given)
