"""Text in logs and messages: counts, remedies, and text of other systems."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_stem.errors import StemDataError

_LIMIT = 500


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 row`` or ``1,200 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def list_counts(counts: Mapping[str, int | None]) -> str:
    """
    Return counts as one line, such as ``3 objects, 48 rows, 1 added file``.

    :param counts: numbers by their names, which are plural nouns or adjectives, such as ``added_files``.
    """
    return ", ".join(
        f"{number or 0:,} {name.removesuffix('s') if number == 1 else name}".replace("_", " ")
        for name, number in counts.items()
    )


def one_line(text: str) -> str:
    """Return text for a log or message: one line, no terminal escapes, at most 500 characters."""
    clean = "".join(char if char.isprintable() else " " for char in text[: 2 * _LIMIT])
    clean = " ".join(clean.split())
    return clean if len(clean) <= _LIMIT else clean[: _LIMIT - 1] + "…"


def missing_connection(exc: Exception) -> str:
    """Return the message for Airflow's error about a connection that does not exist; the error names it."""
    return f"{str(exc).rstrip('.')}. Create this connection, or correct the connection id."


def invalid_response(problem: str, kind: type[StemDataError] = StemDataError) -> StemDataError:
    """
    Return the error for a response that is not what the guide describes, with the remedy.

    :param problem: a sentence.
    :param kind: class of the error.
    """
    return kind(f"{problem.rstrip('.')}. Try again later, or report it to Stem if it persists")
