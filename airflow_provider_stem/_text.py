"""Foreign text made fit for logs and messages; for all that tell of something."""

from __future__ import annotations

_LIMIT = 500


def one_line(text: str) -> str:
    """Make a foreign text fit for a log: no line breaks, no terminal escapes, no flood."""
    clean = "".join(c if c.isprintable() else " " for c in text[: 2 * _LIMIT])
    clean = " ".join(clean.split())
    return clean if len(clean) <= _LIMIT else clean[: _LIMIT - 1] + "…"
