"""The models of the dbt package, built by dbt on each engine, compared with numbers that were worked out by hand."""

from __future__ import annotations

import pytest
import yaml

from airflow_provider_stem.dbt import PROJECT
from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA, VIEWS
from tests.warehouse.helpers import Bucket, at

ZONES = {"site-a": "Europe/Berlin", "site-b": "America/Los_Angeles"}
SINCE = {
    "a": "2020-01-01T00:00:01Z",
    "b": "2025-10-16T17:00:01Z",
    "c": "2025-10-30T00:00:01Z",
    "d": "2025-07-01T12:00:01Z",
}
NOW = {"stem_now": "2025-11-01 08:00:00+00:00", "stem_test_from": "2025-07-01"}


def insert(session, site, stream_type, kw, start, end):
    """Insert quarters of an hour from one instant to another, as a load would."""
    session.prepare(at("01T00:00"), at("01T00:00").replace(month=12))
    session.execute(
        f"INSERT INTO {SCHEMA}.streams SELECT '{site}', '{stream_type}', 900, t, t + INTERVAL '15 minutes', {kw}, t, t "
        f"FROM generate_series(TIMESTAMP WITH TIME ZONE '{start}:00+00:00', "
        f"TIMESTAMP WITH TIME ZONE '{end}:00+00:00' - INTERVAL '15 minutes', INTERVAL '15 minutes') AS g(t)"
    )


def update(session, site, start, change):
    assert (
        session.change(
            f"{change} WHERE site_id = '{site}' AND stream_type = 'MONITOR' "
            f"AND interval_start = TIMESTAMP WITH TIME ZONE '{start}:00+00:00'"
        )
        == 1
    )


@pytest.fixture
def loaded(engine):
    """A warehouse with a restatement in July, and an October with a clock change."""
    records = [
        {"site_id": f"site-{name}", "name": name, "client_id": "c", "stream_start_times": {"MONITOR": since}}
        for name, since in SINCE.items()
    ]
    load_sites(read_records(records), engine.session(), time_zone=ZONES, listed_at=at("01T00:00"))
    # From then on site-d is not listed any more.
    load_sites(read_records(records[:3]), engine.session(), listed_at=at("02T00:00"))
    bucket = Bucket()
    for values, when in [([10.0, -4.0, None, 0.0], "01T02:00"), ([12.0, -4.0, 8.0, None], "03T22:30")]:
        receipt = bucket.land("july", {("site-a", "MONITOR"): values}, "01T00:00", "01T01:00")
        bucket.load(engine, receipt, at=at(when))
    with engine.session()() as session, session.transaction():
        # October in Berlin: 31 days and an hour, 2,980 quarters.
        insert(session, "site-a", "MONITOR", "2.0", "2025-09-30T22:00", "2025-10-31T23:00")
        for start, kw in [("2025-10-10T10:00", "-8"), ("2025-10-11T10:00", "NULL"), ("2025-10-26T01:30", "12")]:
            update(session, "site-a", start, f"UPDATE {SCHEMA}.streams SET kw_total_avg = {kw}")
        # 2 October in Berlin: ten hours of charging, ten of discharging.
        insert(session, "site-a", "CONVERTER", "4.0", "2025-10-01T22:00", "2025-10-02T08:00")
        insert(session, "site-a", "CONVERTER", "-3.4", "2025-10-02T08:00", "2025-10-02T18:00")
        # Begins at 10:00 on 16 October in Los Angeles; the first quarter is too early.
        insert(session, "site-b", "MONITOR", "1.0", "2025-10-16T16:45", "2025-11-01T07:00")
        # As many quarters as are expected, but one is too early, and one is missing.
        insert(session, "site-c", "MONITOR", "-0.5", "2025-10-29T23:45", "2025-11-01T00:00")
        update(session, "site-c", "2025-10-30T12:00", f"DELETE FROM {SCHEMA}.streams")
        # Half of the last day on which it was listed, and a quarter that is not expected.
        insert(session, "site-d", "MONITOR", "1.0", "2025-07-01T12:00", "2025-07-02T00:15")
    return engine


def test_the_models_have_the_numbers_worked_out_by_hand(loaded, dbt):
    statuses = dbt.run("build", **NOW)
    assert {name for name, status in statuses.items() if status not in ("success", "pass", "no-op")} == {
        "stem_months_are_complete"
    }
    assert sum(status == "pass" for status in statuses.values()) == 11
    bills = loaded.rows(
        "SELECT site_id, month, time_zone, import_kwh, export_kwh, net_kwh, peak_kw, peak_start, load_factor, "
        "expected, known, is_complete FROM analytics.stem_billing_determinants ORDER BY 1, 2"
    )
    a, b, c = "Europe/Berlin", "America/Los_Angeles", "UTC"
    assert bills == [
        # July: 12/4 + 8/4 and 4/4, in 3 of 31 x 96 quarters. 5 / (3 x 3).
        ("site-a", "2025-07-01", a, 5.0, 1.0, 4.0, 12.0, "2025-07-01T00:00:00+00:00", 5 / 9, 2976, 3, False),
        # 2,977 quarters of 0.5 kWh and one of 3 kWh; one exports 2 kWh, one is unknown. The peak is in the second
        # of the two hours that begin at 2:00.
        (
            *("site-a", "2025-10-01", a, 1491.5, 2.0, 1489.5, 12.0, "2025-10-26T01:30:00+00:00"),
            *(pytest.approx(1491.5 / (2979 * 3)), 2980, 2979, False),
        ),
        # 374 hours from the start of the stream, and the quarter before it.
        ("site-b", "2025-10-01", b, 374.25, 0.0, 374.25, 1.0, "2025-10-16T16:45:00+00:00", 1.0, 1496, 1497, True),
        # Two days and a quarter less a quarter: 48 h of 0.5 kW.
        ("site-c", "2025-10-01", c, 0.0, 24.0, -24.0, -0.5, "2025-10-29T23:45:00+00:00", None, 192, 192, False),
        # Twelve hours and a quarter.
        ("site-d", "2025-07-01", c, 12.25, 0.0, 12.25, 1.0, "2025-07-01T12:00:00+00:00", 1.0, 48, 49, True),
    ]
    peaks = "SELECT day, peak_kw, interval_start FROM analytics.stem_daily_demand_peaks WHERE peak_kw > 2 ORDER BY 1"
    assert loaded.rows(peaks) == [
        ("2025-07-01", 12.0, "2025-07-01T00:00:00+00:00"),
        ("2025-10-26", 12.0, "2025-10-26T01:30:00+00:00"),
    ]
    # 40 quarters of 2 - 4 kW, 40 of 2 + 3.4 kW.
    loads = "SELECT site_id, day, load_kwh, peak_load_kw, intervals FROM analytics.stem_daily_load WHERE intervals > 0"
    assert loaded.rows(loads) == [("site-a", "2025-10-02", pytest.approx(34.0), 5.4, 80)]
    for model, period in [("stem_battery", "2025-10-01"), ("stem_daily_battery", "2025-10-02")]:
        assert loaded.rows(f"SELECT * FROM analytics.{model}") == [
            ("site-a", 900, period, 40.0, pytest.approx(34.0), pytest.approx(0.85), None, 80)
        ]
    # 2 kW more, null to 8 kW, and 0 kW to null, each for a quarter. 22:30 UTC is the next day in Berlin.
    restated = "2025-07-03T22:30:00+00:00"
    assert loaded.rows("SELECT * FROM analytics.stem_daily_restatements") == [
        ("site-a", "MONITOR", 900, "2025-07-01", "2025-07-04", "dag", "run", 2.5, 2.5, 3, 1, 1, restated, restated)
    ]
    assert loaded.rows("SELECT * FROM analytics.stem_completeness WHERE expected > 0") == [
        ("site-a", "MONITOR", 900, "2025-07-01", 4, 4, 0, "complete")
    ]
    documented = [
        (model["name"], column["name"])
        for model in yaml.safe_load((PROJECT / "models" / "models.yml").read_text())["models"]
        for column in model["columns"]
    ]
    columns = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'analytics'"
    assert sorted(loaded.rows(columns)) == sorted(documented)
    for view in VIEWS:
        for one, other in [("stem.", "analytics.stem_"), ("analytics.stem_", "stem.")]:
            assert loaded.rows(f"SELECT * FROM {one}{view} EXCEPT SELECT * FROM {other}{view}") == []


def test_a_month_without_a_row_between_two_others_is_found(loaded, dbt):
    october = {**NOW, "stem_test_from": "2025-10-01"}
    with loaded.session()() as session, session.transaction():
        # Otherwise the October of these sites is not complete.
        update(session, "site-a", "2025-10-11T10:00", f"UPDATE {SCHEMA}.streams SET kw_total_avg = 2")
        session.execute(f"DELETE FROM {SCHEMA}.streams WHERE site_id = 'site-c'")
    # site-a has July, and neither August nor September.
    assert failed(dbt.run("build", **october)) == {"stem_months_are_complete"}
    with loaded.session()() as session, session.transaction():
        session.execute(f"DELETE FROM {SCHEMA}.streams WHERE site_id = 'site-a' AND interval_start < '2025-09-01'")
    assert failed(dbt.run("test", "--select", "stem_months_are_complete", **october)) == {"stem_months_are_complete"}
    assert failed(dbt.run("build", "--exclude", "stem_days_are_complete", **october)) == set()


def failed(statuses):
    return {name for name, status in statuses.items() if status == "fail"}


def test_each_test_fails_for_what_it_checks(loaded, dbt):
    assert failed(dbt.run("build", **NOW)) == {"stem_months_are_complete"}
    assert failed(dbt.run("test", **{**NOW, "stem_test_from": "2025-11-01"})) == set()
    with loaded.session()() as session, session.transaction():
        update(session, "site-a", "2025-10-03T00:00", f"UPDATE {SCHEMA}.streams SET kw_total_avg = 5000")
        update(
            session, "site-a", "2025-10-04T00:00", f"UPDATE {SCHEMA}.streams SET interval_start = '2025-10-03 23:50Z'"
        )
        update(session, "site-a", "2025-07-01T00:15", f"UPDATE {SCHEMA}.streams SET kw_total_avg = 1")
        session.execute(
            f"UPDATE {SCHEMA}.restatements SET new_kw = 1 WHERE interval_end = TIMESTAMPTZ '2025-07-01 00:15Z'"
        )
        session.execute(f"UPDATE {SCHEMA}.stream_days SET received_am = 7")
        if loaded.name == "duckdb":  # PostgreSQL has a primary key
            session.execute(
                f"INSERT INTO {SCHEMA}.streams SELECT * FROM {SCHEMA}.streams WHERE interval_end = '2025-07-01 00:15Z'"
            )
    late = {**NOW, "stem_now": "2025-11-04 08:00:00+00:00", "stem_max_kw": 1000}
    assert failed(dbt.run("test", **late)) == {
        *("stem_streams_are_fresh", "stem_values_are_in_range", "stem_intervals_are_on_the_grid"),
        *("stem_restatements_end_at_the_stored_value", "stem_days_are_complete", "stem_months_are_complete"),
        *(["stem_streams_have_each_key_once"] if loaded.name == "duckdb" else []),
    }
    # Bad data does not get as far as what is billed.
    statuses = dbt.run("build", **late)
    assert {statuses[name] for name in ("stem_billing_determinants", "stem_battery")} == {"skipped"}


def test_sources_have_a_freshness(loaded, dbt):
    stale = dbt.run("source", "freshness")
    assert stale == {"streams": "error", "loads": "error"}
    with loaded.session()() as session, session.transaction():
        session.execute(f"UPDATE {SCHEMA}.loads SET loaded_at = current_timestamp - INTERVAL '40 hours'")
    assert dbt.run("source", "freshness") == {"streams": "error", "loads": "warn"}
    assert dbt.run("source", "freshness", stem_warn_after_hours=41) == {"streams": "error", "loads": "pass"}


def test_another_project_has_the_package_with_the_capacities_of_batteries(loaded, dbt, tmp_path):
    project = tmp_path / "project"
    for name, text in {
        "dbt_project.yml": "name: bills\nversion: '1.0'\nprofile: stem_telemetry\n"
        "vars: {stem_telemetry: {stem_batteries: capacities, stem_materialized: table}}\n"
        "data_tests: {stem_telemetry: {stem_days_are_complete: {+severity: warn}}}\n",
        "packages.yml": "packages: [{local: \"{{ env_var('STEM_DBT') }}\"}]\n",
        "seeds/capacities.csv": "site_id,usable_kwh\nsite-a,17\n",
        "models/bills.sql": "SELECT site_id, month, import_kwh * 0.2 AS amount "
        "FROM {{ ref('stem_billing_determinants') }} WHERE is_complete",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    with loaded.session()() as session, session.transaction():
        session.execute(f"UPDATE {SCHEMA}.stream_days SET received_am = 7")
    dbt.run("deps", project=project)
    statuses = dbt.run("build", "--exclude", "stem_months_are_complete", project=project, **NOW)
    assert statuses.pop("stem_days_are_complete") == "warn"
    assert set(statuses.values()) <= {"success", "pass", "no-op"}
    assert loaded.rows("SELECT site_id, month, amount FROM analytics.bills ORDER BY 1") == [
        ("site-b", "2025-10-01", pytest.approx(74.85)),
        ("site-d", "2025-07-01", pytest.approx(2.45)),
    ]
    assert loaded.rows("SELECT cycles FROM analytics.stem_battery") == [(pytest.approx(2.0),)]  # 34 of 17 kWh
