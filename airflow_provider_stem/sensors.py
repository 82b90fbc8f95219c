"""Sensors: wait until a window's streams are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from airflow_provider_stem._arguments import check_templated, checked
from airflow_provider_stem._mapping import MappedOverSites
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.windows import Window, check_stream_types, iso
from airflow_provider_stem.triggers import StemStreamsTrigger, describe

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from airflow_provider_stem.streams.records import WatchReport
    from airflow_provider_stem.streams.watch import Watch

__all__ = ["StemStreamsSensor"]

_PROGRESS_KEY = "stem_streams_progress"
_TRIGGER_FAILED = "__fail__"
"""What Airflow resumes with in place of a method, where a trigger failed or took too long."""
_GRACE = timedelta(minutes=1)
_EMPTY = "No interval of {} s ends within this run's window: nothing to wait for."


class StemStreamsSensor(MappedOverSites, BaseSensorOperator):
    """
    Wait until the streams of the run's window are there, for every site and type that has them.

    The window is the one that :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` reads with the same
    arguments. Nothing is asked for before the window is over and has settled, and then only what is still missing.
    ``poke_interval``, ``timeout``, ``soft_fail`` and the other arguments of sensors mean the same in each mode;
    ``soft_fail`` is for what does not come in time: a wrong key or argument fails the task, at once.

    :param sites: a site id, a record of :class:`~airflow_provider_stem.operators.StemSiteListOperator`, or a list of
        either.
    :param stream_types: any of ``MONITOR``, ``CONVERTER``, ``INTERVAL_REVENUE``.
    :param resolution: seconds: 900, 1800 or 3600.
    :param start: aware datetime or ISO 8601 string with an offset; default: the run's data interval.
    :param end: likewise; may lie in the future.
    :param default_interval: for runs that have no interval of their own: up to when the run is due.
    :param min_completeness: which share of all the intervals expected of all sites is enough, up to 1.
    :param settle: how long after the window's end to begin, since the last values come late or are restated.
    :param batch: a name for the sites, as ``StemSiteListOperator(batches=...)`` gives it; for Airflow's UI.
    :param deferrable: wait in the triggerer; default: ``[operators] default_deferrable``.
    :param start_from_trigger: begin in the triggerer, without a worker (Airflow 3.3; sites must be known when the DAG
        is parsed).
    :param max_workers: how many sites are asked for at a time; default: ``[stem] max_workers``, else 8.
    :param stem_conn_id: connection of type ``stem``.
    :return: window, sites, expected and missing intervals.
    """

    template_fields: Sequence[str] = ("sites", "start", "end", "batch", "stem_conn_id")
    template_fields_renderers = {"sites": "json"}  # noqa: RUF012 - the base class's own way

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
        self.stream_types = check_stream_types(stream_types)
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
        if start_from_trigger:
            self._begin_in_triggerer(sites, start, end)

    def execute(self, context: Context) -> Any:
        """Wait, here or in the triggerer."""
        with self._final_errors():
            if not self.deferrable:
                return super().execute(context)
            deadline = datetime.now(UTC) + timedelta(seconds=self.timeout)
            try:
                done = self.poke(context)
            except StemError as exc:
                if not self.silent_fail:
                    raise
                self.log.error("%s", exc)  # noqa: TRY400 - it is told whole
            else:
                if done.is_done:
                    return done.xcom_value
            watch = self._watch_of(context)
            raise TaskDeferred(
                trigger=StemStreamsTrigger(
                    sites=watch.records(),
                    start=iso(watch.window.start),
                    end=iso(watch.window.end),
                    deadline=deadline.isoformat(),
                    progress=watch.progress() if watch.looks else None,
                    **self._trigger_arguments(),
                ),
                method_name="execute_complete",
                # The trigger keeps the time itself; this is for a triggerer that is not there.
                timeout=timedelta(seconds=self.timeout) + _GRACE,
            )

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Ask for what is still missing, once the window is over and has settled.

        :raises StemError: what may pass, see :mod:`airflow_provider_stem.errors`.
        :raises AirflowFailException: what no further look can help.
        """
        # Already here, since the base class looks again after others where silent_fail is set.
        with final_errors(self.stem_conn_id):
            return self._poke(context)

    def _poke(self, context: Context) -> PokeReturnValue:
        watch = self._watch_of(context)
        ready = watch.ready(self.settle or timedelta())
        if datetime.now(UTC) < ready:
            self.log.info("Nothing is asked for before %s: %s has to be over and settled", iso(ready), watch.window)
            return PokeReturnValue(is_done=False)
        with StemHook(self.stem_conn_id).get_conn() as client:
            try:
                watch.look(client, self.max_workers)
            finally:
                self._keep(context, watch)
        self.log.info("%s: %s", watch.window, describe(watch.report()))
        return PokeReturnValue(watch.is_complete(self.min_completeness), xcom_value=watch.report())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> WatchReport:  # noqa: ARG002
        """
        Go on with what the trigger found.

        :raises StemError: what kept it from asking.
        """
        match event:
            case {"status": "complete", "report": dict(report)}:
                self.log.info("%s", describe(cast("WatchReport", report)))
                return cast("WatchReport", report)
            case {"status": "timeout", "report": dict(report)}:
                raise AirflowSensorTimeout(
                    f"Not there within {self.timeout:g} s: {describe(cast('WatchReport', report))}."
                )
            case {"status": "overdue"}:
                raise AirflowSensorTimeout("Airflow ended the wait: timeout or execution_timeout is over.")
            case {"status": "empty"}:
                raise AirflowSkipException(_EMPTY.format(self.resolution))
            case {"status": "error", "error": str(name), "args": list(args)} if name in errors.__all__:
                with suppress(TypeError):  # the arguments of another version
                    raise getattr(errors, name)(*args)
        raise StemError(f"The trigger told {event!r}, which this version does not know: update all components alike.")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the triggerer; errors end as they do without it, in each Airflow."""
        if next_method == _TRIGGER_FAILED:
            next_method, next_kwargs = "execute_complete", {"event": self._event_of_failure(next_kwargs or {})}
        with self._final_errors():
            return super().resume_execution(next_method, next_kwargs, context)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Begin a mapped task."""
        if kwargs.get("start_from_trigger") is True:
            raise StemConfigError("start_from_trigger is True: mapped tasks begin in a worker, so leave it out.")
        return super().partial(**kwargs)

    @contextmanager
    def _final_errors(self) -> Iterator[None]:
        try:
            with final_errors(self.stem_conn_id):
                yield
        except AirflowSkipException as exc:
            # The base class makes a skip of every exception of Airflow's under soft_fail, which is for time-outs.
            if self.soft_fail and isinstance(exc.__cause__, AirflowFailException):
                raise exc.__cause__ from exc.__cause__.__cause__
            raise
        except (StemError, AirflowFailException, AirflowSensorTimeout) as exc:
            if self.never_fail:
                raise AirflowSkipException(f"Skipped, since never_fail is set: {exc}") from exc
            raise

    def _event_of_failure(self, told: Mapping[str, Any]) -> dict[str, Any]:
        if told.get("traceback"):
            self.log.error("Trigger failed:\n%s", "\n".join(told["traceback"]))
        if "timeout" in str(told.get("error")).lower():
            return {"status": "overdue"}
        message = f"The triggerer could not wait: {told.get('error', 'it does not say why')}."
        return {"status": "error", "error": StemError.__name__, "args": [message]}

    def _watch_of(self, context: Context) -> Watch:
        from airflow_provider_stem.streams.watch import Watch

        check_templated(batch=self.batch, stem_conn_id=self.stem_conn_id)
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

    def _keep(self, context: Context, watch: Watch) -> None:
        store = self._progress_store(context)
        if store is not None and watch.is_complete(self.min_completeness):
            store.delete(_PROGRESS_KEY)  # who clears the task later wants to have it looked at anew
        elif store is not None:
            store.set(_PROGRESS_KEY, watch.progress())
        elif self.reschedule:
            self.log.info(
                "Before Airflow 3.3 nothing can be kept between the pokes of mode='reschedule': the next one asks "
                "for every site again. deferrable=True asks only for what is missing."
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

    def _begin_in_triggerer(self, sites: Any, start: Any, end: Any) -> None:
        if not hasattr(BaseTrigger, "render_template_fields"):
            raise StemConfigError(
                "start_from_trigger is True, which needs Airflow 3.3: leave it out, and set deferrable=True to wait in "
                "the triggerer after a start in a worker."
            )
        listed = [sites] if isinstance(sites, (str, Mapping)) else sites
        known = {
            "sites": isinstance(listed, (list, tuple)) and all(isinstance(site, (str, Mapping)) for site in listed),
            "start": isinstance(start, (str, datetime, NoneType)),
            "end": isinstance(end, (str, datetime, NoneType)),
        }
        for argument in [name for name, is_known in known.items() if not is_known]:
            raise StemConfigError(
                f"start_from_trigger is True, but {argument} is known only when the DAG runs: name it, or leave "
                "start_from_trigger out."
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
