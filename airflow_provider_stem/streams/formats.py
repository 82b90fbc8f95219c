"""Which file formats and compressions there are; for the operator, and light enough for DAG parsing."""

from __future__ import annotations

from airflow_provider_stem.errors import StemConfigError

# The first of each is the default.
_COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "parquet": ("zstd", "gzip", "snappy", "none"),
    "csv": ("gzip", "zstd", "none"),
    "jsonl": ("gzip", "zstd", "none"),
}


def check_format(file_format: object, compression: object) -> str:
    """
    Give the compression that is meant.

    :raises StemConfigError: names the argument, its value and what there is.
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
    """Give the end of a file's name, without the leading dot."""
    if file_format == "parquet" or compression == "none":
        return file_format
    return f"{file_format}.{'gz' if compression == 'gzip' else 'zst'}"
