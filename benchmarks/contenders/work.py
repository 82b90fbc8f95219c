"""What a contender is to land; the same for all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """
    The streams of some sites in the wall time ``[start, end)``, in UTC, ISO 8601.

    :param prefix: what the keys of the objects begin with.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``; for those who have the choice.
    :param workers: how many requests at a time; for those who have the choice.
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
        """Give the work as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Read what :meth:`as_json` gave."""
        return cls(**json.loads(text))
