"""Fetching of one time range of one site, however the server interprets the guide; used by the reading of a site."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pyarrow as pa

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemRequestError, StemUnavailableError
from airflow_provider_stem.streams.decoding import StreamsDecoder
from airflow_provider_stem.streams.tables import Streams
from airflow_provider_stem.streams.windows import Window

CLOCK_TOLERANCE = timedelta(seconds=60)
"""How far ahead of ours the server's clock may be."""


class StreamsSource:
    """
    Fetch windows that fit into one request.

    Thread-safe; a run needs only one.

    :param client: client of the API.
    """

    def __init__(self, client: StemClient) -> None:
        self.client = client
        self._decoder = StreamsDecoder(client.redact, columnar=client.columnar_decoding)
        self._rejects_future = False

    def fetch(self, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Return exactly the window's rows, by stream type.

        One extra interval is requested on each side, see :meth:`Window.padded`. If the server rejects a range that is
        not over yet, the future is omitted, here and for the rest of the run. The result never contains an interval
        that ends more than :data:`CLOCK_TOLERANCE` after our current time.

        :param site_id: id of the site.
        :param stream_types: the types to request.
        :param window: at most :data:`~airflow_provider_stem.streams.windows.MAX_RANGE` with its padding.
        :raises StemUnavailableError: the site lacks one of the types, so the API returned none of them.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        now = datetime.now(UTC)
        over = now + CLOCK_TOLERANCE
        streams = self._fetch(site_id, stream_types, window, now)
        if window.end <= over:
            return streams
        return {stream_type: _until(over, stream) for stream_type, stream in streams.items()}

    def _fetch(self, site_id: str, stream_types: Sequence[str], window: Window, now: datetime) -> Streams:
        # The server's clock may differ from ours, so shorter and shorter ranges are tried.
        *longer, shortest = dict.fromkeys(
            [window.padded(), window.padded(until=now + CLOCK_TOLERANCE), window.padded(until=now)]
        )
        for requested in longer:
            if self._rejects_future and requested.end > now:
                continue
            try:
                return self._request(site_id, stream_types, window, requested)
            except StemRequestError as exc:
                # The server's clock may be up to one resolution behind ours.
                is_about_the_end = exc.status == HTTPStatus.BAD_REQUEST and requested.end > now - window.step
                if _names_a_type(exc) or not is_about_the_end:
                    raise
        try:
            streams = self._request(site_id, stream_types, window, shortest)
        except StemUnavailableError as exc:
            self._rejects_future |= _names_a_type(exc)
            raise
        self._rejects_future = True
        return streams

    def _request(self, site_id: str, stream_types: Sequence[str], window: Window, requested: Window) -> Streams:
        return self.client.get_streams(
            site_id,
            requested.start,
            requested.end,
            stream_types,
            window.resolution,
            lambda body: self._decoder.decode(body, site_id, stream_types, window),
        )


def _names_a_type(exc: StemRequestError) -> bool:
    """Return whether a site lacks a type. Without its name, the future or the range may be what is unavailable."""
    return isinstance(exc, StemUnavailableError) and bool(exc.stream_types)


def _until(end: datetime, stream: pa.RecordBatch) -> pa.RecordBatch:
    ends = stream.column(0)
    return stream.slice(0, bisect_right(range(stream.num_rows), end, key=lambda row: ends[row].as_py()))
