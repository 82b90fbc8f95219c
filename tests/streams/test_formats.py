from __future__ import annotations

from typing import Any, get_args

import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import FORMATS, FormatName, resolve_compression


@pytest.mark.parametrize(
    ("file_format", "compression", "meant", "ending"),
    [
        ("parquet", "default", "zstd", "parquet"),
        ("parquet", "zstd", "zstd", "parquet"),
        ("parquet", "gzip", "gzip", "parquet"),
        ("parquet", "snappy", "snappy", "parquet"),
        ("parquet", "none", "none", "parquet"),
        ("csv", "default", "gzip", "csv.gz"),
        ("csv", "gzip", "gzip", "csv.gz"),
        ("csv", "zstd", "zstd", "csv.zst"),
        ("csv", "none", "none", "csv"),
        ("jsonl", "default", "gzip", "jsonl.gz"),
        ("jsonl", "gzip", "gzip", "jsonl.gz"),
        ("jsonl", "zstd", "zstd", "jsonl.zst"),
        ("jsonl", "none", "none", "jsonl"),
    ],
)
def test_each_format_has_its_compressions_and_endings(
    file_format: str, compression: str, meant: str, ending: str
) -> None:
    assert resolve_compression(file_format, compression) == meant
    assert FORMATS[file_format].extension(meant) == ending


@pytest.mark.parametrize("file_format", ["", "Parquet", "json", "avro", None])
def test_an_unknown_format_is_an_error_that_lists_the_known_ones(file_format: Any) -> None:
    with pytest.raises(StemConfigError, match=r"Invalid file_format .*Use one of parquet, csv, jsonl"):
        resolve_compression(file_format, "default")


@pytest.mark.parametrize(
    ("file_format", "compression", "choices"),
    [
        ("parquet", "brotli", "default, zstd, gzip, snappy, none"),
        ("csv", "snappy", "default, gzip, zstd, none"),
        ("jsonl", "", "default, gzip, zstd, none"),
        ("csv", None, "default, gzip, zstd, none"),
    ],
)
def test_an_unknown_compression_is_an_error_that_lists_those_of_the_format(
    file_format: str, compression: Any, choices: str
) -> None:
    with pytest.raises(StemConfigError, match=f"Invalid compression .* for '{file_format}'. Use one of {choices}"):
        resolve_compression(file_format, compression)


def test_the_type_of_file_format_lists_every_format() -> None:
    assert get_args(FormatName) == tuple(FORMATS)
    assert list(FORMATS) == [one.name for one in FORMATS.values()]
