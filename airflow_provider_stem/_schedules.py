"""Run times of a DAG's cron schedule, in the DAG's time zone; for the window of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from typing import Any, Literal

from airflow_provider_stem.errors import StemConfigError

_FIRST = datetime(2000, 1, 1, tzinfo=UTC)
_LAST = datetime(2030, 1, 1, tzinfo=UTC)
_SAMPLES = 800
_MARGIN = timedelta(hours=6)  # more than any change of a clock


class CronSchedule:
    """
    The run times of a cron schedule: fixed wall-clock times in a zone whose days may have 23 or 25 hours.

    A window that starts a fixed time before a run would leave out an hour each autumn and overlap by one each spring.
    If the runs are one interval apart by the wall clock, the window reaches from one run to the next instead.

    :param expressions: cron expressions; a run is due whenever one of them matches.
    :param timezone: time zone of the expressions.
    :param data_interval: argument ``interval`` of ``CronTriggerTimetable``, if any.
    """

    def __init__(self, expressions: tuple[str, ...], timezone: Any, data_interval: Any) -> None:
        self._expressions = expressions
        self._timezone = timezone
        self.data_interval = data_interval

    @classmethod
    def of_run(cls, context: Mapping[str, Any]) -> CronSchedule | None:
        """Return the schedule of the run's DAG, or ``None`` if it is not made of cron expressions."""
        timetable = getattr(context.get("dag"), "timetable", None)
        timetable = getattr(timetable, "timetable", timetable)  # of AssetOrTimeSchedule
        crons = _attribute(timetable, "timetables") or [timetable]
        expressions = tuple(_attribute(cron, "expression") for cron in crons)
        if not all(isinstance(expression, str) for expression in expressions):
            return None
        return cls(expressions, _attribute(crons[0], "timezone"), _attribute(crons[0], "interval"))

    def start_of(self, argument: str, end: datetime, start: datetime, interval: Any) -> datetime:
        """
        Return the start of the window that ends at ``end``.

        :param argument: name of the argument that set the interval, for the message.
        :param start: one interval before ``end``, in UTC; returned if ``end`` is not a run time of the schedule.
        :param interval: ``timedelta`` or ``relativedelta``.
        :raises StemConfigError: some windows of this interval would overlap, and others would leave time out.
        """
        before, is_run, _ = self._around(end)
        if not is_run:
            return start
        return {"meets": before, "covers": min(start, before), "samples": max(start, before)}[
            self._fit(argument, interval)
        ]

    def end_of(self, argument: str, start: datetime, end: datetime, interval: Any) -> datetime:
        """Return the end of the window that begins at ``start``; the reverse of :meth:`start_of`."""
        _, is_run, after = self._around(start)
        if not is_run:
            return end
        return {"meets": after, "covers": max(end, after), "samples": min(end, after)}[self._fit(argument, interval)]

    def _around(self, moment: datetime) -> tuple[datetime, bool, datetime]:
        """Return the run before a moment, whether the moment is itself a run, and the run after it."""
        reach = 2 * max((run - before for before, run in _pairs(self._expressions)), default=_LAST - _FIRST) + _MARGIN
        runs = _runs(self._expressions, self._timezone, moment - reach)
        before = run = next(runs)
        while run < moment:
            before, run = run, next(runs)
        is_run = run == moment
        return before, is_run, next(runs) if is_run else run

    def _fit(self, argument: str, interval: Any) -> str:
        fit = _fit(self._expressions, interval)
        if fit is None:
            raise StemConfigError(
                f"{argument}={interval!r} does not fit the schedule {' and '.join(map(repr, self._expressions))}. "
                "Schedule the DAG with CronDataIntervalTimetable, or set start and end. The time between two runs "
                "varies, so some of it would be read twice or never."
            )
        return fit


@lru_cache
def _fit(expressions: tuple[str, ...], interval: Any) -> Literal["meets", "covers", "samples"] | None:
    """Compare an interval with the time between runs: always equal, longer or shorter, or neither."""
    starts_later = {(run - interval > before) - (run - interval < before) for before, run in _pairs(expressions)}
    if starts_later == {0}:
        return "meets"
    if starts_later == {-1}:
        return "covers"
    return "samples" if starts_later == {1} else None


def _attribute(timetable: Any, name: str) -> Any:
    # Private in Airflow's core timetables, public in those of its SDK (3.2 or later).
    return getattr(timetable, f"_{name}", None) or getattr(timetable, name, None)


@lru_cache
def _pairs(expressions: tuple[str, ...]) -> list[tuple[datetime, datetime]]:
    """Return pairs of consecutive runs, as if the clock never changed."""
    runs = _runs(expressions, "UTC", _FIRST)
    return list(pairwise(takewhile(lambda run: run < _LAST, islice(runs, _SAMPLES))))


def _runs(expressions: tuple[str, ...], timezone: Any, after: datetime) -> Iterator[datetime]:
    """Iterate over the runs after a moment, in UTC, as Airflow schedules them."""
    import pendulum
    from airflow.timetables.base import DataInterval, TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    timetables = [CronTriggerTimetable(expression, timezone=timezone) for expression in expressions]
    restriction = TimeRestriction(earliest=None, latest=None, catchup=True)
    while True:
        last = DataInterval.exact(pendulum.from_timestamp(after.timestamp()))
        infos = [
            timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
            for timetable in timetables
        ]
        after = in_utc(min(info.run_after for info in infos if info is not None))
        yield after


def in_utc(moment: datetime) -> datetime:
    """Return a moment as a plain ``datetime`` in UTC. With Python's UTC, pendulum's arithmetic returns naive times."""
    return datetime.fromisoformat(moment.astimezone(UTC).isoformat())
