"""The pages of completeness in Airflow: login, permissions, headers and content, with Airflow's own API server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import date
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from airflow_provider_stem.completeness.charts import chart
from airflow_provider_stem.completeness.source import Curve, StreamDay
from airflow_provider_stem.plugins import StemPlugin
from airflow_provider_stem.warehouse.sites import load_sites, read_records
from tests.servers.processes import HUNG_AFTER
from tests.support import printed_by, until
from tests.warehouse.conftest import engine
from tests.warehouse.helpers import Bucket, at

__all__ = ["engine"]

HAS_PAGES = hasattr(StemPlugin, "external_views")
needs_pages = pytest.mark.skipif(not HAS_PAGES, reason="Airflow before 3.1 has no such views.")
HOSTILE = "<script>alert(1)</script>\u202e"
DAY = "2025-07-01"
PERIOD = f"first_day={DAY}&last_day={DAY}"


def test_the_plugin_is_found_and_needs_no_fastapi():
    from airflow.plugins_manager import AirflowPlugin

    assert issubclass(StemPlugin, AirflowPlugin)
    assert bool(getattr(StemPlugin, "external_views", [])) is HAS_PAGES
    program = "import json, sys, airflow_provider_stem.plugins; print(json.dumps(sorted(sys.modules)))"
    assert not [name for name in printed_by(program) if name.startswith("airflow_provider_stem.completeness")]


@pytest.fixture(scope="module")
def airflow_app(tmp_path_factory):
    """Return Airflow's API server with an empty database."""
    pytest.importorskip("fastapi")
    from airflow import settings
    from airflow.api_fastapi.app import create_app
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.utils.session import create_session

    with create_session() as session:
        import_all_models()
        Base.metadata.create_all(session.get_bind())
    assert settings.Session is not None
    return create_app(apps="core")


def token_of(role):
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=f"user-{role}", role=role))


@pytest.fixture
def browser(airflow_app, engine, monkeypatch):
    """Return a client that is signed in as a viewer, of a warehouse with two sites and a day."""
    from fastapi.testclient import TestClient

    from airflow_provider_stem.completeness import app

    monkeypatch.setenv("AIRFLOW__STEM__COMPLETENESS_CONN_ID", "warehouse")
    monkeypatch.setattr(app, "_heat_maps", app._HeatMaps())
    starts = {
        "site-1": dict.fromkeys(("MONITOR", "CONVERTER"), "2025-01-01T00:00:01Z"),
        HOSTILE: {"MONITOR": "2025-01-01T00:00:01Z"},
    }
    names = {"site-1": "One", HOSTILE: None}
    records = [
        {"site_id": site, "name": names[site], "client_id": "c", "stream_start_times": own}
        for site, own in starts.items()
    ]
    load_sites(read_records(records), engine.session())
    bucket = Bucket()
    streams: dict[tuple[str, str], list[Any]] = {
        ("site-1", "MONITOR"): [1.5, ..., *[float(n) for n in range(94)]],
        ("site-1", "CONVERTER"): [2.0] * 96,
        (HOSTILE, "MONITOR"): [1.0] * 96,
    }
    bucket.load(engine, bucket.land("day", streams, f"{DAY}T00:00", "2025-07-02T00:00"), at=at("02T06:00"))
    streams["site-1", "MONITOR"][0] = 3.25
    bucket.load(engine, bucket.land("day", streams, f"{DAY}T00:00", "2025-07-02T00:00"), at=at("02T09:00"))
    client = TestClient(airflow_app, raise_server_exceptions=False)
    client.cookies.set("_token", token_of("viewer"))
    return client


class Reader(HTMLParser):
    """The text of a page's cells, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags, self._is_cell = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self._is_cell = self._is_cell or tag in ("th", "td")

    def handle_endtag(self, tag):
        self._is_cell = self._is_cell and tag not in ("th", "td")

    def handle_data(self, data):
        if self._is_cell:
            self.rows[-1][-1] += data


def links_of(page):
    return [attributes["href"] for tag, attributes in Reader(page).tags if tag == "a"]


def all_routes():
    from airflow_provider_stem.completeness import app

    return [*app._of_warehouse.routes, *app._of_dag.routes]


def address_of(route):
    path = re.sub(r"\{([^}]*)\}", lambda found: {"dag_id": "dag", "run_id:path": "run"}[found[1]], route.path)
    return f"/stem{path}?site_id=site-1&{'' if path.endswith('/site') else f'day={DAY}'}"


@needs_pages
def test_every_page_needs_a_login_and_the_permission(browser, engine, monkeypatch):
    """All answers have the policy: pages, and errors of each kind. None of those to strangers has data."""
    from airflow.api_fastapi.app import get_auth_manager

    from airflow_provider_stem.completeness.page import content_policy

    addresses = [address_of(route) for route in all_routes()]
    assert len(addresses) == 8
    found = {}
    for address in addresses:
        # A request that is also invalid is rejected for the lack of a login first.
        for query in ("", "&first_day=never&offset=x"):
            answers = {"viewer": browser.get(address + query)}
            stranger = type(browser)(browser.app)
            answers["stranger"] = stranger.get(address + query)
            answers["forged"] = stranger.get(address + query, headers={"Authorization": "Bearer a.b.c"})
            with monkeypatch.context() as patch:
                for method in ("is_authorized_view", "is_authorized_dag"):
                    patch.setattr(get_auth_manager(), method, lambda **_: False)
                answers["no right"] = browser.get(address + query)
            for who, answer in answers.items():
                found[address, query, who] = answer.status_code
                assert answer.headers["content-security-policy"] == content_policy()
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "no" in answer.headers["cache-control"]
                if who != "viewer":
                    assert "kW" not in answer.text
                    assert "<table" not in answer.text
    assert {who: {status for key, status in found.items() if key[2:] == (who,)} for who in answers} == {
        "viewer": {200, 400}, "stranger": {401}, "forged": {403}, "no right": {403},
    }  # fmt: skip
    assert {route.methods for route in all_routes() if route.methods != {"GET"}} == set()
    for address in ("/stem/docs", "/stem/openapi.json", "/stem/static/page.js"):
        answer = browser.get(address)
        assert answer.status_code == 404
        assert answer.headers["content-security-policy"] == content_policy()
    assert browser.post("/stem/completeness").status_code == 405


@needs_pages
def test_a_stranger_is_led_to_the_login_and_back(browser):
    answer = type(browser)(browser.app).get(f"/stem/completeness?{PERIOD}&site=a%26b")
    [login] = [link for link in links_of(answer.text) if "login" in link]
    assert login == (
        "/api/v2/auth/login?next=http%3A%2F%2Ftestserver%2Fstem%2Fcompleteness"
        "%3Ffirst_day%3D2025-07-01%26last_day%3D2025-07-01%26site%3Da%2526b"
    )


@needs_pages
def test_the_policy_allows_the_scripts_of_the_pages_and_no_others(browser):
    allowed = set(re.findall("'(sha256-[^']*)'", browser.get("/stem/none").headers["content-security-policy"]))
    assert len(allowed) == 3
    for route in all_routes():
        page = browser.get(f"{address_of(route)}?{PERIOD}").text
        inline = re.findall(r"<style>(.*?)</style>|<script>(.*?)</script>", page, re.DOTALL)
        digests = {hashlib.sha256("".join(texts).encode()).digest() for texts in inline}
        assert {f"sha256-{base64.b64encode(digest).decode()}" for digest in digests} <= allowed
        tags = Reader(page).tags
        assert not [name for tag, attributes in tags for name in attributes if name == "style" or name.startswith("on")]
        assert not [attributes for tag, attributes in tags if "src" in attributes]


@needs_pages
def test_the_heat_map_has_the_cells_of_the_view(browser, engine):
    page = browser.get(f"/stem/completeness?{PERIOD}")
    [packed] = re.findall(r'id="data">([^<]*)<', page.text)
    data = zlib.decompress(base64.b64decode(packed))
    begin = 4 + int.from_bytes(data[:4], "little")
    head = json.loads(data[4:begin])
    assert (head["first"], head["days"]) == (DAY, 1)
    assert head["sites"] == ["site-1", "<script>alert(1)</script>\\u202e"]
    assert head["kinds"] == [["CONVERTER", 900], ["MONITOR", 900]]
    # Complete, missing one; not expected, complete.
    assert list(data[begin:]) == [1, 96, 96, 0, 3, 96, 95, 0, 4, 0, 0, 0, 1, 96, 96, 0]
    assert "<script>alert" not in page.text
    rows = engine.rows("SELECT sum(expected), sum(received) FROM stem.completeness")
    assert [int(value) for value in rows[0]] == [288, 287]


@needs_pages
def test_a_page_is_made_again_only_after_a_load(browser, engine, monkeypatch):
    from airflow_provider_stem.completeness import app

    made = []
    make = app._heat_map

    def count(*given):
        made.append(given)
        return make(*given)

    monkeypatch.setattr(app, "_heat_map", count)
    address = f"/stem/completeness?{PERIOD}"
    first = browser.get(address)
    assert browser.get(address + "&site=1").text == first.text
    same = browser.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert len(made) == 1
    bucket = Bucket()
    rows = {("site-2", "MONITOR"): [1.0] * 96}
    bucket.load(engine, bucket.land("more", rows, f"{DAY}T00:00", "2025-07-02T00:00"))
    after = browser.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert after.status_code == 200
    assert "site-2" in after.text
    assert len(made) == 2


@needs_pages
def test_the_day_of_a_site_shows_values_gaps_changes_and_loads(browser):
    page = browser.get(f"/stem/completeness/day?site_id=site-1&day={DAY}").text
    rows = Reader(page).rows
    assert ["00:00 to 00:15", "3.25"] in rows
    assert ["00:15 to 00:30", "missing"] in rows
    assert ["00:30 to 00:45", "0"] in rows
    assert "95 of 96 intervals received" in page
    assert "Missing (UTC): 00:15 to 00:30." in page
    assert ["00:00 to 00:15", "MONITOR, 15 min", "1.5", "3.25", "2025-07-02 09:00", "dag · run"] in rows
    assert "/dags/dag/runs/run" in links_of(page)
    assert "/stem/completeness/day?site_id=site-1&day=2025-07-02" in links_of(page)
    # Two curves, one with a gap and an old value.
    tags = [tag for tag, _ in Reader(page).tags]
    assert [tags.count(name) for name in ("svg", "rect", "circle")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({0: -0.1959, 1: 96.34}, ["0 kW", "96.3 kW"]),  # a label of the minimum would cover that of 0
        ({0: -1234.5, 1: 1e5}, ["0 kW", "100,000 kW"]),
        ({0: -16.96, 1: 14.66}, ["-17 kW", "0 kW", "14.7 kW"]),
        ({0: -99.96, 1: 1e300}, ["0 kW", "1e+300 kW"]),
        ({0: 0.0, 1: None}, ["0 kW"]),
        ({}, ["0 kW"]),
    ],
)
def test_the_axis_of_a_chart_has_a_unit_and_readable_labels(values, labels):
    counts = StreamDay("MONITOR", 900, date(2025, 7, 1), 96, len(values), 0, "missing")
    drawn = chart(Curve(counts, values, (*range(2, 96),)), ())
    assert [text for text, _ in drawn.ticks] == labels
    assert [(first, after) for first, after, *_ in drawn.gaps] == [(2, 96)]


@needs_pages
def test_names_of_dags_are_shown_only_to_those_who_may_read_them(browser, monkeypatch):
    from airflow.api_fastapi.app import get_auth_manager

    monkeypatch.setattr(get_auth_manager(), "filter_authorized_dag_ids", lambda **_: set())
    page = browser.get(f"/stem/completeness/day?site_id=site-1&day={DAY}").text
    assert "not in a DAG that you may read" in page
    assert "dag · run" not in page


@needs_pages
def test_restatements_list_days_with_their_energy(browser):
    page = browser.get(f"/stem/restatements?{PERIOD}").text
    # 1.75 kW for a quarter of an hour.
    assert Reader(page).rows[1:] == [
        ["2025-07-01", "One (site-1)", "MONITOR, 15 min", "1", "+0.438", "2025-07-02 09:00"]
    ]
    assert "No value of these days" in browser.get("/stem/restatements?first_day=2025-07-02&last_day=2025-07-02").text


@needs_pages
def test_foreign_text_is_escaped_and_found_by_its_address(browser):
    address = urlencode({"site_id": HOSTILE})
    for path in (f"site?{address}", f"site?{address}&{PERIOD}", f"day?{address}&day={DAY}"):
        page = browser.get(f"/stem/completeness/{path}")
        if page.status_code == 200:
            assert "<script>alert" not in page.text
            assert "\u202e" not in page.text
            assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in page.text
    assert page.status_code == 200
    unknown = browser.get("/stem/completeness/day?site_id=%3Cimg%20src%3Dx%3E&day=2025-07-01")
    assert unknown.status_code == 404
    assert "<img" not in unknown.text


@needs_pages
@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "first_day=2025-07-02&last_day=2025-07-01",
            "last_day 2025-07-01 is before first_day 2025-07-02. Use a later last_day.",
        ),
        ("first_day=1000-01-01&last_day=9999-01-01", "The period has 3,286,818 days. Use 1 to 366 days."),
        ("first_day=<b>", "Invalid first_day. Use days such as 2025-07-01."),
        ("first_day=1751328000", "Invalid first_day. Use days such as 2025-07-01."),
    ],
)
def test_an_invalid_period_is_an_error_with_its_remedy(browser, query, message):
    for path in ("completeness?", "completeness/site?site_id=site-1&", "restatements?"):
        answer = browser.get(f"/stem/{path}{query}")
        assert answer.status_code == 400
        assert message in answer.text


@needs_pages
def test_an_emptied_period_is_the_default(browser):
    emptied, default = (browser.get(f"/stem/restatements{query}") for query in ("?first_day=&last_day=", ""))
    assert (emptied.status_code, emptied.text) == (200, default.text)


@needs_pages
@pytest.mark.parametrize("offset", ["-1", "1000000001", "x", ""])
def test_an_invalid_offset_is_an_error_with_its_remedy(browser, offset):
    answer = browser.get(f"/stem/restatements?offset={offset}")
    assert answer.status_code == 400
    assert "Invalid offset. Use a number from 0 to 1,000,000,000." in answer.text


@needs_pages
@pytest.mark.parametrize("path", ["/stem/", "/stem/completeness/"])
def test_an_address_that_was_cut_off_leads_to_the_heat_map(browser, path):
    assert browser.get(path).url.path == "/stem/completeness"


@needs_pages
@pytest.mark.parametrize("site_id", ["a\nb", f"a/days/{DAY}", "50%41 of / ?#", "n\r\nSet-Cookie: x"])
def test_every_id_has_its_pages(browser, engine, site_id):
    bucket = Bucket()
    bucket.load(engine, bucket.land("odd", {(site_id, "MONITOR"): [1.0] * 96}, f"{DAY}T00:00", "2025-07-02T00:00"))
    address = urlencode({"site_id": site_id})
    page = browser.get(f"/stem/completeness/site?{address}&{PERIOD}")
    assert f"/stem/completeness/day?{address}&day={DAY}" in links_of(page.text)
    day = browser.get(f"/stem/completeness/day?{address}&day={DAY}")
    assert f"/stem/completeness/day?{address}&day=2025-07-02" in links_of(day.text)


@needs_pages
def test_days_that_no_data_can_have_are_rejected(browser):
    for path in ("?last_day=0001-01-01", "?first_day=9999-12-31", "/day?site_id=site-1&day=9999-12-31"):
        assert browser.get(f"/stem/completeness{path}").status_code == 400


@needs_pages
def test_the_database_rejects_writes_of_the_pages(browser):
    from airflow_provider_stem.completeness import app

    with pytest.raises(Exception, match="read-only|reading only"), app._warehouse() as session:
        session.execute("CREATE TABLE {{ params.schema }}.mine (n INTEGER)")


@needs_pages
def test_an_error_of_the_warehouse_is_in_the_log_and_not_in_the_page(browser, monkeypatch, caplog):
    monkeypatch.setenv("AIRFLOW__STEM__COMPLETENESS_SCHEMA", "elsewhere")
    answer = browser.get(f"/stem/completeness?{PERIOD}")
    assert answer.status_code == 500
    assert "The warehouse cannot be read. See the log of Airflow" in answer.text
    assert "elsewhere" not in answer.text
    assert "elsewhere" in caplog.text


@needs_pages
def test_without_a_connection_the_page_lists_the_steps(browser, monkeypatch):
    monkeypatch.delenv("AIRFLOW__STEM__COMPLETENESS_CONN_ID")
    assert "completeness_conn_id" in browser.get("/stem/completeness").text
    assert browser.get("/stem/restatements").status_code == 404


@needs_pages
def test_requests_at_the_same_time_make_a_heat_map_once(monkeypatch):
    pytest.importorskip("fastapi")
    from airflow_provider_stem.completeness import app, source

    wanted, made, lock = list[float](), list[Any](), threading.Lock()

    def acquire(timeout):
        wanted.append(timeout)
        return lock.acquire(timeout=timeout)

    def heat_map(*key):
        made.append(key)
        until(lambda: len(wanted) == 4)  # all requests have found no page by then
        return b"page"

    monkeypatch.setattr(app, "_warehouse", nullcontext)
    monkeypatch.setattr(source, "read_version", lambda _: "a version")
    monkeypatch.setattr(app, "_heat_map", heat_map)
    monkeypatch.setattr(app, "_LOCK_TIMEOUT", HUNG_AFTER)
    heat_maps, day = app._HeatMaps(), date(2025, 7, 1)
    monkeypatch.setattr(heat_maps, "_lock", SimpleNamespace(acquire=acquire, release=lock.release))
    with ThreadPoolExecutor(4) as pool:
        pages = [one.result() for one in [pool.submit(heat_maps.get, day, day, "") for _ in range(4)]]
    assert len(made) == 1
    assert {body for _, body in pages} == {b"page"}
