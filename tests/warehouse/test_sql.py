"""The SQL parses in every dialect, with the same tables, views and columns. Only two dialects are executed."""

from __future__ import annotations

import math
import re
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import sqlglot
from jinja2 import Environment, StrictUndefined
from sqlglot import exp
from sqlglot.optimizer.qualify import qualify

from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.warehouse.session import RELATIONS
from airflow_provider_stem.warehouse.sql import script, statements
from airflow_provider_stem.warehouse.sql.__main__ import main
from airflow_provider_stem.warehouse.sql.dialects import DIALECTS

PARSED_ONLY = [name for name, dialect in DIALECTS.items() if not dialect.executed]
OBJECTS = [
    {
        "uri": f"s3://lake/stem/{name}.parquet",
        "rows": rows,
        "start": "2025-07-01T00:00:00Z",
        "end": "2025-07-02T00:00:00Z",
        "resolution": 900,
    }
    for name, rows in (("a", 3), ("b'\\", 4))
]
PULLED = {"objects": OBJECTS, "manifest": "s3://lake/manifests/run"}
CONTEXT = {
    "params": {
        "schema": "stem", "stage": "lake", "location": "s3://lake/tables", "connection": "aws.lake",
    },
    "ti": SimpleNamespace(xcom_pull=lambda task_ids: PULLED[task_ids]),
    "dag": SimpleNamespace(dag_id="dag"),
    "run_id": "run",
}  # fmt: skip


def rendered(dialect, script):
    """Render as Airflow does, statement by statement. An undefined variable is an error."""
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    return [environment.from_string(one).render(CONTEXT) for one in statements(dialect, script)]


def parsed(dialect, script):
    # sqlglot does not parse this clause of BigQuery.
    texts = [re.sub(r"\nWITH CONNECTION `[^`]+`$", "", one) for one in rendered(dialect, script)]
    return [sqlglot.parse_one(one, read=dialect) for one in texts]


def columns(create):
    return [column.name for column in create.this.expressions if isinstance(column, exp.ColumnDef)]


def tables(dialect):
    return {create.this.this.name: columns(create) for create in parsed(dialect, "tables")}


def views(dialect):
    """Return the columns of each view, and raise if a name in it cannot be resolved."""
    schema: dict[str, object] = {
        "stem": {name: dict.fromkeys(found, "varchar") for name, found in tables(dialect).items()}
    }
    found = {}
    for create in parsed(dialect, "views"):
        query = qualify(
            create.expression, dialect=dialect, schema=schema, validate_qualify_columns=DIALECTS[dialect].executed
        )
        found[create.this.name] = [name.lower() for name in query.named_selects]
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tables_and_views_have_the_same_columns_in_every_dialect(dialect):
    assert tables(dialect) == tables("postgres")
    assert views(dialect) == views("postgres")
    assert {*tables(dialect), *views(dialect)} == set(RELATIONS)
    assert tables(dialect)["streams"] == [*LANDING_SCHEMA.names, "loaded_at", "changed_at"]


@pytest.mark.parametrize("dialect", PARSED_ONLY)
def test_a_load_reads_the_listed_objects_instead_of_a_prefix(dialect):
    text = ";\n".join(rendered(dialect, "load"))
    assert "s3://lake/stem/a.parquet" in text
    listed = "s3://lake/manifests/run" if dialect in {"redshift", "athena"} else "stem/a.parquet', '"
    assert listed in text
    assert re.search(r"count\(\*\)[^;]*= 7\b", text, re.IGNORECASE)  # 3 + 4 rows


@pytest.mark.skipif(version("sqlglot").startswith("26."), reason="sqlglot 26 does not parse LOCK and LOAD DATA")
@pytest.mark.parametrize("dialect", PARSED_ONLY)
def test_a_load_merges_by_the_key_and_writes_the_tables_columns(dialect):
    kinds = tables(dialect)
    by_kind: dict[type, list[Any]] = {}
    for tree in parsed(dialect, "load"):
        by_kind.setdefault(type(tree), []).append(tree)
    written = {}
    for tree in [*by_kind.get(exp.Insert, []), *by_kind.get(exp.Merge, [])]:
        into = next(tree.find_all(exp.Insert)).this
        written[tree.this.find(exp.Table).name] = [column.name for column in into.expressions]
    assert set(written) == {"streams", "loads"}
    assert written["loads"] == kinds["loads"]
    assert written["streams"] == kinds["streams"]
    merged = (by_kind.get(exp.Merge) or by_kind[exp.Update])[0].sql()
    for key in ("site_id", "stream_type", "resolution", "interval_end"):
        assert re.search(rf"\w+\.{key} = staged\.{key}", merged), key
    [rows] = [tree.expression for tree in by_kind[exp.Insert] if tree.find(exp.Table).name == "loads"]
    assert [len(one.expressions) for one in rows.find_all(exp.Tuple)] == 2 * [len(kinds["loads"])]
    # sqlglot does not parse the statements that load files or take locks.
    raw = [tree.sql() for tree in by_kind.get(exp.Command, [])]
    assert all(re.match(r"(LOCK|LOAD|ASSERT|BEGIN)\b", one) for one in raw), raw


def checks(dialect):
    """Yield the checks of staged rows before a merge, as DuckDB queries. In DuckDB 1 / 0 is infinity."""
    for text in rendered(dialect, "load"):
        query = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE)
        asserted = re.fullmatch(r"ASSERT (.*)\n    AS '[^']*'", query, re.DOTALL)
        if asserted:
            query = f"SELECT 1 / CASE WHEN {asserted[1]} THEN 1 ELSE 0 END"
        if query.startswith("SELECT 1 /"):
            yield sqlglot.transpile(query, read=dialect, write="duckdb")[0]


@pytest.mark.parametrize("dialect", PARSED_ONLY)
@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([(end, 900) for end in range(7)], [1, 1]),
        ([(end, 900) for end in range(6)], [math.inf, 1]),
        ([(end, 900) for end in range(8)], [math.inf, 1]),
        ([*((end, 900) for end in range(6)), (6, 1800)], [math.inf, 1]),
        ([*((end, 900) for end in range(6)), (5, 900)], [1, math.inf]),
    ],
    ids=["as landed", "too few", "too many", "another resolution", "a duplicate key"],
)
def test_a_load_fails_before_the_merge_if_rows_do_not_match_the_receipts(dialect, rows, found):
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA stem")
        for name in ("stem_staged", "stem.stem_staged"):
            connection.execute(
                f"CREATE TABLE {name} AS SELECT 'a' AS site_id, 'MONITOR' AS stream_type, resolution, interval_end "
                f"FROM (VALUES {', '.join(map(str, rows))}) AS landed (interval_end, resolution)"
            )
        assert [connection.execute(query).fetchall() for query in checks(dialect)] == [[(one,)] for one in found]


@pytest.mark.skipif(version("sqlglot").startswith("26."), reason="sqlglot 26 does not parse LOCK and LOAD DATA")
@pytest.mark.parametrize("dialect", PARSED_ONLY)
def test_strings_of_an_event_are_escaped(dialect):
    """An object's name may contain quotes and backslashes."""
    parsed_again = [tree for tree in parsed(dialect, "load") if isinstance(tree, exp.Insert)]
    [logged] = [tree for tree in parsed_again if "loads" in {table.name for table in tree.find_all(exp.Table)}]
    uris = [row.expressions[0].this for row in logged.expression.find_all(exp.Tuple)]
    assert uris == [one["uri"] for one in OBJECTS]


@pytest.mark.parametrize("dialect", PARSED_ONLY)
@pytest.mark.parametrize("name", ["tables", "views", "load"])
def test_scripts_that_are_only_parsed_say_so(dialect, name):
    assert script(dialect, name).startswith("-- Not executed in the tests: parsed only")


def printed(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["sql", *arguments])
    main()
    return capsys.readouterr().out


def test_the_command_prints_sql_that_creates_every_relation(capsys, monkeypatch):
    sql = printed(capsys, monkeypatch, "duckdb", "schema=energy")
    with duckdb.connect() as connection:
        connection.execute(f"CREATE SCHEMA energy; {sql}")
        created = connection.execute("SELECT table_name FROM information_schema.tables").fetchall()
    assert {name for (name,) in created} == set(RELATIONS)


def test_the_command_keeps_the_jinja_of_a_dag_unless_it_has_values(capsys, monkeypatch):
    assert "LOCATION '{{ params.location }}/loads/'" in printed(capsys, monkeypatch, "athena")
    sql = printed(capsys, monkeypatch, "athena", "schema=energy", "location=s3://lake/x=1")
    assert "LOCATION 's3://lake/x=1/loads/'" in sql
    assert "{" not in sql


@pytest.mark.parametrize(
    ("argument", "message"), [("schema=energy", "a parameter is missing: .*'location'"), ("schema", "NAME=VALUE")]
)
def test_the_command_fails_if_a_value_is_missing(argument, message, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        printed(capsys, monkeypatch, "athena", argument)
    assert re.search(message, capsys.readouterr().err)
