"""What a run did, as plain JSON; for the landing, and for all that read what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from airflow_provider_stem.streams.reading import SiteResult
from airflow_provider_stem.streams.windows import Window, iso

_MAX_LISTED = 100


class LandedObject(TypedDict):
    """
    One object of a receipt.

    :param rows: how many the object holds.
    :param sha256: of its bytes, in hexadecimal.
    :param read_at: when the reading of its newest rows began: ISO 8601, UTC, the store's clock.
    :param start: left edge of its period; ISO 8601, UTC.
    :param end: right edge of its period.
    """

    uri: str
    rows: int
    bytes: int
    sha256: str
    read_at: str
    start: str
    end: str


class Receipt(TypedDict):
    """
    What one run read and landed.

    :param window: ``start``, ``end`` (ISO 8601, UTC) and ``resolution`` in seconds.
    :param rows: how many this run read; ``expected`` of them should be there, and ``missing`` are not.
    :param requests: how many HTTP requests were sent to the API, retries included.
    :param inserted: rows that no object held before; ``changed``, with another value; ``unchanged``, with the same.
    :param kept: rows that the objects held and this run did not read.
    :param incomplete: streams with missing rows; like ``unavailable`` and ``failed_sites`` at most 100 of them.
    """

    window: dict[str, str | int]
    objects: list[LandedObject]
    rows: int
    expected: int
    missing: int
    sites: int
    requests: int
    inserted: int
    changed: int
    unchanged: int
    kept: int
    incomplete: list[dict[str, Any]]
    unavailable: list[dict[str, str]]
    failed_sites: list[dict[str, str]]
    incomplete_count: int
    unavailable_count: int
    failed_count: int


def receipt_of(results: Sequence[SiteResult[Any]], window: Window, redact: Callable[[str], str]) -> Receipt:
    """
    Return the receipt of what was read, as yet without objects.

    :param redact: removes the API key from a string; sites and errors are foreign text.
    """
    read = [result for result in results if result.error is None]
    accounts = [(r.site_id, t, a) for r in read for t, a in sorted(r.accounts.items())]
    expected = sum(account.expected for _, _, account in accounts)
    incomplete = [
        {
            "site_id": redact(site_id),
            "stream_type": stream_type,
            "expected": account.expected,
            "received": account.received,
            "first_missing": iso(account.first_missing),
        }
        for site_id, stream_type, account in accounts
        if account.first_missing is not None
    ]
    unavailable = [{"site_id": redact(r.site_id), "stream_type": t} for r in read for t in sorted(r.unavailable)]
    failed = [{"site_id": redact(r.site_id), "error": redact(str(r.error))} for r in results if r.error is not None]
    return {
        "window": window.as_json(),
        "objects": [],
        "rows": sum(result.rows for result in read),
        "expected": expected,
        "missing": expected - sum(account.received for _, _, account in accounts),
        "sites": len(results),
        "requests": 0,
        "inserted": 0,
        "changed": 0,
        "unchanged": 0,
        "kept": 0,
        "incomplete": incomplete[:_MAX_LISTED],
        "unavailable": unavailable[:_MAX_LISTED],
        "failed_sites": failed[:_MAX_LISTED],
        "incomplete_count": len(incomplete),
        "unavailable_count": len(unavailable),
        "failed_count": len(failed),
    }
