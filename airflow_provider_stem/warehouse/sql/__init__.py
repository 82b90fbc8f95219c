"""
The warehouse's SQL, in the dialect of each engine.

``tables.sql`` and ``views.sql`` are templates for all engines, and :mod:`~airflow_provider_stem.warehouse.sql.dialects`
has what differs. ``python -m airflow_provider_stem.warehouse.sql athena`` prints them.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from airflow_provider_stem.streams.stream_types import STREAM_TYPES, since_column
from airflow_provider_stem.warehouse.sql.dialects import DIALECTS

SCHEMA = "{{ params.schema }}"
"""Placeholder of the schema in all SQL, in Jinja, so that Airflow's own operators can run it."""


@cache
def script(engine: str, name: str) -> str:
    """
    Return an SQL script of an engine. What a DAG sets, such as the schema, is in Jinja: ``{{ params.schema }}``.

    :param engine: ``athena``, ``bigquery``, ``duckdb``, ``postgres``, ``redshift`` or ``snowflake``.
    :param name: ``tables``, ``views``, ``sites`` (which loads site records into DuckDB and PostgreSQL), or, for the
        engines that the operators cannot load, ``load``.
    """
    from jinja2 import StrictUndefined, Template

    folder = files(__name__)
    if name == "load":
        return folder.joinpath(f"load_{engine}.sql").read_text("utf-8")
    context: dict[str, Any] = asdict(DIALECTS[engine])
    context |= {one: context[one].format for one in ("key", "utc_day", "utc_month")}
    text = folder.joinpath(f"{name}.sql").read_text("utf-8")
    template: Template = Template(
        text, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return template.render(context, schema=SCHEMA, types=STREAM_TYPES, since_column=since_column)


def statements(engine: str, name: str) -> tuple[str, ...]:
    """Return the statements of a :func:`script`."""
    return tuple(one.strip() for one in re.split(r";\s*(?:\n|$)", script(engine, name)) if one.strip())
