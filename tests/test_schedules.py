"""Windows of consecutive runs of a cron schedule are adjacent, or the interval is an error; run times are Airflow's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pendulum
import pytest
from airflow.timetables import trigger
from airflow.timetables.base import DataInterval, TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable
from dateutil.relativedelta import relativedelta  # type: ignore[import-untyped]

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.streams.windows import Window
from tests.support import IS_FULL

pytestmark = pytest.mark.long

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "America/Los_Angeles",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Asia/Kolkata",
    "UTC",
]
TWO_ZONES = ["Europe/Berlin", "Australia/Lord_Howe"]
"""The clocks change by an hour, and by half an hour."""
DAY, WEEK, HOUR, QUARTER = timedelta(days=1), timedelta(days=7), timedelta(hours=1), timedelta(minutes=15)
RESTRICTION = TimeRestriction(earliest=None, latest=None, catchup=True)


def runs(timetable, first, last):
    """Return the data intervals of a timetable's runs, as the scheduler creates them."""
    interval, made = DataInterval.exact(first), []
    while interval.end < last:
        interval = timetable.next_dagrun_info(
            last_automated_data_interval=interval, restriction=RESTRICTION
        ).data_interval
        made.append(interval)
    return made


def window(timetable, interval, default_interval=None, **more):
    context = {
        "dag": SimpleNamespace(timetable=timetable),
        "data_interval_start": interval.start,
        "data_interval_end": interval.end,
        **more,
    }
    return wall_time_of_run(context, default_interval=default_interval)


def periods(every, zone):
    """Return the year, or for frequent runs the time around the zone's changes of the clocks and one other day."""
    if isinstance(every, relativedelta) or (IS_FULL and every >= DAY):
        return [(pendulum.datetime(2024, 12, 1), pendulum.datetime(2026, 2, 1))]
    days = [pendulum.datetime(2025, 1, 1, tz=zone).add(days=number) for number in range(365)]
    changing = [day for day in days if day.utcoffset() != day.add(days=1).utcoffset()]
    around = timedelta(hours=12) if every < DAY else 3 * every
    return [(day - around, day.add(days=1) + around) for day in [days[40], *changing]]


CRONS = [
    ("0 0 * * *", DAY),
    ("30 2 * * *", DAY),
    ("0 1 * * *", DAY),
    ("0 3 * * 1", WEEK),
    ("0 0 * * 0", WEEK),
    ("0 * * * *", HOUR),
    ("*/15 * * * *", QUARTER),
    ("0 */6 * * *", timedelta(hours=6)),
    ("0 0,12 * * *", timedelta(hours=12)),
    ("0 0 1 * *", relativedelta(months=1)),
    ("30 2 * * *", relativedelta(days=1)),
]


@pytest.mark.parametrize(
    ("zone", "cron", "interval"),
    [
        (zone, *cron)
        for zone_number, zone in enumerate(ZONES)
        for number, cron in enumerate(CRONS)
        # Without full depth: each cron expression in two zones whose clocks change by different times (the slowest in
        # one), and each other zone with some of the expressions.
        if IS_FULL
        or zone == TWO_ZONES[cron[1] == QUARTER]
        or (cron[1] != QUARTER and (zone in TWO_ZONES or (number + zone_number) % 8 == 0))
    ],
)
@pytest.mark.parametrize("source", ["default_interval", "CronTriggerTimetable"])
def test_windows_are_adjacent_when_the_clocks_change(zone, cron, interval, source):
    by_default = source == "default_interval"
    if by_default and isinstance(interval, relativedelta):
        pytest.skip("default_interval is a timedelta")
    timetable = CronTriggerTimetable(cron, timezone=zone, interval=timedelta() if by_default else interval)
    tried = 0
    for first, last in periods(interval, zone):
        made = [window(timetable, run, interval if by_default else None) for run in runs(timetable, first, last)]
        for resolution in (900, 3600):
            covered = [Window.covering(start, end, resolution) for start, end in made if start < end]
            for earlier, later in pairwise(covered):
                tried += 1
                assert earlier.end == later.start, (earlier, later)
    assert tried > 5


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
@pytest.mark.parametrize(
    ("cron", "interval"),
    [
        ("0 0 1 * *", timedelta(days=30)),
        ("0 0 1 * *", timedelta(days=31)),
        ("0 0 */2 * *", timedelta(days=2)),
        ("0 */5 * * *", timedelta(hours=5)),
        ("0 0 1 * *", timedelta(days=29)),
        ("0 6 * * 1-5", DAY),
        ("0 6,20 * * *", timedelta(hours=12)),
    ],
)
def test_an_interval_that_does_not_fit_is_an_error_in_every_run(zone, cron, interval):
    for source in ("default_interval", "partition", "CronTriggerTimetable"):
        by_default = source != "CronTriggerTimetable"
        argument = "default_interval" if by_default else r"CronTriggerTimetable\(interval\)"
        timetable = CronTriggerTimetable(cron, timezone=zone, interval=timedelta() if by_default else interval)
        for run in runs(timetable, pendulum.datetime(2025, 1, 1), pendulum.datetime(2025, 3, 1)):
            partition = {"partition_key": "plant", "partition_date": run.end} if source == "partition" else {}
            with pytest.raises(
                StemConfigError, match=rf"^{argument}=.*does not fit the schedule.*CronDataIntervalTimetable"
            ):
                window(timetable, run, interval if by_default else None, **partition)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_a_shorter_interval_is_used_as_it_is(zone):
    timetable = CronTriggerTimetable("0 6 * * *", timezone=zone)
    for run in runs(timetable, pendulum.datetime(2025, 1, 1), pendulum.datetime(2025, 12, 31)):
        assert window(timetable, run, 2 * HOUR) == (run.end.subtract(hours=2), run.end)


def test_a_longer_interval_leaves_no_time_out():
    timetable = CronTriggerTimetable("0 0 * * *", timezone="Europe/Berlin")
    for interval in (DAY + HOUR / 2, 3 * DAY):
        made = [
            window(timetable, run, interval)
            for run in runs(timetable, pendulum.datetime(2025, 1, 1), pendulum.datetime(2025, 12, 31))
        ]
        assert all(start <= earlier for (_, earlier), (start, _) in pairwise(made))
        assert {end - start for start, end in made} >= {interval}


def test_the_days_on_which_the_clocks_change_have_23_and_25_hours():
    timetable = CronTriggerTimetable("0 0 * * *", timezone="Europe/Berlin")
    made = [
        window(timetable, run, DAY)
        for run in runs(timetable, pendulum.datetime(2025, 1, 1), pendulum.datetime(2025, 12, 31))
    ]
    assert sorted({end - start for start, end in made}) == [23 * HOUR, 24 * HOUR, 25 * HOUR]


def test_a_manual_run_between_two_scheduled_times_reads_the_interval_before_it():
    timetable = CronTriggerTimetable("0 0 * * *", timezone="Europe/Berlin")
    moment = datetime(2025, 10, 26, 12, 34, tzinfo=UTC)
    run = SimpleNamespace(run_after=moment)
    got = wall_time_of_run({"dag": SimpleNamespace(timetable=timetable), "dag_run": run}, default_interval=DAY)
    assert got == (moment - DAY, moment)


def test_a_custom_data_interval_is_kept():
    timetable = CronTriggerTimetable("0 0 * * *", timezone="Europe/Berlin", interval=DAY)
    end = pendulum.datetime(2025, 10, 27, tz="Europe/Berlin")
    interval = DataInterval(end.subtract(hours=7), end)
    assert window(timetable, interval) == (interval.start, interval.end)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe"])
def test_partitions_of_a_cron_schedule_are_adjacent_too(zone):
    timetable = CronTriggerTimetable("0 0 * * *", timezone=zone)
    made = []
    for run in runs(timetable, pendulum.datetime(2025, 1, 1), pendulum.datetime(2025, 12, 31)):
        context = {
            "dag": SimpleNamespace(timetable=timetable),
            "partition_key": "a day",
            "partition_date": pendulum.parse(run.end.in_timezone("UTC").isoformat()),
        }
        made.append(wall_time_of_run(context, default_interval=DAY))
    assert all(earlier == start for (_, earlier), (start, _) in pairwise(made))
    assert len({end - start for start, end in made}) == 3


@pytest.mark.skipif(not hasattr(trigger, "MultipleCronTriggerTimetable"), reason="needs Airflow 3.0")
def test_several_cron_expressions_are_one_schedule():
    timetable = trigger.MultipleCronTriggerTimetable("0 0 * * *", "0 12 * * *", timezone="Europe/Berlin")
    ends = sorted(
        run.end
        for cron in ("0 0 * * *", "0 12 * * *")
        for run in runs(CronTriggerTimetable(cron, timezone="Europe/Berlin"), *periods(DAY, "UTC")[0])
    )
    made = [window(timetable, DataInterval.exact(end), timedelta(hours=12)) for end in ends]
    assert all(earlier == start for (_, earlier), (start, _) in pairwise(made))


def test_the_timetables_of_airflows_sdk_are_supported():
    sdk = pytest.importorskip("airflow.sdk")
    if not hasattr(sdk, "CronTriggerTimetable"):
        pytest.skip("before Airflow 3.2")
    timetable = sdk.CronTriggerTimetable("0 0 * * *", timezone="Europe/Berlin")
    end = pendulum.datetime(2025, 10, 27, tz="Europe/Berlin")
    start, _ = window(timetable, DataInterval.exact(end), DAY)
    assert end - start == 25 * HOUR
