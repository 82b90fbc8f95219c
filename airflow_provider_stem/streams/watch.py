"""How far a window has come in, look by look; for the sensor and its trigger."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.reading import SiteReading
from airflow_provider_stem.streams.records import WatchReport
from airflow_provider_stem.streams.sites import Site, StreamStarts
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window, iso, parse_instant

Progress = dict[str, Any]
"""What a watch knows, as plain JSON: it goes on elsewhere from there."""


@dataclass(frozen=True, slots=True)
class _Lag:
    """
    What a stream still lacks.

    :param since: end of the first interval that is missing.
    :param missing: how many are.
    """

    since: datetime
    missing: int


class Watch:
    """
    Knows which streams of a window are still missing, and asks for nothing else.

    :param sites: what to look at; a site that has none of the types is complete.
    :param stream_types: what each site should have, as far as it has it at all.
    :param window: what of it.
    :param progress: of an earlier watch; one with other arguments is passed over.
    """

    def __init__(
        self, sites: Sequence[Site], stream_types: Sequence[str], window: Window, progress: Progress | None = None
    ) -> None:
        self.window = window
        self.looks = 0
        """How often it was looked."""
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
        """Give the ids of the sites that are not complete, as far as is known."""
        with self._lock:
            return sorted(self._unseen | set(self._lags))

    def ready(self, settle: timedelta) -> datetime:
        """
        Return when the window is over and has settled.

        :raises StemConfigError: that is after the year 9999.
        """
        try:
            return self.window.end + settle
        except OverflowError:
            raise StemConfigError(
                f"settle is {settle!r}, which after {iso(self.window.end)} is not a date. Use a shorter one."
            ) from None

    def begin_look(self) -> list[str]:
        """Count a look, and give the ids of the sites to look at."""
        self.looks += 1
        return self.pending

    def look(self, client: StemClient, max_workers: int) -> None:
        """
        Ask for what is still missing, several sites at a time.

        :raises StemError: of the first site that fails; the others' waits end then, and the client is closed.
        """
        source = StreamsSource(client)
        with ThreadPoolExecutor(max_workers, thread_name_prefix="stem") as pool:
            looks = [pool.submit(self.look_at, source, site_id) for site_id in self.begin_look()]
            try:
                for done in as_completed(looks):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                client.close()
                raise

    def look_at(self, source: StreamsSource, site_id: str) -> None:
        """
        Ask for what one site still lacks, from its first gap on. Several sites can be looked at side by side.

        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        lags = self._lags.get(site_id)
        stream_types, window = self._stream_types, self.window
        if lags is not None:
            stream_types = tuple(sorted(lags))
            window = Window(min(lag.since for lag in lags.values()) - window.step, window.end, window.resolution)
        reading = SiteReading(source, self._sites[site_id], stream_types, window, lambda _: None, "skip")
        accounts = reading.run().accounts
        still = {
            stream_type: _Lag(account.first_missing, account.expected - account.received)
            for stream_type, account in accounts.items()
            if account.first_missing is not None
        }
        known = reading.site
        if known.stream_starts is None:
            # The first intervals came, so what is missing now is no later start, for which the site would be read.
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
        """Tell whether every site was looked at, and at least this share of all expected intervals is there."""
        with self._lock:
            # As a quotient: that is the very float that someone who means 7 of 25 writes as 0.28.
            return not self._unseen and (
                not self._expected or (self._expected - self._missing()) / self._expected >= share
            )

    def report(self) -> WatchReport:
        """Return what is there and what is missing."""
        with self._lock:
            return {
                "window": self.window.as_json(),
                "sites": len(self._sites),
                "expected": self._expected,
                "missing": self._missing(),
                "incomplete_sites": len(self._unseen) + len(self._lags),
            }

    def progress(self) -> Progress:
        """Give what is known, as plain JSON: the sum, and site by site only what is missing."""
        with self._lock:
            return {
                "of": self._identity(),
                "looks": self.looks,
                "expected": self._expected,
                "unseen": sorted(self._unseen),
                "lags": {
                    site_id: {
                        "streams": {t: [iso(lag.since), lag.missing] for t, lag in sorted(lags.items())},
                        "starts": _as_json(self._sites[site_id].stream_starts),
                    }
                    for site_id, lags in sorted(self._lags.items())
                },
            }

    def records(self) -> list[dict[str, Any]]:
        """Give the sites as operators take them; of those that were looked at, :meth:`progress` knows the rest."""
        with self._lock:
            return [
                {"site_id": site_id, "stream_start_times": _as_json(site.stream_starts)}
                if site_id in self._unseen
                else {"site_id": site_id}
                for site_id, site in self._sites.items()
            ]

    def _identity(self) -> dict[str, Any]:
        ids = "\0".join(sorted(self._sites)).encode(errors="backslashreplace")
        return {
            "window": self.window.as_json(),
            "stream_types": list(self._stream_types),
            "sites": blake2b(ids, digest_size=16).hexdigest(),
        }

    def _missing(self) -> int:
        return sum(lag.missing for lags in self._lags.values() for lag in lags.values())

    def _resume(self, progress: Progress) -> None:
        self.looks = progress["looks"]
        self._expected = progress["expected"]
        self._unseen = set(progress["unseen"])
        for site_id, known in progress["lags"].items():
            self._lags[site_id] = {
                t: _Lag(parse_instant("progress", since), missing) for t, (since, missing) in known["streams"].items()
            }
            if known["starts"] is not None:
                starts = {t: start and parse_instant("progress", start) for t, start in known["starts"].items()}
                self._sites[site_id] = Site(site_id, starts)


def _as_json(starts: StreamStarts | None) -> dict[str, str | None] | None:
    return None if starts is None else {t: None if start is None else start.isoformat() for t, start in starts.items()}
