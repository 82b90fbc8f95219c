"""File formats, compressions and encodings; imports nothing that slows DAG parsing."""

from __future__ import annotations

from typing import Literal

from airflow_provider_stem.errors import StemConfigError

ParquetEncoding = Literal["portable", "smallest"]
"""
Encodings of Parquet files.

``portable`` uses PLAIN and RLE_DICTIONARY only, which all common readers support. ``smallest`` may also use
DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT, which some readers do not support.
"""

# The first of each is the default.
_COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "parquet": ("zstd", "gzip", "snappy", "none"),
    "csv": ("gzip", "zstd", "none"),
    "jsonl": ("gzip", "zstd", "none"),
}


def resolve_compression(file_format: object, compression: object) -> str:
    """
    Return the compression of a format, with ``default`` resolved.

    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: ``default`` or a compression of the format.
    :raises StemConfigError: unknown format or compression; the message lists the choices.
    """
    if not isinstance(file_format, str) or file_format not in _COMPRESSIONS:
        raise StemConfigError(f"Invalid file_format {file_format!r}. Use one of {', '.join(_COMPRESSIONS)}.")
    choices = _COMPRESSIONS[file_format]
    if compression == "default":
        return choices[0]
    if compression not in choices:
        raise StemConfigError(
            f"Invalid compression {compression!r} for {file_format!r}. Use one of default, {', '.join(choices)}."
        )
    return compression


def extension(file_format: str, compression: str) -> str:
    """Return the file name extension, without the leading dot."""
    if file_format == "parquet" or compression == "none":
        return file_format
    return f"{file_format}.{'gz' if compression == 'gzip' else 'zst'}"
