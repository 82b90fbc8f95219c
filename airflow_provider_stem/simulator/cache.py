"""A size-limited store of encoded answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock


class BodyCache:
    """Keeps the bodies that were used last, up to ``limit`` bytes in all; safe between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._bodies: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> bytes | None:
        """The body of ``key``, or None."""
        with self._lock:
            body = self._bodies.get(key)
            if body is not None:
                self._bodies.move_to_end(key)
            return body

    def put(self, key: Hashable, body: bytes) -> None:
        """Keep ``body``, dropping those that were not used for longest; one above the limit is not kept."""
        if len(body) > self._limit:
            return
        with self._lock:
            replaced = self._bodies.pop(key, b"")
            self._bodies[key] = body
            self._size += len(body) - len(replaced)
            while self._size > self._limit:
                _, dropped = self._bodies.popitem(last=False)
                self._size -= len(dropped)
