"""Requests of triggers, in threads so that the event loop is never blocked; for the sensor's trigger and watchers."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_stem.hooks import StemHook

if TYPE_CHECKING:
    from airflow_provider_stem.streams.source import StreamsSource

_T = TypeVar("_T")

_THREADS = 16


@asynccontextmanager
async def open_source(stem_conn_id: str) -> AsyncIterator[StreamsSource]:
    """
    Open a source of streams for one poke, and close it at the end.

    :param stem_conn_id: connection of type ``stem``.
    :raises AirflowNotFoundException: the connection does not exist.
    :raises StemConfigError: a field of the connection is wrong.
    """
    from airflow.providers.common.compat.connection import get_async_connection

    from airflow_provider_stem.streams.source import StreamsSource

    connection = await get_async_connection(stem_conn_id, hook=StemHook)
    client = await in_thread(StemHook.client_of, connection)
    try:
        yield StreamsSource(client)
    finally:
        client.close()


async def request_each(site_ids: Iterable[str], max_workers: int, request_site: Callable[[str], None]) -> None:
    """
    Call a function for each site in threads.

    :param site_ids: the sites.
    :param max_workers: how many sites to request at a time, 1 or more.
    :param request_site: function that requests one site.
    :raises Exception: the first error of a call. Calls that have not begun are omitted then.
    """
    limiter = asyncio.Semaphore(max_workers)

    async def limited(site_id: str) -> None:
        async with limiter:
            await in_thread(request_site, site_id)

    requests = [asyncio.ensure_future(limited(site_id)) for site_id in site_ids]
    try:
        await asyncio.gather(*requests)
    finally:
        for request in requests:
            request.cancel()


async def in_thread(function: Callable[..., _T], *args: Any) -> _T:
    """Return the result of a function that is called in a thread that triggers share."""
    # With the context, so that the triggerer assigns log lines to this trigger.
    call = partial(contextvars.copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the thread pool that these triggers share; the loop's default pool is left to other triggers."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="stem-trigger")
