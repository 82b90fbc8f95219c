"""Reading of one site's streams in a window; used by the extraction, the watch and the hook."""

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

Kept = TypeVar("Kept")


@dataclass(slots=True)
class StreamAccount:
    """
    Expected and received intervals of one stream in the window.

    :param expected: number of intervals in the window since the stream's start.
    :param received: number of these that were received, nulls included.
    :param first_missing: end of the first one that was not received, in UTC.
    """

    expected: int = 0
    received: int = 0
    first_missing: datetime | None = None


@dataclass(slots=True)
class SiteResult(Generic[Kept]):
    """
    The result of reading one site.

    :param rows: number of rows that were kept.
    :param kept: results of the caller's ``keep`` by stream type, one for each part, in order of time.
    :param accounts: by stream type; empty or absent for a type that began after the window or that the site lacks.
    :param unavailable: requested types that the site lacks.
    :param error: why the site was skipped; ``None`` if it was read.
    """

    site_id: str
    rows: int = 0
    kept: dict[str, list[Kept]] = field(default_factory=dict)
    accounts: dict[str, StreamAccount] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    error: StemError | None = None


class SiteReading(Generic[Kept]):
    """
    Read one site in parts, and find out which streams it has and when they began.

    If only the site's id is known, its streams are requested directly. The site itself is requested, once, only if the
    API reports that a type is unavailable, or if the first intervals of the window are missing.

    :param source: source of streams.
    :param site: the site, with its streams if they are known.
    :param stream_types: the types to read; one request is for all types.
    :param window: the intervals to read.
    :param keep: called with the rows of one part of one stream; its result is kept.
    :param on_unavailable: ``fail`` raises an error if the site lacks a type; ``skip`` reads the other types.
    """

    def __init__(
        self,
        source: StreamsSource,
        site: Site,
        stream_types: Sequence[str],
        window: Window,
        keep: Callable[[pa.RecordBatch], Kept],
        on_unavailable: Literal["skip", "fail"],
    ) -> None:
        self._source = source
        self._site = site
        self._stream_types = stream_types
        self._window = window
        self._keep = keep
        self._on_unavailable = on_unavailable
        self._site_was_read = False
        self._result: SiteResult[Kept] = SiteResult(site.site_id)

    @property
    def site(self) -> Site:
        """The site, with its streams if they are known by now."""
        return self._site

    def planned_requests(self) -> int:
        """Return the number of requests for the window, as far as it is known before the first one."""
        available = [name for name in self._stream_types if not self._site.lacks(name)]
        return len(list(self._window.parts(min(map(self._expected_from, available))))) if available else 0

    def run(self) -> SiteResult[Kept]:
        """
        Read the window and return the result.

        :raises StemUnavailableError: the site lacks a type, with ``on_unavailable="fail"``.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        self._drop([name for name in self._stream_types if self._site.lacks(name)])
        rest = self._window
        while (part := self._next_part(rest)) is not None:
            requested = [name for name in self._available() if self._expected_from(name) <= part.last_end]
            try:
                streams = self._source.fetch(self._site.site_id, requested, part)
            except StemUnavailableError as exc:
                self._handle_unavailable(exc, requested)
                continue
            if part.start == self._window.start:
                self._handle_leading_gaps(streams, part)
            for stream_type in self._available():
                if stream_type in streams:
                    self._add_rows(stream_type, streams[stream_type], part)
            rest = Window(part.end, self._window.end, self._window.resolution)
        return self._result

    def _available(self) -> list[str]:
        return [name for name in self._stream_types if name not in self._result.unavailable]

    def _expected_from(self, stream_type: str) -> int:
        known = self._site.expected_from(stream_type, self._window.resolution)
        return self._window.first_end if known is None else max(known, self._window.first_end)

    def _next_part(self, rest: Window) -> Window | None:
        available = self._available()
        if not available or not rest.intervals:
            return None
        return next(rest.parts(min(map(self._expected_from, available))), None)

    def _handle_unavailable(self, exc: StemUnavailableError, requested: Sequence[str]) -> None:
        lacking = [name for name in requested if name in exc.stream_types]
        if self._on_unavailable == "skip" and len(lacking) < len(requested) and not self._site_was_read:
            self._read_site()
            lacking = [name for name in requested if name in exc.stream_types or self._site.lacks(name)]
        if not lacking:
            raise exc
        self._drop(lacking, exc.message)

    def _handle_leading_gaps(self, streams: Streams, part: Window) -> None:
        if self._site.stream_starts is not None or self._site_was_read:
            return
        if all(rows.num_rows and rows.column(0)[0].value == part.first_end * 10**6 for rows in streams.values()):
            return
        self._read_site()
        self._drop([name for name, rows in streams.items() if not rows.num_rows and self._site.lacks(name)])

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

    def _drop(self, lacking: Sequence[str], reported: str = "") -> None:
        """Leave types out, or raise an error with the message that the API reported, if any."""
        if lacking and self._on_unavailable == "fail":
            client = self._source.client
            message = f"site {one_line(client.redact(self._site.site_id))} has no stream of type {', '.join(lacking)}"
            raise StemUnavailableError(
                HTTPStatus.BAD_REQUEST,
                f"{message}: {reported}" if reported else message,
                one_line(client.redact(f"{client.base_url}sites/{quote(self._site.site_id, safe='')}/streams")),
                stream_types=lacking,
            )
        self._result.unavailable += lacking

    def _add_rows(self, stream_type: str, stream: pa.RecordBatch, part: Window) -> None:
        step = part.resolution
        first = max(self._expected_from(stream_type), part.first_end)
        ends = stream.column(0)
        # As integers, in microseconds: conversion to a datetime with a zone takes much longer.
        earlier = bisect_left(range(stream.num_rows), first * 10**6, key=lambda row: ends[row].value)
        received = stream.num_rows - earlier
        account = self._result.accounts.setdefault(stream_type, StreamAccount())
        expected = max(0, (part.last_end - first) // step + 1)
        account.expected += expected
        account.received += received
        if received < expected and account.first_missing is None:
            ends_received = set(ends.cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_pylist())
            account.first_missing = from_epoch(
                next(end for end in range(first, part.last_end + 1, step) if end not in ends_received)
            )
        if stream.num_rows:
            self._result.rows += stream.num_rows
            self._result.kept.setdefault(stream_type, []).append(self._keep(stream))
