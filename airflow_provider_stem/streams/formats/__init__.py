"""File formats: each is one class in one module. Importing them loads nothing that slows DAG parsing."""

from __future__ import annotations

from typing import Literal

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats.base import FileFormat
from airflow_provider_stem.streams.formats.csv import Csv
from airflow_provider_stem.streams.formats.jsonl import JsonLines
from airflow_provider_stem.streams.formats.parquet import Parquet, ParquetEncoding

__all__ = ["FORMATS", "FileFormat", "FormatName", "ParquetEncoding", "resolve_compression"]

FormatName = Literal["parquet", "csv", "jsonl"]

FORMATS: dict[str, FileFormat] = {"parquet": Parquet(), "csv": Csv(), "jsonl": JsonLines()}
"""The file formats by name."""


def resolve_compression(file_format: object, compression: object) -> str:
    """
    Return the compression of a format, with ``default`` resolved.

    :param file_format: the name of a format.
    :param compression: ``default`` or a compression of the format.
    :raises StemConfigError: unknown format or compression; the message lists the choices.
    """
    if not isinstance(file_format, str) or file_format not in FORMATS:
        raise StemConfigError(f"Invalid file_format {file_format!r}. Use one of {', '.join(FORMATS)}.")
    choices = FORMATS[file_format].compressions
    if compression == "default":
        return choices[0]
    if compression not in choices:
        raise StemConfigError(
            f"Invalid compression {compression!r} for {file_format!r}. Use one of default, {', '.join(choices)}."
        )
    return compression
