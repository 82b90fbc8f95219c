"""File formats, compressions and encodings; light enough for DAG parsing."""

from __future__ import annotations

from airflow_provider_stem.errors import StemConfigError

PARQUET_ENCODINGS = ("portable", "smallest")
"""
How Parquet is encoded; the first is the default.

``portable`` uses PLAIN and RLE_DICTIONARY only, which every common reader reads. ``smallest`` may also use
DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT, which some readers refuse.
"""

# The first of each is the default.
_COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "parquet": ("zstd", "gzip", "snappy", "none"),
    "csv": ("gzip", "zstd", "none"),
    "jsonl": ("gzip", "zstd", "none"),
}


def check_format(file_format: object, compression: object) -> str:
    """
    Return the compression, with ``default`` resolved.

    :raises StemConfigError: unknown format or compression; the message lists the choices.
    """
    if not isinstance(file_format, str) or file_format not in _COMPRESSIONS:
        raise StemConfigError(f"file_format is {file_format!r}: choose one of {', '.join(_COMPRESSIONS)}.")
    choices = _COMPRESSIONS[file_format]
    if compression == "default":
        return choices[0]
    if compression not in choices:
        raise StemConfigError(
            f"compression is {compression!r}: for {file_format!r} choose one of default, {', '.join(choices)}."
        )
    return compression


def extension(file_format: str, compression: str) -> str:
    """Return the file name extension, without the leading dot."""
    if file_format == "parquet" or compression == "none":
        return file_format
    return f"{file_format}.{'gz' if compression == 'gzip' else 'zst'}"
