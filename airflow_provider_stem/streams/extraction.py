"""Concurrent reading of many sites, with results in order; used by the landing."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Generic, Literal, TypeGuard, TypeVar

import pyarrow as pa

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemApiError, StemAuthError, StemDataError, StemError, StemNotFoundError
from airflow_provider_stem.streams.reading import SiteReading, SiteResult
from airflow_provider_stem.streams.sites import Site
from airflow_provider_stem.streams.source import StreamsSource
from airflow_provider_stem.streams.windows import Window

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")


class Extraction(Generic[Kept]):
    """
    Read one window of many sites.

    Rows are passed to ``keep`` as soon as they are decoded, so memory does not grow with the number of sites.

    :param client: client of the API; it is closed when a site fails.
    :param stream_types: the types to read.
    :param window: the intervals to read.
    :param keep: called with the rows of one part of one stream, from several threads; its result is kept.
    :param on_unavailable: ``fail`` raises an error if a site lacks a type; ``skip`` reads the other types.
    :param on_site_error: ``fail`` raises the error of a site; ``skip`` omits a site that is forbidden, unknown or has
        invalid data.
    """

    def __init__(
        self,
        client: StemClient,
        stream_types: Sequence[str],
        window: Window,
        keep: Callable[[pa.RecordBatch], Kept],
        *,
        on_unavailable: Literal["skip", "fail"] = "skip",
        on_site_error: Literal["skip", "fail"] = "fail",
    ) -> None:
        self._client = client
        self._source = StreamsSource(client)
        self._stream_types = stream_types
        self._window = window
        self._keep = keep
        self._on_unavailable = on_unavailable
        self._on_site_error = on_site_error
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def planned_requests(self, sites: Sequence[Site]) -> int:
        """Return the number of requests for the sites, as far as it is known before the first one."""
        return sum(self._reading(site).planned_requests() for site in sites)

    def read(self, sites: Sequence[Site], max_workers: int) -> Generator[SiteResult[Kept], None, None]:
        """
        Iterate over the results of the sites, in the order of ``sites``.

        :param max_workers: number of sites to read concurrently.
        :raises StemError: the error of the first site that fails; the other requests are cancelled.
        """
        with ThreadPoolExecutor(max_workers, thread_name_prefix="stem") as pool:
            pending = deque(pool.submit(self._read_site, site) for site in sites)
            try:
                while pending:
                    yield pending.popleft().result()
            except BaseException as exc:
                pool.shutdown(wait=False, cancel_futures=True)
                self._client.close()
                if self._failure is None or not isinstance(exc, Exception):
                    raise
            else:
                return
        raise self._failure

    def _read_site(self, site: Site) -> SiteResult[Kept]:
        try:
            return self._reading(site).run()
        except Exception as exc:
            if self._on_site_error == "skip" and is_of_one_site(exc):
                site_id = one_line(self._client.redact(site.site_id))
                log.warning("Site %s is skipped: %s", site_id, self._client.redact(str(exc)))
                return SiteResult(site.site_id, error=exc)
            # Stop the other sites. The errors that they raise because the client is closed are not the cause.
            with self._lock:
                self._failure = self._failure or exc
            self._client.close()
            raise

    def _reading(self, site: Site) -> SiteReading[Kept]:
        return SiteReading(self._source, site, self._stream_types, self._window, self._keep, self._on_unavailable)


def is_of_one_site(exc: Exception) -> TypeGuard[StemError]:
    """Return whether an error concerns one site, so that the others can still be read."""
    if isinstance(exc, StemApiError) and exc.status == HTTPStatus.UNAUTHORIZED:
        return False
    return isinstance(exc, (StemAuthError, StemNotFoundError, StemDataError))
