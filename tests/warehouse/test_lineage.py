"""OpenLineage metadata of a load. tests/test_lineage.py covers the events of a whole run."""

from __future__ import annotations

import pytest

from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator
from tests.support import run_context

pytest.importorskip("airflow.providers.openlineage", reason="needs apache-airflow-providers-openlineage")

from tests.test_lineage import as_event, check_facets

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
PERIOD = {"read_at": DAY[1], "start": DAY[0], "end": DAY[1]}
OBJECTS = {"objects": [{"uri": "s3://lake/a.parquet", "rows": 1, "bytes": 9, "sha256": "0" * 64, **PERIOD}]}
RECORD = {"site_id": "site-1", "name": "One", "client_id": None, "stream_start_times": {"MONITOR": None}}


def as_named(engine):
    """Return the namespace and the database name that other OpenLineage producers use."""
    if engine.name == "duckdb":
        return f"duckdb://{engine.address}", "warehouse"
    server, _, database = engine.address.rpartition("/")
    return f"postgres://{server.rpartition('@')[2]}", database


def tables_of(engine):
    columns = engine.rows(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'stem' ORDER BY 1, 2"
    )
    return {table: [name for one, name in columns if one == table] for table, _ in columns}


def names(datasets):
    return [(one["namespace"], one["name"]) for one in datasets]


@pytest.mark.s3
def test_inputs_are_the_landed_objects_and_the_output_is_the_table_as_the_database_names_it(engine, lake, stem):
    land = StemStreamsToS3Operator(
        task_id="land", sites="site-00001", stream_types=["MONITOR"], partition="hour", s3_bucket=lake.bucket
    )
    receipt = land.execute(run_context(*DAY))
    load = StemObjectsToSqlOperator(task_id="load", objects=receipt, sql_conn_id="warehouse")
    load.execute(run_context())
    event = as_event(load.get_openlineage_facets_on_complete(None))
    assert names(event["inputs"]) == names(as_event(land.get_openlineage_facets_on_complete(None))["outputs"])
    assert [one["inputFacets"]["dataQualityMetrics"]["rowCount"] for one in event["inputs"]] == [4] * 24
    namespace, database = as_named(engine)
    assert names(event["outputs"]) == [(namespace, f"{database}.stem.streams")]
    [table] = event["outputs"]
    fields = table["facets"]["schema"]["fields"]
    assert sorted(one["name"] for one in fields) == tables_of(engine)["streams"]
    assert any("unit: kW" in one.get("description", "") for one in fields)
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 96
    for one in [*event["inputs"], table]:
        check_facets(one["facets"] | one.get("inputFacets", {}) | one.get("outputFacets", {}))
    figures = {name: figure for name, figure in event["run"]["facets"]["stem_load"].items() if name[0] != "_"}
    assert figures == load.execute(run_context()) | {"inserted": 96, "unchanged": 0}


@pytest.mark.s3
def test_the_row_count_of_an_object_is_omitted_if_it_was_rewritten(engine, lake, stem):
    land = StemStreamsToS3Operator(task_id="land", sites="site-00001", stream_types=["MONITOR"], s3_bucket=lake.bucket)
    receipt = land.execute(run_context(*DAY))
    [landed] = receipt["objects"]
    older = {"rows": 95, "sha256": "0" * 64, "read_at": "2020-01-01T00:00:00Z"}
    load = StemObjectsToSqlOperator(task_id="load", objects={"objects": [{**landed, **older}]}, sql_conn_id="warehouse")
    load.execute(run_context())
    [dataset] = as_event(load.get_openlineage_facets_on_complete(None))["inputs"]
    assert "dataQualityMetrics" not in dataset.get("inputFacets", {})


def test_the_output_of_a_listing_is_the_table_of_sites(engine):
    task = StemSitesToSqlOperator(task_id="sites", sites=[RECORD], sql_conn_id="warehouse")
    task.execute(run_context())
    event = as_event(task.get_openlineage_facets_on_complete(None))
    namespace, database = as_named(engine)
    [table] = event["outputs"]
    assert names([table]) == [(namespace, f"{database}.stem.sites")]
    assert sorted(one["name"] for one in table["facets"]["schema"]["fields"]) == tables_of(engine)["sites"]
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 1
    check_facets(table["facets"] | table["outputFacets"])
    assert event["run"]["facets"]["stem_load"]["added"] == 1
    assert not event["inputs"]


def test_the_default_database_has_the_name_of_the_user(monkeypatch):
    from airflow_provider_stem.warehouse.lineage import sites_lineage

    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://loader@db.example/")
    counts = {"sites": 1, "added": 1, "changed": 0, "unchanged": 0}
    [table] = sites_lineage(counts, "warehouse", "stem").outputs
    assert (table.namespace, table.name) == ("postgres://db.example:5432", "loader.stem.sites")


@pytest.mark.parametrize(
    "task",
    [
        StemObjectsToSqlOperator(task_id="load", objects=OBJECTS, sql_conn_id="warehouse"),
        StemSitesToSqlOperator(task_id="sites", sites=[RECORD], sql_conn_id="warehouse"),
    ],
    ids=["objects", "sites"],
)
def test_a_load_that_did_not_finish_has_no_lineage(task):
    lineage = task.get_openlineage_facets_on_complete(None)
    assert not lineage.inputs
    assert not lineage.outputs
    assert not lineage.run_facets
