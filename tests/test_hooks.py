from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pyarrow as pa
import pytest

from airflow_provider_stem._connection_form import CONN_FIELDS
from airflow_provider_stem.errors import StemConfigError, StemNotFoundError, StemUnavailableError
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.streams.decoding.columnar import read_columnar
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.support import expected_rows, landed_rows

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
AWKWARD_KEY = "k/+=@:%20?&#-é"[:-1]


def test_the_constructor_reads_no_connection(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_STEM_DEFAULT", raising=False)
    assert StemHook("not there").stem_conn_id == "not there"
    assert StemHook().stem_conn_id == "stem_default"


@pytest.mark.parametrize("form", ["json", "uri"])
def test_a_connection_from_the_environment_keeps_any_key(form, stem_simulator_factory, monkeypatch):
    from airflow.models.connection import Connection

    sim = stem_simulator_factory(api_key=AWKWARD_KEY)
    if form == "json":
        text = sim.connection
    else:
        fields = json.loads(sim.connection)
        text = Connection(
            conn_id="stem_default",
            conn_type="stem",
            host=fields["host"],
            password=AWKWARD_KEY,
            extra={"verify": "false"},
        ).get_uri()
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", text)
    assert StemHook().test_connection() == (True, f"Connected to {sim.url}")


def test_a_hand_written_uri_works(stem, monkeypatch):
    port = stem.url.split(":")[2].split("/")[0]
    monkeypatch.setenv(
        "AIRFLOW_CONN_STEM_DEFAULT", f"stem://:demo-key@127.0.0.1:{port}/http?timeout=1800&max_attempts=1"
    )
    assert [client["id"] for client in StemHook().list_clients()] == [client.id for client in stem.fleet.clients]


def test_listings_and_single_entities_are_as_the_api_sends_them(stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(unknown_fields=True, sites=7)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    hook = StemHook()
    clients = list(hook.list_clients())
    assert hook.get_client(clients[0]["id"])["id"] == clients[0]["id"]
    assert list(hook.list_clients(name=clients[1]["name"])) == [clients[1]]
    sites = list(hook.list_sites())
    assert sorted(site["id"] for site in sites) == sorted(sim.fleet.site_ids)
    assert sites[: len(sites)] == [site for client in clients for site in hook.list_sites(client["id"])]
    site = hook.get_site(sites[0]["id"])
    assert site["stream_start_times"] == sites[0]["stream_start_times"]
    assert set(site) - {"id", "name", "link", "stream_start_times"}, "an unknown field arrives too"
    with pytest.raises(StemNotFoundError, match="404"):
        hook.get_site("unknown")


def test_listing_is_lazy(stem):
    sites = StemHook().list_sites()
    assert stem.requests == []
    next(sites)
    # Two pages of clients and two of the first client's sites: only complete listings are returned.
    assert len(stem.requests) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "rejected the key .*Check the API key \\(Password\\)"),
        ({"password": ""}, "has no Password"),
        ({"host": "http://127.0.0.1:1"}, "cannot be reached. Check Host, Port and the network"),
        ({"host": "http://example.com"}, "Plain http to 'example.com'"),
        ({"extra": {"tiemout": 5}}, r"unknown keys \['tiemout'\]"),
        ({"extra": {"timeout": "soon"}}, "'timeout' .* must be a number of seconds above 0 .*, got 'soon'"),
    ],
)
def test_the_connection_test_says_what_to_correct_and_never_raises(change, message, stem, monkeypatch):
    import re

    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({**json.loads(stem.connection), **change}))
    passed, result = StemHook().test_connection()
    assert not passed
    assert re.search(message, result)
    assert "wrong" not in result.replace("wrong path", "")


def test_the_connection_test_reports_a_wrong_path_and_a_missing_connection(stem, monkeypatch):
    wrong = {**json.loads(stem.connection), "host": stem.url + "elsewhere"}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(wrong))
    assert StemHook().test_connection() == (
        False,
        "There is no Stem API at this address. Check Host and its path (default /api/v1/).",
    )
    passed, result = StemHook("missing_connection").test_connection()
    assert not passed
    assert "missing_connection" in result


@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_get_streams_returns_the_window_in_the_landing_schema(resolution, stem):
    types = ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")
    table = StemHook().get_streams("site-00001", *DAY, stream_types=types, resolution=resolution)
    assert isinstance(table, pa.Table)
    assert table.schema.equals(LANDING_SCHEMA)
    assert landed_rows(table) == expected_rows(stem, ["site-00001"], types, resolution, *DAY)
    assert [request.status for request in stem.requests] == [200]


@pytest.mark.parametrize("columnar", ["True", "False"])
def test_get_streams_without_columnar_decoding_returns_the_same(columnar, stem, monkeypatch):
    monkeypatch.setenv("AIRFLOW__STEM__COLUMNAR_DECODING", columnar)
    columnar_decoder = Mock(wraps=read_columnar)
    monkeypatch.setattr("airflow_provider_stem.streams.decoding.read_columnar", columnar_decoder)
    start, end = "2025-06-01T00:00Z", "2025-07-02T00:00Z"
    table = StemHook().get_streams("site-00001", start, end)
    assert landed_rows(table) == expected_rows(stem, ["site-00001"], ["MONITOR"], 900, start, end)
    assert columnar_decoder.called == (columnar == "True")


def test_get_streams_requests_monitor_by_default(stem):
    table = StemHook().get_streams("site-00002", *DAY)
    assert set(table["stream_type"].to_pylist()) == {"MONITOR"}
    assert table.num_rows == 96


def test_get_streams_names_the_type_that_a_site_lacks(stem):
    lacking = next(s for s in stem.fleet.site_ids if "INTERVAL_REVENUE" not in stem.fleet.site(s).stream_start_times)
    types = ["MONITOR", "INTERVAL_REVENUE"]
    with pytest.raises(StemUnavailableError, match="INTERVAL_REVENUE") as caught:
        StemHook().get_streams(lacking, *DAY, stream_types=types)
    assert caught.value.stream_types == ("INTERVAL_REVENUE",)
    table = StemHook().get_streams(lacking, *DAY, stream_types=types, on_unavailable="skip")
    assert landed_rows(table) == expected_rows(stem, [lacking], types, 900, *DAY)


def test_get_streams_without_an_interval_sends_no_request(stem):
    table = StemHook().get_streams("site-00001", "2025-07-01T00:01Z", "2025-07-01T00:14Z")
    assert table.num_rows == 0
    assert table.schema.equals(LANDING_SCHEMA)
    assert stem.requests == []


def test_get_streams_of_the_year_1000_sends_four_digits(stem):
    assert StemHook().get_streams("site-00001", "1000-01-01T00:00Z", "1000-01-01T01:00Z").num_rows == 0
    asked = stem.requests[0].query
    assert asked["start_datetime"] + asked["end_datetime"] == ["0999-12-31T23:45:00Z", "1000-01-01T01:15:00Z"]


@pytest.mark.parametrize("reading", ["A", "B"])
def test_get_streams_of_a_window_that_ends_now_is_complete(reading, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(reading=reading)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    now = datetime.now(UTC)
    table = StemHook().get_streams("site-00001", now - timedelta(hours=6), now)
    assert table.num_rows == 24
    assert table["interval_end"][-1].as_py() == datetime.fromtimestamp(now.timestamp() // 900 * 900, UTC)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("site-00001", "2025-07-01T00:00", "2025-07-02T00:00Z"), {}, "Invalid start .*no UTC offset"),
        (("site-00001", datetime(2025, 7, 1), DAY[1]), {}, "Invalid start .*no UTC offset"),  # noqa: DTZ001
        (("site-00001", DAY[1], DAY[0]), {}, "is not after start"),
        (("site-00001", DAY[0], DAY[0]), {}, "is not after start"),
        (("site-00001", DAY[0], "2999-01-01T00:00Z"), {}, "is in the future.*StemStreamsSensor"),
        (("site-00001", 5, DAY[1]), {}, "Invalid start 5"),
        (("site-00001", "0999-12-31T23:45Z", "1000-01-02T00:00Z"), {}, "Invalid start .*Use a time in the years 1000"),
        (("site-00001", "0001-01-01T00:00Z", "0002-01-01T00:00Z"), {}, "Invalid end .*Use a time in the years 1000"),
        (("site-00001", datetime(9, 1, 1, tzinfo=UTC), DAY[1]), {}, "Invalid start .*Use a time in the years 1000"),
        (("site-00001", DAY[0], "9999-12-31T23:59Z"), {}, "is in the future.*StemStreamsSensor"),
        (("site-00001", DAY[0], "9999-12-31T23:59-01:00"), {}, "Invalid end .*Use a time in the years 1000"),
        (("site-00001", *DAY), {"resolution": 300}, "Invalid resolution 300"),
        (("site-00001", *DAY), {"stream_types": ()}, "stream_types"),
        (("site-00001", *DAY), {"on_unavailable": "warn"}, "on_unavailable must be one of fail, skip, got 'warn'"),
        (("", *DAY), {}, "site_id must be an id that the API lists"),
        (("..", *DAY), {}, "site_id must be an id that the API lists"),
    ],
)
def test_get_streams_rejects_wrong_arguments_before_any_request(arguments, options, message, stem):
    with pytest.raises(ValueError, match=message) as caught:
        StemHook().get_streams(*arguments, **options)
    assert isinstance(caught.value, StemConfigError)
    assert stem.requests == []


def test_both_forms_of_the_connection_form_have_the_same_fields():
    assert set(CONN_FIELDS) == {"timeout", "max_attempts", "page_size", "verify", "requests_per_second"}
    assert StemHook.get_ui_field_behaviour()["relabeling"] == {"password": "API key (required)", "schema": "Scheme"}


def test_a_connection_that_is_neither_json_nor_a_uri_is_named(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", "not json {")
    assert StemHook().test_connection() == (
        False,
        "The connection is empty. If it is in an environment variable, correct that to JSON or a URI.",
    )


@pytest.mark.parametrize("conn_type", ["aws", "postgres", "Stem"])
def test_the_secret_of_another_service_is_not_sent(conn_type, stem, monkeypatch):
    fields = {**json.loads(os.environ["AIRFLOW_CONN_STEM_DEFAULT"]), "conn_type": conn_type}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(fields))
    with pytest.raises(StemConfigError, match=f"The connection has the type '{conn_type}'. Use one of type 'stem'"):
        list(StemHook("other").list_clients())
    assert StemHook("other").test_connection()[0] is False
    assert not stem.requests
