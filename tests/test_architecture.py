"""The layers of the package, and what the documentation lists of its classes and its README."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_stem import get_provider_info, operators, sensors
from airflow_provider_stem.iceberg import operators as iceberg_operators
from airflow_provider_stem.operators import DEFAULT_KEY
from airflow_provider_stem.warehouse import operators as warehouse_operators
from docs.architecture import MAY_IMPORT_AIRFLOW, Modules, draw, layer_of, violations, write
from hatch_build import ProjectMetadata
from tests.test_public_surface import MODULES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "airflow_provider_stem"
DOCS = ROOT / "docs"
PAGES: dict[str, Any] = {
    "list-sites": operators.StemSiteListOperator,
    "land-streams": operators.StemStreamsToS3Operator,
    "object-stores": operators.StemStreamsToObjectStorageOperator,
    "wait-for-streams": sensors.StemStreamsSensor,
    "load-objects": warehouse_operators.StemObjectsToSqlOperator,
    "load-sites": warehouse_operators.StemSitesToSqlOperator,
}


def test_imports_keep_the_layers():
    assert list(violations(Modules(PACKAGE))) == []
    assert MAY_IMPORT_AIRFLOW == ("Command line", "Operators", "Airflow side")


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        (
            "api/client",
            "from package.streams import windows",
            "api.client (API client) imports streams.windows (Streams)",
        ),
        ("api/client", "import airflow.models", "api.client (API client) imports airflow"),
        ("streams/windows", "def late():\n    from airflow import sdk", "streams.windows (Streams) imports airflow"),
        ("simulator/api", "from package import errors", "simulator.api (Simulator) imports errors (Common)"),
        ("operators", "import package.simulator.api", "operators (Operators) imports simulator.api (Simulator)"),
    ],
)
def test_an_import_that_breaks_the_layers_is_found(module, line, found, tmp_path):
    package = tmp_path / "package"
    for name in ("__init__", "api/client", "errors", "operators", "simulator/api", "streams/windows"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(f'"""A module."""\n{line if name == module else ""}\n')
    assert list(violations(Modules(package))) == [found]
    with pytest.raises(ValueError, match=re.escape(found)):
        write(package, tmp_path)


def test_a_module_without_a_layer_is_an_error():
    with pytest.raises(ValueError, match="'_new' is in no layer"):
        layer_of("_new")


def test_the_diagram_shows_each_module_once():
    modules = Modules(PACKAGE)
    shown = re.findall(r'class="module"[^>]*>([^<]+)<', draw(modules))
    assert sorted(shown) == sorted(name or "airflow_provider_stem" for name in modules)


def test_each_public_module_has_a_page_in_the_reference():
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    described = {name for page in pages for name in re.findall(r"automodule:: airflow_provider_stem\.(\S+)", page)}
    assert described == {*MODULES, "retry_policies"}


def listed_arguments(section: str) -> dict[str, Any]:
    """Return the arguments in tables of a page, with their defaults."""
    listed: dict[str, Any] = {}
    for names, default in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", section, re.MULTILINE):
        value = re.match(r"`([^`]+)`", default)
        known = {"timedelta": timedelta, "DEFAULT_KEY": DEFAULT_KEY}
        shown = eval(value[1], known) if value else inspect.Parameter.empty
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), shown)
    return listed


def defaults_of(operator: Any) -> dict[str, Any]:
    parameters = inspect.signature(operator.__init__).parameters
    return {name: one.default for name, one in parameters.items() if name not in ("self", "kwargs")}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_list_each_argument_with_its_default(page):
    text = (DOCS / "howto" / f"{page}.md").read_text()
    section = text.partition("## Arguments\n")[2].partition("\n## ")[0]
    assert listed_arguments(section) == defaults_of(PAGES[page])


def test_the_tables_of_the_iceberg_page_list_each_argument_with_its_default():
    load, maintenance = (DOCS / "iceberg.md").read_text().split("## Maintain the table\n")
    expected = defaults_of(iceberg_operators.StemObjectsToIcebergOperator)
    assert listed_arguments(load.partition("## Connect to a catalog")[0]) == expected
    listed = listed_arguments(maintenance)
    expected = defaults_of(iceberg_operators.StemIcebergMaintenanceOperator)
    # The page refers to the load for these.
    assert listed == {name: value for name, value in expected.items() if not name.endswith(("table", "conn_id"))}


def test_the_page_of_connections_lists_the_options_of_airflows_configuration():
    section = (DOCS / "connections.md").read_text().partition("[stem]\n")[2].partition("```")[0]
    options = get_provider_info()["config"]["stem"]["options"]
    assert section.splitlines() == [f"{name} = {option['default']}".rstrip() for name, option in options.items()]


def test_links_of_the_readme_are_absolute_in_the_metadata():
    metadata: dict[str, Any] = {}
    ProjectMetadata(str(ROOT), {"repository": "https://host/project"}).update(metadata)
    links = re.findall(r"\]\(([^)]*)\)", metadata["readme"]["text"])
    assert "https://host/project/raw/main/docs/images/site-day.png" in links
    assert "https://host/project/blob/main/docs/quickstart.md" in links
    assert all(link.startswith("https://host/project/") for link in [*links, metadata["urls"]["Issues"]])
