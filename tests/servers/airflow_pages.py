"""
Pages of a real Airflow in a real browser, the Chromium that is installed on the machine.

Airflow 3 and Airflow 2 have different pages for the same content, so there is a class for each.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.servers.processes import HUNG_AFTER

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

OPTIONS = ("timeout", "max_attempts", "page_size", "verify", "requests_per_second")
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_TEST = "**/connections/test"


def chromium() -> str | None:
    """Return the path of Chromium, or None if it is not installed."""
    return next((path for path in map(shutil.which, _PROGRAMS) if path), None)


@contextmanager
def browse(width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """
    Start a browser, and return an empty page. The browser ends with the context.

    :param width: of the page, in pixels.
    :param height: of the page, in pixels.
    :raises RuntimeError: Chromium is not installed.
    """
    from playwright.sync_api import sync_playwright

    if (program := chromium()) is None:
        raise RuntimeError("Chromium is missing. Install Debian's package chromium.")
    with sync_playwright() as playwright:
        # The sandbox does not work for root, nor in most containers. Only servers on loopback are visited.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height}, locale="en-US", timezone_id="UTC", color_scheme="light"
            )
            page.set_default_timeout(HUNG_AFTER * 1000)
            yield page
        finally:
            browser.close()


class Connections3:
    """Admin > Connections on Airflow 3. The form is a dialog. Test is in the list, and tests the saved connection."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.form = page.get_by_role("dialog")

    def add(self, conn_id: str, hook_name: str = "Stem") -> None:
        """Open the form for a new connection, and select its type."""
        self._list()
        self.page.get_by_role("button", name="Add Connection").click()
        self.form.locator("[name=connection_id]").fill(conn_id)
        self.form.get_by_role("combobox").first.fill(hook_name)
        self.page.get_by_role("option", name=hook_name, exact=True).click()
        self.field("host").wait_for()

    def edit(self, conn_id: str) -> None:
        """Open the form of a saved connection."""
        self._list()
        self._row(conn_id).get_by_role("button", name="Edit Connection").click()
        self.field("host").wait_for()

    def field(self, name: str) -> Locator:
        """Return the input of a connection field, or of an option in Extra."""
        return self.form.locator(f"[name={'element_' if name in OPTIONS else ''}{name}]")

    def show(self, section: str) -> None:
        """Expand a section of the form, which collapses the others."""
        heading = self.form.get_by_role("button", name=section, exact=True)
        if heading.get_attribute("aria-expanded") != "true":
            heading.click()

    def fill(self, name: str, text: str) -> None:
        """Type into a field."""
        self.show("Extra Fields" if name in OPTIONS else "Standard Fields")
        field = self.field(name)
        field.fill(text)
        # A number is validated and stored when its field loses the focus.
        field.blur()

    def save(self) -> None:
        """Save the form."""
        self.form.get_by_role("button", name="Save").click()
        self.form.wait_for(state="hidden")

    def test(self, conn_id: str) -> tuple[bool, str]:
        """Click Test next to a connection. Return whether it passed, and the message."""
        # The list is loaded again, without the results of earlier tests.
        self._list()
        button = self._row(conn_id).get_by_role("button", name="Test Connection")
        button.click()
        icon = button.locator("svg[color]")
        icon.wait_for()
        return icon.get_attribute("color") == "green", self.notice().inner_text()

    def notice(self) -> Locator:
        """Return the text of the notification in the corner."""
        return self.page.locator("[data-scope=toast][data-part=description]")

    def _row(self, conn_id: str) -> Locator:
        cell = self.page.get_by_role("cell", name=conn_id, exact=True)
        return self.page.get_by_role("row").filter(has=cell)

    def _list(self) -> None:
        # By the menu, because on Airflow 3.1 the first page of a session is always the home page.
        self.page.goto(self.url)
        self.page.get_by_role("button", name="Admin", exact=True).click()
        self.page.get_by_role("menuitem", name="Connections", exact=True).click()
        self.page.get_by_role("button", name="Add Connection").wait_for()


class Connections2:
    """Admin > Connections on Airflow 2. The form is a page. Test is in the form, and tests what is typed."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.form = page.locator("#model_form")

    def add(self, conn_id: str, hook_name: str = "Stem") -> None:
        """Open the form for a new connection, and select its type."""
        self.page.goto(f"{self.url}/connection/add")
        self.page.locator("#conn_type + .select2 .select2-selection").click()
        self.page.locator(".select2-search__field").fill(hook_name)
        self.page.locator(".select2-results__option").get_by_text(hook_name, exact=True).click()
        self.field("conn_id").fill(conn_id)

    def edit(self, conn_id: str) -> None:
        """Open the form of a saved connection."""
        self.page.goto(f"{self.url}/connection/list/")
        cell = self.page.get_by_role("cell", name=conn_id, exact=True)
        self.page.get_by_role("row").filter(has=cell).locator("a[href*='/connection/edit/']").click()
        self.page.locator("#test-connection").wait_for()

    def field(self, name: str) -> Locator:
        """Return the input of a connection field, or of an option in Extra."""
        return self.form.locator(f"#{self._id(name)}")

    def row(self, name: str) -> Locator:
        """Return the row of a field: its label, input and description."""
        return self.form.locator("tr").filter(has=self.page.locator(f"#{self._id(name)}"))

    def labels(self) -> list[str]:
        """Return the labels of the visible fields, from top to bottom."""
        shown = [label.inner_text() for label in self.form.locator("label").all() if label.is_visible()]
        return [re.sub(r"\s*\*$", "", text.strip()) for text in shown]

    def fill(self, name: str, text: str) -> None:
        """Type into a field."""
        self.field(name).fill(text)

    def save(self) -> None:
        """Save the form."""
        with self.page.expect_navigation():
            self.form.locator("button[type=submit]").click()

    def test(self) -> str:
        """Click Test in the form, and return the message. Its colour is green even if the test failed."""
        with self.page.expect_response(_TEST):
            self.page.locator("#test-connection").click()
        notice = self.notice()
        notice.wait_for()
        # The first message of a page has a button that closes it.
        return notice.inner_text().strip().lstrip("\N{MULTIPLICATION SIGN}").lstrip()

    def notice(self) -> Locator:
        """Return the box with the message of a test."""
        return self.page.locator(".container .row .alert:is(.alert-success, .alert-error)")

    @staticmethod
    def _id(name: str) -> str:
        return f"extra__stem__{name}" if name in OPTIONS else name


class MappedTask3:
    """The list of mapped task instances next to the grid, on Airflow 3."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    def open(self, dag_id: str, run_id: str, task_id: str, names: Iterable[str]) -> None:
        """Open the list of the instances of a run, sorted by name, and wait for these names."""
        self.page.goto(f"{self.url}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/mapped?sort=rendered_map_index")
        for name in names:
            self.page.get_by_role("link", name=name, exact=True).wait_for()
        self.page.wait_for_load_state("networkidle")
