"""Sensor that waits until the streams of a window are available."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    TaskDeferred,
    conf,
)
from airflow.triggers.base import BaseTrigger, StartTriggerArgs

from airflow_provider_stem import errors
from airflow_provider_stem._arguments import checked
from airflow_provider_stem._mapping import MappedOverSites
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.streams.records import describe_report
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import Window, iso
from airflow_provider_stem.triggers import StemStreamsTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_provider_stem.streams.records import WatchReport
    from airflow_provider_stem.streams.watch import Watch

__all__ = ["StemStreamsSensor"]

_PROGRESS_KEY = "stem_streams_progress"
_TRIGGER_FAILED = "__fail__"
"""What Airflow passes as the next method if a trigger failed or timed out."""
_EMPTY = "No interval of {} s ends within this run's window: nothing to wait for."


class StemStreamsSensor(MappedOverSites, BaseSensorOperator):
    """
    Wait until the streams of the run's window are available, for every site and each type that it has.

    The window is the one that :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` reads with the same
    arguments. No request is sent before the window has ended and ``settle`` has passed. After that each poke requests
    only what is still missing. ``poke_interval``, ``timeout``, ``soft_fail`` and the other arguments of sensors mean
    the same in each mode. ``soft_fail`` applies to time-outs only: a wrong key or argument fails the task at once.

    :param sites: a site id, a record of :class:`~airflow_provider_stem.operators.StemSiteListOperator`, or a list of
        either.
    :param stream_types: any of ``MONITOR``, ``CONVERTER`` and ``INTERVAL_REVENUE``.
    :param resolution: length of an interval in seconds: 900, 1800 or 3600.
    :param start: aware datetime or ISO 8601 string with an offset; default: start of the run's data interval.
    :param end: the same, may be in the future; default: end of the run's data interval.
    :param default_interval: length of the window of a run without a data interval. It begins at the date of the run's
        partition, or, without one, ends when the run is due.
    :param min_completeness: share of the intervals expected of all sites that is enough, above 0 and up to 1.
    :param settle: how long to wait after the window's end, because the last values arrive late or are restated.
    :param batch: name of the sites in Airflow's UI, such as the one that ``StemSiteListOperator(batches=...)`` sets.
    :param deferrable: wait in the triggerer; default: ``[operators] default_deferrable``.
    :param start_from_trigger: start in the triggerer, without a worker (Airflow 3.3). ``sites`` must be known when the
        DAG is parsed.
    :param max_workers: how many sites to request at a time, 1 or more; default: ``[stem] max_workers``, else 8.
    :param stem_conn_id: connection of type ``stem``.
    :return: ``{"window": {"start", "end", "resolution"}, "sites", "expected", "missing", "incomplete_sites"}``; times
        are ISO 8601, UTC, ``expected`` and ``missing`` are numbers of intervals.
    :raises StemConfigError: an argument is wrong.
    """

    template_fields: Sequence[str] = ("sites", "start", "end", "batch", "stem_conn_id")
    template_fields_renderers = {"sites": "json"}  # noqa: RUF012 - declared so by the base class

    @checked
    def __init__(
        self,
        *,
        sites: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        default_interval: timedelta | None = None,
        min_completeness: float = 1.0,
        settle: timedelta | None = None,
        batch: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        max_workers: int = conf.getint("stem", "max_workers", fallback=8),
        stem_conn_id: str = StemHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.stream_types = parse_stream_types(stream_types)
        self.resolution = resolution
        self.start = start
        self.end = end
        self.default_interval = default_interval
        self.min_completeness = min_completeness
        self.settle = settle
        self.batch = batch
        self.deferrable = deferrable
        self.max_workers = max_workers
        self.stem_conn_id = stem_conn_id
        self._watch: Watch | None = None
        self._started: datetime | None = None  # until it is executed
        self._redact: Callable[[str], str] = str  # until the connection is read
        if start_from_trigger:
            self._start_in_triggerer(sites, start, end)

    def execute(self, context: Context) -> Any:
        """
        Wait in this worker, or defer to the triggerer.

        :raises AirflowFailException: an argument, the connection or the API key is wrong.
        :raises AirflowSensorTimeout: the streams are not available within ``timeout``.
        :raises AirflowSkipException: no interval ends within the window.
        :raises StemError: any other error of the API; a retry may help.
        """
        from airflow_provider_stem.streams.watch import GRACE

        with self._with_flags():
            self._started = datetime.now(UTC)
            if not self.deferrable:
                return self._wait_in_worker(context)
            deadline = self._started + timedelta(seconds=self.timeout)
            try:
                done = self.poke(context)
            except StemError:
                if not self.silent_fail:
                    raise
            else:
                if done.is_done:
                    return done.xcom_value
            watch = self._get_watch(context)
            if datetime.now(UTC) > deadline:  # as in the other modes, after one poke
                raise AirflowSensorTimeout(self._timeout_message(self._redact(watch.describe_missing())))
            raise TaskDeferred(
                trigger=StemStreamsTrigger(
                    sites=watch.records(),
                    start=iso(watch.window.start),
                    end=iso(watch.window.end),
                    deadline=deadline.isoformat(),
                    progress=watch.progress() if watch.pokes else None,
                    **self._trigger_arguments(),
                ),
                method_name="execute_complete",
                # The trigger checks the deadline itself. This one applies where no triggerer runs, and is later than a
                # last poke needs.
                timeout=timedelta(seconds=self.timeout) + 2 * GRACE,
            )

    def _wait_in_worker(self, context: Context) -> Any:
        first = getattr(context.get("ti"), "get_first_reschedule_date", None)  # Airflow 2 has it in its database only
        if self.reschedule and first is not None:
            self._started = first(context) or self._started
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException) as exc:
            # The base class's messages have only the time that the sensor waited.
            if self._watch is None or not isinstance(exc.__cause__, (NoneType, AirflowSensorTimeout)):
                raise
            raise type(exc)(self._timeout_message(self._redact(self._watch.describe_missing()))) from None

    def _timeout_message(self, missing: str) -> str:
        return f"Not available within {self.timeout:g} s: {missing}."

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Request what is still missing, if the window has ended and ``settle`` has passed.

        :raises StemError: another poke may help, see :mod:`airflow_provider_stem.errors`.
        :raises AirflowFailException: another poke cannot help.
        """
        # Not only in execute: with silent_fail, the base class pokes again after any other exception.
        with final_errors(self.stem_conn_id):
            return self._poke(context)

    def _poke(self, context: Context) -> PokeReturnValue:
        watch = self._get_watch(context)
        ready = watch.ready(self.settle or timedelta())
        if datetime.now(UTC) < ready:
            self.log.info("No request before %s, when %s has ended and settle has passed", iso(ready), watch.window)
            return PokeReturnValue(is_done=False)
        from airflow_provider_stem.streams.watch import limit_turns

        with StemHook(self.stem_conn_id).get_conn() as client:
            self._redact = client.redact
            if self._started is not None:
                limit_turns(client, timedelta(seconds=self.timeout) - (datetime.now(UTC) - self._started))
            is_done = False
            try:
                watch.poke(client, self.max_workers)
                is_done = watch.is_complete(self.min_completeness)
            finally:
                self._save_progress(context, watch, is_done=is_done)
        self.log.info("%s: %s", watch.window, describe_report(watch.report()))
        if watch.is_out_of_turns and not is_done:
            raise AirflowSensorTimeout(self._timeout_message(client.redact(watch.describe_missing())))
        return PokeReturnValue(is_done, xcom_value=watch.report())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> WatchReport:  # noqa: ARG002
        """
        Return the trigger's report, or raise the trigger's error.

        :raises AirflowSensorTimeout: the streams were not available in time.
        :raises AirflowSkipException: no interval ends within the window.
        :raises StemError: the error that stopped the trigger.
        """
        match event:
            case {"status": "complete", "report": dict(report)}:
                self.log.info("%s", describe_report(cast("WatchReport", report)))
                return cast("WatchReport", report)
            case {"status": "timeout", "missing": str(missing)}:
                raise AirflowSensorTimeout(self._timeout_message(missing))
            case {"status": "overdue"}:
                raise AirflowSensorTimeout("Airflow ended the wait: timeout or execution_timeout has passed.")
            case {"status": "empty"}:
                raise AirflowSkipException(_EMPTY.format(self.resolution))
            case {"status": "error", "error": str(name), "args": list(args)} if name in errors.__all__:
                with suppress(TypeError):  # from a triggerer with another version
                    raise getattr(errors, name)(*args)
        raise StemError(f"Unknown event of the trigger: {event!r}. Install the same version in all components.")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the trigger. In every Airflow, an error ends the task as it does without a trigger."""
        if next_method == _TRIGGER_FAILED:
            next_method, next_kwargs = "execute_complete", {"event": self._failure_event(next_kwargs or {})}
        with self._with_flags(), final_errors(self.stem_conn_id):
            return super().resume_execution(next_method, next_kwargs, context)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial operator, for ``expand`` or ``expand_kwargs``."""
        if kwargs.get("start_from_trigger") is True:
            raise StemConfigError("start_from_trigger is True, but mapped tasks start in a worker. Leave it out.")
        return super().partial(**kwargs)

    @contextmanager
    def _with_flags(self) -> Iterator[None]:
        """Apply ``soft_fail`` and ``never_fail`` as documented, regardless of Airflow's base class."""
        try:
            yield
        except AirflowSkipException as exc:
            # With soft_fail, the base class turns each of Airflow's exceptions into a skip. Only time-outs may skip.
            if self.soft_fail and isinstance(exc.__cause__, AirflowFailException):
                raise exc.__cause__ from exc.__cause__.__cause__
            if isinstance(exc.__cause__, AirflowSensorTimeout):
                # The base class's message says only which flag is set.
                raise AirflowSkipException(str(exc.__cause__)) from None
            raise
        except (StemError, AirflowFailException, AirflowSensorTimeout) as exc:
            if self.never_fail:
                raise AirflowSkipException(f"Skipped because never_fail is set: {exc}") from exc
            if self.soft_fail and isinstance(exc, AirflowSensorTimeout):
                raise AirflowSkipException(str(exc)) from None
            raise

    def _failure_event(self, failure: Mapping[str, Any]) -> dict[str, Any]:
        if failure.get("traceback"):
            self.log.error("Trigger failed:\n%s", "\n".join(failure["traceback"]))
        if "timeout" in str(failure.get("error")).lower():
            return {"status": "overdue"}
        message = f"The trigger failed: {failure.get('error', 'no error was reported')}. See the triggerer's log."
        return {"status": "error", "error": StemError.__name__, "args": [message]}

    def _get_watch(self, context: Context) -> Watch:
        from airflow_provider_stem.streams.watch import Watch

        self._check_rendered()
        window = Window.covering(
            *wall_time_of_run(context, start=self.start, end=self.end, default_interval=self.default_interval),
            self.resolution,
        )
        if not window.intervals:
            raise AirflowSkipException(_EMPTY.format(self.resolution))
        if self._watch is None or self._watch.window != window:
            store = self._progress_store(context)
            progress = None if store is None else store.get(_PROGRESS_KEY)
            self._watch = Watch(read_sites(self.sites), self.stream_types, window, progress)
        return self._watch

    def _save_progress(self, context: Context, watch: Watch, *, is_done: bool) -> None:
        store = self._progress_store(context)
        if store is not None and is_done:
            store.delete(_PROGRESS_KEY)  # so a task that is cleared later starts from the beginning
        elif store is not None:
            store.set(_PROGRESS_KEY, watch.progress())
        elif self.reschedule:
            self.log.info(
                "Before Airflow 3.3, mode='reschedule' keeps nothing between pokes, so the next poke requests every "
                "site again. Set deferrable=True to request only what is missing."
            )

    def _progress_store(self, context: Context) -> Any:
        return context.get("task_state_store") if self.reschedule and not self.deferrable else None

    def _trigger_arguments(self) -> dict[str, Any]:
        return {
            "stream_types": list(self.stream_types),
            "resolution": self.resolution,
            "min_completeness": self.min_completeness,
            "settle": (self.settle or timedelta()).total_seconds(),
            "poke_interval": self.poke_interval,
            "exponential_backoff": bool(self.exponential_backoff),
            "max_wait": self.max_wait.total_seconds() if self.max_wait else None,
            "silent_fail": bool(self.silent_fail),
            "max_workers": self.max_workers,
            "stem_conn_id": self.stem_conn_id,
        }

    def _start_in_triggerer(self, sites: Any, start: Any, end: Any) -> None:
        if not hasattr(BaseTrigger, "render_template_fields"):
            raise StemConfigError(
                "start_from_trigger=True needs Airflow 3.3 or later. Leave it out, and set deferrable=True to start in "
                "a worker and wait in the triggerer."
            )
        listed = [sites] if isinstance(sites, (str, Mapping)) else sites
        known = {
            "sites": isinstance(listed, (list, tuple)) and all(isinstance(site, (str, Mapping)) for site in listed),
            "start": isinstance(start, (str, datetime, NoneType)),
            "end": isinstance(end, (str, datetime, NoneType)),
        }
        unknown = [argument for argument, is_known in known.items() if not is_known]
        if unknown:
            raise StemConfigError(
                f"start_from_trigger is True, but {unknown[0]} is known only when the DAG runs. Set {unknown[0]} to a "
                "literal value, or leave start_from_trigger out."
            )
        self.deferrable = self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=f"{StemStreamsTrigger.__module__}.{StemStreamsTrigger.__qualname__}",
            trigger_kwargs={
                "sites": sites,
                "start": start.isoformat() if isinstance(start, datetime) else start,
                "end": end.isoformat() if isinstance(end, datetime) else end,
                "default_interval": self.default_interval and self.default_interval.total_seconds(),
                **self._trigger_arguments(),
            },
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
