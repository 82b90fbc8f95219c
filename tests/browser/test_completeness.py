"""The completeness page in a real browser, opened from a file."""

from __future__ import annotations

import io
import itertools
import math
import re
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_stem.completeness import write_page
from tests.servers.airflow_pages import browse, chromium

pytest.importorskip("playwright", reason="playwright is missing. Install the dependency group browser.")
PIL_Image = pytest.importorskip("PIL.Image", reason="pillow is missing. Install the dependency group browser.")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="Chromium is missing. Install Debian's package chromium."),
]

FIRST, DAYS = date(2025, 6, 27), 8
MADE = datetime(2025, 7, 11, 6, 0, 5, tzinfo=UTC)
# Possible days of a stream: expected, received, late, status, and the name of the colour in the legend.
OUTCOMES = [
    (96, 96, 0, "complete", "complete"),
    (96, 96, 7, "late", "late"),
    (96, 87, 1, "missing", "few"),
    (96, 48, 0, "missing", "many"),
    (96, 47, 2, "missing", "most"),
    (96, 0, 0, "missing", "most"),
    (0, 0, 0, "not expected", "idle"),
    None,
]
HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "\"><svg onload=document.title='run'>",
    "'+(document.title='run')+'",
    "${document.title='run'}",
    "\\u003cscript\\u003edocument.title='run'//\\",
    "a\u2028document.title='run'\u2029b\nc",
    "\u202eeht esrever",
    "{{script}}",
    "long " * 200,
]


def day(n):
    return FIRST + timedelta(n)


ROWS = [
    (f"site-{site}", "MONITOR", 900, day(n), *outcome[:4])
    for site in range(len(OUTCOMES))
    for n in range(DAYS)
    if (outcome := OUTCOMES[(site + n) % len(OUTCOMES)])
]


@pytest.fixture(scope="module")
def page():
    with browse() as opened:
        yield opened


@contextmanager
def shown(page, path, rows, days=DAYS):
    """Show a page with these rows, and check that it logs nothing and requests nothing."""
    with path.joinpath("completeness.html").open("wb") as file:
        write_page(rows, file, first_day=FIRST, last_day=day(days - 1), made=MADE)
    messages, requests = [], []
    note, ask = (lambda message: messages.append(str(message))), (lambda request: requests.append(request.url))
    listeners = {"console": note, "pageerror": note, "dialog": note, "request": ask}
    for name, listener in listeners.items():
        page.on(name, listener)
    try:
        page.goto(f"file://{path}/completeness.html")
        page.locator("#canvas[data-ready]").wait_for()
        yield
        assert messages == []
        assert requests == [f"file://{path}/completeness.html"]
    finally:
        for name, listener in listeners.items():
            page.remove_listener(name, listener)


TIP = """
() => {
  const tip = document.getElementById("tip");
  return tip.checkVisibility() ? [
    tip.querySelector("h2").textContent,
    tip.querySelector("p").textContent,
    ...Array.from(tip.querySelectorAll("tbody tr"), (row) => Array.from(row.cells, (cell) => cell.textContent)),
  ] : null;
}
"""
# A real pointer would wait for a frame after each step.
SWEEP = f"""
() => {{
  const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect(), found = [];
  for (let y = Math.ceil(box.top); y < box.bottom; y += 5) {{
    for (let x = Math.ceil(box.left); x < box.right; x += 5) {{
      canvas.dispatchEvent(new PointerEvent("pointermove", {{ clientX: x, clientY: y }}));
      found.push([({TIP})(), x, y]);
    }}
  }}
  canvas.dispatchEvent(new PointerEvent("pointerleave"));
  return found;
}}
"""


def frozen(lines):
    return lines and tuple(tuple(one) if isinstance(one, list) else one for one in lines)


def tip(page):
    """Return the tooltip of the cell under the pointer: site, day, and a row for each stream."""
    return frozen(page.evaluate(TIP))


def cells_of(page):
    """Move the pointer over the map in steps smaller than a cell. Return each tooltip, and the centre of its cell."""
    where: dict[Any, list[tuple[int, int]]] = {}
    for lines, x, y in page.evaluate(SWEEP):
        if lines:
            where.setdefault(frozen(lines), []).append((x, y))
    return {
        lines: tuple((min(axis) + max(axis)) // 2 for axis in zip(*points, strict=True))
        for lines, points in where.items()
    }


def colour_in(page, colour):
    """Return a colour of the legend as the browser computes it."""
    computed = page.locator(f"[data-colour={colour}]").evaluate("one => getComputedStyle(one).backgroundColor")
    return tuple(map(int, re.findall(r"\d+", computed)[:3]))


def picture_of(page):
    return PIL_Image.open(io.BytesIO(page.screenshot())).convert("RGB")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_cell_shows_its_row_in_the_colour_of_the_legend(page, tmp_path, scheme):
    page.emulate_media(color_scheme=scheme)
    with shown(page, tmp_path, ROWS):
        cells = cells_of(page)
        expected = {}
        for site, n in itertools.product(range(len(OUTCOMES)), range(DAYS)):
            outcome = OUTCOMES[(site + n) % len(OUTCOMES)]
            counts = ["", "", "", "", "no row"]
            if outcome:
                counts = [*map(str, (*outcome[:2], outcome[0] - outcome[1], outcome[2])), outcome[3]]
            row = ("MONITOR, 15 min", *counts)
            expected[f"site-{site}", f"{day(n)} (UTC)", row] = outcome[4] if outcome else "none"
        assert cells.keys() == expected.keys()
        picture = picture_of(page)
        page_colour = picture.getpixel((2, 2))
        for key, colour in expected.items():
            x, y = cells[key]
            around = {picture.getpixel((x + dx, y + dy)) for dx in range(-4, 5) for dy in range(-3, 4)}
            if colour == "idle":
                assert len(around) > 1  # hatched
            else:
                assert around == {page_colour if colour == "none" else colour_in(page, colour)}, key
        for key, middle in cells.items():
            page.mouse.move(*middle)
            assert tip(page) == key
        page.mouse.move(1, 1)
        assert tip(page) is None
    page.emulate_media(color_scheme="light")


def test_the_worst_sites_come_first_by_all_streams_together(page, tmp_path):
    rows = [
        ("better", "MONITOR", 900, FIRST, 96, 90, 0, "missing"),
        ("best", "MONITOR", 900, FIRST, 96, 96, 0, "complete"),
        ("late", "MONITOR", 900, FIRST, 96, 96, 3, "late"),
        ("worst", "MONITOR", 900, FIRST, 96, 96, 0, "complete"),
        ("worst", "CONVERTER", 1800, FIRST, 48, 0, 0, "missing"),
        ("worst", "INTERVAL_REVENUE", 3600, FIRST, 0, 0, 0, "not expected"),
    ]
    with shown(page, tmp_path, rows):
        cells = cells_of(page)
        firsts = [lines for lines in cells if lines[1] == f"{FIRST} (UTC)"]
        assert [lines[0] for lines in sorted(firsts, key=lambda lines: cells[lines][1])] == [
            "worst", "better", "late", "best",
        ]  # fmt: skip
        worst = next(lines for lines in firsts if lines[0] == "worst")
        assert worst[2:] == (
            ("CONVERTER, 30 min", "48", "0", "48", "0", "missing"),
            ("INTERVAL_REVENUE, 60 min", "0", "0", "0", "0", "not expected"),
            ("MONITOR, 15 min", "96", "96", "0", "0", "complete"),
        )
        # 48 of 144.
        assert picture_of(page).getpixel(cells[worst]) == colour_in(page, "many")

        page.locator("#type").select_option("MONITOR")
        cells = cells_of(page)
        order = [lines[0] for lines in sorted(cells, key=lambda lines: cells[lines][1]) if lines[1] == f"{FIRST} (UTC)"]
        assert order == ["better", "late", "worst", "best"]  # equal sites are sorted by all types
        page.locator("#type").select_option("CONVERTER")
        assert page.locator("#count").inner_text() == "1 of 4 sites"
        page.locator("#type").select_option("")
        page.locator("#site").fill("WORS")
        assert {lines[0] for lines in cells_of(page)} == {"worst"}
        page.locator("#site").fill("nowhere")
        assert page.locator("#count").inner_text() == "0 of 4 sites"
        assert cells_of(page) == {}


def test_hostile_ids_are_shown_as_text(page, tmp_path):
    rows = [(site, "MONITOR", 900, day(n), 96, 0, 0, "missing") for site in HOSTILE for n in range(DAYS)]
    with shown(page, tmp_path, rows):
        ids = {one[0] for one in cells_of(page)}
        visible = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\n": "\\n", "\u202e": "\\u202e"}
        assert ids == {"".join(visible.get(c, c) for c in site) for site in HOSTILE}
        page.locator("#site").fill("<script>")
        assert page.locator("#count").inner_text() == f"1 of {len(HOSTILE)} sites"
        assert page.title() == f"Completeness of Stem telemetry, {FIRST} to {day(DAYS - 1)} (UTC days)"
        assert page.locator("script").count() == 1
        assert page.locator("img, svg").count() == 0


def test_the_page_does_not_run_injected_scripts(page, tmp_path):
    with shown(page, tmp_path, ROWS):
        pass
    script = (
        "const s = document.createElement('script'); s.textContent = `document.title = 'run'`; document.body.append(s)"
    )
    page.evaluate(script)
    assert page.title().startswith("Completeness")
    assert page.evaluate("fetch('data:,').then(() => 'sent', () => 'refused')") == "refused"


def test_the_keyboard_moves_between_cells_and_the_position_is_announced(page, tmp_path):
    with shown(page, tmp_path, ROWS):
        page.locator("#canvas").focus()
        page.keyboard.press("ArrowRight")
        begin = page.locator("#announcement").inner_text()
        assert re.fullmatch(r"site-\d, 2025-06-27 UTC; MONITOR, 15 min, .+", begin)
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
        assert page.locator("#announcement").inner_text() == begin
        for _ in range(DAYS + 2):
            page.keyboard.press("ArrowRight")
        assert f"{day(DAYS - 1)} UTC" in page.locator("#announcement").inner_text()
        assert tip(page)[1] == f"{day(DAYS - 1)} (UTC)"
        page.keyboard.press("Escape")
        assert tip(page) is None


def test_the_last_of_many_sites_is_reached_by_scrolling(page, tmp_path):
    sites, days = 3000, 90
    rows = (
        (f"{n:05d}", "MONITOR", 900, day(at), 96, 96 - (n + at == 0), 0, "missing" if n + at == 0 else "complete")
        for n in range(sites)
        for at in range(days)
    )
    with shown(page, tmp_path, rows, days):
        page.set_viewport_size({"width": 500, "height": 700})
        page.locator("#map").evaluate("map => { map.scrollTo(1e6, 1e6); map.scrollIntoView({ block: 'end' }); }")
        box = page.locator("#map").bounding_box()
        assert page.locator("#canvas").bounding_box()["y"] > box["y"]  # the header stays above the map
        last = None
        # The distance of the last cell from the corner is at most the width of a scroll bar.
        for off in range(4, 60, 3):
            page.mouse.move(box["x"] + box["width"] - off, box["y"] + box["height"] - off)
            last = last or tip(page)
        assert last == (
            f"{sites - 1:05d}", f"{day(days - 1)} (UTC)", ("MONITOR, 15 min", "96", "96", "0", "0", "complete"),
        )  # fmt: skip
        page.set_viewport_size({"width": 1280, "height": 1000})


def test_a_page_with_damaged_data_shows_an_error(page, tmp_path):
    with shown(page, tmp_path, ROWS):
        pass
    path = tmp_path / "completeness.html"
    path.write_text(re.sub(r'(id="data">)[^<]{40}', r"\1", path.read_text()))
    page.goto(f"file://{path}")
    page.locator("#trouble").wait_for()
    assert page.locator("#trouble").inner_text().startswith("The heat map could not be drawn (")
    assert page.locator("#worst tbody tr").count() == len(OUTCOMES)


def test_the_table_is_shown_without_javascript(page, tmp_path):
    with shown(page, tmp_path, ROWS):
        pass
    context = page.context.browser.new_context(java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto(f"file://{tmp_path}/completeness.html")
        first = plain.locator("#worst tbody tr").first
        # Every site has every outcome once.
        sums = ["576", "374", "202", "35.07 %", "10", "4"]
        assert first.locator("th, td").all_inner_texts() == ["site-0", *sums]
        assert plain.locator("noscript p").is_visible()
    finally:
        context.close()


# Matrices for linear RGB by Machado, Oliveira and Fernandes (2009), severity 1, and luminance.
SIGHTS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
    "luminance": ((0.2126, 0.7152, 0.0722),) * 3,
}


def lab(colour, sight):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    seen = [min(1.0, max(0.0, sum(map(float.__mul__, row, linear)))) for row in sight]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (
        t ** (1 / 3) if (t := sum(map(float.__mul__, row, seen)) / w) > 0.008856 else 7.787 * t + 16 / 116
        for row, w in zip(to_xyz, white, strict=True)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colour_blind_users_can_distinguish_the_colours(page, tmp_path, scheme, sight):
    page.emulate_media(color_scheme=scheme)
    with shown(page, tmp_path, ROWS):
        names = ["complete", "late", "few", "many", "most"]
        colours = {name: lab(colour_in(page, name), SIGHTS[sight]) for name in names}
    page.emulate_media(color_scheme="light")
    apart = {pair: math.dist(*(colours[name] for name in pair)) for pair in itertools.combinations(names, 2)}
    # Two adjacent colours are clearly different from a distance of about ten.
    assert min(apart.values()) > 10, apart
    lightness = [colours[name][0] for name in names]
    assert lightness == sorted(lightness, reverse=scheme == "light")
