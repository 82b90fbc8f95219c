"""The operator that loads into Iceberg, with landed objects, Airflow connections, and invalid arguments."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.iceberg.catalogs import catalog_from
from airflow_provider_stem.iceberg.operators import StemObjectsToIcebergOperator
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from tests.faults.proxy import FaultyProxy
from tests.servers.catalogs import SOME_CATALOGS
from tests.support import expected_rows, printed_by, run_context
from tests.test_bad_input import CONNECTIONS, COUNTS, Wrong, assert_explains, each, own_arguments
from tests.warehouse.helpers import RECEIPT

TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")


def land(lake, sites, **arguments):
    arguments = {"task_id": "land", "sites": sites, "stream_types": TYPES, "s3_bucket": lake.bucket, **arguments}
    return StemStreamsToS3Operator(**arguments).execute(run_context(*DAY))


def loaded(receipts, **arguments):
    return StemObjectsToIcebergOperator(task_id="load", objects=receipts, **arguments).execute(
        run_context(run_id="a-run")
    )


def open_table():
    return catalog_from("stem_iceberg", "aws_default").load_table("stem.streams")


def rows():
    table = (
        open_table()
        .scan()
        .to_arrow()
        .sort_by([("site_id", "ascending"), ("stream_type", "ascending"), ("interval_end", "ascending")])
    )
    times = [[one.timestamp() for one in table[name].to_pylist()] for name in ("interval_start", "interval_end")]
    columns = [table[name].to_pylist() for name in ("site_id", "stream_type", "resolution")]
    return list(zip(*columns, *times, table["kw_total_avg"].to_pylist(), strict=True))


def counts_of(counts, *names):
    return tuple(counts[name] for name in names)


@pytest.mark.s3
@pytest.mark.parametrize("catalog", SOME_CATALOGS, indirect=True)
def test_the_table_has_what_the_api_has(catalog, lake, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(sites=4, gaps=0.05, null_values=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    records = StemSiteListOperator(task_id="list", batches=2).execute(run_context())
    receipts = [land(lake, batch["sites"], batch=batch["batch"]) for batch in records]
    expected = expected_rows(sim, sim.fleet.site_ids, TYPES, 900, *DAY)
    counts = loaded(receipts, buckets=2)
    assert counts_of(counts, "objects", "rows", "inserted", "added_files") == (2, len(expected), len(expected), 2)
    assert rows() == expected
    [snapshot] = open_table().metadata.snapshots
    assert json.loads(json.dumps(counts))["snapshot_id"] == snapshot.snapshot_id
    assert counts_of(snapshot.summary.additional_properties, "stem.dag-id", "stem.run-id") == ("adhoc_airflow", "a-run")
    again = loaded(receipts)
    assert counts_of(again, "rows", "unchanged", "added_files") == (len(expected), len(expected), 0)
    assert again["snapshot_id"] == snapshot.snapshot_id


@pytest.mark.s3
def test_the_objects_of_the_triggering_events_are_loaded(catalog, lake, stem):
    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    extra = {name: receipt[name] for name in ("window", "objects", "rows")}
    task = StemObjectsToIcebergOperator(task_id="load")
    context = run_context(triggering_asset_events={"asset": [SimpleNamespace(extra=extra)]})
    assert task.execute(context)["inserted"] == 96
    with pytest.raises(AirflowSkipException, match="No object was landed. There is nothing to load"):
        task.execute({"triggering_asset_events": {"asset": [SimpleNamespace(extra={"objects": []})]}})
    with pytest.raises(AirflowFailException, match="objects is None, and no asset event"):
        task.execute({})


@pytest.mark.s3
def test_requests_to_s3_depend_on_the_objects_that_changed(
    catalog, lake, s3_server, stem, stem_simulator_factory, monkeypatch
):
    sites = [f"site-{number:05}" for number in range(1, 9)]
    receipts = [land(lake, site, stream_types=["MONITOR"]) for site in sites]
    with FaultyProxy(s3_server.url) as proxy:
        connection = json.loads(s3_server.connection)
        connection["extra"]["endpoint_url"] = proxy.url
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))

        def requests(*receipts, **arguments):
            proxy.behave()
            counts = loaded(receipts, **arguments)
            made: Counter[tuple[str, str]] = Counter()
            for target in proxy.targets:
                method, _, path = target.partition(" ")
                kind = "object" if path.startswith(f"/{lake.bucket}/") else "data" if "/data/" in path else "metadata"
                made[method, kind] += 1
            return counts, made

        counts, first = requests(*receipts)
        assert counts["added_files"] == 8
        assert counts_of(first, ("HEAD", "object"), ("GET", "object"), ("PUT", "data")) == (0, 8, 8)
        assert first["GET", "data"] == first["HEAD", "data"] == 0
        _, again = requests(*receipts)
        assert counts_of(again, ("HEAD", "object"), ("GET", "object")) == (8, 0)
        assert sum(count for (_, kind), count in again.items() if kind == "data") == 0
        # A HEAD and a GET each: list of manifests, manifest, and the metadata of the table unless the catalog sends it.
        files_read = 2 if catalog["conn_type"] == "iceberg" else 3
        assert sum(count for (_, kind), count in again.items() if kind == "metadata") == 2 * files_read
        # One object is landed again with another value.
        [restated] = receipts[0]["objects"]
        sim = stem_simulator_factory(sites=8, seed=99)
        monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
        receipts[0] = land(lake, "site-00001", stream_types=["MONITOR"])
        assert receipts[0]["objects"][0]["uri"] == restated["uri"]
        counts, restatement = requests(*receipts)
        assert counts_of(counts, "added_files", "removed_files") == (1, 1)
        # Those that did not change are looked up; the other one is fetched, and looked up before and after the commit.
        assert counts_of(restatement, ("HEAD", "object"), ("GET", "object"), ("PUT", "data")) == (7 + 2, 1, 1)
        assert restatement["GET", "data"] <= 3


@pytest.mark.s3
def test_a_damaged_object_fails_and_leaves_the_table_as_it_is(catalog, lake, stem):
    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    key = receipt["objects"][0]["uri"].split("/", 3)[3]
    landed = lake.client.get_object(Bucket=lake.bucket, Key=key)
    lake.client.put_object(Bucket=lake.bucket, Key=key, Body=landed["Body"].read() + b" ", Metadata=landed["Metadata"])
    with pytest.raises(StemDataError, match="The object is damaged"):
        loaded(receipt)
    assert open_table().metadata.snapshots == []


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_missing_connection_fails_the_task(lake):
    with pytest.raises(AirflowFailException, match="Create this connection, or correct the connection id"):
        loaded(RECEIPT)


def test_an_invalid_connection_fails_the_task(lake, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STEM_ICEBERG", json.dumps({"conn_type": "generic"}))
    with pytest.raises(AirflowFailException, match="Invalid catalog_conn_id 'stem_iceberg': the type of its catalog"):
        loaded(RECEIPT)


@pytest.mark.s3
def test_a_wrong_secret_of_the_store_fails_the_task(catalog, lake, s3_server, stem, monkeypatch):
    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    wrong = {**json.loads(s3_server.connection), "password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(wrong))
    with pytest.raises(AirflowFailException, match="Invalid catalog_conn_id 'stem_iceberg'|credentials are wrong"):
        loaded(receipt, aws_conn_id="wrong")


@pytest.mark.s3
def test_a_table_with_other_columns_fails_the_task(catalog, lake, stem):
    import pyarrow as pa

    opened = catalog_from("stem_iceberg", "aws_default")
    opened.create_namespace("stem")
    opened.create_table("stem.streams", pa.schema([("site_id", pa.string())]))
    with pytest.raises(AirflowFailException, match="Invalid table 'stem.streams': it has no column 'stream_type'"):
        loaded(RECEIPT)


# --- arguments --------------------------------------------------------------------------------------------------------

WRONG = [
    Wrong("objects", [17, "s3://lake/x", True], "Use what a landing operator returned"),
    Wrong("objects", [[17], ["s3://lake/x"], [{"uri": "s3://x"}]], "Use what a landing operator returned"),
    Wrong("table", ["", "streams", "stem.", ".streams", "a..b", "a. b", None, 17, True, ["a", "b"]], "'stem.streams'"),
    Wrong("catalog_conn_id", CONNECTIONS, "must be the id of a connection"),
    Wrong("aws_conn_id", [17, True, ["aws"]], "must be a string"),
    Wrong("store_conn_id", [17, "", ["gcs"]], "must be the id of a connection"),
    Wrong("buckets", [*COUNTS, 2**31, 10**30], "must be an integer from 1 to 2,147,483,647"),
]
ROWS = each({StemObjectsToIcebergOperator: WRONG})


@pytest.mark.parametrize(("cls", "wrong", "value"), ROWS)
def test_an_invalid_argument_is_an_error_when_the_dag_is_parsed(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        cls(task_id="task", **{wrong.argument: value})
    assert_explains(error.value, wrong, value)
    with DAG("dag", schedule=None), pytest.raises(StemConfigError) as error:
        cls.partial(task_id="task", **{wrong.argument: value})
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize(("cls", "wrong", "value"), [row for row in ROWS if row.values[1].argument != "buckets"])
def test_a_template_with_an_invalid_result_fails_the_task(cls, wrong, value, lake):
    with DAG("dag", schedule=None, render_template_as_native_obj=True):
        task = cls(task_id="task", **{"objects": RECEIPT, wrong.argument: "{{ wrong }}"})
    task.render_template_fields({"wrong": value})
    with pytest.raises(AirflowFailException) as error:
        task.execute({"run_id": "a-run"})
    assert_explains(error.value, wrong, value)


def test_every_argument_has_three_invalid_values_here():
    values = Counter(dict.fromkeys(own_arguments(StemObjectsToIcebergOperator.__init__), 0))
    for wrong in WRONG:
        values[wrong.argument] += len(wrong.values)
    assert {argument: count for argument, count in values.items() if count < 3} == {}


def test_arguments_without_a_value_at_parse_time_are_not_checked():
    with DAG("dag", schedule=None):
        sites = StemSiteListOperator(task_id="sites", batches=2)
        receipts = StemStreamsToS3Operator.partial(task_id="land", s3_bucket="lake").expand_kwargs(sites.output)
        load = StemObjectsToIcebergOperator(task_id="load", objects=receipts.output, table="{{ var.value.t }}.streams")
        mapped = StemObjectsToIcebergOperator.partial(task_id="each", buckets=8).expand(objects=receipts.output)
    assert load.upstream_task_ids == mapped.upstream_task_ids == {"land"}


def test_importing_the_operators_does_not_import_what_only_a_task_needs():
    loaded = printed_by(
        "import sys, json\nfrom airflow.providers.common.compat.sdk import BaseOperator, conf, Asset\n"
        "before = set(sys.modules)\nimport airflow_provider_stem.iceberg.operators\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    heavy = {"boto3", "botocore", "pyarrow", "pandas", "numpy", "pyiceberg"}
    assert "airflow_provider_stem.iceberg.operators" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in heavy}


# --- lineage ----------------------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_inputs_are_the_landed_objects_and_the_output_is_the_tables_location(catalog, lake, stem):
    pytest.importorskip("airflow.providers.openlineage", reason="needs apache-airflow-providers-openlineage")
    from tests.test_lineage import as_event, check_facets

    receipt = land(lake, "site-00001", stream_types=["MONITOR"])
    task = StemObjectsToIcebergOperator(task_id="load", objects=receipt)
    assert not task.get_openlineage_facets_on_complete(None).outputs
    counts = task.execute(run_context())
    event = as_event(task.get_openlineage_facets_on_complete(None))
    [read], [table] = event["inputs"], event["outputs"]
    assert f"{read['namespace']}/{read['name']}" == receipt["objects"][0]["uri"]
    assert read["inputFacets"]["dataQualityMetrics"]["rowCount"] == 96
    assert f"{table['namespace']}/{table['name']}" == open_table().location()
    assert [one["name"] for one in table["facets"]["schema"]["fields"]][-2:] == ["read_at", "uri"]
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 96
    check_facets(read["facets"] | read["inputFacets"] | table["facets"] | table["outputFacets"])
    facet = {name: count for name, count in event["run"]["facets"]["stem_load"].items() if name[0] != "_"}
    assert facet == counts
