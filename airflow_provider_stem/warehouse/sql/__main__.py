"""Print the SQL that creates the warehouse's tables and views."""

from __future__ import annotations

import argparse

from airflow_provider_stem.warehouse.sql import script
from airflow_provider_stem.warehouse.sql.dialects import DIALECTS


def main() -> None:
    """Print the SQL of an engine, with values for its parameters or with their Jinja."""
    from jinja2 import StrictUndefined, Template, UndefinedError

    parser = argparse.ArgumentParser(prog="python -m airflow_provider_stem.warehouse.sql", description=__doc__)
    parser.add_argument("engine", choices=DIALECTS)
    parser.add_argument(
        "params",
        type=_param,
        nargs="*",
        metavar="NAME=VALUE",
        help="values of the SQL's parameters, such as schema=stem; without any, they stay as Jinja for a DAG",
    )
    arguments = parser.parse_args()
    sql = "\n".join(script(arguments.engine, name) for name in ("tables", "views"))
    if arguments.params:
        try:
            sql = Template(sql, undefined=StrictUndefined).render(params=dict(arguments.params))
        except UndefinedError as exc:
            parser.error(f"a parameter is missing: {exc}")
    print(sql)  # noqa: T201


def _param(text: str) -> tuple[str, str]:
    name, value = text.split("=", 1)
    return name, value


if __name__ == "__main__":
    main()
