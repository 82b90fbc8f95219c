"""Pages in docs: their links, pictures, code and generated parts."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from airflow_provider_stem.simulator.__main__ import _helps
from airflow_provider_stem.simulator.settings import Settings
from scripts.draw_timelines import FOLDER, PICTURES
from tests.servers.processes import HUNG_AFTER
from tests.support import full_depth_only

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def code_blocks(page, language):
    """Return the code blocks of a page in one language, without their indentation."""
    return [textwrap.dedent(code) for _, name, code in FENCED.findall(page.read_text("utf-8")) if name == language]


def anchors(page):
    """Return the anchors of the headings of a page, as code hosts and MyST generate them."""
    text = FENCED.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_and_anchor_exists(page):
    text = FENCED.sub("", page.read_text("utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", PICTURES)
def test_timelines_are_up_to_date(name):
    drawn = PICTURES[name]().svg()
    assert (FOLDER / f"{name}.svg").read_text("utf-8") == drawn, "Run: python scripts/draw_timelines.py"


def test_every_timeline_is_used_in_a_page():
    used = {Path(link).stem for page in PAGES for link in re.findall(r"images/timelines/(\S+?)\)", page.read_text())}
    assert used == set(PICTURES) == {path.stem for path in FOLDER.iterdir()}


WITH_PYTHON = [page for page in PAGES if code_blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_code_is_valid_and_uses_names_and_arguments_that_exist(page):
    known: dict[str, Any] = {}
    for code in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("airflow_provider_stem"):
                with suppress(ImportError):  # of a module that needs a newer Airflow
                    module = importlib.import_module(node.module)
                    known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    from airflow_provider_stem import operators, sensors

    known |= {name: getattr(module, name) for module in (operators, sensors) for name in module.__all__}
    for code in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).removesuffix(".partial")
                arguments = {keyword.arg for keyword in node.keywords} - {None}
                if callable(known.get(name)):
                    assert arguments <= accepted(known[name]), f"{name} in {page}"


DAGS = [(page, code) for page in PAGES for code in code_blocks(page, "python") if "with DAG(" in code]


@pytest.mark.skipif(version("apache-airflow") < "3", reason="imports DAG from airflow.sdk")
@pytest.mark.parametrize(("page", "code"), DAGS, ids=names(page for page, _ in DAGS))
def test_dags_can_be_parsed(page, code):
    exec(compile(code, str(page), "exec"), {})


def accepted(called):
    """Return the names of the arguments of a function or class; of an operator, those of its base classes too."""
    parameters = set(inspect.signature(called).parameters)
    for base in getattr(called, "__mro__", ()):
        parameters |= set(inspect.signature(base.__init__).parameters)
    return parameters


def setting(field, text):
    """Return the row of a setting in the table of the simulator's page."""
    choices = get_args(get_type_hints(Settings)[field.name]) if isinstance(field.default, str) else ()
    listed = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"| `{field.name}` | `{field.default!r}` | {text.replace('%%', '%')}{listed} |"


def test_the_page_of_the_simulator_lists_its_settings():
    rows = [setting(field, _helps()[field.name]) for field in fields(Settings)]
    table = "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])
    assert table in (ROOT / "docs" / "simulator.md").read_text("utf-8"), f"Write into docs/simulator.md:\n{table}"


@full_depth_only
def test_the_tests_in_the_page_of_the_simulator_pass(tmp_path):
    page = (ROOT / "docs" / "simulator.md").read_text("utf-8")
    # tests/examples runs the test of a DAG.
    elsewhere = re.sub(r"^## Test a DAG$.*?(?=^## )", "", page, flags=re.MULTILINE | re.DOTALL)
    code = "\n\n".join(code for _, name, code in FENCED.findall(elsewhere) if name == "python")
    (tmp_path / "test_page.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:pytest_airflow_in_a_box", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HUNG_AFTER)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{code.count('def test_')} passed" in done.stdout
