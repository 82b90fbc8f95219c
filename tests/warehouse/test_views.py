"""The views, on each engine, compared with numbers that were worked out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA

from .helpers import Bucket, at

MONITOR, CONVERTER, REVENUE = "MONITOR", "CONVERTER", "INTERVAL_REVENUE"


@pytest.fixture
def bucket():
    return Bucket()


def list_sites(engine, **starts):
    records = [
        {"site_id": f"site-{name}", "name": name, "client_id": "c", "stream_start_times": times}
        for name, times in starts.items()
    ]
    load_sites(read_records(records), engine.session(), listed_at=at("01T00:00"))


def test_energy(engine, bucket):
    streams = {
        ("site-a", MONITOR): [10.0, -4.0, None, 0.0, 6.0],
        ("site-a", CONVERTER): [2.0, -8.0, 1.0, 0.0, ...],
        ("site-a", REVENUE): [99.0],
        ("site-b", CONVERTER): [-2.0],
    }
    quarters = bucket.land("900", streams, "01T00:00", "01T02:00")
    hours = bucket.land("3600", {("site-a", MONITOR): [3.0]}, "01T00:00", "01T01:00", 3600)
    bucket.load(engine, quarters, hours)
    found = engine.rows(
        "SELECT site_id, resolution, interval_end, import_kwh, export_kwh, charge_kwh, discharge_kwh, load_kw "
        "FROM stem.energy ORDER BY 1, 2, 3"
    )
    assert found == [
        # A quarter of an hour: kWh = kW / 4. The load is MONITOR - CONVERTER.
        ("site-a", 900, "2025-07-01T00:15:00+00:00", 2.5, 0.0, 0.5, 0.0, 8.0),  # 10/4, 2/4, 10 - 2
        ("site-a", 900, "2025-07-01T00:30:00+00:00", 0.0, 1.0, 0.0, 2.0, 4.0),  # 4/4, 8/4, -4 + 8
        ("site-a", 900, "2025-07-01T00:45:00+00:00", None, None, 0.25, 0.0, None),  # the site meter's value is null
        ("site-a", 900, "2025-07-01T01:00:00+00:00", 0.0, 0.0, 0.0, 0.0, 0.0),
        ("site-a", 900, "2025-07-01T01:15:00+00:00", 1.5, 0.0, None, None, None),  # 6/4; the storage has no row
        ("site-a", 3600, "2025-07-01T01:00:00+00:00", 3.0, 0.0, None, None, None),  # an hour: kWh = kW
        ("site-b", 900, "2025-07-01T00:15:00+00:00", None, None, 0.0, 0.5, None),
    ]


def test_demand_peaks(engine, bucket):
    # The interval 30 June 23:45 - 1 July 00:00 ends in July and belongs to June.
    june = bucket.land("june", {("site-a", MONITOR): [5.0, 50.0]}, "01T00:00", "01T01:00")
    months = {
        ("site-a", MONITOR): [7.0, None, 9.0, 9.0],
        ("site-a", CONVERTER): [80.0, 80.0],
        ("site-b", MONITOR): [None, -3.0, -1.0],
        ("site-c", MONITOR): [None],
    }
    # The window begins at 31 July 23:30: two intervals begin in July, the others in August.
    july = bucket.land("july", months, "31T23:30", "31T23:45")
    hours = bucket.land("hours", {("site-a", MONITOR): [70.0]}, "01T00:00", "01T01:00", 3600)
    july["objects"][0]["end"] = "2025-08-01T00:30:00Z"
    june["objects"][0]["start"] = "2025-06-30T23:30:00Z"
    bucket.load(engine, june, july, hours)
    found = engine.rows("SELECT site_id, month, peak_kw, interval_start FROM stem.demand_peaks ORDER BY 1, 2")
    assert found == [
        ("site-a", "2025-07-01", 50.0, "2025-07-01T00:15:00+00:00"),
        ("site-a", "2025-08-01", 9.0, "2025-08-01T00:00:00+00:00"),  # the first of two
        ("site-b", "2025-07-01", -3.0, "2025-07-31T23:45:00+00:00"),
        ("site-b", "2025-08-01", -1.0, "2025-08-01T00:00:00+00:00"),
    ]


ZONES = {"site-a": "America/Los_Angeles", "site-b": "Asia/Kathmandu"}  # UTC-7 in July, and UTC+5:45


def test_energy_and_peaks_of_local_days_and_months(engine, bucket):
    records = [
        {"site_id": f"site-{name}", "name": name, "client_id": "c", "stream_start_times": None} for name in "abc"
    ]
    load_sites(read_records(records), engine.session(), time_zone=ZONES)
    # Six hours from 1 August 5:00 UTC: 22:00 in Los Angeles, 10:45 in Kathmandu. Midnight in Los Angeles is 7:00 UTC.
    powers = [float(number) for number in range(24)]
    receipt = bucket.land("1", {(f"site-{name}", MONITOR): powers for name in "abc"}, "31T05:00", "31T11:00")
    bucket.load(engine, receipt)
    assert engine.rows("SELECT site_id, month, peak_kw FROM stem.demand_peaks ORDER BY 1, 2") == [
        (f"site-{name}", "2025-07-01", 23.0) for name in "abc"
    ]
    # 8 quarters (0 to 7 kW) belong to 30 July in Los Angeles, all others to the 31st.
    assert engine.rows("SELECT site_id, day, peak_kw FROM stem.daily_demand_peaks ORDER BY 1, 2") == [
        ("site-a", "2025-07-30", 7.0),
        *((f"site-{name}", "2025-07-31", 23.0) for name in "abc"),
    ]
    energy = "SELECT site_id, {0}, sum(import_kwh) FROM stem.energy GROUP BY site_id, {0} ORDER BY 1, 2"
    assert engine.rows(energy.format("day")) == [
        ("site-a", "2025-07-30", 28 / 4),
        ("site-a", "2025-07-31", (276 - 28) / 4),
        ("site-b", "2025-07-31", 276 / 4),
        ("site-c", "2025-07-31", 276 / 4),
    ]
    # Kathmandu's 1 August begins on 31 July 18:15 UTC.
    bucket.load(engine, bucket.land("2", {("site-b", MONITOR): [1.0, 50.0, 60.0]}, "31T17:45", "31T18:30"))
    assert engine.rows("SELECT month, peak_kw FROM stem.demand_peaks WHERE site_id = 'site-b' ORDER BY 1") == [
        ("2025-07-01", 50.0),
        ("2025-08-01", 60.0),
    ]
    assert engine.rows(energy.format("month")) == [
        ("site-a", "2025-07-01", 69.0),
        ("site-b", "2025-07-01", 69.0 + 51 / 4),
        ("site-b", "2025-08-01", 15.0),
        ("site-c", "2025-07-01", 69.0),
    ]


def test_local_days_have_23_or_25_hours_when_clocks_change(engine, bucket):
    record = {"site_id": "site-a", "name": "a", "client_id": "c", "stream_start_times": None}
    load_sites(read_records([record]), engine.session(), time_zone="Europe/Berlin")
    for day, hours in [("2025-03-30", 23), ("2025-10-26", 25)]:
        begin = datetime.fromisoformat(f"{day}T00:00+00:00") - timedelta(days=1)
        with engine.session()() as session, session.transaction():
            session.prepare(begin, begin + timedelta(days=3))
            for start in (begin + timedelta(hours=hour) for hour in range(72)):
                values = start, start + timedelta(hours=1), start, start
                session.execute(
                    f"INSERT INTO {SCHEMA}.streams VALUES ('site-a', 'MONITOR', 3600, ?, ?, 1.0, ?, ?)", *values
                )
        assert engine.rows(f"SELECT sum(import_kwh) FROM stem.energy WHERE day = DATE '{day}'") == [(float(hours),)]


def test_a_site_that_is_no_longer_listed_is_expected_up_to_the_last_day_of_its_listing(engine, bucket):
    since = {MONITOR: "2020-01-01T00:00:01Z"}
    records = {
        name: {"site_id": f"site-{name}", "name": name, "client_id": "c", "stream_start_times": since} for name in "ab"
    }
    hours = {(f"site-{name}", MONITOR): [1.0] * 24 for name in "ab"}
    for day in (1, 2, 3):
        bucket.load(engine, bucket.land(f"{day}", hours, f"0{day}T00:00", f"0{day + 1}T00:00", 3600), at=at("04T00:10"))

    def status(name):
        sql = "SELECT expected, received, status FROM stem.completeness WHERE site_id = 'site-{}' ORDER BY day"
        return engine.rows(sql.format(name))

    def list_(when, *names):
        load_sites(read_records([records[name] for name in names]), engine.session(), listed_at=at(when))

    list_("02T06:00", "a", "b")
    # Nothing was listed later: nothing was removed.
    assert status("a") == status("b") == 2 * [(24, 24, "late")] + [(24, 24, "complete")]
    list_("02T07:00", "b")
    list_("03T06:00", "b")
    assert status("a") == 2 * [(24, 24, "late")] + [(0, 0, "not expected")]
    assert status("b") == 2 * [(24, 24, "late")] + [(24, 24, "complete")]
    list_("03T07:00", "a")
    assert status("a") == status("b")


def test_completeness(engine, bucket):
    day = 24 * 4  # intervals of 15 minutes
    list_sites(
        engine,
        a={MONITOR: "2020-01-01T00:00:01Z", CONVERTER: "2025-07-02T12:00:01Z"},
        b={MONITOR: "2020-01-01T00:00:01Z"},
        c={MONITOR: None},
    )
    # 1 July: all of a, and b without its last 2 intervals.
    # 2 July: a in two objects of 12 hours that overlap by one interval, and nothing of b.
    first = {("site-a", MONITOR): [1.0] * day, ("site-b", MONITOR): [1.0] * (day - 2)}
    bucket.load(engine, bucket.land("1", first, "01T00:00", "02T00:00"), at=at("02T00:10"))
    morning = {("site-a", MONITOR): [1.0] * 48}
    bucket.load(engine, bucket.land("2am", morning, "02T00:00", "02T12:00"), at=at("03T00:10"))
    # CONVERTER starts at noon: 48 intervals are expected on the 2nd, of which the first is missing.
    evening = {("site-a", MONITOR): [1.0] * 49, ("site-a", CONVERTER): [..., ...] + [1.0] * 47}
    # Rows loaded after the end of the following day, 4 July 00:00, are late: 48 of MONITOR, 47 of CONVERTER.
    bucket.load(engine, bucket.land("2pm", evening, "02T11:45", "03T00:00"), at=at("04T00:01"))
    # 3 July has 24 intervals until 6:00. Its object has no rows, but was loaded.
    bucket.load(engine, bucket.land("3", {}, "03T00:00", "03T06:00"), at=at("04T00:01"))

    found = engine.rows(
        "SELECT site_id, stream_type, CAST(day AS VARCHAR), expected, received, late, status "
        "FROM stem.completeness WHERE resolution = 900 ORDER BY 1, 2, 3"
    )
    assert found == [
        ("site-a", CONVERTER, "2025-07-01", 0, 0, 0, "not expected"),  # not yet started
        ("site-a", CONVERTER, "2025-07-02", 48, 47, 47, "missing"),
        ("site-a", CONVERTER, "2025-07-03", 24, 0, 0, "missing"),
        ("site-a", MONITOR, "2025-07-01", 96, 96, 0, "complete"),
        ("site-a", MONITOR, "2025-07-02", 96, 96, 48, "late"),
        ("site-a", MONITOR, "2025-07-03", 24, 0, 0, "missing"),
        ("site-b", CONVERTER, "2025-07-01", 0, 0, 0, "not expected"),  # no such stream
        ("site-b", CONVERTER, "2025-07-02", 0, 0, 0, "not expected"),
        ("site-b", CONVERTER, "2025-07-03", 0, 0, 0, "not expected"),
        ("site-b", MONITOR, "2025-07-01", 96, 94, 0, "missing"),
        ("site-b", MONITOR, "2025-07-02", 96, 0, 0, "missing"),
        ("site-b", MONITOR, "2025-07-03", 24, 0, 0, "missing"),
        *(
            ("site-c", stream_type, f"2025-07-0{number}", 0, 0, 0, "not expected")
            for stream_type in (CONVERTER, MONITOR)
            for number in (1, 2, 3)
        ),
    ]


def test_a_start_within_an_hour_and_a_site_that_was_never_listed(engine, bucket):
    # The stream starts at 00:15: at 3600 s its first full interval is 01:00 - 02:00.
    list_sites(engine, a={MONITOR: "2025-07-01T00:15:01Z"})
    streams = {("site-a", MONITOR): [1.0] * 24, ("site-z", MONITOR): [1.0] * 24}
    bucket.load(engine, bucket.land("1", streams, "01T00:00", "02T00:00", 3600), at=at("02T01:00"))
    found = engine.rows("SELECT site_id, expected, received, status FROM stem.completeness ORDER BY 1")
    # The row of 00:00 - 01:00 was not expected, and does not count for another interval.
    assert found == [("site-a", 23, 23, "complete"), ("site-z", 0, 0, "not expected")]


def test_the_columns_of_completeness(engine, bucket):
    bucket.load(engine, bucket.land("1", {}, "01T00:00", "02T00:00"))
    session = engine.session()()
    with session:
        names = session.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'stem' "
            "AND table_name = 'completeness' ORDER BY ordinal_position"
        )
    assert [name for (name,) in names] == [
        "site_id", "stream_type", "resolution", "day", "expected", "received", "late", "status",
    ]  # fmt: skip


@pytest.mark.parametrize("is_first", [True, False])
def test_the_day_of_an_object_without_rows_and_without_a_receipt_is_missing(is_first, engine, bucket):
    list_sites(engine, a={MONITOR: "2020-01-01T00:00:01Z"})
    empty = bucket.land("1", {}, "01T00:00", "02T00:00")["objects"][0]
    hour = bucket.land("2", {("site-a", MONITOR): [1.0]}, "02T00:00", "02T01:00", 3600)
    for one in (empty, hour) if is_first else (hour, empty):
        bucket.load(engine, one, at=at("03T00:00"))
    assert engine.rows("SELECT resolution, day, expected, received, status FROM stem.completeness ORDER BY day") == [
        (3600, "2025-07-01", 24, 0, "missing"),
        (3600, "2025-07-02", 1, 1, "complete"),
    ]
