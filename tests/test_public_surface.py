"""The public names of the package, their arguments and defaults: a change of these is a change for users."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

CALLED_BY_AIRFLOW = (
    "create_shared_stream_producer",
    "execute_complete",
    "filter_shared_stream",
    "get_openlineage_facets_on_complete",
    "render_template_fields",
    "shared_stream_key",
)
SURFACE = Path(__file__).parent / "data" / "public_surface.txt"
MODULES = (
    "assets",
    "completeness",
    "completeness.publishing",
    "costs",
    "dbt",
    "notifiers",
    "errors",
    "failures",
    "hooks",
    "iceberg.catalogs",
    "iceberg.changes",
    "iceberg.operators",
    "intervals",
    "ledger",
    "links",
    "operators",
    "sensors",
    "simulator",
    "triggers",
    "warehouse.operators",
    "watchers",
)


def described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{name}{signature(value.__init__)}" if "__init__" in vars(value) else name
        for member, attribute in sorted(vars(value).items()):
            if not member.startswith("_") and (inspect.isfunction(attribute) or isinstance(attribute, classmethod)):
                yield f"{name}.{member}{signature(getattr(value, member))}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name} = {value!r}" if isinstance(value, (str, tuple)) and "<class" not in repr(value) else name


def signature(function: Any) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return "()"
    return f"({', '.join(str(one.replace(annotation=one.empty)) for one in parameters if one.name != 'self')})"


def test_names_arguments_and_defaults_are_as_recorded():
    """``RECORD_PUBLIC_SURFACE=1`` records a change that is meant."""
    found: list[str] = []
    for module in MODULES:
        loaded = import_module(f"airflow_provider_stem.{module}")
        for name in sorted(loaded.__all__):
            found += described(f"{module}.{name}", getattr(loaded, name))
    if os.environ.get("RECORD_PUBLIC_SURFACE"):
        SURFACE.write_text("\n".join(found) + "\n")
    assert found == SURFACE.read_text().splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_of_a_module_is_in_its_all(module):
    loaded = import_module(f"airflow_provider_stem.{module}")
    own = {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == loaded.__name__
    }
    assert own <= set(loaded.__all__)


def undescribed(name: str, function: Any, text: str) -> Iterator[str]:
    """Iterate over the parameters of a function, and its result, that a docstring does not describe."""
    parameters = inspect.signature(function).parameters.values()
    named = [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]
    for parameter in named:
        if not re.search(rf":param {parameter}:|``{parameter}``", text):
            yield f"{name}: the parameter {parameter}"
    returned = inspect.signature(function).return_annotation
    if returned not in ("None", "Iterator[None]") and not re.match(
        r"\s*(Return|Iterate|List)|.*:return:", text, re.DOTALL
    ):
        yield f"{name}: what it returns"


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_describe_every_parameter_and_result(module):
    loaded = import_module(f"airflow_provider_stem.{module}")
    missing: list[str] = []
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isfunction(value):
            missing += undescribed(name, value, value.__doc__ or "")
        elif inspect.isclass(value) and not issubclass(value, (dict, Exception)):
            if "__init__" in vars(value):
                missing += undescribed(name, value.__init__, f"{value.__doc__} :return:")
            for member, attribute in vars(value).items():
                # Airflow documents the methods that it calls.
                is_ours = not member.startswith("_") and member not in CALLED_BY_AIRFLOW
                is_ours = is_ours and not any(hasattr(base, member) for base in value.__bases__)
                if is_ours and inspect.isfunction(attribute):
                    missing += undescribed(f"{name}.{member}", attribute, attribute.__doc__ or "")
    assert not missing
