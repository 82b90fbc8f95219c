"""
Decoding of responses of the streams endpoint into columns; used by the source of streams.

:mod:`.plain` specifies what a response means. :mod:`.columnar` returns the same columns of a long response in a
fraction of the time. ``[stem] columnar_decoding = False`` in Airflow's configuration turns it off, to find out whether
a result depends on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.payloads import Body
from airflow_provider_stem.streams.decoding.columnar import BLOCK, read_columnar
from airflow_provider_stem.streams.decoding.plain import read_plain
from airflow_provider_stem.streams.tables import EMPTY_STREAM, Streams
from airflow_provider_stem.streams.windows import Window

log = logging.getLogger(__name__)

_SHORT = 2**14
"""Bytes. Up to a day of one stream at 900 s, the plain decoder is as fast as the columnar one."""


class StreamsDecoder:
    """
    Decode the responses of one run.

    Thread-safe. Fields that are not in the guide are ignored, and logged once per run.

    :param redact: removes the API key from a string before it is logged.
    :param columnar: use the columnar decoder for long responses; the result is the same without it.
    """

    def __init__(self, redact: Callable[[str], str] = str, *, columnar: bool = True) -> None:
        self._redact = redact
        self._columnar = columnar
        self._has_warned = False
        self._lock = threading.Lock()
        # One thread decodes all long responses, which is faster than a network delivers them. Memory that a thread has
        # used for a table is not freed, so more threads would need more memory.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stem-decoder")

    def decode(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        """
        Return the rows of one response that are in the window.

        :param body: the whole body of a 200 (guide: "Reading stream Data", "Response output").
        :param site_id: the requested site.
        :param stream_types: the requested types; the result contains each of them, with or without rows.
        :param window: the intervals to return, at the requested resolution; the response may contain more on both
            sides. Their ends are in UTC.
        :return: rows by stream type, each in :data:`~airflow_provider_stem.streams.tables.STREAM_SCHEMA`.
        :raises UnreadableResponseError: the body is not JSON; another request may help.
        :raises StemDataError: a value is not a finite number, a row is off the grid or of another width, an interval
            has two values, a type was not requested, or the response is for another site or window. The message names
            site and row.
        """
        if len(body) <= _SHORT:
            streams = self._read_plain(body, site_id, stream_types, window)
        else:
            streams = self._thread.submit(self._read_long, body, site_id, stream_types, window).result()
        return {stream_type: streams.get(stream_type, EMPTY_STREAM) for stream_type in stream_types}

    def _read_long(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        streams = None
        if self._columnar:
            streams = read_columnar(body, site_id, stream_types, window, lenient=self._has_warned)
        if streams is None:
            streams = self._read_plain(body, site_id, stream_types, window)
        if len(body) > BLOCK:
            # The kernels need several times the memory of their result, which would stay with this thread.
            pa.default_memory_pool().release_unused()
        return streams

    def _read_plain(self, body: Body, site_id: str, stream_types: Sequence[str], window: Window) -> Streams:
        streams, unknown = read_plain(body, site_id, stream_types, window)
        with self._lock:
            is_first, self._has_warned = bool(unknown) and not self._has_warned, self._has_warned or bool(unknown)
        if is_first:
            names = one_line(self._redact(", ".join(sorted(unknown))))
            log.warning("Ignoring fields that are not in the API's guide: %s", names)
        return streams
