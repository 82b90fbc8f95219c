"""Completeness of a window, updated with each poke; used by the sensor and its trigger."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.pace import NoTurnError
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.reading import SiteReading
from airflow_provider_stem.streams.records import WatchReport, describe_report
from airflow_provider_stem.streams.sites import Site, StreamStarts
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window, iso, parse_instant

Progress = dict[str, Any]
"""The state of a watch as JSON, from which another process can continue."""

GRACE = timedelta(minutes=1)
"""How long a last poke, which begins at the deadline or later, may still wait for turns."""


@dataclass(frozen=True, slots=True)
class _Lag:
    """
    The missing intervals of a stream.

    :param since: end of the first one, in UTC.
    :param missing: their number.
    """

    since: datetime
    missing: int


class Watch:
    """
    Track which intervals of a window are missing, and request only those.

    :param sites: the sites to poke; a site that has none of the types is complete.
    :param stream_types: the types to wait for; a site may lack some of them.
    :param window: the intervals to wait for.
    :param progress: state of an earlier watch, see :meth:`progress`; ignored if its arguments differ.
    """

    def __init__(
        self, sites: Sequence[Site], stream_types: Sequence[str], window: Window, progress: Progress | None = None
    ) -> None:
        self.window = window
        self.pokes = 0
        """The number of pokes so far."""
        self.is_out_of_turns = False
        """Whether a request was not sent because its turn by the connection's pace would come too late."""
        self._sites = {site.site_id: site for site in sites}
        self._stream_types = tuple(stream_types)
        self._lags: dict[str, dict[str, _Lag]] = {}
        self._unseen = set(self._sites)
        self._expected = 0
        self._lock = threading.Lock()
        if progress and progress.get("of") == self._identity():
            self._resume(progress)

    @property
    def pending(self) -> list[str]:
        """The ids of the sites that are not known to be complete, sorted."""
        with self._lock:
            return sorted(self._unseen | set(self._lags))

    def ready(self, settle: timedelta) -> datetime:
        """
        Return the end of the window plus ``settle``, in UTC.

        :param settle: time to wait after the window.
        :raises StemConfigError: the result is after the year 9999.
        """
        try:
            return self.window.end + settle
        except OverflowError:
            raise StemConfigError(
                f"Invalid settle {settle!r}: with {iso(self.window.end)} it exceeds the year 9999. Use a shorter one."
            ) from None

    def begin_poke(self) -> list[str]:
        """Count a poke, and return the ids of the sites to poke."""
        self.pokes += 1
        return self.pending

    def poke(self, client: StemClient, max_workers: int) -> None:
        """
        Request the missing intervals of all sites, several sites concurrently.

        :param max_workers: number of sites to poke concurrently.
        :raises StemError: the error of the first site that fails; the client is closed then.
        """
        source = StreamsSource(client)
        with ThreadPoolExecutor(max_workers, thread_name_prefix="stem") as pool:
            pokes = [pool.submit(self.poke_site, source, site_id) for site_id in self.begin_poke()]
            try:
                for done in as_completed(pokes):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                client.close()
                raise

    def poke_site(self, source: StreamsSource, site_id: str) -> None:
        """
        Request the intervals of one site since its first missing one. Several threads may poke different sites.

        If the turn of a request comes too late, the site stays as it was, see :attr:`is_out_of_turns`.

        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        lags = self._lags.get(site_id)
        stream_types, window = self._stream_types, self.window
        if lags is not None:
            stream_types = tuple(sorted(lags))
            window = Window(min(lag.since for lag in lags.values()) - window.step, window.end, window.resolution)
        reading = SiteReading(source, self._sites[site_id], stream_types, window, lambda _: None, "skip")
        try:
            accounts = reading.run().accounts
        except NoTurnError:
            self.is_out_of_turns = True
            return
        still = {
            stream_type: _Lag(account.first_missing, account.expected - account.received)
            for stream_type, account in accounts.items()
            if account.first_missing is not None
        }
        known = reading.site
        if known.stream_starts is None:
            # The first intervals exist, so the missing ones do not mean a later start, and the site need not be read.
            known = Site(site_id, dict.fromkeys(accounts))
        with self._lock:
            self._sites[site_id] = known
            if site_id in self._unseen:
                self._unseen.remove(site_id)
                self._expected += sum(account.expected for account in accounts.values())
            self._lags.pop(site_id, None)
            if still:
                self._lags[site_id] = still

    def is_complete(self, share: float = 1.0) -> bool:
        """
        Return whether at least a share of all expected intervals exists.

        Of a site that was not requested yet, every interval counts as missing.

        :param share: above 0 and up to 1.
        """
        report = self.report()
        # As a quotient, since 7 / 25 is the float 0.28 that a user writes.
        return not report["missing"] or (report["expected"] - report["missing"]) / report["expected"] >= share

    def report(self) -> WatchReport:
        """Return the numbers of expected and missing intervals, see :meth:`is_complete`."""
        with self._lock:
            unseen = sum(map(self._expected_of, self._unseen))
            return {
                "window": self.window.as_json(),
                "sites": len(self._sites),
                "expected": self._expected + unseen,
                "missing": unseen + sum(lag.missing for lags in self._lags.values() for lag in lags.values()),
                "incomplete_sites": len(self._unseen) + len(self._lags),
            }

    def describe_missing(self) -> str:
        """Return what is missing, as one line of text: the numbers, each type, and the first site that lacks some."""
        parts = [describe_report(self.report())]
        with self._lock:
            unseen = len(self._unseen)
            lags = sorted(self._lags.items())
        missing: Counter[str] = Counter()
        for _, lags_of_site in lags:
            for stream_type, lag in lags_of_site.items():
                missing[stream_type] += lag.missing
        if lags:
            site_id, lags_of_site = lags[0]
            stream_type, lag = min(lags_of_site.items())
            parts.append("missing: " + ", ".join(f"{missing[name]:,} {name}" for name in sorted(missing)))
            parts.append(
                f"first {stream_type} of site {one_line(site_id)} for the interval that ends at {iso(lag.since)}"
            )
        if unseen:
            parts.append(f"not requested yet: {unseen:,} sites")
        if self.is_out_of_turns:
            parts.append("requests_per_second of the connection allows no more requests in time")
        return "; ".join(parts)

    def progress(self) -> Progress:
        """Return the state as JSON: sums, and the missing intervals of each site."""
        with self._lock:
            return {
                "of": self._identity(),
                "pokes": self.pokes,
                "expected": self._expected,
                "unseen": sorted(self._unseen),
                "lags": {
                    site_id: {
                        "streams": {name: [iso(lag.since), lag.missing] for name, lag in sorted(lags.items())},
                        "starts": _as_json(self._sites[site_id].stream_starts),
                    }
                    for site_id, lags in sorted(self._lags.items())
                },
            }

    def records(self) -> list[dict[str, Any]]:
        """Return the sites as operators accept them. Stream starts of sites that were poked are in :meth:`progress`."""
        with self._lock:
            records: list[dict[str, Any]] = [{"site_id": site_id} for site_id in self._sites]
            for record in records:
                if record["site_id"] in self._unseen:
                    record["stream_start_times"] = _as_json(self._sites[record["site_id"]].stream_starts)
            return records

    def _identity(self) -> dict[str, Any]:
        ids = "\0".join(sorted(self._sites)).encode(errors="backslashreplace")
        return {
            "window": self.window.as_json(),
            "stream_types": list(self._stream_types),
            "sites": blake2b(ids, digest_size=16).hexdigest(),
        }

    def _expected_of(self, site_id: str) -> int:
        """Return how many intervals a site can have at most; one of an unknown start counts in the whole window."""
        site, window = self._sites[site_id], self.window
        starts = [site.expected_from(name, window.resolution) for name in self._stream_types if not site.lacks(name)]
        return sum(
            max(0, (window.last_end - max(start or 0, window.first_end)) // window.resolution + 1) for start in starts
        )

    def _resume(self, progress: Progress) -> None:
        self.pokes = progress["pokes"]
        self._expected = progress["expected"]
        self._unseen = set(progress["unseen"])
        for site_id, known in progress["lags"].items():
            self._lags[site_id] = {
                name: _Lag(parse_instant("progress", since), missing)
                for name, (since, missing) in known["streams"].items()
            }
            if known["starts"] is not None:
                starts = {name: start and parse_instant("progress", start) for name, start in known["starts"].items()}
                self._sites[site_id] = Site(site_id, starts)


def limit_turns(client: StemClient, left: timedelta) -> None:
    """
    Limit the wait of a poke for the connection's pace.

    :param client: client of one poke.
    :param left: time before the deadline. There is one poke even if none is left.
    """
    client.limit_turns((left if left > timedelta() else GRACE).total_seconds())


def _as_json(starts: StreamStarts | None) -> dict[str, str | None] | None:
    if starts is None:
        return None
    return {name: None if start is None else start.isoformat() for name, start in starts.items()}
