"""The warehouse's SQL. The templates have one text for both engines, and name the engine where they differ."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from airflow_provider_stem.streams.stream_types import STREAM_TYPES, since_column

SCHEMA = "{{ params.schema }}"
"""Placeholder of the schema in all SQL."""


@cache
def statements(engine: str, name: str) -> tuple[str, ...]:
    """
    Return the statements of a script.

    :param engine: ``duckdb`` or ``postgres``.
    :param name: ``tables``, ``views``, or ``sites``, which loads site records.
    """
    from jinja2 import StrictUndefined, Template

    template: Template = Template(
        files(__name__).joinpath(f"{name}.sql").read_text("utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = template.render(engine=engine, schema=SCHEMA, types=STREAM_TYPES, since_column=since_column)
    return tuple(one.strip() for one in re.split(r";\s*(?:\n|$)", script) if one.strip())
