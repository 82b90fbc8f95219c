from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import check_format, extension


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
    assert check_format(file_format, compression) == meant
    assert extension(file_format, meant) == ending


@pytest.mark.parametrize("file_format", ["", "Parquet", "json", "avro", None])
def test_an_unknown_format_is_an_error_that_tells_the_known_ones(file_format: Any) -> None:
    with pytest.raises(StemConfigError, match=r"file_format is .*: choose one of parquet, csv, jsonl"):
        check_format(file_format, "default")


@pytest.mark.parametrize(
    ("file_format", "compression", "choices"),
    [
        ("parquet", "brotli", "default, zstd, gzip, snappy, none"),
        ("csv", "snappy", "default, gzip, zstd, none"),
        ("jsonl", "", "default, gzip, zstd, none"),
        ("csv", None, "default, gzip, zstd, none"),
    ],
)
def test_an_unknown_compression_is_an_error_that_tells_the_formats_own(
    file_format: str, compression: Any, choices: str
) -> None:
    with pytest.raises(StemConfigError, match=f"compression is .*: for '{file_format}' choose one of {choices}"):
        check_format(file_format, compression)
