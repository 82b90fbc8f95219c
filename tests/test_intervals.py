from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from unittest.mock import MagicMock

import pendulum
import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.intervals import is_partitioned, wall_time_of_run
from tests.support import instant, run_context

HOUR = timedelta(hours=1)


def wall_time(context, **arguments):
    start, end = wall_time_of_run(context, **arguments)
    return start.isoformat(), end.isoformat()


def events(*windows):
    return {"asset": [SimpleNamespace(extra={"window": window} if window else {}) for window in windows]}


def test_start_and_end_come_first():
    context = run_context("2025-07-01T00:00Z", "2025-07-02T00:00Z")
    got = wall_time(context, start="2025-06-01T02:00+02:00", end=datetime(2025, 6, 2, tzinfo=UTC))
    assert got == ("2025-06-01T00:00:00+00:00", "2025-06-02T00:00:00+00:00")


@pytest.mark.parametrize("one", ["start", "end"])
def test_a_missing_bound_comes_from_the_run(one):
    context = run_context("2025-07-01T00:00Z", "2025-07-02T00:00Z")
    bound = {"start": "2025-06-30T00:00Z", "end": "2025-07-01T12:00Z"}[one]
    start, end = wall_time(context, **{one: bound})
    assert start == ("2025-06-30T00:00:00+00:00" if one == "start" else "2025-07-01T00:00:00+00:00")
    assert end == ("2025-07-02T00:00:00+00:00" if one == "start" else "2025-07-01T12:00:00+00:00")


def test_a_data_interval_that_is_not_empty_is_used_in_any_time_zone():
    zone = "America/Los_Angeles"
    context = run_context()
    context["data_interval_start"] = pendulum.datetime(2025, 3, 9, tz=zone)
    context["data_interval_end"] = pendulum.datetime(2025, 3, 10, tz=zone)
    start, end = wall_time_of_run(context, default_interval=HOUR)
    assert (start, end) == (instant("2025-03-09T08:00Z"), instant("2025-03-10T07:00Z"))
    assert end - start == timedelta(hours=23)


DAY = {"data_interval_start": instant("2025-07-01T00:00Z"), "data_interval_end": instant("2025-07-02T00:00Z")}


@pytest.mark.parametrize("more", [{}, dict.fromkeys(DAY)])
def test_a_context_may_have_the_data_interval_in_its_run_only(more):
    context = {"dag_run": SimpleNamespace(run_after=instant("2025-07-05T00:00Z"), **DAY), **more}
    assert wall_time(context, default_interval=HOUR) == ("2025-07-01T00:00:00+00:00", "2025-07-02T00:00:00+00:00")


def test_a_data_interval_may_be_strings_and_must_have_an_offset():
    texts = {name: moment.isoformat() for name, moment in DAY.items()}
    assert wall_time(texts) == tuple(texts.values())
    naive = {name: moment.replace(tzinfo=None) for name, moment in DAY.items()}
    with pytest.raises(StemConfigError, match="Invalid data_interval_start .*: no UTC offset"):
        wall_time_of_run(naive)


@pytest.mark.parametrize("run_after", [instant("2025-07-01T10:00Z"), None])
def test_attributes_of_a_mock_are_no_times_and_no_partition(run_after):
    context = {"dag_run": MagicMock(**({} if run_after is None else {"run_after": run_after}))}
    assert not is_partitioned(context)
    if run_after is None:
        with pytest.raises(StemConfigError, match="There is no window to read"):
            wall_time_of_run(context, default_interval=HOUR)
    else:
        assert wall_time_of_run(context, default_interval=HOUR) == (run_after - HOUR, run_after)


def test_a_partition_key_of_two_instants_is_the_window():
    context = run_context(partition_key="2025-07-01T00:00:00Z/2025-07-01T06:00:00Z")
    assert wall_time(context) == ("2025-07-01T00:00:00+00:00", "2025-07-01T06:00:00+00:00")
    assert is_partitioned(context)


@pytest.mark.parametrize(
    "key",
    ["2025-07-01", "plant/north", "2025-07-01T00:00/2025-07-02T00:00", "2025-06-01/00:00Z/2025-07-02T00:00Z"],
)
def test_with_another_partition_key_the_date_and_the_default_interval_apply(key):
    context = run_context(partition_key=key, partition_date=instant("2025-07-01T00:00Z"))
    got = wall_time(context, default_interval=timedelta(days=1))
    assert got == ("2025-07-01T00:00:00+00:00", "2025-07-02T00:00:00+00:00")


@pytest.mark.parametrize(("key", "end"), [("2025-07-01T06", "08:00"), ("plant-7", "10:00")])
def test_airflow_3_2_has_the_date_of_a_partition_only_in_its_key(key, end):
    timetable = SimpleNamespace(key_format="%Y-%m-%dT%H")
    run = SimpleNamespace(partition_key=key, run_after=instant("2025-07-01T10:00Z"))
    context = run_context(dag=SimpleNamespace(timetable=timetable), dag_run=run)
    assert wall_time(context, default_interval=2 * HOUR)[1] == f"2025-07-01T{end}:00+00:00"


def test_the_partition_may_be_an_attribute_of_the_run():
    run = SimpleNamespace(run_after=None, partition_key="2025-07-01T00:00Z/2025-07-02T00:00Z", partition_date=None)
    assert wall_time(run_context(dag_run=run))[1] == "2025-07-02T00:00:00+00:00"


def test_the_window_of_a_watcher_is_read_from_its_payload():
    """Its events can be mixed with those of a task, and of other triggers, whose payload is any JSON value."""
    other = {"start": "2020-01-01T00:00Z", "end": "2020-01-02T00:00Z"}
    extras = [
        {"from_trigger": True, "payload": {"window": {"start": "2025-07-02T05:00Z", "end": "2025-07-02T06:00Z"}}},
        {"from_trigger": True, "payload": {"window": {"start": "2025-07-02T03:00Z", "end": "2025-07-02T04:00Z"}}},
        {"window": {"start": "2025-07-02T04:00Z", "end": "2025-07-02T05:00Z"}},
        {"from_trigger": True, "payload": "a text", "window": other},
        {"from_trigger": "yes", "payload": {"window": other}},
    ]
    context = run_context(triggering_asset_events={"asset": [SimpleNamespace(extra=extra) for extra in extras]})
    assert wall_time_of_run(context) == (instant("2025-07-02T03:00Z"), instant("2025-07-02T06:00Z"))


def test_several_triggering_events_make_one_window():
    triggered = run_context(
        triggering_asset_events=events(
            {"start": "2025-07-02T00:00:00Z", "end": "2025-07-03T00:00:00Z", "resolution": 900},
            None,
            {"start": "2025-07-01T00:00:00Z", "end": "2025-07-02T00:00:00Z"},
        )
    )
    assert wall_time(triggered) == ("2025-07-01T00:00:00+00:00", "2025-07-03T00:00:00+00:00")


def test_the_invented_interval_of_airflow_2_is_ignored():
    window = {"start": "2025-07-02T00:00Z", "end": "2025-07-03T00:00Z"}
    triggered = run_context(
        "2025-07-09T08:00:01.1Z",
        "2025-07-09T08:00:01.3Z",
        triggering_dataset_events=events(window),
        dag_run=SimpleNamespace(run_type="dataset_triggered"),
    )
    assert wall_time(triggered) == ("2025-07-02T00:00:00+00:00", "2025-07-03T00:00:00+00:00")
    del triggered["triggering_dataset_events"]
    with pytest.raises(StemConfigError, match="no window to read"):
        wall_time(triggered)


@pytest.mark.parametrize("bound", ["start", "end"])
def test_a_triggering_event_with_a_naive_window_is_an_error(bound):
    window = {"start": "2025-07-02T00:00Z", "end": "2025-07-03T00:00Z", bound: "2025-07-02T12:00"}
    context = run_context(triggering_asset_events=events(window))
    message = f"^Invalid window.{bound} of a triggering asset event '2025-07-02T12:00': no UTC offset"
    with pytest.raises(StemConfigError, match=message):
        wall_time(context)


@pytest.mark.parametrize("window", ["2025", ["start", "end"], {"start": "2025-07-02"}, {"end": "2025-07-03"}])
def test_the_event_of_another_producer_has_no_window(window):
    context = run_context(triggering_asset_events=events(window))
    with pytest.raises(StemConfigError, match="no window to read"):
        wall_time(context)


@pytest.mark.parametrize("bound", ["start", "end"])
def test_the_message_of_an_invalid_bound_names_it(bound):
    context = run_context("2025-07-01T00:00Z", "2025-07-02T00:00Z")
    with pytest.raises(StemConfigError, match=f"^Invalid {bound} 'yesterday'"):
        wall_time(context, **{bound: "yesterday"})


def test_the_date_of_a_partition_may_be_an_attribute_of_the_run():
    run = SimpleNamespace(run_after=None, partition_key="plant", partition_date=instant("2025-07-01T00:00Z"))
    got = wall_time(run_context(dag_run=run), default_interval=HOUR)
    assert got == ("2025-07-01T00:00:00+00:00", "2025-07-01T01:00:00+00:00")


BY_HOUR = SimpleNamespace(timetable=SimpleNamespace(key_format="%Y-%m-%dT%H"))


@pytest.mark.parametrize(
    "more",
    [
        {"dag": BY_HOUR},  # started by hand, without a key
        {"dag": BY_HOUR, "partition_key": "2025-06-01T00", "partition_date": None},  # Airflow 3.3 reports no date
        {"partition_key": "plant"},
        {"partition_key": "plant", "dag": SimpleNamespace(timetable=SimpleNamespace())},
    ],
)
def test_a_run_without_the_date_of_a_partition_reads_up_to_the_time_it_is_due(more):
    run = SimpleNamespace(run_after=instant("2025-07-01T10:00Z"))
    got = wall_time(run_context(dag_run=run, **more), default_interval=HOUR)
    assert got == ("2025-07-01T09:00:00+00:00", "2025-07-01T10:00:00+00:00")


def test_the_date_in_a_key_is_in_utc_on_any_machine(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        got = wall_time(run_context(dag=BY_HOUR, partition_key="2025-07-01T06"), default_interval=HOUR)
    time.tzset()
    assert got == ("2025-07-01T06:00:00+00:00", "2025-07-01T07:00:00+00:00")


@pytest.mark.parametrize("bound", ["start", "end"])
def test_half_a_data_interval_is_none(bound):
    run = SimpleNamespace(run_after=instant("2025-07-01T10:00Z"))
    context = run_context(dag_run=run) | {f"data_interval_{bound}": instant("2025-07-01T10:00Z")}
    assert wall_time(context, default_interval=HOUR) == ("2025-07-01T09:00:00+00:00", "2025-07-01T10:00:00+00:00")


def test_the_default_interval_ends_at_the_data_interval_else_when_the_run_is_due():
    plain_cron = run_context("2025-07-01T06:00Z", "2025-07-01T06:00Z")
    assert wall_time(plain_cron, default_interval=HOUR) == ("2025-07-01T05:00:00+00:00", "2025-07-01T06:00:00+00:00")
    triggered = run_context(dag_run=SimpleNamespace(run_after=instant("2025-07-01T06:10Z")))
    assert wall_time(triggered, default_interval=HOUR) == ("2025-07-01T05:10:00+00:00", "2025-07-01T06:10:00+00:00")


@pytest.mark.parametrize(
    "context",
    [
        {},
        run_context(),
        run_context("2025-07-01T06:00Z", "2025-07-01T06:00Z"),
        run_context(dag_run=SimpleNamespace(run_after=instant("2025-07-01T06:10Z"))),
        run_context(triggering_asset_events=events(None)),
        run_context(partition_key="2025-07-01", partition_date=instant("2025-07-01T00:00Z")),
    ],
    ids=["no run", "nothing", "plain cron", "manual", "events without a window", "partition without default_interval"],
)
def test_without_any_window_the_error_names_the_remedies(context):
    with pytest.raises(StemConfigError) as error:
        wall_time(context)
    assert str(error.value) == (
        "There is no window to read. Schedule the DAG with CronDataIntervalTimetable, or set default_interval, or "
        "start and end. (On Airflow 3 a run of a plain cron or timedelta schedule has no data interval.)"
    )
