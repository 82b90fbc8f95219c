"""The pages of completeness in a real Airflow and a real browser: frames, links, keyboard, print, accessibility."""

from __future__ import annotations

import json
import os
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_stem.plugins import StemPlugin
from airflow_provider_stem.simulator import Settings, Simulator
from tests.servers.airflow_pages import browse, chromium
from tests.servers.airflow_server import AirflowServer
from tests.servers.s3 import S3Server

pytest.importorskip("playwright", reason="playwright is missing. Install the dependency group browser.")

ROOT = Path(__file__).parents[2]
AXE = Path(__file__).parent / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = os.environ.get("SCREENSHOTS")
"""
Folder for pictures of the views and for the report of axe. The pictures airflow-nav, airflow-day and site-light are in
docs/images as completeness-airflow, completeness-day and completeness-site.
"""
WHOLE = (1 << 48) - 1
DAYS, SITES = 90, 160
SITE = "site-00004"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.airflow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is missing. Install Debian's package chromium."),
    pytest.mark.skipif(not hasattr(StemPlugin, "external_views"), reason="Airflow before 3.1 has no such views."),
]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Return an Airflow that has landed and loaded three days, after 87 others."""
    folder = tmp_path_factory.mktemp("pages")
    with Simulator(Settings(api_key="key", sites=SITES, gaps=0.02)) as simulator, S3Server(folder / "s3") as s3:
        s3.client().create_bucket(Bucket="stem-telemetry")
        fill(folder / "warehouse.duckdb")
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": json.dumps({"conn_type": "stem", "host": simulator.url, "password": "key"}),
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
            "AIRFLOW__STEM__COMPLETENESS_CONN_ID": "stem_warehouse",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        dags = folder / "dags"
        dags.mkdir()
        (dags / "stem_warehouse.py").symlink_to(ROOT / "example_dags" / "stem_warehouse.py")
        with AirflowServer(folder / "airflow", dags, environment=environment, paused=True) as server:
            server.wait_for_dags("stem_warehouse")
            # As users make it: in Airflow's database, which the API server reads itself.
            warehouse = {"connection_id": "stem_warehouse", "conn_type": "duckdb"}
            server.call("POST", "connections", json={**warehouse, "host": str(folder / "warehouse.duckdb")})
            server.unpause()
            server.wait_until(lambda: server.runs("stem_warehouse"), "a run")
            assert server.wait_for_run("stem_warehouse", run_of(server)) == "success"
            yield server


def run_of(airflow):
    """Return the id of the run."""
    return airflow.runs("stem_warehouse")[0]["dag_run_id"]


def fill(path):
    """Store the records of sites, and days of which some intervals are missing or late."""
    import duckdb
    import pyarrow as pa

    from airflow_provider_stem.simulator.model import Fleet
    from airflow_provider_stem.streams.stream_types import STREAM_TYPES
    from airflow_provider_stem.warehouse.duckdb_session import DuckDBSession
    from airflow_provider_stem.warehouse.sites import load_sites, read_records

    fleet, drawn = Fleet(Settings(sites=SITES)), random.Random(7)
    starts = dict.fromkeys(STREAM_TYPES, "2024-01-01T00:00:01Z")
    records = [
        {
            "site_id": site,
            "name": fleet.site_name(fleet.site_index(site)),
            "client_id": "c",
            "stream_start_times": starts,
        }
        for site in fleet.site_ids
    ]

    def connect():
        return DuckDBSession(lambda: duckdb.connect(str(path)), "stem", 60)

    load_sites(read_records(records), connect)
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=back) for back in range(DAYS, 3, -1)]
    streams = [(site, kind, 900) for site in fleet.site_ids for kind in STREAM_TYPES]
    rows = []
    for site, kind, resolution in streams:
        out = drawn.randrange(len(days)) if drawn.random() < 0.12 else len(days)
        for number, day in enumerate(days):
            lost = WHOLE if out < number < out + 6 else (1 << drawn.randrange(48)) if drawn.random() < 0.03 else 0
            late = 255 if drawn.random() < 0.02 else 0
            rows.append((day, resolution, site, kind, WHOLE & ~lost, WHOLE & ~lost, late & ~lost, 0))
    names = ("day", "resolution", "site_id", "stream_type", "received_am", "received_pm", "late_am", "late_pm")
    types = (pa.date32(), pa.int32(), pa.string(), pa.string(), *[pa.int64()] * 4)
    schema = pa.schema(list(zip(names, types, strict=True)))
    with connect() as session, session.transaction():
        batch = pa.RecordBatch.from_arrays(
            [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)], schema=schema
        )
        session.append("{{ params.schema }}.stream_days", schema, [batch])
        for site, kind, resolution in streams:
            session.execute("INSERT INTO {{ params.schema }}.loaded_streams VALUES (?, ?, ?)", site, kind, resolution)
        for day in days:
            session.execute("INSERT INTO {{ params.schema }}.covered_days VALUES (?, 900, ?, ?)", day, WHOLE, WHOLE)


@pytest.fixture(scope="module")
def page(airflow):
    with browse(1320, 900) as opened:
        opened.goto(airflow.url)
        opened.wait_for_load_state("networkidle")
        yield opened


def views(airflow):
    """Return the address of each page by its name."""
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    run = run_of(airflow).replace("+", "%2B")
    return {
        "heat-map": f"{airflow.url}/stem/completeness",
        "site": f"{airflow.url}/stem/completeness/site?site_id={SITE}",
        "day": f"{airflow.url}/stem/completeness/day?site_id={SITE}&day={yesterday}",
        "restatements": f"{airflow.url}/stem/restatements",
        "dag": f"{airflow.url}/stem/dags/stem_warehouse",
        "run": f"{airflow.url}/stem/dags/stem_warehouse/runs/{run}",
        "error": f"{airflow.url}/stem/completeness?first_day=x",
    }


def shoot(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", animations="disabled")


def show(page, address):
    page.goto(address)
    if address.partition("?")[0].endswith("/completeness") and not address.endswith("=x"):
        page.locator("#canvas[data-ready]").wait_for()


LOOKS = {"light": ("light", 1320, 900), "dark": ("dark", 1320, 900), "phone": ("light", 390, 800)}


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is missing. Run npm ci in tests/browser/axe.")
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_violation(airflow, page, look):
    scheme, width, height = LOOKS[look]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    found = {}
    for name, address in views(airflow).items():
        show(page, address)
        shoot(page, f"{name}-{look}")
        # The policy does not allow to add a script. The debugger may.
        page.evaluate(AXE.read_text())
        result = page.evaluate("() => axe.run()")
        found[name] = [f"{one['id']}: {[node['html'] for node in one['nodes']][:3]}" for one in result["violations"]]
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            found[name].append(f"{wide} pixels wider than the screen")
        if SHOTS:
            with Path(SHOTS, "axe.txt").open("a") as report:
                report.write(
                    f"Airflow {airflow.version}, {look}, {name}: axe {result['testEngine']['version']}, "
                    f"{len(result['passes'])} rules passed, {len(result['violations'])} violations\n"
                )
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1320, "height": 900})
    assert {name: violations for name, violations in found.items() if violations} == {}
    assert [text for text in messages if "status of 400" not in text] == []


def test_the_navigation_shows_the_heat_map_and_its_links_lead_to_the_run(airflow, page):
    page.goto(f"{airflow.url}/plugin/stem-completeness")
    frame = page.frame_locator("iframe")
    frame.locator("#canvas[data-ready]").wait_for()
    shoot(page, "airflow-nav")
    frame.locator("#site").fill(SITE)
    frame.locator("#worst tbody a").first.click()
    frame.locator("h1").filter(has_text=SITE).wait_for()
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    frame.get_by_role("link", name=yesterday).first.click()
    frame.locator("svg.chart").first.wait_for()
    assert frame.locator("svg.chart").count() == 3
    shoot(page, "airflow-day")
    link = frame.get_by_role("link", name=re.compile("stem_warehouse .* land_streams")).first
    target = link.get_attribute("href")
    assert re.fullmatch(r"/dags/stem_warehouse/runs/[^/]+/tasks/land_streams/mapped/\d", target)
    link.click()
    page.wait_for_url(re.compile("/dags/stem_warehouse/runs/.*/tasks/land_streams/mapped"))
    page.locator("iframe").wait_for(state="detached")


@pytest.mark.parametrize("tab", ["stem-dag", "stem-run"])
def test_a_dag_and_its_run_have_a_tab(airflow, page, tab):
    run = f"/runs/{run_of(airflow)}" if tab == "stem-run" else ""
    page.goto(f"{airflow.url}/dags/stem_warehouse{run}")
    page.get_by_role("link", name="Stem", exact=True).click()
    frame = page.frame_locator("iframe")
    row = frame.locator("table").first.locator("tbody tr").first
    row.wait_for()
    shoot(page, f"airflow-{tab}")
    receipts = [airflow.xcom("stem_warehouse", run_of(airflow), "land_streams", map_index=n) for n in range(8)]
    cells = row.inner_text().split("\t")
    assert str(SITES) in cells
    assert f"{sum(receipt['expected'] for receipt in receipts):,}" in cells


def test_filters_are_in_the_address(airflow, page):
    show(page, f"{airflow.url}/stem/completeness?site={SITE}&type=MONITOR&resolution=900&status=")
    assert page.locator("#count").inner_text() == f"1 of {SITES} sites"
    assert page.locator("#type").input_value() == "MONITOR"
    page.locator("#site").fill("")
    page.locator("#status").select_option("late")
    assert re.search(r"\?type=MONITOR&resolution=900&status=late$", page.url)
    assert page.locator("#address").get_attribute("href") == page.url
    shown = page.locator("#count").inner_text()
    page.reload()
    page.locator("#canvas[data-ready]").wait_for()
    assert page.locator("#count").inner_text() == shown


def test_a_cell_leads_to_the_day_of_its_site(airflow, page):
    show(page, f"{airflow.url}/stem/completeness?site={SITE}")
    page.locator("#canvas").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert SITE in page.locator("#announcement").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#announcement").inner_text() == ""
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/stem/completeness/day\?site_id={SITE}&"))
    page.go_back()
    page.locator("#canvas[data-ready]").wait_for()
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 60, box["y"] + 85)
    page.wait_for_url(re.compile(rf"/stem/completeness/day\?site_id={SITE}&"))


def test_all_sites_are_in_the_table_page_by_page(airflow, page):
    show(page, f"{airflow.url}/stem/completeness")
    rows = page.locator("#worst tbody tr")
    assert rows.count() == 20
    assert page.locator("#place").inner_text() == f"1 to 20 of {SITES}"
    page.locator("#after").click()
    assert page.locator("#place").inner_text() == f"21 to 40 of {SITES}"
    page.locator("#rows").select_option("0")
    assert rows.count() == SITES


def test_paper_says_what_it_leaves_out(airflow, page):
    show(page, f"{airflow.url}/stem/completeness")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    text = page.locator("#printed").inner_text()
    assert f"120 of the {SITES} sites that the filters show" in text
    assert "the table has the sites 1 to 20" in text
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/heat-map-print.png", full_page=True)
        page.pdf(path=f"{SHOTS}/heat-map.pdf")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen", color_scheme="light")
    assert not page.locator("#printed").is_visible()
    page.locator("#site").fill(SITE)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert f"the filters leave out {SITES - 1} sites" in page.locator("#printed").text_content()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def test_the_pages_follow_the_theme_of_airflow(airflow, page):
    show(page, f"{airflow.url}/stem/restatements")
    background = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for theme in ("dark", "light"):
        page.evaluate(f"localStorage.setItem('theme', '{theme}')")
        page.reload()
        found[theme] = page.evaluate(background)
    page.evaluate("localStorage.removeItem('theme')")
    assert found == {"dark": "rgb(17, 22, 27)", "light": "rgb(255, 255, 255)"}
