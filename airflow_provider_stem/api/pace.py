"""Pace of the requests that one process sends with a key; used by the transport."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from airflow_provider_stem.api.config import ClientConfig


class NoTurnError(Exception):
    """The next turn is later than the caller may wait."""


class Pace:
    """
    Spread requests evenly over time. Thread-safe.

    There is a wait before the first request too, so processes that follow each other keep the pace together.

    :param requests_per_second: above 0.
    :param clock: returns seconds of a monotonic clock; for tests.
    """

    def __init__(self, requests_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / requests_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._latest = clock()

    def take_turn(self, until: float = math.inf) -> float:
        """
        Take the next free turn, and return the seconds until the caller may send its request.

        :param until: reading of the clock after which a turn is too late.
        :raises NoTurnError: the next turn is too late; it stays free.
        """
        with self._lock:
            now = self._clock()
            turn = max(now, self._latest + self._interval)
            if turn > until:
                raise NoTurnError
            self._latest = turn
            return turn - now


# Weak: a pace without clients needs no memory, since a new one begins with a wait.
_paces: WeakValueDictionary[tuple[object, ...], Pace] = WeakValueDictionary()
_lock = threading.Lock()


def pace_of(config: ClientConfig) -> Pace | None:
    """
    Return the pace that all clients of this process share which have the same server, key and rate.

    :param config: configuration of a client.
    :return: the pace, or None if the configuration has none.
    """
    rate = config.requests_per_second
    if rate is None:
        return None
    with _lock:
        return _paces.setdefault((config.base_url, config.api_key, rate), Pace(rate))
