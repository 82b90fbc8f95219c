"""The public names of the package, their arguments and defaults: a change of these is a change for users."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SURFACE = Path(__file__).parent / "data" / "public_surface.txt"
MODULES = (
    "assets",
    "completeness",
    "errors",
    "failures",
    "hooks",
    "intervals",
    "ledger",
    "links",
    "operators",
    "sensors",
    "simulator",
    "triggers",
    "warehouse.operators",
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
