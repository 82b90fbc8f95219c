from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from tests.examples.loading import LATE, SITES, START, TYPES, context_of, load, loading
from tests.support import OfMappedTasks, expected_rows, run_context

__all__ = ["loading"]

pytestmark = [pytest.mark.s3, pytest.mark.stem_simulator(sites=200)]
DAY = timedelta(days=1)
DAYS = [START + number * DAY for number in range(6)]


def daily_rows(loading, sites, start, end):
    return expected_rows(loading.sim, sites, TYPES, 900, f"{start}T00:00:00+00:00", f"{end + DAY}T00:00:00+00:00")


def test_a_site_is_loaded_from_the_look_back_of_the_run_that_lists_it_first(loading):
    for day in DAYS[:4]:
        extra = loading.run_day(day)
        assert extra["window"]["end"] == f"{day + DAY}T00:00:00Z"
        assert extra["rows"] == sum(one["rows"] for one in extra["objects"]) > 0
    loading.listed.append(LATE)
    loading.run_day(DAYS[4])
    expected = daily_rows(loading, SITES, START, DAYS[4]) + daily_rows(loading, [LATE], DAYS[1], DAYS[4])
    assert sorted(loading.rows(), key=str) == sorted(expected, key=str)


def test_there_is_one_request_per_site_regardless_of_the_look_back(loading):
    loading.run_day(DAYS[0])
    loading.count_requests()
    loading.run_day(DAYS[1])
    assert loading.count_requests() == len(SITES)


def test_the_lake_does_not_depend_on_the_order_of_runs_or_the_age_of_lists(loading):
    """With cleared runs, a backfill, and a task whose list of sites was made before a site was added."""
    for day in DAYS[:3]:
        loading.run_day(day)
    old = loading.begin_day(DAYS[2])
    loading.listed.append(LATE)
    for day in DAYS[3:]:
        loading.run_day(day)
    for piece in old:
        loading.land(loading.daily, piece)
    for day in (DAYS[1], DAYS[0]):
        loading.run_day(day, "backfill")
    loading.run_history()
    loading.check(DAYS[-1])
    before = loading.lake.objects()
    for day in reversed(DAYS):
        loading.run_day(day)
    assert loading.lake.objects() == before


def test_a_backfill_reads_each_day_once_and_a_scheduled_run_looks_back(loading):
    (scheduled,) = {(piece["start"], piece["end"]) for piece in loading.begin_day(DAYS[5])}
    (backfill,) = {(piece["start"], piece["end"]) for piece in loading.begin_day(DAYS[4], "backfill")}
    assert scheduled == (f"{DAYS[2]}T00:00:00+00:00", f"{DAYS[5] + DAY}T00:00:00+00:00")
    assert backfill == (f"{DAYS[4]}T00:00:00+00:00", f"{DAYS[5]}T00:00:00+00:00")


def test_days_before_the_first_day_are_not_read(loading):
    for run_type in ("scheduled", "backfill"):
        with pytest.raises(AirflowSkipException):
            loading.begin_day(START - DAY, run_type)
    assert {piece["start"] for piece in loading.begin_day(START)} == {f"{START}T00:00:00+00:00"}


@pytest.mark.stem_simulator(sites=200, restate=2 * 86_400)
def test_a_restated_value_replaces_the_older_one(loading):
    final = set(daily_rows(loading, SITES, START, START))
    loading.run_day(DAYS[0])
    keys = {one[:5] for one in final}
    provisional = {row for row in loading.rows() if row[:5] in keys}
    assert len(provisional) == len(final)
    assert provisional != final
    for day in DAYS[1:4]:
        loading.run_day(day)
    assert {row for row in loading.rows() if row[:5] in keys} == final


def test_rows_of_a_site_that_is_no_longer_listed_are_kept_and_completed_when_it_returns(loading):
    loading.run_day(DAYS[0])
    gone = loading.listed.pop()
    for number in range(1, 6):
        loading.run_day(START + number * DAY)
    expected = daily_rows(loading, SITES[:-1], START, DAYS[5]) + daily_rows(loading, [gone], START, DAYS[0])
    assert sorted(loading.rows(), key=str) == sorted(expected, key=str)

    loading.listed.append(gone)
    loading.run_day(START + 6 * DAY)
    loading.run_history()
    loading.check(START + 6 * DAY)


def test_a_site_that_is_forbidden_or_a_batch_that_fails_is_completed_by_the_history(loading):
    loading.sim.fail(403, path=SITES[0], times=None)
    for day in DAYS[:2]:
        assert loading.run_day(day)["rows"] > 0
    loading.sim.clear_faults()
    for day in DAYS[2:]:  # no batch succeeds
        with pytest.raises(AirflowSkipException):
            loading.enter(loading.daily, loading.begin_day(day), [None])
    loading.run_day(START + 10 * DAY)
    loading.run_history()
    loading.check(START + 10 * DAY)


def test_another_number_of_batches_is_rejected(loading):
    loading.run_day(DAYS[0])
    (piece,) = loading.begin_day(DAYS[1])
    with pytest.raises(AirflowFailException, match="Objects of batches=1 exist"):
        loading.land(loading.daily, {**piece, "batch": "007-of-777"})


def test_a_run_without_a_data_interval_fails_at_once(loading):
    find_days = loading.daily.dag.get_task("find_days").python_callable
    with pytest.raises(AirflowFailException, match="CronDataIntervalTimetable"):
        find_days(**run_context())


def test_settings_come_from_the_environment(loading, monkeypatch):
    assert loading.daily.dag.start_date.date() == START
    monkeypatch.setenv("STEM_POOL", "another")
    module = load("stem_daily")
    assert module.dag.get_task("land_streams").partial_kwargs["pool"] == "another"
    assert module.TELEMETRY.uri == f"s3://{loading.lake.bucket}/stem/daily"


def test_the_event_lists_what_landed_even_if_other_batches_and_the_run_fail(loading):
    pieces = loading.begin_day(START)
    receipts = [loading.land(loading.daily, piece) for piece in pieces]
    enter, sum_up = (loading.daily.dag.get_task(name) for name in ("enter", "sum_up"))
    extra = loading.enter(loading.daily, pieces, [None, *receipts, None])
    assert [one["uri"].partition(f"{loading.lake.bucket}/")[2] for one in extra["objects"]] == loading.keys(
        "stem/daily/"
    )
    assert extra["rows"] > 0
    for nothing in (None, [], [None]):
        with pytest.raises(AirflowSkipException):
            enter.python_callable(pieces, nothing, **context_of(START))
    assert (enter.trigger_rule, sum_up.trigger_rule) == ("all_done", "all_success")
    # A run succeeds only if all of its leaf tasks succeed.
    assert {task.task_id for task in loading.daily.dag.leaves} == {"enter", "sum_up"}
    assert sum_up.upstream_task_ids == {"land_streams"}
    assert sum_up.python_callable(OfMappedTasks(receipts))["rows"] == extra["rows"]
