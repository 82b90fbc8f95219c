"""Which requests go wrong, and how: planned faults of tests and random ones of a demo.

This module only decides; :mod:`~airflow_provider_stem.simulator.gate` carries a fault out.
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
    """One way for a request to go wrong: an HTTP ``status``, or a ``kind`` of :data:`KINDS`."""

    kind: str = ""
    status: int = 200
    retry_after: str | None = None
    location: str | None = None


def parse_kind(kind: str | int) -> Fault:
    """Read a status code (200 to 599, as a number or its text) or the name of a kind.

    :raises ValueError: it is neither.
    """
    text = str(kind)
    if text in KINDS:
        return Fault(kind=text)
    if re.fullmatch(r"[2-5][0-9]{2}", text):
        return Fault(status=int(text))
    raise ValueError(f"Unknown fault {text!r}: a status code or one of {', '.join(sorted(KINDS))}")


def parse_random(text: str) -> tuple[Fault, float]:
    """Read ``KIND:PROBABILITY``, as in ``503:0.01``.

    :raises ValueError: the text has another form, or the probability is not within 0 and 1.
    """
    kind, _, share = text.partition(":")
    try:
        probability = float(share)
    except ValueError:
        raise ValueError(f"A random fault reads KIND:PROBABILITY, as in 503:0.01, not {text!r}") from None
    if not 0 <= probability <= 1:
        raise ValueError(f"The probability of the fault {text!r} is not within 0 and 1")
    return parse_kind(kind), probability


def retry_after_text(value: RetryAfter) -> str | None:
    """Write a ``Retry-After`` value: a number is seconds, an aware datetime an HTTP date in GMT."""
    if isinstance(value, datetime):
        return format_datetime(value.astimezone(UTC), usegmt=True)
    return None if value is None else str(value)


@dataclass(slots=True)
class _Rule:
    fault: Fault
    path: str | None
    after: int
    times: int | None

    def takes(self, target: str) -> bool:
        """Whether this rule strikes the request, counting it if it matches."""
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

    :param randoms: pairs of a fault and its probability, drawn for each request.
    :param seed: the same seed gives the same faults to the same sequence of requests.
    """

    def __init__(self, randoms: tuple[tuple[Fault, float], ...] = (), seed: int = 0) -> None:
        self._randoms = randoms
        self._dice = random.Random(f"faults/{seed}")  # nosec B311 # noqa: S311 - repeatable on purpose
        self._rules: list[_Rule] = []
        self._lock = Lock()

    def add(self, fault: Fault, *, times: int | None, path: str | None, after: int) -> None:
        """Plan ``fault`` for the next ``times`` matching requests (None: for all) after ``after`` others."""
        if path is not None:
            re.compile(path)
        if after < 0 or (times is not None and times < 1):
            raise ValueError("A fault needs times >= 1 and after >= 0")
        with self._lock:
            self._rules.append(_Rule(fault, path, after, times))

    def clear(self) -> None:
        """Forget the planned faults; random ones stay."""
        with self._lock:
            self._rules.clear()

    def next(self, target: str) -> Fault | None:
        """The fault of the request for ``target`` (path and query), or None."""
        with self._lock:
            for rule in self._rules:
                if rule.takes(target):
                    return rule.fault
            for fault, probability in self._randoms:
                if self._dice.random() < probability:
                    return fault
        return None
