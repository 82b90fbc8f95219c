"""Strict parsing of JSON responses; used by the client and the decoding of streams."""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Callable
from typing import Any

from airflow_provider_stem._text import invalid_response, one_line
from airflow_provider_stem.errors import StemDataError

Body = bytes | mmap.mmap
"""The body of a 200 response: in memory, or a memory-mapped file if it is long."""


class UnreadableResponseError(StemDataError):
    """
    The body is not JSON: a gateway's page, or a truncated body.

    The request is sent again, since this says nothing about the data.
    """


def read_object(body: Body, parse_int: Callable[[str], Any] = int) -> dict[str, Any]:
    """
    Return the JSON object in a response body.

    :param body: the whole body of a 200.
    :param parse_int: converts a number without decimal point or exponent.
    :raises UnreadableResponseError: the body is not JSON.
    :raises StemDataError: it is not an object, repeats a key, or is an error payload (guide: "Error Payload").
    """
    text = bytes(body)  # does not copy bytes
    try:
        payload = json.loads(text, object_pairs_hook=_without_repeats, parse_int=parse_int)
    except (ValueError, RecursionError) as exc:
        reason = "empty" if not text.strip() else f"not JSON ({type(exc).__name__})"
        problem = f"The response body of {len(text):,} bytes is {reason}"
        raise invalid_response(problem, UnreadableResponseError) from None
    if not isinstance(payload, dict):
        raise invalid_response(f"The response body is a JSON {type(payload).__name__}, not an object")
    if payload.get("errors"):
        raise invalid_response(
            f"A 200 response contains an error: {'; '.join(error_messages(payload)) or 'no message'}"
        )
    return payload


def error_messages(payload: Any) -> list[str]:
    """Return the ``errors[].message`` strings, at most 10, as the API sent them (guide: "Error Payload")."""
    errors = payload.get("errors") if isinstance(payload, dict) else None
    if not isinstance(errors, list):
        return []
    return [
        error["message"] for error in errors[:10] if isinstance(error, dict) and isinstance(error.get("message"), str)
    ]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise invalid_response(f"A JSON object repeats the keys {one_line(', '.join(repeated[:3]))}")
    return result
