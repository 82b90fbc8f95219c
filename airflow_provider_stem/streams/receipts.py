"""The receipt of a run; used by the landing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow_provider_stem.streams.reading import SiteResult
from airflow_provider_stem.streams.records import FailedSite, IncompleteStream, Receipt, UnavailableStream
from airflow_provider_stem.streams.windows import Window, iso

_MAX_LISTED = 100


def receipt_of(results: Sequence[SiteResult[Any]], window: Window, redact: Callable[[str], str]) -> Receipt:
    """
    Return the receipt of the sites that were read, still without objects and counts of merges.

    :param results: one result for each site.
    :param window: the window that was read.
    :param redact: removes the API key from a string; site ids and errors come from the API.
    """
    read = [result for result in results if result.error is None]
    accounts = [
        (result.site_id, stream_type, account)
        for result in read
        for stream_type, account in sorted(result.accounts.items())
    ]
    expected = sum(account.expected for _, _, account in accounts)
    incomplete: list[IncompleteStream] = [
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
    unavailable: list[UnavailableStream] = [
        {"site_id": redact(result.site_id), "stream_type": stream_type}
        for result in read
        for stream_type in sorted(result.unavailable)
    ]
    failed: list[FailedSite] = [
        {"site_id": redact(result.site_id), "error": redact(str(result.error))}
        for result in results
        if result.error is not None
    ]
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
