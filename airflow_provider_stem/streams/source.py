"""One range of one site, whichever way the server reads the guide; for the reading of a site."""

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
"""How much earlier than ours the server's clock may show that an interval is over."""


class StreamsSource:
    """
    Fetches windows that fit into one request.

    Can be shared between threads; one serves a whole run.

    :param client: the API.
    """

    def __init__(self, client: StemClient) -> None:
        self.client = client
        self._decoder = StreamsDecoder(client.redact)
        self._refuses_future = False

    def fetch(self, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Return exactly the window's rows, by stream type.

        One interval more is asked for on each side, see :meth:`Window.padded`. A server may refuse what is not over
        yet; then that is left out, here and for the rest of the run. An interval that is not over by our own clock,
        give or take :data:`CLOCK_TOLERANCE`, is never in the result, whatever the server returns.

        :raises StemUnavailableError: the site lacks one of the types; none was delivered.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        now = datetime.now(UTC)
        over = now + CLOCK_TOLERANCE
        streams = self._fetch(site_id, stream_types, window, now)
        if window.end <= over:
            return streams
        return {stream_type: _until(over, stream) for stream_type, stream in streams.items()}

    def _fetch(self, site_id: str, stream_types: Sequence[str], window: Window, now: datetime) -> Streams:
        # The server's clock may differ from ours, so what a refusal leaves out is tried step by step.
        *longer, shortest = dict.fromkeys(
            [window.padded(), window.padded(until=now + CLOCK_TOLERANCE), window.padded(until=now)]
        )
        for asked in longer:
            if self._refuses_future and asked.end > now:
                continue
            try:
                return self._ask(site_id, stream_types, window, asked)
            except StemUnavailableError:
                raise
            except StemRequestError as exc:
                # It may be behind ours by as much as one resolution.
                if exc.status != HTTPStatus.BAD_REQUEST or asked.end <= now - window.step:
                    raise
        try:
            streams = self._ask(site_id, stream_types, window, shortest)
        except StemUnavailableError:
            self._refuses_future = True
            raise
        self._refuses_future = True
        return streams

    def _ask(self, site_id: str, stream_types: Sequence[str], window: Window, asked: Window) -> Streams:
        return self.client.get_streams(
            site_id,
            asked.start,
            asked.end,
            stream_types,
            window.resolution,
            lambda body: self._decoder.decode(body, site_id, stream_types, window),
        )


def _until(end: datetime, stream: pa.RecordBatch) -> pa.RecordBatch:
    ends = stream.column(0)
    return stream.slice(0, bisect_right(range(stream.num_rows), end, key=lambda row: ends[row].as_py()))
