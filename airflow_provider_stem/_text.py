"""Text of other systems in logs and messages."""

from __future__ import annotations

_LIMIT = 500


def one_line(text: str) -> str:
    """Return text for a log or message: one line, no terminal escapes, at most 500 characters."""
    clean = "".join(c if c.isprintable() else " " for c in text[: 2 * _LIMIT])
    clean = " ".join(clean.split())
    return clean if len(clean) <= _LIMIT else clean[: _LIMIT - 1] + "…"
