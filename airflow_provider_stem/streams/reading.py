"""One site's streams in a window, whole and accounted for; for the extraction and the hook."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Generic, Literal, TypeVar
from urllib.parse import quote

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemDataError, StemError, StemUnavailableError
from airflow_provider_stem.streams.sites import Site, stream_starts
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.tables import Streams
from airflow_provider_stem.streams.windows import Window, from_epoch

K = TypeVar("K")


@dataclass(slots=True)
class StreamAccount:
    """
    What one stream of a site should have in the window, and what came of it.

    :param expected: intervals of the window from the stream's start on.
    :param received: how many of those came, nulls included.
    :param first_missing: end of the first one that did not come.
    """

    expected: int = 0
    received: int = 0
    first_missing: datetime | None = None


@dataclass(slots=True)
class SiteResult(Generic[K]):
    """
    One site, read.

    :param rows: how many rows were kept.
    :param kept: by stream type, what the caller's ``keep`` gave for each part, in order of time.
    :param accounts: by stream type; empty or absent for a type that began after the window or that the site lacks.
    :param unavailable: types that were asked for and that the site lacks.
    :param error: why the site was left out, where it was.
    """

    site_id: str
    rows: int = 0
    kept: dict[str, list[K]] = field(default_factory=dict)
    accounts: dict[str, StreamAccount] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    error: StemError | None = None


class SiteReading(Generic[K]):
    """
    Reads one site, part by part, and learns on the way which streams it has and since when.

    Where only the site's id is known, its streams are asked for directly. The site itself is read, once, only where
    the API says that a type is unavailable, or where the window's first intervals do not come.

    :param source: the API.
    :param site: what is known of the site.
    :param stream_types: what to read; all types go into one request.
    :param window: what to read of them.
    :param keep: takes the rows of one part of one stream.
    :param on_unavailable: ``fail`` raises where the site lacks a type; ``skip`` reads the others.
    """

    def __init__(
        self,
        source: StreamsSource,
        site: Site,
        stream_types: Sequence[str],
        window: Window,
        keep: Callable[[pa.RecordBatch], K],
        on_unavailable: Literal["skip", "fail"],
    ) -> None:
        self._source = source
        self._site = site
        self._stream_types = stream_types
        self._window = window
        self._keep = keep
        self._on_unavailable = on_unavailable
        self._site_was_read = False
        self._result: SiteResult[K] = SiteResult(site.site_id)

    @property
    def site(self) -> Site:
        """What is known of the site by now."""
        return self._site

    def planned_requests(self) -> int:
        """Count the requests that the window takes, as far as is known before the first one."""
        available = [t for t in self._stream_types if not self._site.lacks(t)]
        return len(list(self._window.chunks(min(map(self._expected_from, available))))) if available else 0

    def run(self) -> SiteResult[K]:
        """
        Read the window.

        :raises StemUnavailableError: the site lacks a type, with ``on_unavailable="fail"``.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        self._drop([t for t in self._stream_types if self._site.lacks(t)])
        rest = self._window
        while part := self._next_part(rest):
            asked = [t for t in self._available() if self._expected_from(t) <= part.last_end]
            try:
                streams = self._source.fetch(self._site.site_id, asked, part)
            except StemUnavailableError as exc:
                self._learn_from_refusal(exc, asked)
                continue
            if part.start == self._window.start:
                self._learn_from_leading_gaps(streams, part)
            for stream_type in self._available():
                if stream_type in streams:
                    self._take(stream_type, streams[stream_type], part)
            rest = Window(part.end, self._window.end, self._window.resolution)
        return self._result

    def _available(self) -> list[str]:
        return [t for t in self._stream_types if t not in self._result.unavailable]

    def _expected_from(self, stream_type: str) -> int:
        known = self._site.expected_from(stream_type, self._window.resolution)
        return self._window.first_end if known is None else max(known, self._window.first_end)

    def _next_part(self, rest: Window) -> Window | None:
        available = self._available()
        if not available or not rest.intervals:
            return None
        return next(rest.chunks(min(map(self._expected_from, available))), None)

    def _learn_from_refusal(self, exc: StemUnavailableError, asked: Sequence[str]) -> None:
        lacking = [t for t in asked if t in exc.stream_types]
        if self._on_unavailable == "skip" and len(lacking) < len(asked) and not self._site_was_read:
            self._read_site()
            lacking = [t for t in asked if t in exc.stream_types or self._site.lacks(t)]
        if not lacking:
            raise exc
        self._drop(lacking)

    def _learn_from_leading_gaps(self, streams: Streams, part: Window) -> None:
        if self._site.stream_starts is not None or self._site_was_read:
            return
        if all(s.num_rows and _ends(s)[0].as_py() == part.first_end for s in streams.values()):
            return
        self._read_site()
        self._drop([t for t, s in streams.items() if not s.num_rows and self._site.lacks(t)])

    def _read_site(self) -> None:
        site_id, client = self._site.site_id, self._source.client
        try:
            self._site = Site(site_id, stream_starts(client.get_site(site_id), site_id))
        except StemDataError as exc:
            message = client.redact(str(exc))
        else:
            self._site_was_read = True
            return
        raise StemDataError(message)

    def _drop(self, lacking: Sequence[str]) -> None:
        if lacking and self._on_unavailable == "fail":
            client = self._source.client
            raise StemUnavailableError(
                HTTPStatus.BAD_REQUEST,
                f"site {one_line(client.redact(self._site.site_id))} has no stream of type {', '.join(lacking)}",
                one_line(client.redact(f"{client.base_url}sites/{quote(self._site.site_id, safe='')}/streams")),
                stream_types=lacking,
            )
        self._result.unavailable += lacking

    def _take(self, stream_type: str, stream: pa.RecordBatch, part: Window) -> None:
        step = part.resolution
        first = max(self._expected_from(stream_type), part.first_end)
        ends = stream.column(0)
        earlier = bisect_left(range(stream.num_rows), from_epoch(first), key=lambda row: ends[row].as_py())
        received = stream.num_rows - earlier
        account = self._result.accounts.setdefault(stream_type, StreamAccount())
        expected = max(0, (part.last_end - first) // step + 1)
        account.expected += expected
        account.received += received
        if received < expected and account.first_missing is None:
            came = set(_ends(stream).to_pylist())
            account.first_missing = from_epoch(next(k for k in range(first, part.last_end + 1, step) if k not in came))
        if stream.num_rows:
            self._result.rows += stream.num_rows
            self._result.kept.setdefault(stream_type, []).append(self._keep(stream))


def _ends(stream: pa.RecordBatch) -> pa.Int64Array:
    """Give the interval ends in epoch seconds."""
    return stream.column(0).cast(pa.timestamp("s", "UTC")).cast(pa.int64())
