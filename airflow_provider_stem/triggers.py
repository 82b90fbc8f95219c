"""Waits in the triggerer until streams are there; for the sensor."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_stem._arguments import check_templated, check_trigger_arguments, checked
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.failures import FINAL_ERRORS
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.windows import Window, iso, parse_instant

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_stem.streams.records import WatchReport
    from airflow_provider_stem.streams.watch import Watch

__all__ = ["StemStreamsTrigger"]

T = TypeVar("T")

_THREADS = 16


class StemStreamsTrigger(BaseTrigger):
    """
    Fires once: when the streams of a window are there, when that takes too long, or when asking makes no sense.

    Requests and their decoding run in threads that all of the triggerer's waits share, so the event loop is never
    held up. The arguments hold no credential and all that is needed to begin again in another triggerer.

    :param sites: site ids or records.
    :param stream_types: any of ``MONITOR``, ``CONVERTER``, ``INTERVAL_REVENUE``.
    :param resolution: seconds: 900, 1800 or 3600.
    :param start: ISO 8601 with an offset; may be left out where the task starts in the triggerer, which knows its run.
    :param end: likewise.
    :param default_interval: seconds, for such a run without an interval of its own.
    :param min_completeness: share of all expected intervals that is enough.
    :param settle: seconds to wait after the window's end.
    :param poke_interval: seconds between two looks.
    :param exponential_backoff: wait twice as long after each look, up to ``max_wait`` seconds.
    :param silent_fail: log an error that may pass and look again, instead of failing.
    :param deadline: ISO 8601 with an offset; when to give up.
    :param progress: what earlier looks found, see :meth:`~airflow_provider_stem.streams.watch.Watch.progress`.
    :param max_workers: how many sites are asked for at a time.
    :param stem_conn_id: connection of type ``stem``.
    """

    @checked
    def __init__(
        self,
        *,
        sites: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        start: str | None = None,
        end: str | None = None,
        default_interval: float | None = None,
        min_completeness: float = 1.0,
        settle: float = 0.0,
        poke_interval: float = 60.0,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        silent_fail: bool = False,
        deadline: str | None = None,
        progress: dict[str, Any] | None = None,
        max_workers: int = 8,
        stem_conn_id: str = StemHook.default_conn_name,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites = sites
        self.stream_types = list(stream_types)
        self.resolution = resolution
        self.start = start
        self.end = end
        self.default_interval = default_interval
        self.min_completeness = min_completeness
        self.settle = settle
        self.poke_interval = poke_interval
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.silent_fail = silent_fail
        self.deadline = deadline
        self.progress = progress
        self.max_workers = max_workers
        self.stem_conn_id = stem_conn_id
        self._unresolved: StemError | None = None
        self._redact: Callable[[str], str] = str  # until the connection is read

    def check(self, *, sites: object, **given: Any) -> None:  # noqa: ARG002
        """Check the constructor's arguments but the sites: there can be thousands, and this is the event loop."""
        check_trigger_arguments(**given)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as plain JSON."""
        names = inspect.signature(type(self)).parameters
        return "airflow_provider_stem.triggers.StemStreamsTrigger", {name: getattr(self, name) for name in names}

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """
        Render the arguments and resolve the run's window, where the task starts in the triggerer.

        The triggerer also calls this for a task with ``start_from_trigger`` that a worker deferred. The worker has
        rendered the arguments then, and what came out may be foreign text.
        """
        if self.deadline is not None:  # only a worker sets one
            return
        super().render_template_fields(context, jinja_env)
        try:
            start, end = self._wall_time_of(context)
        except StemError as exc:
            self._unresolved = exc  # an event tells it: raised here, it would be no more than "Trigger failure"
        else:
            self.start, self.end = iso(start), iso(end)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and tell the outcome in one event, as plain JSON."""
        try:
            outcome = await self._wait()
        except StemError as exc:
            args = [self._redact(arg) if isinstance(arg, str) else arg for arg in exc.args]
            outcome = {"status": "error", "error": type(exc).__name__, "args": args}
        except AirflowNotFoundException as exc:
            message = f"{str(exc).rstrip('.')}. Create the connection, or name another."
            outcome = {"status": "error", "error": "StemConfigError", "args": [message]}
        except Exception as exc:
            self.log.exception("The wait for streams has a defect")
            message = self._redact(f"{type(exc).__name__}: {exc}")
            outcome = {"status": "error", "error": "StemError", "args": [message]}
        yield TriggerEvent(outcome)  # type: ignore[no-untyped-call]

    def _wall_time_of(self, context: Context) -> tuple[datetime, datetime]:
        run_type = context["dag_run"].run_type
        by_assets = getattr(run_type, "value", run_type) == "asset_triggered"
        interval = None if self.default_interval is None or by_assets else timedelta(seconds=self.default_interval)
        try:
            return wall_time_of_run(context, start=self.start, end=self.end, default_interval=interval)
        except StemConfigError:
            if not by_assets:
                raise
            raise StemConfigError(
                "start_from_trigger is True in a run that assets triggered, and the triggerer does not see their "
                "events: leave it out, or give start and end."
            ) from None

    async def _wait(self) -> dict[str, Any]:
        if self._unresolved is not None:
            raise self._unresolved
        watch = await _in_thread(self._new_watch)
        if not watch.window.intervals:
            return {"status": "empty"}
        ready = watch.ready(timedelta(seconds=self.settle))
        deadline = parse_instant("deadline", self.deadline) if self.deadline else None
        while True:
            wake = max(_now() + self._pause_after(watch.looks), ready)
            await _sleep_until(wake if deadline is None else min(wake, deadline))
            if _now() >= ready:
                await self._look(watch)
                if watch.is_complete(self.min_completeness):
                    return {"status": "complete", "report": watch.report()}
                self.log.info("%s, next look in %s", describe(watch.report()), self._pause_after(watch.looks))
            if deadline is not None and _now() >= deadline:
                return {"status": "timeout", "report": watch.report()}

    def _new_watch(self) -> Watch:
        # Imported here, in a thread: pyarrow takes its time.
        from airflow_provider_stem.streams.watch import Watch

        check_templated(stem_conn_id=self.stem_conn_id)
        window = Window.covering(parse_instant("start", self.start), parse_instant("end", self.end), self.resolution)
        return Watch(read_sites(self.sites), self.stream_types, window, self.progress)

    def _pause_after(self, looks: int) -> timedelta:
        if not looks:
            return timedelta()
        seconds = self.poke_interval * (2 ** min(looks - 1, 20) if self.exponential_backoff else 1)
        return timedelta(seconds=seconds if self.max_wait is None else min(seconds, self.max_wait))

    async def _look(self, watch: Watch) -> None:
        try:
            await self._ask(watch)
        except StemError as exc:
            if not self.silent_fail or isinstance(exc, FINAL_ERRORS):
                raise
            self.log.error("%s", exc)  # noqa: TRY400 - it is told whole

    async def _ask(self, watch: Watch) -> None:
        from airflow.providers.common.compat.connection import get_async_connection

        from airflow_provider_stem.streams.source import StreamsSource

        connection = await get_async_connection(self.stem_conn_id, hook=StemHook)
        client = await _in_thread(StemHook.client_of, connection)
        self._redact = client.redact
        source = StreamsSource(client)
        gate = asyncio.Semaphore(self.max_workers)

        async def look_at(site_id: str) -> None:
            async with gate:
                await _in_thread(watch.look_at, source, site_id)

        looks = [asyncio.ensure_future(look_at(site_id)) for site_id in watch.begin_look()]
        try:
            await asyncio.gather(*looks)
        finally:
            for look in looks:
                look.cancel()
            client.close()


def describe(report: WatchReport) -> str:
    """Return a sentence that says how complete a window is."""
    return (
        f"{report['expected'] - report['missing']:,} of {report['expected']:,} intervals are there, "
        f"{report['incomplete_sites']:,} of {report['sites']:,} sites are incomplete"
    )


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    # With the context: by it the triggerer knows whose log a line belongs to.
    call = partial(contextvars.copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


@cache
def _threads() -> ThreadPoolExecutor:
    """Give the threads that all waits of this process share: the loop's own ones are for everyone's."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="stem-trigger")


async def _sleep_until(moment: datetime) -> None:
    while (left := (moment - _now()).total_seconds()) > 0:
        await asyncio.sleep(left)


def _now() -> datetime:
    return datetime.now(UTC)
