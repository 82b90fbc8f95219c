"""Trigger that waits until the streams of a window are available; for the sensor."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_stem._arguments import check_templated, check_trigger_arguments, checked
from airflow_provider_stem._polling import in_thread, open_source, request_each
from airflow_provider_stem._text import missing_connection
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.failures import FINAL_ERRORS
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.streams.records import describe_report
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import Window, iso, parse_instant

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_stem.streams.watch import Watch

__all__ = ["StemStreamsTrigger"]


class StemStreamsTrigger(BaseTrigger):
    """
    Fire one event: the streams of a window are available, the deadline has passed, or an error occurred.

    Requests and decoding run in threads that all of these triggers share, so the event loop is never blocked. The
    arguments contain no credentials and are enough to start again in another triggerer.

    :param sites: site ids or records.
    :param stream_types: any of ``MONITOR``, ``CONVERTER`` and ``INTERVAL_REVENUE``.
    :param resolution: length of an interval in seconds: 900, 1800 or 3600.
    :param start: ISO 8601 with an offset; optional if the task starts in the triggerer, which derives it from the run.
    :param end: the same.
    :param default_interval: length in seconds of the window of such a run, if it has no data interval.
    :param min_completeness: share of all expected intervals that is enough, above 0 and up to 1.
    :param settle: seconds to wait after the window's end, 0 or more.
    :param poke_interval: seconds between two pokes, 0 or more.
    :param exponential_backoff: double the time between two pokes after each poke.
    :param max_wait: the longest time between two pokes in seconds; default: no limit.
    :param silent_fail: log an error that a later poke may not meet and poke again, instead of failing.
    :param deadline: when to stop waiting; ISO 8601 with an offset; default: never.
    :param progress: results of earlier pokes, see :meth:`~airflow_provider_stem.streams.watch.Watch.progress`.
    :param max_workers: how many sites to request at a time, 1 or more.
    :param stem_conn_id: connection of type ``stem``.
    :raises StemConfigError: an argument is wrong.
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
        self.stream_types = list(parse_stream_types(stream_types))
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

    def check(self, *, sites: object, **arguments: Any) -> None:  # noqa: ARG002
        """Validate all arguments but ``sites``: there can be thousands, and this runs in the event loop."""
        check_trigger_arguments(type(self), **arguments)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, as JSON types."""
        names = inspect.signature(type(self)).parameters
        return "airflow_provider_stem.triggers.StemStreamsTrigger", {name: getattr(self, name) for name in names}

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """
        Render the arguments and resolve the run's window, if the task starts in the triggerer.

        The triggerer also calls this for a task with ``start_from_trigger`` that a worker deferred. Then the worker has
        already rendered the arguments, and they may contain text from the API, which must not be rendered.
        """
        if self.deadline is not None:  # only a worker sets one
            return
        super().render_template_fields(context, jinja_env)
        try:
            start, end = self._resolve_wall_time(context)
        except StemError as exc:
            self._unresolved = exc  # run() reports it; raised here, the log would only have "Trigger failure"
        else:
            self.start, self.end = iso(start), iso(end)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event with the outcome, as JSON types."""
        try:
            outcome = await self._wait()
        except StemError as exc:
            args = [self._redact(arg) if isinstance(arg, str) else arg for arg in exc.args]
            outcome = {"status": "error", "error": type(exc).__name__, "args": args}
        except AirflowNotFoundException as exc:
            outcome = {"status": "error", "error": "StemConfigError", "args": [missing_connection(exc)]}
        except Exception as exc:
            self.log.exception("Unexpected error while waiting for streams")
            message = self._redact(f"{type(exc).__name__}: {exc}")
            outcome = {"status": "error", "error": "StemError", "args": [message]}
        yield TriggerEvent(outcome)  # type: ignore[no-untyped-call]

    def _resolve_wall_time(self, context: Context) -> tuple[datetime, datetime]:
        run_type = context["dag_run"].run_type
        by_assets = getattr(run_type, "value", run_type) == "asset_triggered"
        interval = None if self.default_interval is None or by_assets else timedelta(seconds=self.default_interval)
        try:
            return wall_time_of_run(context, start=self.start, end=self.end, default_interval=interval)
        except StemConfigError:
            if not by_assets:
                raise
            raise StemConfigError(
                "start_from_trigger is True, but assets triggered this run, and the triggerer cannot read their "
                "events. Leave it out, or set start and end."
            ) from None

    async def _wait(self) -> dict[str, Any]:
        if self._unresolved is not None:
            raise self._unresolved
        watch = await in_thread(self._new_watch)
        if not watch.window.intervals:
            return {"status": "empty"}
        ready = watch.ready(timedelta(seconds=self.settle))
        deadline = parse_instant("deadline", self.deadline) if self.deadline else None
        while True:
            wake = max(_now() + self._pause_after(watch.pokes), ready)
            await _sleep_until(wake if deadline is None else min(wake, deadline))
            if _now() >= ready:
                if await self._poke(watch, deadline) and watch.is_complete(self.min_completeness):
                    return {"status": "complete", "report": watch.report()}
                self.log.info("%s, next poke in %s", describe_report(watch.report()), self._pause_after(watch.pokes))
            if deadline is not None and (watch.is_out_of_turns or _now() >= deadline):
                return {"status": "timeout", "missing": self._redact(watch.describe_missing())}

    def _new_watch(self) -> Watch:
        # Imported here, in a thread: importing pyarrow is slow.
        from airflow_provider_stem.streams.watch import Watch

        check_templated(stem_conn_id=self.stem_conn_id)
        window = Window.covering(parse_instant("start", self.start), parse_instant("end", self.end), self.resolution)
        return Watch(read_sites(self.sites), self.stream_types, window, self.progress)

    def _pause_after(self, pokes: int) -> timedelta:
        if not pokes:
            return timedelta()
        seconds = self.poke_interval * (2 ** min(pokes - 1, 20) if self.exponential_backoff else 1)
        return timedelta(seconds=seconds if self.max_wait is None else min(seconds, self.max_wait))

    async def _poke(self, watch: Watch, deadline: datetime | None) -> bool:
        """Return whether no site failed."""
        try:
            await self._request_missing(watch, deadline)
        except StemError as exc:
            if not self.silent_fail or isinstance(exc, FINAL_ERRORS):
                raise
            self.log.error("%s", exc)  # noqa: TRY400 - the message is complete
            return False
        return True

    async def _request_missing(self, watch: Watch, deadline: datetime | None) -> None:
        from airflow_provider_stem.streams.watch import limit_turns

        async with open_source(self.stem_conn_id) as source:
            self._redact = source.client.redact
            if deadline is not None:
                limit_turns(source.client, deadline - _now())
            await request_each(watch.begin_poke(), self.max_workers, partial(watch.poke_site, source))


async def _sleep_until(moment: datetime) -> None:
    while (left := (moment - _now()).total_seconds()) > 0:
        await asyncio.sleep(left)


def _now() -> datetime:
    return datetime.now(UTC)
