from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.streams.formats import FORMATS as KNOWN
from airflow_provider_stem.streams.formats import ParquetEncoding, columns, parquet, resolve_compression
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.tables import LANDING_SCHEMA, landing_batch
from airflow_provider_stem.streams.windows import Window
from tests.support import IS_FULL

from .helpers import RESOLUTIONS, at, examples, stream, tally, window

FORMATS = [(name, compression) for name, one in KNOWN.items() for compression in one.compressions]
each_format = pytest.mark.parametrize(("file_format", "compression"), FORMATS)
DAY = window("2025-07-01", "2025-07-02")
YEAR = window("2024-01-01", "2025-01-01")
HOSTILE_IDS = [
    "a,b",
    'q"uo"te',
    "line\nbreak",
    "c\rr\r\nlf",
    " space ",
    "",
    "東京 ⚡",
    "null",
    "'; --",
    "=1+1",
    "\\n",
    "tab\t",
    "\x00",
]

# What pyarrow calls the encodings of portable files; RLE is how null flags and dictionary keys are packed.
PORTABLE = {"PLAIN", "RLE_DICTIONARY", "RLE"}
KINDS: dict[str, Callable[[random.Random], float | None]] = {
    "any digits": lambda draw: draw.gauss(),
    "single precision": lambda draw: struct.unpack("f", struct.pack("f", draw.gauss(50, 20)))[0],
    "whole numbers": lambda draw: float(draw.randrange(100_000)),
    "one decimal": lambda draw: draw.randrange(1000) / 10,
    "two decimals": lambda draw: draw.randrange(10_000) / 100,
    "five decimals": lambda draw: draw.randrange(10**7) / 10**5,
    "constant": lambda _: 50.0,
    "zeros of both signs": lambda draw: draw.choice([0.0, -0.0]),
    "nulls": lambda _: None,
    "some nulls": lambda draw: draw.choice([None, draw.gauss()]),
}

Row = tuple[Any, ...]


def written(
    batches: Iterable[pa.RecordBatch], file_format: str, compression: str, parquet_encoding: str = "portable"
) -> bytes:
    file = io.BytesIO()
    file.close = lambda: None  # type: ignore[method-assign]
    KNOWN[file_format].write(batches, file, compression, parquet_encoding)
    return file.getvalue()


def unpacked(data: bytes, compression: str) -> str:
    if compression == "gzip":
        data = gzip.decompress(data)
    elif compression == "zstd":
        data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return data.decode()


def instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def read_back(data: bytes, file_format: str, compression: str) -> list[Row]:
    if file_format == "parquet":
        return [tuple(row.values()) for row in pq.read_table(pa.BufferReader(data)).to_pylist()]
    text = unpacked(data, compression)
    if file_format == "csv":
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        assert header == LANDING_SCHEMA.names
        records: list[Any] = [dict(zip(header, line, strict=True)) for line in lines]
        for record in records:
            record["resolution"] = int(record["resolution"])
            record["kw_total_avg"] = float(record["kw_total_avg"]) if record["kw_total_avg"] else None
    else:
        records = [json.loads(line) for line in text.splitlines()] if text else []
        assert text == "" or text.endswith("}\n")
        assert all(list(record) == LANDING_SCHEMA.names for record in records)
    return [
        (
            record["site_id"],
            record["stream_type"],
            record["resolution"],
            instant(record["interval_start"]),
            instant(record["interval_end"]),
            record["kw_total_avg"],
        )
        for record in records
    ]


def rows_of(batches: Iterable[pa.RecordBatch]) -> list[Row]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def batch(
    site_id: str, values: Sequence[float | None], period: Window = DAY, stream_type: str = "MONITOR"
) -> pa.RecordBatch:
    ends = [period.first_end + number * period.resolution for number in range(len(values))]
    return landing_batch(site_id, stream_type, period.resolution, stream(ends, values))


def of_kind(kind: str, period: Window) -> pa.RecordBatch:
    draw = random.Random(7)
    return batch("site", [KINDS[kind](draw) for _ in range(period.intervals)], period)


def encodings(data: bytes) -> set[str]:
    """Return the encodings of all pages of a Parquet file."""
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return {encoding for group in groups for i in range(6) for encoding in group.column(i).encodings}


def plenty(sites: int = 3, period: Window = DAY) -> list[pa.RecordBatch]:
    return [
        batch(
            f"site-{site}", [None if k % 11 == 5 else (site - 1) * k / 7 for k in range(period.intervals)], period, name
        )
        for site in range(sites)
        for name in ("CONVERTER", "MONITOR")
    ]


@each_format
class TestEachFormat:
    def test_reads_back_the_same_rows(self, file_format: str, compression: str) -> None:
        batches = plenty()
        assert read_back(written(batches, file_format, compression), file_format, compression) == rows_of(batches)

    def test_writes_the_same_bytes_twice(self, file_format: str, compression: str) -> None:
        first = written(plenty(), file_format, compression)
        assert written(plenty(), file_format, compression) == first

    @pytest.mark.parametrize("site_id", HOSTILE_IDS, ids=ascii)
    def test_keeps_every_id(self, file_format: str, compression: str, site_id: str) -> None:
        batches = [batch(site_id, [1.5, None])]
        assert read_back(written(batches, file_format, compression), file_format, compression) == rows_of(batches)

    @pytest.mark.parametrize("resolution", RESOLUTIONS)
    def test_keeps_instants_at_each_resolution(self, file_format: str, compression: str, resolution: int) -> None:
        period = window("2024-02-28", "2024-03-02", resolution)
        batches = plenty(1, period)
        assert batches[0].num_rows == period.intervals
        back = read_back(written(batches, file_format, compression), file_format, compression)
        assert back == rows_of(batches)
        assert {(row[4] - row[3]).total_seconds() for row in back} == {resolution}

    @pytest.mark.parametrize("batches", [[], [batch("site", [])]], ids=["no batch", "a batch without rows"])
    def test_keeps_its_shape_without_rows(
        self, file_format: str, compression: str, batches: list[pa.RecordBatch]
    ) -> None:
        data = written(batches, file_format, compression)
        if file_format == "parquet":
            assert pq.read_schema(pa.BufferReader(data)).equals(LANDING_SCHEMA, check_metadata=True)
        else:
            header = ",".join(f'"{name}"' for name in LANDING_SCHEMA.names) + "\n" if file_format == "csv" else ""
            assert unpacked(data, compression) == header
        assert read_back(data, file_format, compression) == []

    def test_counts_rows_and_bytes_of_a_scratch_file(self, file_format: str, compression: str) -> None:
        with ScratchFile() as file:
            assert KNOWN[file_format].write(plenty(), cast(BinaryIO, file), compression, "portable") == 6 * 96
            # The upload reads the file.
            assert not file.closed
            file.seek(0)
            data = file.read()
            assert data == written(plenty(), file_format, compression)
            assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    def test_reads_batches_one_at_a_time(self, file_format: str, compression: str) -> None:
        assert read_back(written(iter(plenty()), file_format, compression), file_format, compression) == rows_of(
            plenty()
        )


@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
def test_numbers_are_exact(file_format: str) -> None:
    counts = tally("files, numbers written and read back bit for bit")
    compression = "none"
    numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
        [
            -0.0,
            1e22,
            1e23,
            5e-324,
            1.7976931348623157e308,
            2.2250738585072014e-308,
            0.1,
            1 / 3,
            1e16,
            9007199254740993.0,
            1e-7,
        ]
    )

    @examples(300)
    @given(st.lists(st.none() | numbers, min_size=1, max_size=96))
    def check(values: list[float | None]) -> None:
        data = written([batch("site", values)], file_format, compression)
        back = [row[-1] for row in read_back(data, file_format, compression)]
        assert all(isinstance(value, float) for value in back if value is not None)
        assert [bits(value) for value in back] == [bits(value) for value in values]
        counts.add(numbers=len(values))

    check()


def bits(value: float | None) -> bytes | None:
    return None if value is None else struct.pack("<d", value)


@examples(100)
@given(
    site_ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3, unique=True),
    chosen=st.sampled_from(FORMATS),
)
def test_any_id_is_read_back(site_ids: list[str], chosen: tuple[str, str]) -> None:
    batches = [batch(site_id, [1.25, None]) for site_id in sorted(site_ids)]
    assert read_back(written(batches, *chosen), *chosen) == rows_of(batches)


class TestParquet:
    def test_instants_are_microseconds_in_utc_for_every_reader(self) -> None:
        schema = pq.ParquetFile(pa.BufferReader(written(plenty(), "parquet", "zstd"))).schema
        for name in ("interval_start", "interval_end"):
            column = schema.column(LANDING_SCHEMA.get_field_index(name))
            assert column.physical_type == "INT64"
            logical = json.loads(column.logical_type.to_json())
            assert logical["Type"] == "Timestamp"
            assert (logical["timeUnit"], logical["isAdjustedToUTC"]) == ("microseconds", True)

    def test_columns_are_those_of_the_landing_schema(self) -> None:
        file = pq.ParquetFile(pa.BufferReader(written(plenty(), "parquet", "zstd")))
        assert file.schema_arrow.equals(LANDING_SCHEMA, check_metadata=True)
        assert [(file.schema.column(i).name, file.schema.column(i).physical_type) for i in range(6)] == [
            ("site_id", "BYTE_ARRAY"),
            ("stream_type", "BYTE_ARRAY"),
            ("resolution", "INT32"),
            ("interval_start", "INT64"),
            ("interval_end", "INT64"),
            ("kw_total_avg", "DOUBLE"),
        ]
        assert [file.schema.column(i).max_definition_level for i in range(6)] == [0, 0, 0, 0, 0, 1]

    def test_a_column_of_nulls_keeps_its_type(self) -> None:
        table = pq.read_table(pa.BufferReader(written([batch("site", [None] * 96)], "parquet", "zstd")))
        assert table.schema.field("kw_total_avg").type == pa.float64()
        assert table.column("kw_total_avg").null_count == 96

    @pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy", "none"])
    @pytest.mark.parametrize("encoding", get_args(ParquetEncoding))
    def test_each_column_is_compressed_and_has_statistics(self, encoding: str, compression: str) -> None:
        metadata = pq.ParquetFile(pa.BufferReader(written(plenty(), "parquet", compression, encoding))).metadata
        assert metadata.format_version == "2.6"
        columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(6)}
        codec = "UNCOMPRESSED" if compression == "none" else compression.upper()
        assert {column.compression for column in columns.values()} == {codec}
        for name in ("site_id", "stream_type", "resolution"):
            assert columns[name].dictionary_page_offset is not None
        assert columns["kw_total_avg"].statistics.null_count == sum(b.column(5).null_count for b in plenty())

    @pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy", "none"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_portable_files_have_only_encodings_that_every_reader_supports(self, kind: str, compression: str) -> None:
        for period in (DAY, window("2025-06-01", "2025-07-01")):
            assert encodings(written([of_kind(kind, period)], "parquet", compression)) <= PORTABLE

    def test_portable_is_portable_for_any_values(self) -> None:
        @examples(200)
        @given(
            values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=200),
            site_id=st.text(st.characters(exclude_categories=["Cs"])),
            compression=st.sampled_from(["zstd", "gzip", "snappy", "none"]),
        )
        def check(values: list[float | None], site_id: str, compression: str) -> None:
            assert encodings(written([batch(site_id, values)], "parquet", compression)) <= PORTABLE

        check()

    @pytest.mark.parametrize(
        ("kind", "encoding"),
        [
            pytest.param("any digits", "BYTE_STREAM_SPLIT"),
            pytest.param("whole numbers", "BYTE_STREAM_SPLIT"),
            pytest.param("one decimal", "RLE_DICTIONARY"),
            pytest.param("five decimals", "PLAIN"),
        ],
    )
    def test_values_have_their_smallest_encoding(self, kind: str, encoding: str) -> None:
        rows = of_kind(kind, YEAR)
        sizes = {}
        for one in ("PLAIN", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"):
            how = {"use_dictionary": True} if one == "RLE_DICTIONARY" else {"column_encoding": {"kw_total_avg": one}}
            other = io.BytesIO()
            pq.write_table(
                pa.Table.from_batches([rows]).select(["kw_total_avg"]),
                other,
                compression="zstd",
                compression_level=3,
                **{"use_dictionary": False, **how},
            )
            sizes[one] = pq.ParquetFile(other).metadata.row_group(0).column(0).total_compressed_size
        assert min(sizes, key=sizes.__getitem__) == encoding
        del sizes["BYTE_STREAM_SPLIT"]
        best = {"smallest": encoding, "portable": min(sizes, key=sizes.__getitem__)}
        for parquet_encoding, expected in best.items():
            data = written([rows], "parquet", "zstd", parquet_encoding)
            assert expected in pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(5).encodings

    def test_instants_take_few_bytes(self) -> None:
        rows = [batch(f"a-site-with-a-long-id-{n}", [50.0] * YEAR.intervals, YEAR) for n in range(4)]
        sizes = {}
        for parquet_encoding in get_args(ParquetEncoding):
            data = written(rows, "parquet", "zstd", parquet_encoding)
            sizes[parquet_encoding] = len(data) / (4 * YEAR.intervals)
        assert sizes["smallest"] < 0.05
        # The first stream of a row group takes 3.4 bytes for each instant, the next ones almost none.
        assert sizes["portable"] < 2 * 3.5 / 3

    @pytest.mark.parametrize("chunks", [[1] * 40, [40], [9, 1, 10, 10, 10], [10, 10, 20], [3, 0, 25, 0, 12], [11, 29]])
    def test_row_groups_do_not_depend_on_batches(self, monkeypatch: pytest.MonkeyPatch, chunks: list[int]) -> None:
        monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 10)
        whole = batch("site", [k / 3 for k in range(40)])
        edges = [sum(chunks[:number]) for number in range(len(chunks))]
        data = written([whole.slice(e, size) for e, size in zip(edges, chunks, strict=True)], "parquet", "none")
        metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 10, 10]
        assert read_back(data, "parquet", "none") == rows_of([whole])
        assert data == written([whole], "parquet", "none")

    @examples(100)
    @given(sizes=st.lists(st.integers(0, 35), max_size=8), rows_in_group=st.integers(1, 30))
    def test_all_groups_but_the_last_are_full(self, sizes: list[int], rows_in_group: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet, "ROW_GROUP_ROWS", rows_in_group)
            batches = [batch(f"site-{n}", [float(k) for k in range(size)]) for n, size in enumerate(sizes)]
            data = written(batches, "parquet", "none")
        metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        full, rest = divmod(sum(sizes), rows_in_group)
        assert groups == [rows_in_group] * full + ([rest] if rest else [])
        assert read_back(data, "parquet", "none") == rows_of(batches)

    def test_small_sites_share_a_row_group(self) -> None:
        metadata = pq.ParquetFile(pa.BufferReader(written(plenty(50), "parquet", "zstd"))).metadata
        assert (metadata.num_row_groups, metadata.num_rows) == (1, 50 * 2 * 96)


@st.composite
def mixed_rows(draw: st.DrawFn) -> pa.Table:
    """Sorted rows of several sites, types and resolutions, as in merged objects."""
    keys = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b,", 'c"\n']),
                st.sampled_from(["CONVERTER", "MONITOR"]),
                st.sampled_from([*range(40), 70_000, 10**6]),
                st.sampled_from(RESOLUTIONS),
            ),
            max_size=60,
            unique=True,
        )
    )
    rows = []
    for site_id, stream_type, number, resolution in sorted(keys):
        end = at(DAY.first_end // 3600 * 3600 + number * resolution)
        value = draw(st.none() | st.sampled_from([0.0, -0.0, 1.0, 1e22, 1.5e-7, 0.25, -3.0]))
        rows.append((site_id, stream_type, resolution, end - timedelta(seconds=resolution), end, value))
    rows.sort(key=lambda row: (row[0], row[1], row[4], row[2]))
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * 6
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, LANDING_SCHEMA, strict=True)],
        schema=LANDING_SCHEMA,
    )


@examples(60)
@given(rows=mixed_rows(), cuts=st.lists(st.integers(0, 60), max_size=6), group=st.integers(1, 70))
def test_equal_rows_become_equal_bytes_however_they_are_split(rows: pa.Table, cuts: list[int], group: int) -> None:
    edges = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    parts = [rows.slice(a, b - a).combine_chunks().to_batches() for a, b in itertools.pairwise(edges)]
    split = [one for part in parts for one in part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_ROWS", group)
        patch.setattr(columns, "TEXT_ROWS", group)
        for file_format, compression in FORMATS:
            data = written(rows.to_batches(), file_format, compression)
            assert read_back(data, file_format, compression) == rows_of(rows.to_batches())
            assert written(split, file_format, compression) == data


@pytest.mark.parametrize(
    ("file_format", "kind"),
    [
        (file_format, kind)
        for number, file_format in enumerate(("parquet", "csv", "jsonl"))
        for place, kind in enumerate(("some nulls", "one decimal", "many sites"))
        if IS_FULL or number == place
    ],
)
def test_large_files_do_not_depend_on_batches(kind: str, file_format: str) -> None:
    """By default pyarrow ends pages and dictionaries after some thousand rows of a batch."""
    if kind == "many sites":
        batches = [batch(f"{number:0100}", [1.5], DAY) for number in range(25_000)]
        rows = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    else:
        rows = of_kind(kind, YEAR)
    compression = resolve_compression(file_format, "default")
    for parquet_encoding in get_args(ParquetEncoding) if file_format == "parquet" else ["portable"]:
        whole = written([rows], file_format, compression, parquet_encoding)
        for size in (1000, 20_001):
            split = [rows.slice(begin, size) for begin in range(0, rows.num_rows, size)]
            assert written(split, file_format, compression, parquet_encoding) == whole


class TestText:
    @pytest.mark.parametrize(
        ("value", "in_csv", "in_json"),
        [
            (0.0, "0.0", "0.0"),
            (-0.0, "-0.0", "-0.0"),
            (50.0, "50.0", "50.0"),
            (-7.0, "-7.0", "-7.0"),
            (0.1, "0.1", "0.1"),
            (123456789.0, "123456789.0", "123456789.0"),
            (1e22, "1" + "0" * 22 + ".0", "1.0e+22"),
            (-1e300, "-1" + "0" * 300 + ".0", "-1.0e+300"),
            (1e-7, "0.0000001", "1.0e-7"),
            (-1.5e-7, "-0.00000015", "-1.5e-7"),
            (5e-324, "0." + "0" * 323 + "5", "5.0e-324"),
            (1.7976931348623157e308, "17976931348623157" + "0" * 292 + ".0", "1.7976931348623157e+308"),
        ],
    )
    @pytest.mark.parametrize("others", [[], [0.5], [None], [1e30, 2.0, None, 0.25]])
    def test_a_number_reads_as_a_float(
        self, value: float, in_csv: str, in_json: str, others: list[float | None]
    ) -> None:
        for values in ([value, *others], [*others, value]):
            line = values.index(value)
            csv_line = written([batch("site", values)], "csv", "none").decode().splitlines()[1 + line]
            assert csv_line.rpartition(",")[2] == in_csv
            json_line = written([batch("site", values)], "jsonl", "none").decode().splitlines()[line]
            assert json_line.endswith(f'"kw_total_avg":{in_json}}}')

    def test_csv_has_the_format_that_warehouses_read(self) -> None:
        lines = written([batch('a,"b"', [1.5, None])], "csv", "none").decode().split("\n")
        assert lines == [
            '"site_id","stream_type","resolution","interval_start","interval_end","kw_total_avg"',
            '"a,""b""","MONITOR",900,"2025-07-01T00:00:00Z","2025-07-01T00:15:00Z",1.5',
            '"a,""b""","MONITOR",900,"2025-07-01T00:15:00Z","2025-07-01T00:30:00Z",',
            "",
        ]

    def test_jsonl_is_one_object_per_line(self) -> None:
        lines = written([batch('a,"b"\n', [1.5, None])], "jsonl", "none").decode().split("\n")
        head = r'{"site_id":"a,\"b\"\n","stream_type":"MONITOR","resolution":900,'
        assert lines == [
            head + '"interval_start":"2025-07-01T00:00:00Z","interval_end":"2025-07-01T00:15:00Z","kw_total_avg":1.5}',
            head + '"interval_start":"2025-07-01T00:15:00Z","interval_end":"2025-07-01T00:30:00Z","kw_total_avg":null}',
            "",
        ]

    def test_a_slice_is_written_as_a_slice(self) -> None:
        whole = batch("site", [k / 3 for k in range(96)])
        for file_format in ("csv", "jsonl"):
            data = written([whole.slice(90, 4), whole.slice(0, 2)], file_format, "none")
            assert read_back(data, file_format, "none") == rows_of([whole.slice(90, 4), whole.slice(0, 2)])

    @pytest.mark.parametrize("file_format", ["csv", "jsonl"])
    def test_gzip_has_no_time_or_name(self, file_format: str) -> None:
        data = written(plenty(), file_format, resolve_compression(file_format, "default"))
        assert data[:4] == b"\x1f\x8b\x08\x00"  # no flag, so no name
        assert data[4:8] == b"\0\0\0\0"

    def test_an_error_of_the_batches_is_raised(self) -> None:
        def broken() -> Iterable[pa.RecordBatch]:
            yield batch("site", [1.0])
            raise RuntimeError("no more")

        for file_format, compression in FORMATS:
            with pytest.raises(RuntimeError, match="no more"):
                written(broken(), file_format, compression)
