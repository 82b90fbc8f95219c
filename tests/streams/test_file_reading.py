"""Files are read back bit for bit, for any ids and values."""

from __future__ import annotations

import errno
import gzip
import io
import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast, get_args
from zlib import error as ZlibError  # noqa: N812 - it is a class

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.streams.file_reading import read_batches
from airflow_provider_stem.streams.formats import FORMATS, ParquetEncoding, columns
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.support import IS_FULL

from .helpers import examples, tally
from .test_files import HOSTILE_IDS, each_format, plenty

Row = tuple[Any, ...]
IDS = [
    *filter(None, HOSTILE_IDS),
    "NA",
    "N/A",
    "NULL",
    "None",
    "nan",
    "NaN",
    "inf",
    "-",
    "0",
    "007",
    "1e5",
    "true",
    "2025-07-01",
    "2025-07-01T00:00:00Z",
    '"',
    '""',
    ",",
    "\\",
    '\\"',
    "\r",
    "\r\n",
    "\n",
    "\n\n",
    "{",
    "#",
    "PAR1",
    "\t",
    " ",
    "  two  ",
    "\u00a0",
    "\u2028\u2029\u0085",
    "\ufeffbom",
    "e\u0301 é",
    "\U0001f50b",
    "\ufffd",
    "\x1f\x8b",
    "{{ 7*7 }}",
    "%(key)s",
    "a/../b",
    "${HOME}",
    "x" * 1000,
]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, -50.0, 1e15, 1e16, 1e17, 1e22, 1e-5, 1e-7, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308]
)


def row(site_id: str, number: int, value: float | None, stream_type: str = "MONITOR", resolution: int = 900) -> Row:
    end = datetime(2025, 7, 1, tzinfo=UTC) + number * timedelta(seconds=resolution)
    return site_id, stream_type, resolution, end - timedelta(seconds=resolution), end, value


def table(rows: list[Row]) -> pa.Table:
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * 6
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LANDING_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LANDING_SCHEMA)


def written(batches: list[pa.RecordBatch], file_format: str, compression: str, encoding: str = "portable") -> bytes:
    file = io.BytesIO()
    FORMATS[file_format].write(batches, file, compression, encoding)
    return file.getvalue()


def read(data: bytes) -> list[Row]:
    """Return the rows with the bits of their values, so that -0.0 differs from 0.0."""
    batches = list(read_batches(io.BytesIO(data)))
    assert all(one.schema.equals(LANDING_SCHEMA, check_metadata=True) for one in batches)
    return bits(pa.Table.from_batches(batches, LANDING_SCHEMA))


def bits(rows: pa.Table) -> list[Row]:
    columns = [column.to_pylist() for column in rows.columns]
    columns[-1] = [None if value is None else struct.pack("<d", value) for value in columns[-1]]
    return list(zip(*columns, strict=True))


@st.composite
def any_rows(draw: st.DrawFn) -> pa.Table:
    text = st.sampled_from(IDS) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    types = st.sampled_from(["CONVERTER", "INTERVAL_REVENUE", "MONITOR"])
    keys = st.tuples(text, types, st.integers(-(10**6), 10**6), st.sampled_from([900, 1800, 3600]))
    chosen = sorted(
        draw(st.lists(keys, max_size=30, unique=True)), key=lambda key: (key[0], key[1], key[2] * key[3], key[3])
    )
    return table([row(site_id, k, draw(st.none() | NUMBERS), kind, step) for site_id, kind, k, step in chosen])


@each_format
def test_any_rows_are_read_back_bit_for_bit(file_format: str, compression: str) -> None:
    counts = tally("files, rows of any id and value read back bit for bit")

    @examples(60)
    @given(rows=any_rows())
    def check(rows: pa.Table) -> None:
        for encoding in get_args(ParquetEncoding) if file_format == "parquet" else ["portable"]:
            assert read(written(rows.to_batches(), file_format, compression, encoding)) == bits(rows)
        counts.add(rows=rows.num_rows)

    check()


@pytest.mark.parametrize("site_id", IDS, ids=ascii)
@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
def test_an_id_is_read_back(file_format: str, site_id: str) -> None:
    for others in ([], ["zz"], ["a\nb"]):
        ids = sorted({site_id, *others})
        rows = table([row(one, k, value) for one in ids for k, value in enumerate([None, 0.0, 1.5])])
        assert read(written(rows.to_batches(), file_format, "none")) == bits(rows)


@each_format
def test_large_files_are_read_across_chunks(
    file_format: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quoted line breaks are at every position of a chunk."""
    rows = table([row(f'a\n"{n:03}",\r\nb', k, k / 7 if k % 5 else None) for n in range(40) for k in range(96)])
    data = written(rows.to_batches(), file_format, compression)
    for size in (2**12, 2**12 + 7, 2**16):
        monkeypatch.setattr(columns, "_CHUNK_BYTES", size)
        monkeypatch.setattr(columns, "BATCH_ROWS", 100)
        assert read(data) == bits(rows)


@pytest.mark.parametrize("batch_rows", [1, 2, 2**16])
@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ([("a", "MONITOR", 2), ("a", "MONITOR", 1)], "MONITOR of site a .* ends at 2025-07-01T00:15:00"),
        ([("a", "MONITOR", 1), ("a", "MONITOR", 1)], "MONITOR of site a .* ends at 2025-07-01T00:15:00"),
        ([("b", "MONITOR", 1), ("a", "MONITOR", 2)], "MONITOR of site a"),
        ([("a", "MONITOR", 1), ("a", "CONVERTER", 2)], "CONVERTER of site a"),
        ([("a", "MONITOR", 1), ("b", "MONITOR", 1), ("a", "MONITOR", 2)], "MONITOR of site a"),
        ([("é", "MONITOR", 1), ("z", "MONITOR", 1)], "MONITOR of site z"),
    ],
)
@each_format
def test_rows_out_of_order_are_an_error(
    file_format: str,
    compression: str,
    keys: list[tuple[str, str, int]],
    place: str,
    batch_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "BATCH_ROWS", batch_rows)
    rows = table([row(site_id, number, 1.0, stream_type) for site_id, stream_type, number in keys])
    with pytest.raises(ValueError, match=f"it contains a key twice or out of order: {place}"):
        read(written(rows.to_batches(), file_format, compression))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("a", 1, 1.0, resolution=60), "a resolution that the API does not have"),
        (row("a", 1, 1.0, resolution=-900), "a resolution that the API does not have"),
        (row("a", 1, 1.0, resolution=0), "a resolution that the API does not have"),
        (row("a", 1, 1.0, stream_type="METER"), "a stream type that the API does not have"),
        (row("", 1, 1.0), "an empty site id"),
        (row("a", 1, math.nan), "a value that is not a finite number"),
        (row("a", 1, -math.inf), "a value that is not a finite number"),
        ((*row("a", 1, 1.0)[:4], *row("a", 2, 1.0)[4:]), "an interval of another width"),
        (tuple(x + timedelta(seconds=1) if isinstance(x, datetime) else x for x in row("a", 1, 1.0)), "off the grid"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_rows_that_the_api_cannot_return_are_an_error(wrong: Row, message: str, place: int) -> None:
    rows = [row("a", 0, None), row("b", 0, 1.0)]
    rows.insert(place, wrong)
    with pytest.raises(ValueError, match=f"it contains .*{message}"):
        read(written(table(rows).to_batches(), "parquet", "zstd"))


@each_format
def test_a_file_without_rows_has_none(file_format: str, compression: str) -> None:
    assert read(written([], file_format, compression)) == []


@each_format
def test_a_file_can_be_read_and_written_again(file_format: str, compression: str) -> None:
    # Another task may write the object during a merge, and the same file receives the newer version.
    with ScratchFile() as file:
        for _ in range(2):
            file.clear()
            FORMATS[file_format].write(plenty(), cast(BinaryIO, file), compression, "portable")
            file.seek(0)
            assert sum(batch.num_rows for batch in read_batches(cast(BinaryIO, file))) == 6 * 96


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
def test_a_truncated_file_is_never_read_as_whole(file_format: str, compression: str) -> None:
    rows = pa.Table.from_batches(plenty())
    data = written(rows.to_batches(), file_format, compression)
    for length in range(1, len(data) - 1, max(1, len(data) // 50)):
        try:
            found = read(data[:length])
        except (ValueError, OSError, EOFError, ZlibError, pa.ArrowException):
            continue
        # Only text without compression can end anywhere. Readers of an object also check its SHA-256.
        assert found != bits(rows)


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_a_file_without_a_final_line_break_is_an_error(file_format: str) -> None:
    data = written(table([row("a", 1, 123.456)]).to_batches(), file_format, "none")
    assert len(read(data)) == 1
    for length in range(data.rindex(b".") - 2, len(data)):
        with pytest.raises(ValueError, match="cut off|parse error|JSON"):
            read(data[:length])


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_parquet_with_a_damaged_byte_has_all_rows_or_is_an_error(compression: str) -> None:
    rows = table([row("a", number, number / 7) for number in range(8)])
    data = written(rows.to_batches(), "parquet", compression)
    masks = (0x01, 0x02, 0x80)
    tried = errors = 0
    for place in range(len(data)):
        for wrong in masks if IS_FULL else masks[place % 3 :][:1]:
            tried += 1
            try:
                found = read(data[:place] + bytes([data[place] ^ wrong]) + data[place + 1 :])
            except ValueError:
                errors += 1
            else:
                assert len(found) == 8, (place, wrong)
    assert errors > tried / 3


@pytest.mark.parametrize("name", [field.name for field in LANDING_SCHEMA if not field.nullable])
def test_a_null_in_another_column_than_the_values_is_an_error(name: str) -> None:
    columns = [field.with_nullable(True) for field in LANDING_SCHEMA]
    rows = table([row("site", 1, 1.0)])
    nulls = rows.set_column(rows.schema.names.index(name), name, pa.nulls(1, rows.schema.field(name).type))
    line = nulls.to_pylist()[0]
    for instant in ("interval_start", "interval_end"):
        line[instant] = line[instant] and f"{line[instant]:%Y-%m-%dT%H:%M:%SZ}"
    file = io.BytesIO()
    pq.write_table(nulls.cast(pa.schema(columns)), file)
    for data in ((str(line).replace("'", '"').replace("None", "null") + "\n").encode(), file.getvalue()):
        with pytest.raises(ValueError, match=f"{name} contains a null|its columns are"):
            read(data)


def test_a_gzip_file_of_several_members_is_read_whole() -> None:
    rows = table([row("site", k, k / 3) for k in range(10)])
    data = gzip.decompress(written(rows.to_batches(), "csv", "gzip"))
    assert read(gzip.compress(data[:100]) + gzip.compress(data[100:])) == bits(rows)


@each_format
def test_a_file_stays_open_and_is_read_again(file_format: str, compression: str) -> None:
    """A merge that another task overtook reads and writes the same scratch file again."""
    rows = table([row("site", k, k / 3) for k in range(10)])
    with ScratchFile() as scratch:
        file = cast(BinaryIO, scratch)
        FORMATS[file_format].write(rows.to_batches(), file, compression, "portable")
        for _ in range(2):
            file.seek(0)
            assert bits(pa.Table.from_batches(read_batches(file))) == bits(rows)
        scratch.clear()
        assert scratch.size == 0


@pytest.mark.parametrize("head", [b"[]", b"<html>", b"\n{}\n", b"Obj\x01", gzip.compress(b"a,b\n", mtime=0)])
def test_a_file_in_no_known_format_is_an_error(head: bytes) -> None:
    with pytest.raises(ValueError, match="it begins with b.*, which is no known format"):
        read(head)


def test_a_row_group_without_rows_is_skipped() -> None:
    empty, full = table([]), table([row("a", 1, 1.0)])
    file = io.BytesIO()
    with pq.ParquetWriter(file, LANDING_SCHEMA) as writer:
        for part in (empty, full, empty):
            writer.write_table(part)
    assert read(file.getvalue()) == bits(full)


def test_a_failure_of_the_disk_is_no_damage_of_the_file() -> None:
    class Failing(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as raised:
        list(read_batches(Failing()))
    assert raised.value.errno == errno.EIO


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_times_many_years_apart_are_written_exactly(file_format: str) -> None:
    year = 365 * 96
    rows = table([row("a", number, 1.0) for number in (-15 * year, 0, 1, 9 * year)])
    assert read(written(rows.to_batches(), file_format, "none")) == bits(rows)
