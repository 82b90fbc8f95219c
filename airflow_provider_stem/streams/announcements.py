"""Which windows have been announced, and which to announce next; used by the trigger of watchers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Literal, TypedDict

from airflow_provider_stem.streams.arrivals import Snapshot
from airflow_provider_stem.streams.windows import Window, epoch, from_epoch, iso, parse_instant

log = logging.getLogger(__name__)

MAX_WINDOWS = 1000
"""Number of windows in a look-back and in an announcement; as many objects may one task land."""

Reason = Literal["complete", "overdue", "restated"]


class AnnouncementsRecord(TypedDict):
    """
    The state of :class:`Announcements` as JSON. A window is named by its end in ISO 8601, UTC.

    :param upto: end of the last window up to which all were announced, or had nothing to expect.
    :param announced: digest of each window that was announced within the look-back, empty if it is unknown.
    """

    upto: str
    announced: dict[str, str]


@dataclass(frozen=True, slots=True)
class Announcement:
    """
    Consecutive windows to announce.

    :param reason: ``complete``; ``overdue``: not complete within the look-back; ``restated``: announced before, and
        values have changed or arrived since.
    :param window: from the start of the first one to the end of the last one.
    :param digests: digest of each window by its number, empty if it is unknown.
    :param at: when the poll began that it follows from, UTC.
    :param oldest: number of the first window of that poll's look-back.
    """

    reason: Reason
    window: Window
    digests: dict[int, str]
    at: datetime
    oldest: int


class Announcements:
    """
    Decide which windows to announce: each once as complete or overdue, and again after changes of its values.

    The state is bounded by the number of windows in the look-back.

    :param length: of a window, in seconds.
    :param resolution: seconds.
    :param min_completeness: share of the expected intervals that makes a window complete.
    :param restated_every: shortest time between two announcements of a window; ``None`` announces no changes.
    :param record: state of an earlier process; ``None`` starts with the oldest window of the first snapshot.
    """

    def __init__(
        self,
        length: int,
        resolution: int,
        min_completeness: float,
        restated_every: timedelta | None,
        record: AnnouncementsRecord | None,
    ) -> None:
        self._length = length
        self._resolution = resolution
        self._min_completeness = min_completeness
        self._restated_every = restated_every
        self._upto = None if record is None else self._number(record["upto"])
        self._announced = (
            {} if record is None else {self._number(end): digest for end, digest in record["announced"].items()}
        )
        self._announced_at: dict[int, datetime] = {}
        self._empty: set[int] = set()

    def next(self, snapshot: Snapshot) -> Announcement | None:
        """
        Return the first consecutive windows that are due for one reason, at most :data:`MAX_WINDOWS`.

        A window is not due while nothing is expected in it, as before the first stream began. The digests of restated
        windows become unknown, so that a state that is saved before the event repeats it after a restart, even if the
        values have changed back.
        """
        if self._upto is not None and self._upto > snapshot.newest and self._upto not in self._announced:
            # A window that was announced can be in the future only because the clock was set back.
            log.warning("The state of the watcher ends in the future, at %s. It starts again.", self._end(self._upto))
            self._upto = None
        if self._upto is None:
            self._upto = snapshot.oldest - 1
        # A window that leaves the look-back is not overdue if nothing was expected in it.
        while self._upto + 1 < snapshot.oldest and self._upto + 1 in self._empty:
            self._upto += 1
        self._empty = {number for number, arrived in snapshot.windows.items() if not arrived.expected}
        first_new = max(self._upto + 1, snapshot.oldest)
        late = (number for number in range(self._upto + 1, snapshot.oldest) if number not in self._announced)
        due: dict[Reason, list[int]] = {
            "complete": [
                number
                for number in range(first_new, snapshot.newest + 1)
                if number not in self._announced and self._is_complete(number, snapshot)
            ],
            "overdue": list(islice(late, MAX_WINDOWS)),
            "restated": [number for number in sorted(self._announced) if self._is_restated(number, snapshot)],
        }
        for reason, numbers in due.items():
            if numbers:
                consecutive = range(numbers[0], numbers[0] + MAX_WINDOWS)
                first = [number for number, expected in zip(numbers, consecutive, strict=False) if number == expected]
                window = Window(
                    from_epoch((first[0] - 1) * self._length), from_epoch(first[-1] * self._length), self._resolution
                )
                digests = {
                    number: snapshot.windows[number].digest if number in snapshot.windows else "" for number in first
                }
                self._announced |= dict.fromkeys(digests.keys() & self._announced.keys(), "")
                return Announcement(reason, window, digests, snapshot.at, snapshot.oldest)
        return None

    def confirm(self, announcement: Announcement) -> None:
        """Record that an announcement was delivered, and drop the windows that are older than the look-back."""
        upto = announcement.oldest - 1 if self._upto is None else self._upto
        self._announced |= announcement.digests
        self._announced_at |= dict.fromkeys(announcement.digests, announcement.at)
        while upto + 1 in self._announced:
            upto += 1
        self._upto = upto
        for number in [number for number in self._announced if number < announcement.oldest and number <= upto]:
            del self._announced[number]
            self._announced_at.pop(number, None)

    def as_json(self) -> AnnouncementsRecord | None:
        """Return the state as JSON; ``None`` before the first snapshot."""
        if self._upto is None:
            return None
        announced = {self._end(number): digest for number, digest in sorted(self._announced.items())}
        return {"upto": self._end(self._upto), "announced": announced}

    def _is_complete(self, number: int, snapshot: Snapshot) -> bool:
        return number in snapshot.windows and snapshot.windows[number].is_complete(self._min_completeness)

    def _is_restated(self, number: int, snapshot: Snapshot) -> bool:
        arrived = snapshot.windows.get(number)
        if self._restated_every is None or arrived is None or arrived.digest == self._announced[number]:
            return False
        announced_at = self._announced_at.get(number)
        return announced_at is None or snapshot.at - announced_at >= self._restated_every

    def _number(self, end: str) -> int:
        return epoch(parse_instant("state of the watcher", end)) // self._length

    def _end(self, number: int) -> str:
        return iso(from_epoch(number * self._length))
