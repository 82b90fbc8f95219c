"""Selection of requests that fail: faults planned by tests, and random faults.

This module only selects a fault. :mod:`~airflow_provider_stem.simulator.middleware` performs it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from threading import Lock

KINDS = frozenset({"hang", "html", "cut_json", "cut_body", "reset", "empty", "error_200", "redirect"})

RetryAfter = int | float | str | datetime | None


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of failure: an HTTP ``status``, or a ``kind`` of :data:`KINDS`."""

    kind: str = ""
    status: int = 200
    retry_after: str | None = None
    location: str | None = None


def parse_kind(kind: str | int) -> Fault:
    """Return the fault of a status code (200 to 599, as a number or string) or of the name of a kind.

    :raises ValueError: it is neither.
    """
    text = str(kind)
    if text in KINDS:
        return Fault(kind=text)
    if re.fullmatch(r"[2-5][0-9]{2}", text):
        return Fault(status=int(text))
    raise ValueError(f"Unknown fault {text!r}. Use a status code from 200 to 599, or one of {', '.join(sorted(KINDS))}")


def parse_random(text: str) -> tuple[Fault, float]:
    """Parse ``KIND:PROBABILITY``, such as ``503:0.01``.

    :raises ValueError: the string has another form, or the probability is not between 0 and 1.
    """
    kind, _, share = text.partition(":")
    try:
        probability = float(share)
    except ValueError:
        raise ValueError(f"Invalid random fault {text!r}. Use KIND:PROBABILITY, such as 503:0.01") from None
    if not 0 <= probability <= 1:
        raise ValueError(f"Invalid random fault {text!r}. Use a probability from 0 to 1")
    return parse_kind(kind), probability


def retry_after_text(value: RetryAfter) -> str | None:
    """Return the value of a ``Retry-After`` header: a number of seconds, or for an aware datetime an HTTP date."""
    if isinstance(value, datetime):
        return format_datetime(value.astimezone(UTC), usegmt=True)
    return None if value is None else str(value)


@dataclass(slots=True)
class _Rule:
    fault: Fault
    path: str | None
    after: int
    times: int | None

    def matches(self, target: str) -> bool:
        """Return whether the request fails by this rule. A matching request is counted."""
        if self.times == 0:
            return False
        if self.path is not None and self.path not in target and not re.search(self.path, target):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultPlan:
    """Planned faults in the order in which they were added, then random ones.

    :param randoms: pairs of a fault and its probability for each request.
    :param seed: the same seed and sequence of requests result in the same faults.
    """

    def __init__(self, randoms: tuple[tuple[Fault, float], ...] = (), seed: int = 0) -> None:
        self._randoms = randoms
        self._dice = random.Random(f"faults/{seed}")  # nosec B311 # noqa: S311 - must be reproducible
        self._rules: list[_Rule] = []
        self._lock = Lock()

    def add(self, fault: Fault, *, times: int | None, path: str | None, after: int) -> None:
        """Plan a fault.

        :param times: number of requests that fail; None means all.
        :param path: substring or regular expression of the path and query; None means any.
        :param after: number of matching requests that succeed first.
        :raises ValueError: ``times`` or ``after`` is out of range.
        """
        if path is not None:
            re.compile(path)
        if after < 0 or (times is not None and times < 1):
            raise ValueError(f"Invalid fault: times is {times}, after is {after}. Use times >= 1 and after >= 0")
        with self._lock:
            self._rules.append(_Rule(fault, path, after, times))

    def clear(self) -> None:
        """Remove the planned faults. Random faults stay."""
        with self._lock:
            self._rules.clear()

    def next(self, target: str) -> Fault | None:
        """Return the fault of the request for ``target`` (path and query), or None."""
        with self._lock:
            for rule in self._rules:
                if rule.matches(target):
                    return rule.fault
            for fault, probability in self._randoms:
                if self._dice.random() < probability:
                    return fault
        return None
