"""OpenLineage: the events of receipts, and the events of a run in a real Airflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import pytest
from airflow import __version__ as airflow_version
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.config import DEFAULT_BASE_URL
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.streams import receipts
from airflow_provider_stem.streams.reading import SiteResult, StreamAccount
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from airflow_provider_stem.streams.windows import Window
from tests.servers.processes import HUNG_AFTER
from tests.support import Lake, full_depth_only, run_context

pytest.importorskip("airflow.providers.openlineage", reason="needs apache-airflow-providers-openlineage")

from openlineage.client import facet_v2
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.serde import Serde

from airflow_provider_stem import _lineage

ROOT = Path(__file__).parent.parent
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
WINDOW = Window(datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 2, tzinfo=UTC), 900)
COMPLETE = "every expected interval was received"

# The kinds of streams, and what the receipt counts of them.
WHOLE, GAPPY, ABSENT = "whole", "gappy", "absent"


def receipt_of(sites, objects=1):
    """Return the receipt of sites whose streams are WHOLE, GAPPY or ABSENT; ``None`` for sites that failed."""
    results: list[SiteResult[Any]] = []
    for site_id, streams in sorted(sites.items()):
        if streams is None:
            results.append(SiteResult(site_id, error=StemDataError("a wrong answer")))
            continue
        result: SiteResult[Any] = SiteResult(site_id, unavailable=[t for t in TYPES if streams[t] == ABSENT])
        for stream_type in TYPES:
            if streams[stream_type] != ABSENT:
                missing = WINDOW.start + timedelta(hours=1) if streams[stream_type] == GAPPY else None
                result.accounts[stream_type] = StreamAccount(96, 90 if missing else 96, missing)
                result.rows += result.accounts[stream_type].received
        results.append(result)
    receipt: Any = receipts.receipt_of(results, WINDOW, str)
    uris = [f"s3://lake/stem/{number}.parquet" for number in range(objects)]
    receipt["objects"] = [
        {"uri": uri, "rows": number, "bytes": 10 * number, "start": "…", "end": "…"} for number, uri in enumerate(uris)
    ]
    return receipt


def whole(count):
    return {f"site-{number:05}": dict.fromkeys(TYPES, WHOLE) for number in range(count)}


def lineage(receipt, sites, base_url=DEFAULT_BASE_URL):
    return _lineage.landed(receipt, sites, base_url, TYPES, str)


def as_event(found):
    """Return the event that a transport would send."""
    event = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime="2025-07-02T00:05:00Z",
        run=Run("01941f29-7c00-7000-8000-000000000000", facets=found.run_facets),
        job=Job("default", "dag.task"),
        inputs=found.inputs,
        outputs=found.outputs,
        producer="tests",
    )
    return json.loads(Serde.to_json(event))


def assertions_of(dataset):
    facet = dataset.inputFacets.get("dataQualityAssertions")
    return {one.assertion: one for one in facet.assertions} if facet else {}


# --- validation by the client -----------------------------------------------------------------------------------------


@cache
def facet_classes():
    """Return the client's classes by the schema that they implement."""
    found: dict[str, type[Any]] = {}
    todo: list[Any] = [facet_v2.BaseFacet]
    while todo:
        cls = todo.pop()
        if cls.__module__.startswith("openlineage."):
            found.setdefault(cls._get_schema(), cls)  # a facet with more fields is an instance of a subclass
            todo += cls.__subclasses__()
    return found


NESTED = {
    "assertions": facet_v2.data_quality_assertions_dataset.Assertion,
    "fields": facet_v2.schema_dataset.SchemaDatasetFacetFields,
}


def check_facets(facets):
    """Create each facet with the class of its schema, which rejects missing and unknown fields."""
    for name, facet in facets.items():
        assert facet["_producer"].startswith("pkg:pypi/airflow-provider-stem@"), name
        cls = facet_classes()[facet["_schemaURL"]]
        # Run facets may have more fields than the specification.
        if cls is not facet_v2.RunFacet:
            build(cls, {key: value for key, value in facet.items() if not key.startswith("_")})


def build(cls, content):
    hints = get_type_hints(cls)
    for name, value in content.items():
        assert fits(value, hints[name]), f"{cls.__name__}.{name} is {value!r}"
        for one in value if name in NESTED else ():
            build(NESTED[name], one)
    cls(**content)


def fits(value, hint):
    if isinstance(hint, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    return type(value) is (get_origin(hint) or hint)


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "namespace"),
    [
        (DEFAULT_BASE_URL, "stem://app.stem.com"),
        ("https://App.Stem.com:8443/api/v1/", "stem://app.stem.com:8443"),
        ("http://[::1]:8080/api/v1/", "stem://[::1]:8080"),
        ("https://user:secret@app.stem.com/api/v1/?token=secret", "stem://app.stem.com"),
    ],
)
def test_the_namespace_is_only_the_host_of_the_url(base_url, namespace):
    [dataset] = lineage(receipt_of(whole(1)), "site-00000", base_url).inputs
    assert (dataset.namespace, dataset.name) == (namespace, "sites/site-00000/streams")


def test_sites_may_have_every_form_that_the_operator_accepts():
    receipt = receipt_of({"a/b c": dict.fromkeys(TYPES, WHOLE)})
    record = {"site_id": "a/b c", "client_id": "c"}
    for sites in ("a/b c", ["a/b c"], record, {"id": "a/b c"}, [record, "a/b c"], ("a/b c", record)):
        assert [dataset.name for dataset in lineage(receipt, sites).inputs] == ["sites/a%2Fb%20c/streams"]


def test_more_than_a_hundred_sites_are_grouped_by_client_if_the_records_have_it():
    sites = whole(101)
    receipt = receipt_of(sites)
    records = [{"site_id": site_id, "client_id": f"client {n % 3}"} for n, site_id in enumerate(sites)]
    by_client = [f"clients/client%20{number}/sites" for number in range(3)]
    assert len(lineage(receipt_of(whole(100)), list(whole(100))).inputs) == 100
    assert [dataset.name for dataset in lineage(receipt, records).inputs] == by_client
    assert [dataset.name for dataset in lineage(receipt, [*records, {"id": "site-00000"}]).inputs] == by_client
    assert [dataset.name for dataset in lineage(receipt, [*records[1:], "site-00000"]).inputs] == ["sites"]
    assert [dataset.name for dataset in lineage(receipt, list(sites)).inputs] == ["sites"]
    each_its_own = [{"site_id": site_id, "client_id": site_id} for site_id in sites]
    assert [dataset.name for dataset in lineage(receipt, each_its_own).inputs] == ["sites"]


def test_the_input_of_one_site_has_an_assertion_for_each_stream():
    streams = {"CONVERTER": WHOLE, "INTERVAL_REVENUE": ABSENT, "MONITOR": GAPPY}
    receipt = receipt_of({"one": streams, "two": None})
    one, two = lineage(receipt, ["two", "one"]).inputs
    assert "dataQualityMetrics" not in one.inputFacets  # The row count is of both sites.
    converter, monitor = (assertions_of(one)[f"{COMPLETE}: {t}"] for t in ("CONVERTER", "MONITOR"))
    assert len(assertions_of(one)) == 2
    assert (converter.success, monitor.success, monitor.expected, monitor.actual) == (True, False, "96", "90")
    assert monitor.params == {"first_missing": "2025-07-01T01:00:00Z"}
    assert {name: found.success for name, found in assertions_of(two).items()} == {"every site was read": False}


def test_sites_that_the_receipt_does_not_list_have_no_assertion():
    sites = {f"site-{number:05}": dict.fromkeys(TYPES, GAPPY) for number in range(60)}
    receipt = receipt_of(sites)
    assert len(receipt["incomplete"]) < receipt["incomplete_count"] == 180
    inputs = lineage(receipt, list(sites)).inputs
    found = [one.success for dataset in inputs for one in assertions_of(dataset).values()]
    assert found == [False] * len(receipt["incomplete"])


def test_the_input_of_all_sites_has_the_number_of_missing_intervals():
    sites = {f"site-{number:05}": dict.fromkeys(TYPES, GAPPY if number < 60 else WHOLE) for number in range(150)}
    receipt = receipt_of(sites)
    [dataset] = lineage(receipt, list(sites)).inputs
    [found] = assertions_of(dataset).values()
    assert (found.assertion, found.success) == (COMPLETE, False)
    assert (found.expected, found.actual) == (str(receipt["expected"]), str(receipt["rows"]))
    assert dataset.inputFacets["dataQualityMetrics"].rowCount == receipt["rows"]


@pytest.mark.parametrize(("gappy", "said"), [(3, [False, True]), (110, [False, None])])
def test_a_client_is_complete_if_all_of_its_sites_are(gappy, said):
    sites = {f"site-{number:05}": dict.fromkeys(TYPES, GAPPY if number < gappy else WHOLE) for number in range(220)}
    records = [{"site_id": site_id, "client_id": f"c{n // 110}"} for n, site_id in enumerate(sites)]
    inputs = lineage(receipt_of(sites), records).inputs
    found = [assertions_of(dataset).get(COMPLETE) for dataset in inputs]
    assert [one and one.success for one in found] == said


SITE_IDS = st.text(min_size=1, max_size=8).filter(lambda text: text.strip() not in {"", ".", ".."})
STREAMS = st.fixed_dictionaries({t: st.sampled_from((WHOLE, GAPPY, ABSENT)) for t in TYPES})


@given(
    st.dictionaries(SITE_IDS, st.none() | STREAMS, min_size=1, max_size=15),
    st.integers(0, 5),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([2, 100]),
)
def test_any_receipt_makes_a_valid_event(sites, objects, clients, listed):
    given_sites = [
        site_id if clients is None else {"site_id": site_id, "client_id": f"c{number % clients}"}
        for number, site_id in enumerate(sites)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receipts, "_MAX_LISTED", listed)
        patch.setattr(_lineage, "MAX_INPUTS", 5)
        receipt = receipt_of(sites, objects)
        found = lineage(receipt, given_sites)
    event = as_event(found)

    assert all(type(one) is InputDataset for one in found.inputs)
    assert all(type(one) is OutputDataset for one in found.outputs)
    check_facets(event["run"]["facets"])
    for dataset in event["inputs"]:
        check_facets(dataset["facets"] | dataset["inputFacets"])
    for dataset in event["outputs"]:
        check_facets(dataset["facets"] | dataset["outputFacets"])
    assert "non-serializable" not in json.dumps(event)
    assert "a wrong answer" not in json.dumps(event)

    names = [dataset["name"] for dataset in event["inputs"]]
    assert len(set(names)) == len(names) == (len(sites) if len(sites) <= 5 else clients or 1)
    uris = [f"{dataset['namespace']}/{dataset['name']}" for dataset in event["outputs"]]
    assert uris == [one["uri"] for one in receipt["objects"]]

    said = [one.success for dataset in found.inputs for one in assertions_of(dataset).values()]
    assert (False in said) == bool(receipt["missing"] or receipt["failed_count"])
    assert (
        event["run"]["facets"]["stem_receipt"].items()
        >= {name: receipt[name] for name in ("window", "expected", "missing", "failed_count", "requests")}.items()
    )


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_columns_have_the_descriptions_of_the_landing_schema():
    found = lineage(receipt_of(whole(1)), "site-00000")
    columns = found.outputs[0].facets["schema"].fields
    assert [(column.name, column.type) for column in columns] == [(f.name, str(f.type)) for f in LANDING_SCHEMA]
    for column, field in zip(columns, LANDING_SCHEMA, strict=True):
        for text in (field.metadata or {}).values():
            assert text.decode() in column.description
    by_name = {column.name: column.description for column in columns}
    assert by_name["resolution"] == "unit: s"
    assert "unit: kW; sign: MONITOR: positive is import" in by_name["kw_total_avg"]
    sent = found.inputs[0].facets["schema"].fields
    assert [column.name for column in sent] == ["stream_type", "start_datetime", "end_datetime", "kw_total_avg"]
    assert sent[-1].description == by_name["kw_total_avg"]


# --- the operator -----------------------------------------------------------------------------------------------------


def test_a_task_that_did_not_land_has_no_lineage():
    task = StemStreamsToS3Operator(task_id="land", sites="site-00001", s3_bucket="lake")
    found = task.get_openlineage_facets_on_complete(None)
    assert (found.inputs, found.outputs, found.run_facets, found.job_facets) == ([], [], {}, {})


def test_a_task_that_landed_has_the_lineage_of_its_receipt(stem, lake):
    task = StemStreamsToS3Operator(task_id="land", sites="site-00001", s3_bucket=lake.bucket)
    receipt = task.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z"))
    found = task.get_openlineage_facets_on_complete(None)
    assert found.run_facets["stem_receipt"].requests == receipt["requests"]
    assert found.inputs == _lineage.landed(receipt, "site-00001", f"{stem.url}/api/v1/", ["MONITOR"], str).inputs
    assert [dataset.outputFacets["outputStatistics"].rowCount for dataset in found.outputs] == [4]


def test_parsing_a_dag_does_not_import_openlineage():
    code = """
import sys
sys.modules.update(dict.fromkeys(["openlineage", "airflow.providers.openlineage.extractors"]))
from airflow_provider_stem.operators import StemStreamsToS3Operator
StemStreamsToS3Operator(task_id="land", sites="site-00001", s3_bucket="lake")
assert "airflow_provider_stem._lineage" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


# --- a real run -------------------------------------------------------------------------------------------------------

DAG = """
import os, sys
import pendulum
from airflow import __version__
from airflow.providers.common.compat.sdk import DAG, Asset
from airflow_provider_stem.operators import StemStreamsToS3Operator
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator

with DAG("stem", schedule=None, start_date=pendulum.datetime(2025, 1, 1, tz="UTC"), catchup=False) as dag:
    streams = StemStreamsToS3Operator(
        task_id="streams",
        sites=["site-00001", "site-00002"],
        stream_types=["MONITOR", "CONVERTER"],
        start="2025-07-01T00:00Z",
        end="2025-07-01T02:00Z",
        partition="hour",
        s3_bucket=os.environ["LAKE"],
        # Airflow 3.0 considers an asset inactive that only dag.test() has used.
        outlets=[] if __version__.startswith("3.0.") else [Asset("s3://lake/stem")],
    )
    StemObjectsToSqlOperator(task_id="load", objects=streams.output, sql_conn_id="warehouse")

if __name__ == "__main__":
    # In the same process, because Airflow takes seconds to start.
    from airflow.utils.db import initdb

    initdb()
    dag.test()
"""


@pytest.fixture(scope="module")
def run(s3_server, tmp_path_factory):
    """Run a DAG with an OpenLineage listener; return the events, the log, the lake and the simulator."""
    from airflow_provider_stem.simulator import Settings, Simulator

    home = tmp_path_factory.mktemp("lineage")
    (home / "dags").mkdir()
    (home / "dags" / "stem.py").write_text(DAG)
    lake = Lake(s3_server)
    with Simulator(Settings(api_key="the-key-of-the-lineage", gaps=0.1)) as sim:
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(home / "events.jsonl"), "append": True}
            ),
            # The most detailed events of Airflow's OpenLineage provider.
            "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
            "AIRFLOW_CONN_STEM_DEFAULT": sim.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
            "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": str(home / "telemetry.duckdb")}),
            "LAKE": lake.bucket,
        }
        done = subprocess.run(
            [sys.executable, str(home / "dags" / "stem.py")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HUNG_AFTER,
            check=False,
        )
        log = done.stdout + done.stderr
        assert done.returncode == 0, log[-5000:]
        text = (home / "events.jsonl").read_text()
        events: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for event in map(json.loads, text.splitlines()):
            events.setdefault((event["job"]["name"], event["eventType"]), []).append(event)
        yield SimpleNamespace(events=events, text=text, log=log, lake=lake, sim=sim, home=home)


@pytest.mark.airflow
@full_depth_only
def test_a_run_has_one_start_event_and_one_end_event(run):
    assert len(run.events["stem.streams", "START"]) == len(run.events["stem.streams", "COMPLETE"]) == 1


@pytest.mark.airflow
@full_depth_only
def test_the_objects_are_listed_once_although_the_hook_reports_them_too(run):
    [event] = run.events["stem.streams", "COMPLETE"]
    objects = run.lake.objects()
    assert [(one["namespace"], one["name"]) for one in event["outputs"]] == [
        (f"s3://{run.lake.bucket}", key) for key in sorted(objects)
    ]
    assert len(objects) == 2
    for one in event["outputs"]:
        check_facets(one["facets"] | one["outputFacets"])
        assert one["outputFacets"]["outputStatistics"]["size"] == len(objects[one["name"]])
    rows = sum(one["outputFacets"]["outputStatistics"]["rowCount"] for one in event["outputs"])
    receipt = event["run"]["facets"]["stem_receipt"]
    assert rows == receipt["rows"] == receipt["expected"] - receipt["missing"] < receipt["expected"]


@pytest.mark.airflow
@full_depth_only
def test_the_landed_objects_are_inputs_of_the_warehouse_load(run):
    [landed], [loaded] = run.events["stem.streams", "COMPLETE"], run.events["stem.load", "COMPLETE"]
    assert [(one["namespace"], one["name"]) for one in loaded["inputs"]] == [
        (one["namespace"], one["name"]) for one in landed["outputs"]
    ]
    [table] = loaded["outputs"]
    assert (table["namespace"], table["name"]) == (
        f"duckdb://{run.home / 'telemetry.duckdb'}",
        "telemetry.stem.streams",
    )
    receipt = landed["run"]["facets"]["stem_receipt"]
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == receipt["rows"]
    assert loaded["run"]["facets"]["stem_load"]["inserted"] == receipt["rows"]


@pytest.mark.airflow
@full_depth_only
def test_the_key_is_in_no_event(run):
    lines = [line for line in (run.text + run.log).splitlines() if run.sim.settings.api_key in line]
    if airflow_version.startswith("3.0."):
        # Airflow's dag.test() logs the values that it is asked to mask, at debug level.
        lines = [line for line in lines if not re.search(r"\[debug +\] .* msg=MaskSecret\(value=", line)]
    assert not lines
    assert run.sim.requests


@pytest.mark.airflow
@full_depth_only
def test_the_documentation_shows_the_event_of_this_run(run):
    [event] = run.events["stem.streams", "COMPLETE"]
    [shown] = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "lineage.md").read_text(), re.DOTALL)
    renamed = {urlsplit(run.sim.url).netloc: "app.stem.com", run.lake.bucket: "my-lake"}
    assert in_documentation(event, renamed) == in_documentation(json.loads(shown), {})


def in_documentation(event, renamed):
    """Remove what Airflow reports for every task, and what differs between versions."""
    event = {
        "eventType": event["eventType"],
        "job": {name: event["job"][name] for name in ("namespace", "name")},
        "run": {"facets": {"stem_receipt": event["run"]["facets"]["stem_receipt"]}},
        "inputs": event["inputs"],
        "outputs": event["outputs"][:1],
    }
    text = json.dumps(event)
    for name, instead in renamed.items():
        text = text.replace(name, instead)
    return json.loads(text, object_hook=lambda one: {k: v for k, v in one.items() if k[0] != "_" and k != "size"})
