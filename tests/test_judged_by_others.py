"""The provider as seen by Airflow's schemas and commands, and by an independent checker."""

from __future__ import annotations

import importlib
import inspect
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import airflow
import jsonschema
import pytest

from airflow_provider_stem import __version__, get_provider_info
from tests.support import full_depth_only, printed_by

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
NAME = "airflow-provider-stem"
INFO = get_provider_info()
# Additional fields in releases of Airflow's providers; Airflow 2 also had the dependencies there.
OF_ITS_RELEASES = {"state", "source-date-epoch", "versions"} | ({"dependencies"} if AIRFLOW < (3, 0) else set())
# In one process, because Airflow takes seconds to start. The last line has the output of the commands.
COMMANDS = """
import contextlib, io, json, sys
from airflow.cli.cli_parser import get_parser
answers = {}
for command in json.loads(sys.argv[1]):
    shown = io.StringIO()
    arguments = get_parser().parse_args(["providers", *command.split(), "--output", "json"])
    with contextlib.redirect_stdout(shown):
        arguments.func(arguments)
    answers[command] = json.loads(shown.getvalue())
print(json.dumps(answers))
"""
GET = f"get {NAME} --full"


def modules():
    """Return the modules of the provider's classes, from its metadata."""
    kinds = ("hooks", "operators", "sensors", "triggers")
    return [module for kind in kinds for declared in INFO.get(kind, ()) for module in declared["python-modules"]]


def findings(schema):
    rules = json.loads((Path(airflow.__file__).parent / schema).read_text())
    return list(jsonschema.validators.validator_for(rules)(rules).iter_errors(INFO))


def test_the_schema_of_installed_providers_finds_nothing():
    assert findings("provider_info.schema.json") == []


def test_the_strict_schema_of_airflows_providers_misses_only_fields_of_its_releases():
    if not (Path(airflow.__file__).parent / "provider.yaml.schema.json").exists():
        pytest.skip("this Airflow does not ship the schema")
    found = findings("provider.yaml.schema.json")
    if AIRFLOW < (3, 2):  # which do not know commands of providers, and ignore them
        found = [one for one in found if one.message != "Additional properties are not allowed ('cli' was unexpected)"]
    missing = {name for name in OF_ITS_RELEASES if any(f"'{name}' is a required" in one.message for one in found)}
    assert (missing, len(found)) == (OF_ITS_RELEASES, len(OF_ITS_RELEASES)), [one.message for one in found]


@pytest.fixture(scope="module")
def checker():
    if AIRFLOW < (3, 1):
        pytest.skip("pytest-airflow-in-a-box checks providers on Airflow 3.1 and later")
    return pytest.importorskip("pytest_airflow_in_a_box.components")


@full_depth_only
def test_the_component_check_finds_nothing_in_the_provider(checker):
    report = checker.check_component(get_provider_info, kind=checker.ComponentKind.PROVIDER)
    assert report.ok, report.summary()


def test_the_component_check_finds_errors_in_a_provider(checker):
    def get_provider_info():
        return {"package-name": "another", "name": ["Stem"]}

    report = checker.check_component(get_provider_info, kind=checker.ComponentKind.PROVIDER)
    assert not report.ok


@pytest.mark.parametrize("module", modules())
def test_the_component_check_finds_nothing_in_a_class(module, checker):
    """It accepts hooks, operators, sensors and triggers, but has no checks for them yet."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", vars(loaded))
    classes = [vars(loaded)[name] for name in names if inspect.isclass(vars(loaded)[name])]
    classes = [cls for cls in classes if cls.__module__ == module]
    assert classes
    for cls in classes:
        report = checker.check_component(cls)
        assert report.ok, report.summary()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    commands = ["list", GET, "hooks", "behaviours", "widgets", "links", "triggers", "configs"]
    return printed_by(COMMANDS, json.dumps(commands), AIRFLOW_HOME=str(tmp_path_factory.mktemp("airflow")))


def as_text(value):
    """Return a value as the commands print it: numbers as strings."""
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_text(inner) for inner in value]
    return value if value is None else str(value)


def described(info):
    return {**info, "description": info["description"].strip(" .")}


def test_the_list_of_providers(shown):
    [listed] = [one for one in shown["list"] if one["package_name"] == NAME]
    assert listed["version"] == __version__
    assert listed["description"] == described(INFO)["description"]


def test_the_whole_of_the_metadata(shown):
    [got] = shown[GET]
    got.pop("documentation-url", None)  # Airflow 3.1 and later add it from the distribution's metadata
    assert got == as_text(described(INFO))


def test_the_hooks(shown):
    listed = {one["connection_type"]: one for one in shown["hooks"]}
    for declared in INFO["connection-types"]:
        one = listed[declared["connection-type"]]
        assert (one["class"], one["package_name"]) == (declared["hook-class-name"], NAME)
        assert (one["hook_name"], one["conn_id_attribute_name"]) == (declared["hook-name"], "stem_conn_id")


def test_the_form(shown):
    behaviours = {one["field_behaviours"] for one in shown["behaviours"]}
    fields = {one["connection_parameter_name"] for one in shown["widgets"]}
    for declared in INFO["connection-types"]:
        kind = declared["connection-type"]
        of_ours = {f"extra__{kind}__{name}" for name in declared["conn-fields"]}
        if (3, 0) <= AIRFLOW < (3, 2) and find_spec("wtforms") is None:
            # These call the hooks, which need the packages of Airflow 2's forms.
            assert (kind in behaviours, fields & of_ours) == (False, set())
        else:
            assert (kind in behaviours, fields & of_ours) == (True, of_ours)


def test_the_links(shown):
    assert {one["extra_link_class_name"] for one in shown["links"]} >= set(INFO.get("extra-links", ()))


def test_the_triggers(shown):
    listed = {(one["class"], one["integration_name"]) for one in shown["triggers"] if one["package_name"] == NAME}
    assert listed == {
        (module, declared["integration-name"])
        for declared in INFO.get("triggers", ())
        for module in declared["python-modules"]
    }


def test_the_options(shown):
    configs = dict(one["provider_config"] for one in shown["configs"])
    assert configs.get(NAME) == as_text(INFO.get("config"))
