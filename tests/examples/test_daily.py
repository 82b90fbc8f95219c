from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from tests.examples.loading import LATE, SITES, START, TYPES, context_of, load, loading
from tests.support import expected_rows, run_context

__all__ = ["loading"]

pytestmark = [pytest.mark.s3, pytest.mark.stem_simulator(sites=200)]
DAY = timedelta(days=1)
DAYS = [START + number * DAY for number in range(6)]


def daily_rows(loading, sites, start, end):
    return expected_rows(loading.sim, sites, TYPES, 900, f"{start}T00:00:00+00:00", f"{end + DAY}T00:00:00+00:00")


def test_each_day_holds_the_sites_that_were_there_when_it_was_first_read(loading):
    for day in DAYS[:2]:
        extra = loading.run_day(day)
        assert extra["window"]["end"] == f"{day + DAY}T00:00:00Z"
        assert extra["rows"] == sum(one["rows"] for one in extra["objects"]) > 0
    loading.listed.append(LATE)
    for day in DAYS[2:4]:
        loading.run_day(day)
    expected = daily_rows(loading, SITES, START, DAYS[3]) + daily_rows(loading, [LATE], DAYS[2], DAYS[3])
    assert sorted(loading.rows(), key=str) == sorted(expected, key=str)


def test_one_request_a_site_whatever_the_look_back(loading):
    loading.run_day(DAYS[0])
    loading.asked()
    loading.run_day(DAYS[1])
    assert loading.asked() == len(SITES)


def test_whoever_reads_a_day_again_reads_the_same_sites(loading):
    """Old runs cleared, a backfill, and a task with what it was told before the new site came."""
    for day in DAYS[:3]:
        loading.run_day(day)
    old = loading.begin_day(DAYS[2])
    loading.listed.append(LATE)
    loading.run_day(DAYS[3])
    before = loading.lake.objects()
    loading.run_day(DAYS[2])
    for day in (DAYS[1], DAYS[0]):
        loading.run_day(day, "backfill")
    for piece in old:
        loading.land(loading.daily, piece)
    after = loading.lake.objects()
    # The same bytes under the same keys; the ledger knows the site, and nothing more has happened to it.
    assert after == before


@pytest.mark.parametrize("begun_first", [0, 1])
def test_runs_side_by_side_make_the_same_objects_in_either_order(loading, begun_first):
    loading.run_day(DAYS[0])
    first, second = (DAYS[1], DAYS[2]) if begun_first == 0 else (DAYS[2], DAYS[1])
    told = loading.begin_day(first)
    loading.listed.append(LATE)
    for piece in loading.begin_day(second) + told:
        loading.land(loading.daily, piece)
    loading.run_day(DAYS[3])
    since = max(first, DAYS[0]) + DAY
    expected = daily_rows(loading, SITES, START, DAYS[3]) + daily_rows(loading, [LATE], since, DAYS[3])
    assert sorted(loading.rows(), key=str) == sorted(expected, key=str)


def test_a_backfill_reads_each_day_once_and_a_scheduled_run_looks_back(loading):
    (scheduled,) = {(piece["start"], piece["end"]) for piece in loading.begin_day(DAYS[5])}
    (backfill,) = {(piece["start"], piece["end"]) for piece in loading.begin_day(DAYS[4], "backfill")}
    assert scheduled == (f"{DAYS[2]}T00:00:00Z", f"{DAYS[5] + DAY}T00:00:00Z")
    assert backfill == (f"{DAYS[4]}T00:00:00Z", f"{DAYS[5]}T00:00:00Z")


def test_nothing_before_the_first_day_is_read(loading):
    assert loading.begin_day(START - DAY) == []
    assert {piece["start"] for piece in loading.begin_day(START)} == {f"{START}T00:00:00Z"}


@pytest.mark.stem_simulator(sites=200, restate=2 * 86_400)
def test_a_restated_value_replaces_the_one_that_was_there(loading):
    final = set(daily_rows(loading, SITES, START, START))
    loading.run_day(DAYS[0])
    provisional = set(loading.rows())
    assert len(provisional) == len(final)
    assert provisional != final
    for day in DAYS[1:4]:
        loading.run_day(day)
    assert {row for row in loading.rows() if row[:5] in {one[:5] for one in final}} == final


def test_rows_of_a_site_that_is_no_longer_listed_stay(loading):
    for day in DAYS[:2]:
        loading.run_day(day)
    gone = loading.listed.pop()
    for day in DAYS[2:4]:
        loading.run_day(day)
    expected = daily_rows(loading, SITES, START, DAYS[3])
    expected = [row for row in expected if row[0] != gone or row in set(daily_rows(loading, [gone], START, DAYS[1]))]
    assert sorted(loading.rows(), key=str) == sorted(expected, key=str)

    loading.listed.append(gone)  # a mishap of the list: the look-back makes good for it
    loading.run_day(DAYS[4])
    assert sorted(loading.rows(), key=str) == sorted(daily_rows(loading, SITES, START, DAYS[4]), key=str)


def test_a_day_that_has_no_object_yet_is_read_without_a_site_that_has_gone(loading):
    loading.begin_day(DAYS[0])
    loading.listed.pop()
    loading.run_day(DAYS[0])
    assert sorted(loading.rows(), key=str) == sorted(daily_rows(loading, SITES[:-1], START, START), key=str)


def test_another_number_of_batches_is_refused(loading, monkeypatch):
    loading.run_day(DAYS[0])
    batches = [{"sites": [{"site_id": site}], "batch": f"{n:03d}-of-777"} for n, site in enumerate(SITES)]
    with pytest.raises(AirflowFailException, match="leave the number of batches as it was"):
        loading.daily.dag.get_task("enter_sites").python_callable(batches, **context_of(DAYS[1]))


def test_a_run_without_days_of_its_own_fails_at_once(loading):
    enter = loading.daily.dag.get_task("enter_sites").python_callable
    with pytest.raises(AirflowFailException, match="CronDataIntervalTimetable"):
        enter([], **run_context())
    with pytest.raises(AirflowFailException, match="whole UTC days"):
        enter([], **run_context("2023-03-03T08:00+00:00", "2023-03-04T08:00+00:00"))


def test_settings_come_from_the_environment(loading, monkeypatch):
    assert loading.daily.dag.start_date.date() == START
    monkeypatch.setenv("STEM_POOL", "another")
    module = load("stem_daily")
    assert module.dag.get_task("land_streams").partial_kwargs["pool"] == "another"
    assert module.TELEMETRY.uri == f"s3://{loading.lake.bucket}/stem/daily"


def test_what_landed_is_told_although_other_batches_failed_and_the_run_fails_all_the_same(loading):
    receipts = [loading.land(loading.daily, piece) for piece in loading.begin_day(START)]
    tell, sum_up = (loading.daily.dag.get_task(name) for name in ("tell", "sum_up"))
    context = context_of(START)
    tell.python_callable([None, *receipts, None], **context)
    extra = context["outlet_events"][loading.daily.TELEMETRY].extra
    assert [one["uri"].partition(f"{loading.lake.bucket}/")[2] for one in extra["objects"]] == loading.keys(
        "stem/daily/"
    )
    assert extra["rows"] > 0
    for nothing in (None, [], [None]):
        with pytest.raises(AirflowSkipException):
            tell.python_callable(nothing, **context)
    assert (tell.trigger_rule, sum_up.trigger_rule) == ("all_done", "all_success")
    # Of a run's last tasks each must have gone well.
    assert {task.task_id for task in loading.daily.dag.leaves} == {"tell", "sum_up"}
    assert sum_up.upstream_task_ids == {"land_streams"}
    assert sum_up.python_callable(receipts)["rows"] == extra["rows"]
