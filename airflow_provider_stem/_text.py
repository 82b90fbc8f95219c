"""Text of other systems in logs and messages."""

from __future__ import annotations

_LIMIT = 500


def one_line(text: str) -> str:
    """Return text for a log or message: one line, no terminal escapes, at most 500 characters."""
    clean = "".join(char if char.isprintable() else " " for char in text[: 2 * _LIMIT])
    clean = " ".join(clean.split())
    return clean if len(clean) <= _LIMIT else clean[: _LIMIT - 1] + "…"


def missing_connection(exc: Exception) -> str:
    """Return the message for Airflow's error about a connection that does not exist; the error names it."""
    return f"{str(exc).rstrip('.')}. Create this connection, or correct the connection id in the task."
