"""One range of one site, whichever way the server reads the guide; for the reading of a site."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemRequestError, StemUnavailableError
from airflow_provider_stem.streams.decoding import StreamsDecoder
from airflow_provider_stem.streams.tables import Streams
from airflow_provider_stem.streams.windows import Window


class StreamsSource:
    """
    Fetches windows that fit into one request.

    Can be shared between threads; one serves a whole run.

    :param client: the API.
    """

    def __init__(self, client: StemClient) -> None:
        self.client = client
        self._decoder = StreamsDecoder()
        self._refuses_future = False

    def fetch(self, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Give exactly the window's rows, by stream type.

        One interval more is asked for on each side, see :meth:`Window.padded`. A server may refuse the one on the
        right because it is not over yet; then it is left out, here and for the rest of the run.

        :raises StemUnavailableError: the site lacks one of the types; none was delivered.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        padded = window.padded()
        now = datetime.now(UTC)
        if self._refuses_future and padded.end > now:
            return self._ask(site_id, stream_types, window, window.padded(right=False))
        try:
            return self._ask(site_id, stream_types, window, padded)
        except StemUnavailableError:
            raise
        except StemRequestError as exc:
            # The server's clock may be behind ours, by as much as one resolution.
            if exc.status != HTTPStatus.BAD_REQUEST or padded.end <= now - window.step:
                raise
        try:
            streams = self._ask(site_id, stream_types, window, window.padded(right=False))
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
