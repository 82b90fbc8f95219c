"""Loading site records with history, on each engine."""

from __future__ import annotations

import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA

from .helpers import at

SINCE = {"MONITOR": "2011-03-01T16:15:01Z", "CONVERTER": None}
A = {"site_id": "site-a", "name": "Plant", "client_id": "client-1", "stream_start_times": SINCE}
B = {"site_id": "site-b", "name": None, "client_id": "client-1", "stream_start_times": None}
VERSIONS = "SELECT site_id, name, monitor_since, valid_from, valid_to, last_listed_at FROM stem.sites ORDER BY 1, 4"
FIRST, SECOND, THIRD, FOURTH = ("01T00:00", "02T00:00", "03T00:00", "04T00:00")
SHOWN = {day: f"2025-07-{day}:00+00:00" for day in (FIRST, SECOND, THIRD, FOURTH)}
# The API lists 16:15:01, the first second of an interval whose left edge is 16:15:00.
SINCE_SHOWN = "2011-03-01T16:15:00+00:00"


def listed(engine, day, *records):
    counted = load_sites(read_records(records), engine.session(), listed_at=at(day))
    return tuple(counted[name] for name in ("sites", "added", "changed", "unchanged"))


def test_a_change_closes_a_version_and_opens_another(engine):
    assert listed(engine, FIRST, A, B) == (2, 2, 0, 0)
    assert listed(engine, FIRST, A, B) == (2, 0, 0, 2)
    # On the 2nd, A has another name. B is missing from the listings of the 2nd and 3rd, and unchanged on the 4th.
    assert listed(engine, SECOND, {**A, "name": "Works"}) == (1, 0, 1, 0)
    assert listed(engine, THIRD, {**A, "name": "Works"}) == (1, 0, 0, 1)
    a_first = ("site-a", "Plant", SINCE_SHOWN, SHOWN[FIRST], SHOWN[SECOND], SHOWN[FIRST])
    a_second = ("site-a", "Works", SINCE_SHOWN, SHOWN[SECOND], None, SHOWN[THIRD])
    assert engine.rows(VERSIONS) == [
        a_first,
        a_second,
        ("site-b", None, None, SHOWN[FIRST], None, SHOWN[FIRST]),
    ]
    assert listed(engine, FOURTH, B) == (1, 0, 0, 1)
    assert engine.rows(VERSIONS) == [
        a_first,
        a_second,
        ("site-b", None, None, SHOWN[FIRST], None, SHOWN[FOURTH]),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"client_id": "client-2"},
        {"stream_start_times": {}},
        {"stream_start_times": {"MONITOR": "2011-03-01T16:30:01Z"}},
        {"stream_start_times": {**SINCE, "INTERVAL_REVENUE": "2020-01-01T00:00:01Z"}},
    ],
)
def test_a_change_of_any_attribute_makes_a_version(change, engine):
    assert listed(engine, FIRST, A) == (1, 1, 0, 0)
    assert listed(engine, SECOND, {**A, **change}) == (1, 0, 1, 0)
    assert listed(engine, THIRD, A) == (1, 0, 1, 0)
    assert engine.rows("SELECT valid_from, valid_to FROM stem.sites ORDER BY 1") == [
        (SHOWN[FIRST], SHOWN[SECOND]),
        (SHOWN[SECOND], SHOWN[THIRD]),
        (SHOWN[THIRD], None),
    ]


def test_no_version_ends_before_it_begins_even_if_a_clock_goes_back(engine):
    for name, day in (("one", SECOND), ("two", FIRST), ("three", FIRST)):
        listed(engine, day, {**A, "name": name})
    assert engine.rows("SELECT name, valid_from, valid_to FROM stem.sites ORDER BY valid_from") == [
        ("one", "2025-07-02T00:00:00+00:00", "2025-07-02T00:00:00.000001+00:00"),
        ("two", "2025-07-02T00:00:00.000001+00:00", "2025-07-02T00:00:00.000002+00:00"),
        ("three", "2025-07-02T00:00:00.000002+00:00", None),
    ]


def test_a_time_zone_is_kept_until_another_one_is_set(engine):
    def zones():
        return engine.rows("SELECT site_id, name, time_zone FROM stem.sites WHERE valid_to IS NULL ORDER BY 1")

    def list_(day, *records, **arguments):
        load_sites(read_records(records), engine.session(), listed_at=at(day), **arguments)

    list_(FIRST, A, B, time_zone={"site-a": "America/Los_Angeles"})
    assert zones() == [("site-a", "Plant", "America/Los_Angeles"), ("site-b", None, None)]
    list_(SECOND, {**A, "name": "Works"}, B)
    assert zones() == [("site-a", "Works", "America/Los_Angeles"), ("site-b", None, None)]
    with engine.session()() as session, session.transaction():
        session.execute(f"UPDATE {SCHEMA}.sites SET time_zone = 'Europe/Berlin' WHERE site_id = 'site-b'")
    list_(THIRD, A, {**B, "name": "Depot"})
    assert zones() == [("site-a", "Plant", "America/Los_Angeles"), ("site-b", "Depot", "Europe/Berlin")]
    list_(FOURTH, {**A, "name": "Mill"}, B, time_zone="Asia/Tokyo")
    assert zones() == [("site-a", "Mill", "Asia/Tokyo"), ("site-b", None, "Asia/Tokyo")]


def test_a_site_of_which_only_the_time_zone_changes_counts_as_changed_and_keeps_its_version(engine):
    def counted(*records, **time_zone):
        found = load_sites(read_records(records), engine.session(), time_zone=time_zone, listed_at=at(FIRST))
        return found["added"], found["changed"], found["unchanged"]

    zone = {"site-a": "Asia/Tokyo"}
    assert counted(A, B) == (2, 0, 0)
    assert counted(A, B, **zone) == (0, 1, 1)
    assert counted(A, B, **zone) == counted(A, B) == (0, 0, 2)
    assert counted({**A, "name": "Works"}, B, **{"site-a": "UTC", "site-b": "UTC"}) == (0, 2, 0)
    assert engine.rows("SELECT site_id, name, time_zone FROM stem.sites ORDER BY 1, valid_from") == [
        ("site-a", "Plant", "Asia/Tokyo"),
        ("site-a", "Works", "UTC"),
        ("site-b", None, "UTC"),
    ]


def test_a_time_zone_of_a_mistyped_site_is_an_error_and_one_of_another_client_is_not(engine):
    def list_(*records, **zones):
        return load_sites(read_records(records), engine.session(), time_zone=zones)

    def zones():
        return engine.rows("SELECT site_id, time_zone FROM stem.sites ORDER BY 1")

    mistyped = {"site-a": "Asia/Tokyo", "site-bb": "Asia/Tokyo"}
    with pytest.raises(
        StemConfigError, match="lacks the listed site 'site-b', and has 'site-bb', which was never list"
    ):
        list_(A, B, **mistyped)
    assert zones() == []
    # Each listing has one of two sites.
    both = {"site-a": "Asia/Tokyo", "site-b": "Europe/Berlin"}
    assert list_(A, **both)["added"] == list_(B, **both)["added"] == 1
    assert zones() == list(both.items())
    # A site that was listed once is not mistyped, so a new one may lack a zone.
    assert list_(B, {**A, "site_id": "site-c"}, **both)["added"] == 1
    with pytest.raises(StemConfigError, match="lacks the listed site 'site-b', and has 'site-bb'"):
        list_(A, {**B, "name": "Depot"}, **mistyped)
    assert zones() == [*both.items(), ("site-c", None)]


def test_a_time_zone_that_the_database_lacks_is_an_error(engine):
    with pytest.raises(StemConfigError, match="Invalid time_zone 'No/City': the database has no such time zone. Use"):
        load_sites(read_records([A]), engine.session(), time_zone="No/City")
    assert engine.rows(VERSIONS) == []


def test_an_unknown_time_zone_cannot_be_stored(engine):
    """It would break the views."""
    list_one = engine.session()
    load_sites(read_records([A]), list_one)
    connection = engine.connect()
    with pytest.raises(Exception, match="(?i)time ?zone"):
        connection.cursor().execute("UPDATE stem.sites SET time_zone = 'Nowhere/City'")
    connection.close()


def test_batches_are_read_like_records():
    batches = [{"sites": [A], "batch": "001-of-002"}, {"sites": [B], "batch": "002-of-002"}]
    assert read_records(batches) == read_records([B, A]) == read_records([A, B, A])
    assert read_records(batches[0]) == read_records(A)
    assert read_records([[A], [B]]) == read_records([A, B])


@pytest.mark.parametrize(
    "wrong",
    [
        None, 17, "site-a", [], ["site-a"], {"site_id": "site-a"}, [[[A]]], {"sites": [], "batch": "1"},
        {**A, "site_id": ""}, {**A, "site_id": "\ud800"}, {**A, "name": "\ud800"}, {**A, "name": 5},
        {**A, "client_id": []}, {**A, "stream_start_times": {"MONITOR": "soon"}}, [A, {**A, "name": "Works"}],
    ],
)  # fmt: skip
def test_other_values_than_site_records_are_an_error(wrong):
    with pytest.raises(
        StemConfigError, match=r"Invalid sites|Invalid record in sites: |sites (contains|is empty)|site_id"
    ):
        read_records(wrong)


@pytest.mark.parametrize(
    ("listed_start", "left_edge"),
    [
        ("2011-03-01T16:15:01Z", "2011-03-01T16:15:00+00:00"),
        ("2014-02-14T00:00:00Z", "2014-02-14T00:00:00+00:00"),  # the guide has examples of both forms
        ("2014-02-14T00:00:02Z", "2014-02-14T00:15:00+00:00"),
        ("1969-12-31T23:45:01Z", "1969-12-31T23:45:00+00:00"),
    ],
)
def test_the_start_of_a_stream_is_the_left_edge_of_its_first_interval(listed_start, left_edge):
    [row] = read_records([{**A, "stream_start_times": {"MONITOR": listed_start}}])
    assert row["monitor_since"].isoformat() == left_edge


def test_a_start_outside_the_range_of_timestamps_is_an_error():
    record = {**A, "stream_start_times": {"MONITOR": "9999-12-31T23:59:59Z"}}
    with pytest.raises(StemConfigError, match=r"site-a starts at 9999-12-31T23:59:59\+00:00, .*\. Remove the site"):
        read_records([record])
