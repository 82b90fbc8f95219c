"""JSON answers to Python objects, strictly; for the client and for the decoding of streams."""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Callable
from typing import Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError

Body = bytes | mmap.mmap
"""What a 200 brought: in memory, or in a file where it is long."""


class UnreadableAnswerError(StemDataError):
    """
    The body is no JSON at all: a gateway's page, or a body that was cut off.

    Such an answer says nothing about the data, so the request is sent again.
    """


def read_object(body: Body, parse_int: Callable[[str], Any] = int) -> dict[str, Any]:
    """
    Parse a body that must be one JSON object and no error payload.

    :param parse_int: makes a number of digits without point or exponent.

    :raises UnreadableAnswerError: it is no JSON.
    :raises StemDataError: it is some other JSON, repeats a key, or holds the guide's error payload.
    """
    text = bytes(body)  # no copy where it is bytes already
    try:
        payload = json.loads(text, object_pairs_hook=_without_repeats, parse_int=parse_int)
    except (ValueError, RecursionError) as exc:
        reason = "empty" if not text.strip() else f"no JSON ({type(exc).__name__})"
        raise UnreadableAnswerError(f"the body of {len(text):,} bytes is {reason}") from None
    if not isinstance(payload, dict):
        raise StemDataError(f"the body is a JSON {type(payload).__name__}, not an object")
    if payload.get("errors"):
        raise StemDataError(f"a 200 that holds an error: {'; '.join(error_messages(payload)) or 'without a message'}")
    return payload


def error_messages(payload: Any) -> list[str]:
    """Give the ``errors[].message`` texts (guide: "Error Payload"), as the API sent them."""
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
        raise StemDataError(f"a JSON object repeats the keys {one_line(', '.join(repeated[:3]))}")
    return result
