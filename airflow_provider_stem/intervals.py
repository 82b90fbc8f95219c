"""The wall time that a DAG run must read, for every kind of run; for operators and sensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_stem._schedules import CronSchedule, in_utc
from airflow_provider_stem.assets import event_extras
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import parse_instant

__all__ = ["is_partitioned", "wall_time_of_run"]

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
    Return the wall time that a run must read: the first of these that exists.

    1. ``start`` and ``end``; if only one is set, the other follows from the rules below;
    2. the run's data interval, unless it is empty, as for a plain cron or timedelta schedule on Airflow 3;
    3. the run's partition: a key of the form ``start/end``, else ``default_interval`` from the partition's date on;
    4. the ``window`` in the extras of the asset events that triggered the run: earliest start to latest end;
    5. ``default_interval`` up to the data interval's end, else up to the run's ``run_after``.

    An interval that is as long as the time between two runs of the DAG's cron schedule reaches from run to run, also
    on days of 23 or 25 hours.

    :param context: context of a task in the run.
    :param start: aware datetime or ISO 8601 string with an offset.
    :param end: the same.
    :param default_interval: length of the window of a run without a data interval.
    :return: start and end, in UTC, not aligned to a grid.
    :raises StemConfigError: none of these exists, a bound is invalid, or an interval does not fit the schedule.
    """
    set_start = None if start is None else parse_instant("start", start)
    set_end = None if end is None else parse_instant("end", end)
    if set_start and set_end:
        return set_start, set_end
    run_start, run_end = (
        _data_interval(context)
        or _partition(context, default_interval)
        or _triggering_windows(context)
        or _default(context, default_interval)
    )
    return set_start or run_start, set_end or run_end


def is_partitioned(context: Mapping[str, Any]) -> bool:
    """
    Return whether the run has a partition key.

    :param context: Airflow's context of the task.
    """
    return bool(_partition_key(context))


def _data_interval(context: Mapping[str, Any]) -> WallTime | None:
    if getattr(context.get("dag_run"), "run_type", None) == "dataset_triggered":
        return None  # Airflow 2 invents one for such a run, from the times of its producers
    start, end = _instant(context, "data_interval_start"), _instant(context, "data_interval_end")
    if start is None or end is None or start >= end:
        return None
    schedule = CronSchedule.of_run(context)
    # Airflow subtracts the interval of CronTriggerTimetable in UTC, even if the clock changes in between.
    if schedule and schedule.data_interval and end - schedule.data_interval == start:
        start = schedule.start_of("CronTriggerTimetable(interval)", end, start, schedule.data_interval)
    return start, end


def _instant(context: Mapping[str, Any], name: str) -> datetime | None:
    """
    Return a time of the run in UTC, from the context or else from its ``dag_run``.

    In UTC, because Python compares two times of one zone by their wall clock, which is set back once a year.
    """
    value, of_run = context.get(name), getattr(context.get("dag_run"), name, None)
    if value is None and isinstance(of_run, datetime):  # a mock has every attribute
        value = of_run
    return None if value is None else in_utc(parse_instant(name, value))


def _partition_key(context: Mapping[str, Any]) -> str | None:
    key = context.get("partition_key") or getattr(context.get("dag_run"), "partition_key", None)
    return key if isinstance(key, str) else None


def _partition(context: Mapping[str, Any], default_interval: timedelta | None) -> WallTime | None:
    key = _partition_key(context)
    if key and "/" in key:
        start, end = key.split("/", 1)
        try:
            return parse_instant("partition key", start), parse_instant("partition key", end)
        except StemConfigError:
            pass  # A key of another form, such as region/plant. The run's date remains.
    date = _instant(context, "partition_date")
    if key and "partition_date" not in context:
        date = date or _date_in_key(context, key)
    if date is None or default_interval is None:
        return None
    schedule, until = CronSchedule.of_run(context), date + default_interval
    return date, schedule.end_of("default_interval", date, until, default_interval) if schedule else until


def _date_in_key(context: Mapping[str, Any], key: str) -> datetime | None:
    """Parse the key of CronPartitionTimetable on Airflow 3.2, which does not expose the date. It is in UTC."""
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
    end = _instant(context, "data_interval_end") or _instant(context, "run_after")
    if default_interval is None or end is None:
        raise StemConfigError(
            "There is no window to read. Schedule the DAG with CronDataIntervalTimetable, or set default_interval, or "
            "start and end. (On Airflow 3 a run of a plain cron or timedelta schedule has no data interval.)"
        )
    schedule, start = CronSchedule.of_run(context), end - default_interval
    return schedule.start_of("default_interval", end, start, default_interval) if schedule else start, end
