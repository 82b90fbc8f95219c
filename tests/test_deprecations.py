"""Neither the provider nor its examples use deprecated names of Airflow or other packages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import printed_by

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "example_dags").glob("*.py"))
DEPRECATED = (
    "from airflow.operators.dummy import DummyOperator"
    if version("apache-airflow").startswith("2.")
    else "from airflow.operators.python import PythonOperator"
)

# Each warning is assigned to the module whose line caused it, because a deprecated name often warns from within the
# __getattr__ of its module. Imports between other packages are ignored.
IMPORTS = """
import importlib, importlib.util, json, pkgutil, re, sys, warnings
import airflow.models, airflow.settings  # these set their own filters
import airflow_provider_stem

FOUND = []

def show(message, category, *where):
    frame = sys._getframe(1)
    while frame and (
        frame.f_code.co_filename.startswith("<frozen importlib")
        or frame.f_globals.get("__name__") in ("warnings", "importlib", "functools", "typing_extensions")
        or frame.f_globals.get("__name__", "").endswith("deprecation_tools")
        or frame.f_code.co_name == "__getattr__"
    ):
        frame = frame.f_back
    FOUND.append([frame.f_globals["__name__"] if frame else "", f"{category.__name__}: {message}"])

warnings.showwarning = show
warnings.simplefilter("always")
for module in pkgutil.walk_packages(airflow_provider_stem.__path__, "airflow_provider_stem."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as exc:
            if not re.search("needs? Airflow", str(exc)):
                raise
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("file " + path, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(json.dumps(FOUND))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deprecated")
    one, two = folder / "imports.py", folder / "warns.py"
    one.write_text(f"{DEPRECATED}\n")
    two.write_text("import warnings\nwarnings.warn('of old', FutureWarning)\n")
    files = map(str, [*EXAMPLES, one, two])
    return printed_by(IMPORTS, *files, AIRFLOW_HOME=str(folder), PYTHONPATH=str(ROOT))


def test_importing_the_package_does_not_warn(found):
    assert [one for one in found if one[0].startswith("airflow_provider_stem")] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_importing_an_example_does_not_warn(path, found):
    assert [one for one in found if one[0] == f"file {path}"] == []


@pytest.mark.parametrize("name", ["imports", "warns"])
def test_a_deprecated_import_is_found(name, found):
    assert len([one for one in found if one[0].startswith("file ") and one[0].endswith(f"{name}.py")]) == 1, found


@pytest.mark.parametrize(
    "line", [DEPRECATED, "import warnings; warnings.warn('of old', FutureWarning)"], ids=["import", "warning"]
)
def test_a_deprecation_warning_of_the_package_is_an_error_in_every_test(line):
    """Check the filter in pyproject.toml."""
    with pytest.raises(Warning, match="deprecated|of old"):
        exec(compile(line, "made_up.py", "exec"), {"__name__": "airflow_provider_stem.made_up"})
    with pytest.warns(Warning, match="deprecated|of old"):
        exec(compile(line, "made_up.py", "exec"), {"__name__": "another.made_up"})
