"""A size-limited cache of encoded responses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock


class BodyCache:
    """A thread-safe cache of the most recently used bodies.

    :param limit: total size in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._bodies: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> bytes | None:
        """Return the body of ``key``, or None."""
        with self._lock:
            body = self._bodies.get(key)
            if body is not None:
                self._bodies.move_to_end(key)
            return body

    def put(self, key: Hashable, body: bytes) -> None:
        """Store ``body``, and evict the least recently used ones. A body above the limit is not stored."""
        if len(body) > self._limit:
            return
        with self._lock:
            replaced = self._bodies.pop(key, b"")
            self._bodies[key] = body
            self._size += len(body) - len(replaced)
            while self._size > self._limit:
                _, dropped = self._bodies.popitem(last=False)
                self._size -= len(dropped)
