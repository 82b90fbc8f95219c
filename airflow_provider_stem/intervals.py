"""The wall time that a DAG run must read, from whatever kind of run it is; for operators and sensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_stem._schedules import CronSchedule, in_utc
from airflow_provider_stem.assets import event_extras
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import parse_instant

WallTime = tuple[datetime, datetime]
"""Start and end in UTC, not yet on a grid."""


def wall_time_of_run(
    context: Mapping[str, Any],
    *,
    start: datetime | str | None = None,
    end: datetime | str | None = None,
    default_interval: timedelta | None = None,
) -> WallTime:
    """
    Return what a run must read: the first that there is of these.

    1. ``start`` and ``end`` as given; where only one is, the other comes from the rules below;
    2. the run's data interval, if it has a width (on Airflow 3 a plain cron or timedelta schedule has none);
    3. the run's partition: a key of the form ``start/end``, else its date and ``default_interval`` from there;
    4. the ``window`` in the extras of the asset events that triggered the run: earliest start to latest end;
    5. ``default_interval`` that ends at the data interval's end, else at the run's ``run_after``.

    An interval that is as long as the DAG's cron schedule is apart reaches from run to run, also where a day has 23 or
    25 hours; see :class:`~airflow_provider_stem._schedules.CronSchedule`.

    :raises StemConfigError: there is none of them, a bound is invalid, or an interval does not fit the schedule.
    """
    given_start = None if start is None else parse_instant("start", start)
    given_end = None if end is None else parse_instant("end", end)
    if given_start and given_end:
        return given_start, given_end
    run_start, run_end = (
        _data_interval(context)
        or _partition(context, default_interval)
        or _triggering_windows(context)
        or _default(context, default_interval)
    )
    return given_start or run_start, given_end or run_end


def is_partitioned(context: Mapping[str, Any]) -> bool:
    """Tell whether the run itself has a partition key."""
    return bool(_partition_key(context))


def _data_interval(context: Mapping[str, Any]) -> WallTime | None:
    run_type = getattr(context.get("dag_run"), "run_type", None)
    if getattr(run_type, "value", run_type) == "dataset_triggered":
        return None  # Airflow 2 makes one up for such a run, from when its producers ran
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is None or end is None:
        return None
    # In UTC: two times of one zone are compared by the clock on the wall, which goes back once a year.
    start, end = in_utc(start), in_utc(end)
    if start >= end:
        return None
    schedule = CronSchedule.of_run(context)
    # Airflow takes the interval of CronTriggerTimetable off in UTC, whatever the clock does meanwhile.
    if schedule and schedule.data_interval and end - schedule.data_interval == start:
        start = schedule.start_of("CronTriggerTimetable(interval)", end, start, schedule.data_interval)
    return start, end


def _partition_key(context: Mapping[str, Any]) -> str | None:
    return context.get("partition_key") or getattr(context.get("dag_run"), "partition_key", None)


def _partition(context: Mapping[str, Any], default_interval: timedelta | None) -> WallTime | None:
    key = _partition_key(context)
    start, separator, end = (key or "").partition("/")
    if separator:
        try:
            return parse_instant("partition key", start), parse_instant("partition key", end)
        except StemConfigError:
            pass  # A key of another form, such as region/plant: the run's date is left.
    date = context.get("partition_date") or getattr(context.get("dag_run"), "partition_date", None)
    if key and "partition_date" not in context:
        date = date or _date_in_key(context, key)
    if date is None or default_interval is None:
        return None
    begin = in_utc(date)
    schedule, until = CronSchedule.of_run(context), begin + default_interval
    return begin, schedule.end_of("default_interval", begin, until, default_interval) if schedule else until


def _date_in_key(context: Mapping[str, Any], key: str) -> datetime | None:
    """Read what CronPartitionTimetable wrote on Airflow 3.2, which keeps the date to itself: it is in UTC."""
    key_format = getattr(getattr(context.get("dag"), "timetable", None), "key_format", None)
    try:
        return datetime.strptime(key, key_format).replace(tzinfo=UTC) if key_format else None
    except ValueError:
        return None


def _triggering_windows(context: Mapping[str, Any]) -> WallTime | None:
    windows = list(_event_windows(context))
    if not windows:
        return None
    return min(start for start, _ in windows), max(end for _, end in windows)


def _event_windows(context: Mapping[str, Any]) -> Iterator[WallTime]:
    for extra in event_extras(context):
        window = extra.get("window")
        if isinstance(window, Mapping) and "start" in window and "end" in window:
            yield (
                parse_instant("window.start of a triggering asset event", window["start"]),
                parse_instant("window.end of a triggering asset event", window["end"]),
            )


def _default(context: Mapping[str, Any], default_interval: timedelta | None) -> WallTime:
    end = context.get("data_interval_end") or getattr(context.get("dag_run"), "run_after", None)
    if default_interval is None or end is None:
        raise StemConfigError(
            "There is no window to read. Schedule the DAG with CronDataIntervalTimetable, or set default_interval, or "
            "start and end. (On Airflow 3 a run of a plain cron or timedelta schedule has no data interval.)"
        )
    end = in_utc(end)
    schedule, start = CronSchedule.of_run(context), end - default_interval
    return schedule.start_of("default_interval", end, start, default_interval) if schedule else start, end
