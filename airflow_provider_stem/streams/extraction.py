"""Many sites side by side, given back in order; for the landing and the sensor."""

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

K = TypeVar("K")


class Extraction(Generic[K]):
    """
    Reads one window of many sites.

    Rows go to ``keep`` as soon as they are decoded, so memory does not grow with the number of sites.

    :param client: the API; it is closed when a site fails.
    :param stream_types: what to read.
    :param window: what to read of them.
    :param keep: takes the rows of one part of one stream; called from several threads.
    :param on_unavailable: ``fail`` raises where a site lacks a type; ``skip`` reads the others.
    :param on_site_error: ``skip`` leaves out a site that is forbidden, unknown or answers with wrong data.
    """

    def __init__(
        self,
        client: StemClient,
        stream_types: Sequence[str],
        window: Window,
        keep: Callable[[pa.RecordBatch], K],
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
        """Count the requests that reading takes, as far as is known before the first one."""
        return sum(self._reading(site).planned_requests() for site in sites)

    def read(self, sites: Sequence[Site], max_workers: int) -> Generator[SiteResult[K], None, None]:
        """
        Give each site's result, in the order of ``sites``.

        :param max_workers: how many sites are read at a time.
        :raises StemError: of the first site that fails; waiting and further requests end then.
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

    def _read_site(self, site: Site) -> SiteResult[K]:
        try:
            return self._reading(site).run()
        except Exception as exc:
            if self._on_site_error == "skip" and _is_of_one_site(exc):
                site_id = one_line(self._client.redact(site.site_id))
                log.warning("Site %s is left out: %s", site_id, self._client.redact(str(exc)))
                return SiteResult(site.site_id, error=exc)
            # The others need not finish, and what they raise once the client is closed is no cause.
            with self._lock:
                self._failure = self._failure or exc
            self._client.close()
            raise

    def _reading(self, site: Site) -> SiteReading[K]:
        return SiteReading(self._source, site, self._stream_types, self._window, self._keep, self._on_unavailable)


def _is_of_one_site(exc: Exception) -> TypeGuard[StemError]:
    if isinstance(exc, StemApiError) and exc.status == HTTPStatus.UNAUTHORIZED:
        return False
    return isinstance(exc, (StemAuthError, StemNotFoundError, StemDataError))
