"""The streams to land; the same for every contender."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """
    The streams of some sites in the wall time ``[start, end)``, in UTC, ISO 8601.

    :param prefix: prefix of the keys of the objects.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``; only some contenders support it.
    :param workers: number of concurrent requests; only some contenders support it.
    """

    sites: list[str]
    stream_types: list[str]
    start: str
    end: str
    bucket: str = ""
    prefix: str = ""
    api_url: str = ""
    api_key: str = ""
    s3_url: str = ""
    s3_access_key: str = ""
    s3_secret_key: str = ""
    file_format: str = "parquet"
    workers: int = 8

    def as_json(self) -> str:
        """Return the work as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Return the work that :meth:`as_json` wrote."""
        return cls(**json.loads(text))
