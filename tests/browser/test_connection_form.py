"""Admin > Connections of a real Airflow, in a real browser, with the simulator."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_stem._connection_form import CONN_FIELDS
from tests.servers.airflow_pages import Connections2, Connections3, browse, chromium
from tests.servers.airflow_server import AirflowServer

pytest.importorskip("playwright", reason="playwright is missing. Install the dependency group browser.")

EXAMPLE_DAGS = Path(__file__).parents[2] / "example_dags"
VERSION = tuple(map(int, airflow_version.split(".")[:2]))
KEY = "a-key-that-nobody-may-see"
WRONG_KEY = "a-wrong-key-that-nobody-may-see-either"
TYPED = {"timeout": "20", "max_attempts": "3", "page_size": "50", "verify": "false", "requests_per_second": "0.5"}

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="Chromium is missing. Install Debian's package chromium."),
    pytest.mark.skipif(VERSION == (3, 0), reason="Airflow 3.0 has no fields for a provider's options"),
]
on_airflow_2 = pytest.mark.skipif(VERSION[0] != 2, reason="the form of Airflow 2")
on_airflow_3 = pytest.mark.skipif(VERSION[0] != 3, reason="the form of Airflow 3")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    environment = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    home = tmp_path_factory.mktemp("airflow")
    with AirflowServer(home, EXAMPLE_DAGS, environment=environment, paused=True) as server:
        yield server


@pytest.fixture(scope="module")
def page():
    with browse() as opened:
        yield opened


@pytest.fixture
def api(stem_simulator_factory):
    return stem_simulator_factory(api_key=KEY, sites=1)


@pytest.fixture
def typed_host(api):
    """The simulator's address as three fields."""
    host, port = api.url.split("/")[2].split(":")
    return {"host": host, "schema": "http", "port": port}


@contextmanager
def no_response_contains_a_key(page):
    """Check that no response of Airflow to the page, nor the page itself, contains a key."""
    answers = {}

    def keep(route):
        if route.request.resource_type in ("document", "fetch", "xhr"):
            answer = route.fetch()
            answers[route.request.url] = answer.text()
            route.fulfill(response=answer)
        else:
            route.continue_()

    page.route("**/*", keep)
    yield
    page.wait_for_load_state("networkidle")
    page.unroute_all(behavior="wait")
    assert answers
    assert [url for url, text in answers.items() if keys_in(text)] == []
    assert keys_in(page.content()) == set()


def keys_in(text):
    return {key for key in (KEY, WRONG_KEY) if key in text}


def saved(airflow, conn_id):
    """Return a connection as Airflow's command line exports it, including secrets."""
    exported = airflow.home / "connections.json"
    exported.unlink(missing_ok=True)
    airflow.cli("connections", "export", str(exported), "--file-format", "json")
    connection = json.loads(exported.read_text())[conn_id]
    # Airflow 2 saves an empty field as an empty string.
    fields = {name: value for name, value in connection.items() if value not in (None, "")}
    return {**fields, "extra": json.loads(connection["extra"])}


def expected(typed_host, key, **extra):
    fields = {"conn_type": "stem", "password": key, "extra": extra, **typed_host}
    return {**fields, "port": int(fields["port"])} if "port" in fields else fields


@on_airflow_3
def test_the_form_of_airflow_3_has_the_right_fields(airflow, page):
    connections = Connections3(page, airflow.url)
    connections.add("fields")
    names = ("description", "host", "login", "password", "port", "schema")
    shown = [name for name in names if connections.field(name).is_visible()]
    assert shown == ["description", "host", "password", "port", "schema"]
    assert connections.field("password").get_attribute("type") == "password"
    assert connections.form.get_by_label("API key (required)", exact=True).count() == 1
    assert {name: connections.field(name).get_attribute("placeholder") for name in ("host", "port", "schema")} == {
        "host": "app.stem.com",
        "port": "443",
        "schema": "https",
    }
    connections.show("Extra Fields")
    for name, field in CONN_FIELDS.items():
        connections.field(name).wait_for()
        assert connections.field(name).input_value() == ""
        assert connections.form.get_by_text(field["label"], exact=True).is_visible()
        assert connections.form.get_by_text(field["description"], exact=True).is_visible()


@on_airflow_3
def test_a_connection_is_added_tested_and_edited_on_airflow_3(airflow, page, api, typed_host):
    connections = Connections3(page, airflow.url)
    connections.add("stem_typed")
    for name, text in {**typed_host, "password": KEY, **TYPED}.items():
        connections.fill(name, text)
    connections.save()
    numbers = {"timeout": 20, "max_attempts": 3, "page_size": 50, "verify": "false", "requests_per_second": 0.5}
    assert saved(airflow, "stem_typed") == expected(typed_host, KEY, **numbers)

    with no_response_contains_a_key(page):
        assert connections.test("stem_typed") == (True, f"Connected to {api.url}")
    # A second request confirms that the first page is the last.
    assert {(request.path, request.status) for request in api.requests} == {("/api/v1/clients", 200)}
    assert api.requests[0].query["per_page"] == ["50"]

    with no_response_contains_a_key(page):
        connections.edit("stem_typed")
        assert connections.field("password").input_value() == "***"
    connections.fill("password", WRONG_KEY)
    connections.fill("timeout", "")
    connections.save()
    with no_response_contains_a_key(page):
        passed, message = connections.test("stem_typed")
    assert not passed
    assert message.startswith("The API rejected the key (")
    assert saved(airflow, "stem_typed") == expected(typed_host, WRONG_KEY, **{**numbers, "timeout": None})


@on_airflow_3
def test_empty_fields_mean_the_defaults(airflow, page):
    connections = Connections3(page, airflow.url)
    connections.add("stem_empty")
    connections.fill("password", KEY)
    for name in CONN_FIELDS:
        # Some forms fill in a minimum when a field loses the focus.
        connections.fill(name, "")
    connections.save()
    assert saved(airflow, "stem_empty") == expected({}, KEY, **dict.fromkeys(CONN_FIELDS))


@on_airflow_2
def test_the_form_of_airflow_2_has_the_right_fields(airflow, page):
    connections = Connections2(page, airflow.url)
    connections.add("fields")
    standard = ("Connection Id", "Connection Type", "Description", "Host", "Scheme", "API key (required)", "Port")
    assert connections.labels() == [*standard, "Extra"] + [field["label"] for field in CONN_FIELDS.values()]
    assert connections.field("password").get_attribute("type") == "password"
    shown = {name: connections.field(name).get_attribute("placeholder") for name in ("host", "schema", *CONN_FIELDS)}
    assert shown == {
        "host": "app.stem.com",
        "schema": "https",
        "timeout": "60",
        "max_attempts": "5",
        "page_size": "100",
        "verify": "true",
        "requests_per_second": None,
    }
    for field in CONN_FIELDS.values():
        assert connections.form.get_by_text(field["description"], exact=True).is_visible()


@on_airflow_2
def test_a_connection_is_added_tested_and_edited_on_airflow_2(airflow, page, api, typed_host):
    connections = Connections2(page, airflow.url)
    connections.add("stem_typed")
    for name, text in {**typed_host, "password": KEY, **TYPED}.items():
        connections.fill(name, text)
    assert connections.test() == f"Connected to {api.url}"
    assert api.requests[0].query["per_page"] == ["50"]
    connections.fill("password", WRONG_KEY)
    assert connections.test().startswith("The API rejected the key (")
    connections.fill("password", KEY)
    connections.save()
    numbers = {"timeout": 20, "max_attempts": 3, "page_size": 50, "verify": "false", "requests_per_second": "0.5"}
    assert saved(airflow, "stem_typed") == expected(typed_host, KEY, **numbers)

    connections.edit("stem_typed")
    assert keys_in(page.content()) == set()
    assert connections.field("password").input_value() == ""
    assert {name: connections.field(name).input_value() for name in TYPED} == TYPED
    # The test does not use the saved password, so it is typed again.
    connections.fill("password", KEY)
    assert connections.test() == f"Connected to {api.url}"
    connections.fill("password", "")
    for name in TYPED:
        connections.fill(name, "")
    connections.save()
    cleared = dict.fromkeys(("timeout", "max_attempts", "page_size"))
    assert saved(airflow, "stem_typed") == expected(typed_host, KEY, **cleared)


@on_airflow_2
def test_the_form_of_airflow_2_rejects_invalid_numbers(airflow, page):
    connections = Connections2(page, airflow.url)
    connections.add("stem_invalid")
    connections.fill("password", KEY)
    connections.fill("timeout", "soon")
    connections.save()
    # Airflow shows its own warning instead of ours, but in the correct row.
    assert connections.row("timeout").locator(".alert-danger").is_visible()
    assert connections.row("page_size").locator(".alert-danger").count() == 0
    assert page.url == f"{airflow.url}/connection/add"
