"""The warehouse operators, with landed objects, Airflow connections, and invalid arguments."""

from __future__ import annotations

import ast
import inspect
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException

from airflow_provider_stem.errors import StemConfigError, StemDataError, StemTransportError
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator
from tests.faults.proxy import FaultyProxy, altered, reset_within
from tests.support import expected_rows, printed_by, run_context
from tests.test_bad_input import CONNECTIONS, DURATIONS, Wrong, assert_explains, each, own_arguments

from .helpers import RECEIPT, counts

TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
PACKAGE = Path(inspect.getfile(StemObjectsToSqlOperator)).parent


def land(lake, sites, **arguments):
    arguments = {"task_id": "land", "sites": sites, "stream_types": TYPES, "s3_bucket": lake.bucket, **arguments}
    return StemStreamsToS3Operator(**arguments).execute(run_context(*DAY))


def loaded(receipts, **arguments):
    task = StemObjectsToSqlOperator(task_id="load", objects=receipts, sql_conn_id="warehouse", **arguments)
    return task.execute(run_context(run_id="a-run"))


def event(**extra):
    return {"triggering_asset_events": {"asset": [SimpleNamespace(extra=extra)]}}


# --- landed objects ---------------------------------------------------------------------------------------------------


@pytest.mark.s3
@pytest.mark.parametrize("file_format", ["parquet", "csv", "jsonl"])
def test_the_warehouse_holds_what_the_api_has(file_format, engine, lake, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(sites=4, gaps=0.05, null_values=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    records = StemSiteListOperator(task_id="list", batches=2).execute(run_context())
    receipts = [land(lake, batch["sites"], batch=batch["batch"], file_format=file_format) for batch in records]
    # An object that no receipt lists is not loaded.
    lake.client.put_object(Bucket=lake.bucket, Key="stem/adhoc_airflow/land/decoy.parquet", Body=b"decoy")
    expected = expected_rows(sim, sim.fleet.site_ids, TYPES, 900, *DAY)
    assert loaded(receipts) == counts(2, len(expected), len(expected), 0, 0, 0)
    found = engine.rows(
        "SELECT site_id, stream_type, resolution, CAST(extract(EPOCH FROM interval_start) AS BIGINT), "
        "CAST(extract(EPOCH FROM interval_end) AS BIGINT), kw_total_avg FROM stem.streams ORDER BY 1, 2, 5"
    )
    assert found == expected
    assert loaded(receipts) == counts(2, len(expected), 0, 0, len(expected), 0)

    sites = StemSitesToSqlOperator(task_id="sites", sites=records, sql_conn_id="warehouse")
    assert sites.execute({}) == {"sites": 4, "added": 4, "changed": 0, "unchanged": 0}
    due = sum(len(record["stream_start_times"]) for batch in records for record in batch["sites"])
    [totals] = engine.rows("SELECT count(*), sum(expected), sum(received) FROM stem.completeness WHERE expected > 0")
    assert totals == (due, due * 96, len(expected))
    assert due * 96 - len(expected) == sum(receipt["missing"] for receipt in receipts) > 0


@pytest.mark.s3
def test_the_objects_of_the_triggering_events_are_loaded(engine, lake, stem):
    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    task = StemObjectsToSqlOperator(task_id="load", sql_conn_id="warehouse")
    context = run_context(**event(**{name: receipt[name] for name in ("window", "objects", "rows")}), run_id="a-run")
    assert task.execute(context) == counts(1, 96, 96, 0, 0, 0)
    assert engine.rows("SELECT uri, resolution, dag_id, run_id FROM stem.loads") == [
        (receipt["objects"][0]["uri"], 900, "adhoc_airflow", "a-run")
    ]
    # A context that a test makes by hand.
    by_hand: list[Any] = [{"dag_run": SimpleNamespace(run_id="b-run")}, {"ti": SimpleNamespace(run_id="c-run")}, {}]
    for run in by_hand:
        StemObjectsToSqlOperator(task_id="load", objects=receipt, sql_conn_id="warehouse").execute(run)
    assert engine.rows("SELECT run_id FROM stem.loads ORDER BY loaded_at") == [
        ("a-run",),
        ("b-run",),
        ("c-run",),
        (None,),
    ]
    with pytest.raises(AirflowSkipException, match="No object was landed. There is nothing to load"):
        task.execute(event(objects=[]))
    with pytest.raises(AirflowFailException, match="objects is None, and no asset event"):
        task.execute({})


@pytest.mark.s3
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
@pytest.mark.parametrize("fault", [reset_within, altered(lambda head, body: (head, body[:-9]))], ids=["reset", "cut"])
def test_an_interrupted_download_is_retried(fault, engine, lake, s3_server, stem, monkeypatch):
    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    with FaultyProxy(s3_server.url) as proxy:
        connection = json.loads(s3_server.connection)
        connection["extra"]["endpoint_url"] = proxy.url
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        monkeypatch.setattr("airflow_provider_stem._s3._MAX_DOWNLOADS", 2)
        proxy.go_wrong(fault, lambda exchange: exchange.number < 2)
        with pytest.raises(StemTransportError, match="S3 cannot be used through connection 'aws_default'"):
            loaded(receipt)
        assert len(proxy.targets) == 2
        proxy.go_wrong(fault, lambda exchange: exchange.number < 1)
        assert loaded(receipt) == counts(1, 96, 96, 0, 0, 0)
        assert len(proxy.targets) == 2


@pytest.mark.s3
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_of_two_events_with_the_same_intervals_the_newer_one_wins(engine, lake, stem_simulator_factory, monkeypatch):
    """Regardless of the names of their objects, and of the order in which Airflow lists the events."""
    events = []
    for day, (name, seed) in enumerate([("b", 1), ("a", 2), ("c", 3), ("aa", 4)]):
        sim = stem_simulator_factory(sites=1, seed=seed)
        monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
        receipt = land(lake, "site-00001", stream_types=["MONITOR"], s3_key=f"{name}.{{extension}}")
        extra = {name: receipt[name] for name in ("window", "objects", "rows")}
        events.append(SimpleNamespace(extra=extra, timestamp=datetime(2025, 7, 2 + day, tzinfo=UTC)))
    context = run_context(triggering_asset_events={"one": events[2:], "other": events[:2]})
    StemObjectsToSqlOperator(task_id="load", sql_conn_id="warehouse").execute(context)
    found = engine.rows("SELECT kw_total_avg FROM stem.streams ORDER BY interval_end")
    assert found == [row[-1:] for row in expected_rows(sim, ["site-00001"], ["MONITOR"], 900, *DAY)]
    assert engine.rows("SELECT uri FROM stem.loads ORDER BY rowid") == [
        (f"s3://{lake.bucket}/{name}.parquet",) for name in ("b", "a", "c", "aa")
    ]


@pytest.mark.s3
@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_a_rewritten_object_is_loaded_and_a_damaged_or_missing_one_is_an_error(engine, lake, stem):
    receipt = land(lake, "site-00001")
    [one], rows = receipt["objects"], receipt["rows"]
    older = {**receipt, "objects": [{**one, "rows": 1, "sha256": "0" * 64, "read_at": "2020-01-01T00:00:00Z"}]}
    assert loaded(older) == counts(1, rows, rows, 0, 0, 0, replaced=1)
    assert loaded(receipt) == counts(1, rows, 0, 0, rows, 0)

    at = {"Bucket": lake.bucket, "Key": one["uri"].split("/", 3)[3]}
    landed = lake.client.get_object(**at)
    body = landed["Body"].read()
    lake.client.put_object(**at, Body=body)
    with pytest.raises(StemDataError, match="has no SHA-256 in its metadata"):
        loaded(receipt)
    lake.client.put_object(**at, Body=body + b" ", Metadata=landed["Metadata"])
    with pytest.raises(StemDataError, match="The object is damaged"):
        loaded(receipt)

    lake.client.delete_object(**at)
    with pytest.raises(StemDataError, match=f"no longer exists. Land it again.*{one['uri']}"):
        loaded(receipt)


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"conn_type": "redshift"}, "type is 'redshift'. Use a connection of type 'duckdb' or 'postgres'"),
        ({"conn_type": "sqlite"}, "type is 'sqlite'. Use a connection of type 'duckdb' or 'postgres'"),
        ({"conn_type": "duckdb"}, "in-memory DuckDB is lost when the task ends. Set Host to the path of a file"),
        ({"conn_type": "duckdb", "host": ":memory:"}, "in-memory DuckDB is lost"),
        ({"conn_type": "duckdb", "schema": "lake", "password": "token"}, "duplicate rows in MotherDuck. Set Host to"),
        ({"conn_type": "duckdb", "host": "md:lake"}, "duplicate rows in MotherDuck. Set Host to"),
        *(
            ({"conn_type": "duckdb", "host": f"/data/{name}"}, f"cannot distinguish its file '{name}' from schema")
            for name in ("stem.duckdb", "STEM.db", "stem", "stem.v2.duckdb")
        ),
    ],
)
def test_a_connection_that_cannot_be_loaded_into_fails_the_task(connection, message, lake, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    with pytest.raises(AirflowFailException, match=f"Invalid sql_conn_id 'warehouse': .*{message}"):
        loaded(RECEIPT)


@pytest.mark.parametrize("schema", ["temp", "System"])
def test_names_that_only_duckdb_reserves_fail_the_task_there(schema, lake, tmp_path, monkeypatch):
    connection = {"conn_type": "duckdb", "host": str(tmp_path / "telemetry.duckdb")}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    with pytest.raises(AirflowFailException, match=f"^Invalid schema '{schema}': DuckDB reserves .* Use another"):
        loaded(RECEIPT, schema=schema)


@pytest.mark.parametrize("name", ["stem.duckdb", "STEM.db", "stem", "stem.v2.duckdb", ".stem"])
def test_duckdb_cannot_distinguish_a_file_from_a_schema_of_the_same_name(name, tmp_path):
    """This is why such a file is rejected."""
    with duckdb.connect(str(tmp_path / name)) as connection:
        connection.execute("CREATE SCHEMA stem")
        with pytest.raises(duckdb.BinderException, match="Ambiguous reference"):
            connection.execute("CREATE TABLE stem.streams (a INTEGER)")


def test_a_missing_connection_fails_the_task(lake):
    with pytest.raises(AirflowFailException, match="Create this connection, or correct the connection id"):
        loaded(RECEIPT)


# --- arguments --------------------------------------------------------------------------------------------------------

COMMON = [
    Wrong("sql_conn_id", CONNECTIONS, "must be the id of a connection"),
    Wrong("schema", ["", "a b", "1st", "a.b", "x" * 64, None, 17, True], "Use up to 63 letters"),
    Wrong("schema", ["information_schema", "Information_Schema", "pg_catalog", "PG_x"], "Use another, such as 'stem'"),
    Wrong("lock_timeout", DURATIONS, "must be a timedelta above zero"),
]
OPERATORS = {
    StemObjectsToSqlOperator: (
        {"sql_conn_id": "warehouse"},
        [
            *COMMON,
            Wrong("objects", [17, "s3://lake/x", True], "Use what a landing operator returned"),
            Wrong("objects", [[17], ["s3://lake/x"], [{"uri": "s3://x"}]], "Use what a landing operator returned"),
            Wrong("aws_conn_id", [17, True, ["aws"]], "must be a string"),
            Wrong("store_conn_id", [17, "", ["gcs"]], "must be the id of a connection"),
        ],
    ),
    StemSitesToSqlOperator: (
        {"sql_conn_id": "warehouse", "sites": "{{ sites }}"},
        [
            *COMMON,
            Wrong("sites", [None, 17, "site-a", True], "Pass what StemSiteListOperator returned"),
            Wrong("time_zone", ["", "PST8", "Nowhere/City", "../etc/passwd", "posix/UTC"], "Use a name such as"),
            Wrong(
                "time_zone",
                [{"site-a": None}, {"site-a": "utc+1"}, {"site-a": 5}],
                "Use a name such as",
                shows="site 'site-a'",
            ),
            Wrong("time_zone", [5, True, ["UTC"]], "or a dict of names by site id"),
            Wrong("sites", [["site-a"], [17], {"site_id": "a"}], "Pass records as returned by StemSiteListOperator"),
        ],
    ),
}
ROWS = each({cls: rows for cls, (_, rows) in OPERATORS.items()})


@pytest.mark.parametrize(("cls", "wrong", "value"), ROWS)
def test_an_invalid_argument_is_an_error_when_the_dag_is_parsed(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        cls(task_id="task", **{**OPERATORS[cls][0], wrong.argument: value})
    assert_explains(error.value, wrong, value)
    with DAG("dag", schedule=None), pytest.raises(StemConfigError) as error:
        cls.partial(task_id="task", **{wrong.argument: value})
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize(
    ("cls", "wrong", "value"),
    [row for row in ROWS if row.values[1].argument in row.values[0].template_fields],
)
def test_a_template_with_an_invalid_result_fails_the_task(cls, wrong, value, lake, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "duckdb", "host": str(tmp_path / "w")}))
    valid = {"objects": RECEIPT} if cls is StemObjectsToSqlOperator else {"sites": "{{ sites }}"}
    with DAG("dag", schedule=None, render_template_as_native_obj=True):
        task = cls(task_id="task", **{"sql_conn_id": "warehouse", **valid, wrong.argument: "{{ wrong }}"})
    record = {"site_id": "a", "client_id": "c", "stream_start_times": {}}
    task.render_template_fields({"wrong": value, "sites": record})
    with pytest.raises(AirflowFailException) as error:
        task.execute({"run_id": "a-run"})
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize("cls", OPERATORS)
def test_every_argument_has_three_invalid_values_here(cls):
    values = dict.fromkeys(own_arguments(cls.__init__), 0)
    for wrong in OPERATORS[cls][1]:
        values[wrong.argument] += len(wrong.values)
    assert {argument: count for argument, count in values.items() if count < 3} == {}


def test_arguments_without_a_value_at_parse_time_are_not_checked():
    with DAG("dag", schedule=None):
        sites = StemSiteListOperator(task_id="sites", batches=2)
        receipts = StemStreamsToS3Operator.partial(task_id="land", s3_bucket="lake").expand_kwargs(sites.output)
        load = StemObjectsToSqlOperator(task_id="load", objects=receipts.output, sql_conn_id="{{ var.value.w }}")
        mapped = StemObjectsToSqlOperator.partial(task_id="each", sql_conn_id="w").expand(objects=receipts.output)
        dimension = StemSitesToSqlOperator(task_id="dimension", sites=sites.output, sql_conn_id="warehouse")
    assert load.upstream_task_ids == mapped.upstream_task_ids == {"land"}
    assert dimension.upstream_task_ids == {"sites"}
    assert load.lock_timeout == timedelta(minutes=10)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_importing_the_operators_does_not_import_what_only_a_task_needs():
    loaded = printed_by(
        "import sys, json\nfrom airflow.providers.common.compat.sdk import BaseOperator, conf, Asset\n"
        "before = set(sys.modules)\nimport airflow_provider_stem.warehouse.operators\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    heavy = {"boto3", "botocore", "pyarrow", "pandas", "numpy", "duckdb", "psycopg", "psycopg2"}
    assert "airflow_provider_stem.warehouse.operators" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in heavy}


def test_only_three_modules_import_airflow():
    for path in PACKAGE.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        imports_airflow = any(name.partition(".")[0] == "airflow" for name in names)
        assert imports_airflow == (path.name in {"operators.py", "connections.py", "lineage.py"}), path
