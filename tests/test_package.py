from __future__ import annotations

import ast
import json
import re
import subprocess
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_provider_stem
from airflow_provider_stem import errors
from scripts import check_release
from tests.support import printed_by

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "airflow_provider_stem"


def modules_after(statement):
    return set(printed_by(f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"))


def test_importing_the_package_root_is_fast():
    loaded = modules_after("import airflow_provider_stem; airflow_provider_stem.get_provider_info()")
    assert {name for name in loaded if name.startswith("airflow_provider_stem")} == {
        "airflow_provider_stem",
        "airflow_provider_stem._connection_form",
    }
    assert not {name.partition(".")[0] for name in loaded} & {"airflow", "pyarrow", "requests", "pendulum"}


@pytest.mark.parametrize(
    ("modules", "airflows"),
    [
        (["hooks", "operators"], "BaseOperator, BaseHook, conf, Asset"),
        (["sensors", "triggers"], "BaseSensorOperator, BaseHook, conf; import airflow.triggers.base"),
    ],
)
def test_importing_what_a_dag_uses_does_not_load_what_only_a_task_needs(modules, airflows):
    before = modules_after(f"from airflow.providers.common.compat.sdk import {airflows}")
    after = modules_after("import " + ", ".join(f"airflow_provider_stem.{module}" for module in modules))
    heavy = {"boto3", "botocore", "pyarrow", "pandas", "numpy", "requests", "urllib3", "tenacity", "fastapi"}
    assert not {name for name in after - before if name.partition(".")[0] in heavy}
    ours = {name for name in after if name.startswith("airflow_provider_stem")}
    assert not {
        name for name in ours if name.startswith(("airflow_provider_stem.api", "airflow_provider_stem.simulator"))
    }


def test_the_public_surface_is_what_the_documentation_says():
    from airflow_provider_stem import hooks, operators, sensors, simulator, triggers

    assert airflow_provider_stem.__all__ == ["__version__", "get_provider_info"]
    landing = ["StemStreamsToObjectStorageOperator", "StemStreamsToS3Operator"]
    assert operators.__all__ == ["DEFAULT_KEY", "StemSiteListOperator", *landing]
    assert (sensors.__all__, triggers.__all__) == (["StemStreamsSensor"], ["StemStreamsTrigger"])
    assert [name for name in vars(hooks) if name.startswith("Stem") and name.endswith("Hook")] == ["StemHook"]
    assert {"Settings", "Simulator"} <= set(simulator.__all__)
    public = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert public == set(errors.__all__)


def test_the_entry_points_lead_to_the_provider_and_the_pytest_plugin():
    [provider] = [
        e for e in entry_points(group="apache_airflow_provider") if e.dist and e.dist.name == "airflow-provider-stem"
    ]
    assert provider.load()() == airflow_provider_stem.get_provider_info()
    assert "stem_simulator" in {entry.name for entry in entry_points(group="pytest11")}
    assert version("airflow-provider-stem") == airflow_provider_stem.__version__


def test_the_provider_metadata_pass_airflows_schema():
    import airflow

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    info = airflow_provider_stem.get_provider_info()
    jsonschema.validate(info, schema)
    assert info["package-name"] == "airflow-provider-stem"


def test_airflow_lists_the_provider_and_its_connection_type():
    from airflow.providers_manager import ProvidersManager

    assert "airflow-provider-stem" in ProvidersManager().providers
    try:
        from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
    except ImportError:  # before Airflow 3.2
        hooks: Any = ProvidersManager().hooks
    else:
        hooks = ProvidersManagerTaskRuntime().hooks
    assert hooks["stem"].hook_class_name == "airflow_provider_stem.hooks.StemHook"


FORM = """
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
[form] = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "stem"]
print(form.model_dump_json())
"""


def test_the_connection_form_of_airflow_3_shows_our_fields():
    pytest.importorskip("airflow.api_fastapi.core_api.services.ui.connections")
    # As the API server calls it: on Airflow 3.1 the first call changes the result of later ones.
    form = printed_by(FORM)
    assert form["hook_name"] == "Stem"
    if form["extra_fields"] is None and version("apache-airflow").startswith("3.0."):
        pytest.skip("Airflow 3.0 reads forms from hooks alone, and those need the FAB provider")
    assert set(form["extra_fields"]) == {"timeout", "max_attempts", "page_size", "verify", "requests_per_second"}
    assert form["standard_fields"]["password"]["title"] == "API key (required)"


def test_every_parameter_is_read():
    """A parameter of an operator, a sensor, a trigger or the hook that is never read is a defect."""
    mixed_in = ast.parse((PACKAGE / "_mapping.py").read_text())
    of_airflow = {"start_from_trigger", "start_trigger_args", "_expand_called", "__class__"}
    for name in ("operators.py", "hooks.py", "sensors.py", "triggers.py"):
        tree = ast.parse((PACKAGE / name).read_text())
        for cls in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
            # Serializing a trigger does not count as reading its parameters.
            cls.body = [node for node in cls.body if getattr(node, "name", "") != "serialize"]
            nodes = [node for part in (cls, mixed_in) for node in ast.walk(part) if isinstance(node, ast.Attribute)]
            read = {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
            written = {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
            assert written <= read | of_airflow, (cls.name, written - read)


def test_version_and_changelog_agree():
    [newest] = re.findall(r"\A.*?^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE | re.DOTALL)
    assert newest in ("Unreleased", airflow_provider_stem.__version__)


def test_a_release_is_refused_until_everything_agrees():
    current = airflow_provider_stem.__version__
    ready: dict[str, Any] = {
        "changelog": f"# Changelog\n\n## [{current}] - 2026-11-26\n",
        "status": "",
        "built": {f"airflow_provider_stem-{current}-py3-none-any.whl", f"airflow_provider_stem-{current}.tar.gz"},
        "tags": {"0.0.1"},
    }
    assert not check_release.problems(**ready)
    changes: list[dict[str, Any]] = [
        {"changelog": "# Changelog\n\n## [Unreleased]\n\n" + ready["changelog"]},
        {"changelog": f"## [{current}]\n"},
        {"status": " M README.md\n"},
        {"built": {*ready["built"], "airflow_provider_stem-0.0.1.tar.gz"}},
        {"tags": {current}},
    ]
    for change in changes:
        assert len(check_release.problems(**{**ready, **change})) == 1, change


def test_no_file_names_a_machine_or_a_registry():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    pattern = re.compile(r"(/root/|/home/|/work/|files\.pythonhosted|pypi\.org/simple)")
    for name in files:
        path = ROOT / name
        if path.is_file() and path.suffix != ".png" and path != Path(__file__):
            assert not pattern.search(path.read_text(errors="replace")), name
