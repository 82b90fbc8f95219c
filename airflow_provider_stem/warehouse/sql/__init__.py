"""
The warehouse's SQL. The templates have one text for both engines, and name the engine where they differ.

The views are the models of the dbt package, so that each formula is written once.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from airflow_provider_stem.dbt import PROJECT
from airflow_provider_stem.streams.stream_types import STREAM_TYPES, since_column

SCHEMA = "{{ params.schema }}"
"""Placeholder of the schema in all SQL."""

VIEWS = ("energy", "demand_peaks", "daily_demand_peaks", "completeness", "daily_restatements")
"""The views of the warehouse. The dbt model of each has the prefix ``stem_``."""


@cache
def statements(engine: str, name: str) -> tuple[str, ...]:
    """
    Return the statements of a script.

    :param engine: ``duckdb`` or ``postgres``.
    :param name: ``tables``, ``load``, or ``sites``, which loads site records.
    """
    text = files(__name__).joinpath(f"{name}.sql").read_text("utf-8")
    script = _render(text, engine=engine, schema=SCHEMA, types=STREAM_TYPES, since_column=since_column)
    return tuple(one.strip() for one in re.split(r";\s*(?:\n|$)", script) if one.strip())


@cache
def views(engine: str) -> tuple[str, ...]:
    """
    Return the statements that create the views.

    :param engine: ``duckdb`` or ``postgres``.
    """
    variables = {
        "stem_warehouse": True,
        "stem_time_zone": "UTC",
        "stem_types": {name: one.energy or () for name, one in STREAM_TYPES.items()},
    }
    macros = (PROJECT / "macros" / "stem.sql").read_text("utf-8")
    selects = (
        _render(
            macros + (PROJECT / "models" / f"stem_{view}.sql").read_text("utf-8"),
            config=lambda **_: "",
            source=lambda _, table: f"{SCHEMA}.{table}",
            target={"type": engine},
            var=variables.__getitem__,
        )
        for view in VIEWS
    )
    return tuple(
        f"CREATE OR REPLACE VIEW {SCHEMA}.{view} AS\n{select.strip()}"
        for view, select in zip(VIEWS, selects, strict=True)
    )


def _render(text: str, **values: object) -> str:
    from jinja2 import StrictUndefined, Template

    template: Template = Template(
        text, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return template.render(**values)
