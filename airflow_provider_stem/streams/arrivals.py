"""What has arrived of the last windows of many sites, poll by poll; used by the trigger of watchers."""

from __future__ import annotations

import logging
import math
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from http import HTTPStatus

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemAuthError, StemConfigError, StemError, StemRateLimitError
from airflow_provider_stem.streams.extraction import is_of_one_site
from airflow_provider_stem.streams.reading import SiteReading
from airflow_provider_stem.streams.sites import Site
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window, epoch, from_epoch

log = logging.getLogger(__name__)

_DIGESTS = 2**64
_STARTS_KNOWN_FOR = timedelta(days=1)
"""After it, a site's streams are found out again, since a site can get another one."""
_LACK_KNOWN_FOR = timedelta(hours=1)
"""The same for a site that has none of the types: otherwise its first windows could leave the look-back unread."""
_OUTAGE = 20
"""So many sites that fail for the first time end a poll that has read none: the API is down."""
_LONGEST_PAUSE = timedelta(minutes=15)
"""Time between two readings of a site that fails each time."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """
    What has arrived of one window.

    :param expected: number of intervals of all sites and types.
    :param received: number of these that were received, nulls included.
    :param digest: of all values, as 16 hexadecimal digits; sites that were not read contribute nothing.
    """

    expected: int
    received: int
    digest: str

    def is_complete(self, share: float) -> bool:
        """Return whether at least a share of the expected intervals was received, and any was expected."""
        # As a quotient, since 7 / 25 is the float 0.28 that a user writes.
        return self.expected > 0 and self.received / self.expected >= share


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    The windows that a poll covers. A window is numbered by its end: the epoch seconds divided by its length.

    :param at: when the poll began, UTC.
    :param oldest: number of the first window that ended within the look-back.
    :param newest: number of the last window that has ended and settled.
    :param windows: what has arrived, from ``oldest`` to ``newest``.
    """

    at: datetime
    oldest: int
    newest: int
    windows: Mapping[int, Arrived]


@dataclass(slots=True)
class _KnownSite:
    """
    What is known of a site: its streams, and counts and digest of each window that was read.

    :param failures: number of polls that could not read it since it was read.
    :param failed_at: when the last of them began; ``None`` if there was none.
    :param logged: kind of error that was logged since it was read.
    """

    listed: Site
    known: Site
    known_since: datetime | None = None
    reread_at: datetime | None = None
    windows: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    failures: int = 0
    failed_at: datetime | None = None
    logged: tuple[type[StemError], int | None] | None = None

    def is_paused(self, now: datetime) -> bool:
        """Return whether it failed so recently that it is not read."""
        if self.failed_at is None:
            return False
        pause = min(timedelta(seconds=2 ** min(self.failures, 20)), _LONGEST_PAUSE)
        # The clock can be set back.
        return timedelta() <= now - self.failed_at < pause


class Arrivals:
    """
    Track the arrival of consecutive windows, and request only those that are not complete.

    Memory is bounded by the number of sites times the number of windows in the look-back.

    :param sites: the sites to read.
    :param stream_types: the types to read; a site may lack some of them.
    :param resolution: seconds.
    :param length: of a window, in seconds; windows are aligned to UTC days.
    :param settle: how long after its end a window is read for the first time.
    :param lookback: how long after its end a window is read for the last time.
    :param reread_every: time between two readings of complete windows; ``None`` does not read them again.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        stream_types: Sequence[str],
        resolution: int,
        length: int,
        settle: timedelta,
        lookback: timedelta,
        reread_every: timedelta | None,
    ) -> None:
        self._sites = {site.site_id: _KnownSite(site, site) for site in sites}
        self._stream_types = tuple(stream_types)
        self._resolution = resolution
        self._length = length
        self._settle = settle
        self._lookback = lookback
        self._reread_every = reread_every
        self._began = from_epoch(0)
        self._oldest = self._newest = 0
        self._failed: dict[str, StemError] = {}
        self._is_any_read = False
        self._redact: Callable[[str], str] = str
        self._lock = threading.Lock()

    def begin_poll(self, now: datetime) -> dict[str, int]:
        """
        Start a poll, and return the sites to read, each with the number of the first window to read.

        Those that failed least often come first. A site that fails each time is read less and less often, down to every
        15 minutes, since it can take minutes to fail; unless all sites fail.

        :param now: aware instant.
        """
        with self._lock:
            self._began = now
            self._failed, self._is_any_read = {}, False
            self._newest = self._number_at(now - self._settle)
            self._oldest = min(self._number_at(now - self._lookback) + 1, self._newest + 1)
            for site in self._sites.values():
                for number in [number for number in site.windows if number < self._oldest]:
                    del site.windows[number]
                if site.known_since is not None and now - site.known_since >= self._is_known_for(site):
                    site.known, site.known_since = site.listed, None
                    # If it has got a stream, more is expected than before.
                    site.windows = {number: read for number, read in site.windows.items() if read[0]}
            can_pause = not self._are_all_failing()
            return {
                site_id: number
                for site_id, site in sorted(self._sites.items(), key=lambda item: (item[1].failures, item[0]))
                if (number := self._first_to_read(site, now)) <= self._newest
                and not (can_pause and site.is_paused(now))
            }

    def poll_site(self, source: StreamsSource, site_id: str, first: int) -> None:
        """
        Read one site since a window. Several threads may read different sites.

        An error that can be of this site alone is raised only if no site was read and many have begun to fail; else
        :meth:`snapshot` decides.

        :param first: number of the first window.
        :raises StemError: an error of the connection or of the API; see :mod:`airflow_provider_stem.errors`.
        """
        site = self._sites[site_id]
        window = Window(self._start_of(first), self._start_of(self._newest + 1), self._resolution)
        reading = SiteReading(source, site.known, self._stream_types, window, lambda rows: rows, "skip")
        try:
            result = reading.run()
        except StemError as exc:
            if _is_of_every_site(exc):
                raise
            with self._lock:
                site.failures += 1
                site.failed_at = self._began
                self._failed[site_id] = exc
                self._redact = source.client.redact
                if not self._is_any_read and self._count_of_new_failures() >= _OUTAGE:
                    raise
            return
        streams = {
            stream_type: _Stream(stream_type, result.kept.get(stream_type, ()), reading.site, window)
            for stream_type in self._stream_types
            if stream_type not in result.unavailable
        }
        read = {number: self._read_of(number, site_id, streams) for number in range(first, self._newest + 1)}
        with self._lock:
            site.failures, site.failed_at, site.logged = 0, None, None
            # Without an account, nothing is expected of this site, and perhaps nothing was requested.
            self._is_any_read = self._is_any_read or bool(result.accounts)
            site.windows.update(read)
            if first <= self._oldest:
                site.reread_at = self._began
            if site.known_since is None:
                site.known_since = self._began
                site.known = reading.site
                if site.known.stream_starts is None:
                    # The first intervals exist, so the missing ones do not mean a later start, and the site need not
                    # be read.
                    site.known = Site(site_id, dict.fromkeys(result.accounts))

    def snapshot(self) -> Snapshot:
        """
        Return what has arrived by now.

        A site that could not be read counts as missing in the windows that were not read before. It is logged when that
        begins or when the kind of error changes, not at each poll.

        :raises StemError: no site could be read, and sites that could be read before or all sites fail.
        """
        with self._lock:
            if self._failed and not self._is_any_read and (self._count_of_new_failures() or self._are_all_failing()):
                raise next(iter(self._failed.values()))
            for site_id, exc in self._failed.items():
                # Without the message, which contains the times of the request.
                kind = type(exc), getattr(exc, "status", None)
                if kind != self._sites[site_id].logged:
                    redact = self._redact
                    log.warning("Site %s counts as missing: %s", one_line(redact(site_id)), redact(str(exc)))
                self._sites[site_id].logged = kind
            windows = {number: self._arrived(number) for number in range(self._oldest, self._newest + 1)}
            return Snapshot(self._began, self._oldest, self._newest, windows)

    def _is_known_for(self, site: _KnownSite) -> timedelta:
        has_any = site.known.stream_starts != {}
        return _STARTS_KNOWN_FOR if has_any else min(_LACK_KNOWN_FOR, self._lookback / 4)

    def _count_of_new_failures(self) -> int:
        """Return how many sites failed for the first time, and not because the API has no data of them alone."""
        return sum(
            self._sites[site_id].failures == 1 and not is_of_one_site(exc) for site_id, exc in self._failed.items()
        )

    def _are_all_failing(self) -> bool:
        return all(site.failures for site in self._sites.values())

    def _arrived(self, number: int) -> Arrived:
        unread = (self._length // self._resolution * len(self._stream_types), 0, 0)
        read = [site.windows.get(number, unread) for site in self._sites.values()]
        expected, received, digests = map(sum, zip(*read, strict=True))
        # A sum, so that the order of the sites does not matter.
        return Arrived(expected, received, f"{digests % _DIGESTS:016x}")

    def _first_to_read(self, site: _KnownSite, now: datetime) -> int:
        if self._reread_every and site.reread_at and now - site.reread_at >= self._reread_every:
            return self._oldest
        for number in range(self._oldest, self._newest + 1):
            expected, received, _ = site.windows.get(number, (1, 0, None))
            if received < expected:
                return number
        return self._newest + 1

    def _read_of(self, number: int, site_id: str, streams: Mapping[str, _Stream]) -> tuple[int, int, int]:
        expected = received = 0
        digest = blake2b(repr(site_id).encode(errors="backslashreplace"), digest_size=8)
        start, end = (number - 1) * self._length, number * self._length
        for name, stream in streams.items():
            expected += len(range(max(start + self._resolution, stream.first_expected), end + 1, self._resolution))
            received += stream.count(max(start, stream.first_expected - 1), end)
            if rows := stream.as_bytes(start, end):  # a new type without rows in this window changes nothing
                digest.update(name.encode() + rows)
        return expected, received, int.from_bytes(digest.digest())

    def _number_at(self, instant: datetime) -> int:
        return epoch(instant) // self._length

    def _start_of(self, number: int) -> datetime:
        return from_epoch((number - 1) * self._length)


def _is_of_every_site(exc: StemError) -> bool:
    """Return whether an error concerns the connection. All others can be those of one site, which may last."""
    is_unauthorized = isinstance(exc, StemAuthError) and exc.status == HTTPStatus.UNAUTHORIZED
    return is_unauthorized or isinstance(exc, (StemConfigError, StemRateLimitError))


class _Stream:
    """Rows of one stream; ranges of ends are in epoch seconds, open on the left and closed on the right."""

    def __init__(self, stream_type: str, parts: Sequence[pa.RecordBatch], site: Site, window: Window) -> None:
        known = site.expected_from(stream_type, window.resolution)
        self.first_expected = window.first_end if known is None else max(known, window.first_end)
        self._ends = array("q")
        self._values = array("d")
        for part in parts:
            self._ends.extend(part.column(0).cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_pylist())
            self._values.extend(math.nan if value is None else value for value in part.column(1).to_pylist())

    def count(self, start: int, end: int) -> int:
        """Return the number of rows in a range."""
        return len(self._ends[self._slice(start, end)])

    def as_bytes(self, start: int, end: int) -> bytes:
        """Return the ends and the values of the rows in a range."""
        rows = self._slice(start, end)
        return self._ends[rows].tobytes() + self._values[rows].tobytes()

    def _slice(self, start: int, end: int) -> slice:
        return slice(bisect_right(self._ends, start), bisect_right(self._ends, end))
