from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskGroup

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator
from tests.support import instant, run_context

BATCHES: list[dict[str, Any]] = [
    {"sites": [{"site_id": "a", "stream_start_times": {}}, {"site_id": "b"}], "batch": "007-of-032"},
    {"sites": ["c"], "batch": "009-of-032"},
]


@pytest.fixture(params=[StemStreamsSensor, StemStreamsToS3Operator])
def task_class(request):
    return request.param


def named(task_class, of, **mapped):
    """Return the name of a mapped task's instance in Airflow's UI."""
    with DAG("dag", schedule=None) as dag:
        begun = task_class.partial(task_id="task", **of)
        mapping = begun.expand_kwargs([mapped]) if "batch" in mapped else begun.expand(sites=[mapped["sites"]])
    task = mapping.unmap(mapped)
    assert type(task) is task_class
    return dag.get_template_env().from_string(mapping.map_index_template).render(task=task)


@pytest.mark.parametrize(
    ("mapped", "name"),
    [
        (BATCHES[0], "007-of-032"),
        (BATCHES[1], "009-of-032"),
        ({"sites": "site-00001"}, "site-00001"),
        ({"sites": {"site_id": "site-00002", "name": "n"}}, "site-00002"),
        ({"sites": {"id": "as-the-api-sends-it"}}, "as-the-api-sends-it"),
        ({"sites": ["a", "b", {"site_id": "c"}]}, "3 sites"),
        ({"sites": 17}, "17"),
        ({"sites": None}, "None"),
    ],
)
def test_a_mapped_task_is_named_by_its_sites(task_class, mapped, name):
    assert named(task_class, {}, **mapped) == name


def test_a_custom_name_is_kept(task_class):
    assert named(task_class, {"map_index_template": "mine"}, **BATCHES[0]) == "mine"
    assert named(task_class, {"map_index_template": "{{ task.batch }}!"}, **BATCHES[0]) == "007-of-032!"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resolution": 60}, "Invalid resolution 60. Use one of 900, 1800, 3600"),
        ({"stream_types": ["MONITORS"]}, "'MONITORS'"),
        ({"max_workers": 0}, "max_workers must be an integer >= 1, got 0"),
        ({"default_interval": 3600}, "default_interval must be a timedelta .*got 3600"),
    ],
)
def test_a_wrong_argument_shows_when_the_dag_is_parsed(task_class, wrong, says):
    with DAG("dag", schedule=None), pytest.raises(StemConfigError, match=says):
        task_class.partial(task_id="task", **wrong)


@pytest.mark.parametrize(
    ("task_class", "wrong"),
    [
        (StemStreamsSensor, {"min_completeness": 1.5}),
        (StemStreamsSensor, {"settle": timedelta(-1)}),
        (StemStreamsSensor, {"start_from_trigger": True}),
        (StemStreamsToS3Operator, {"s3_key": "{nonsense}"}),
        (StemStreamsToS3Operator, {"lookback": timedelta(days=1)}),
        (StemStreamsToS3Operator, {"on_empty": "ignore"}),
    ],
)
def test_a_wrong_argument_of_only_one_class_shows_when_the_dag_is_parsed(task_class, wrong):
    with DAG("dag", schedule=None), pytest.raises(StemConfigError, match=next(iter(wrong))):
        task_class.partial(task_id="task", **wrong)


def test_mapped_arguments_are_validated_when_the_task_is_created(task_class):
    with DAG("dag", schedule=None):
        mapping = task_class.partial(task_id="task").expand_kwargs([{**BATCHES[0], "resolution": 60}])
    with pytest.raises(StemConfigError, match="Invalid resolution 60"):
        mapping.unmap({**BATCHES[0], "resolution": 60})


def test_a_sensor_and_an_operator_can_be_mapped_over_one_listing(task_class):
    with DAG("dag", schedule=None):
        listing = StemSiteListOperator(task_id="list", batches=4)
        begun = task_class.partial(task_id="task", stream_types=["MONITOR", "CONVERTER"], resolution=1800)
        mapping = begun.expand_kwargs(listing.output)
    task = mapping.unmap(BATCHES[0])
    assert (task.sites, task.batch) == (BATCHES[0]["sites"], "007-of-032")
    assert (task.stream_types, task.resolution) == (("CONVERTER", "MONITOR"), 1800)


def test_a_mapped_sensor_waits(stem):
    with DAG("dag", schedule=None):
        mapping = StemStreamsSensor.partial(task_id="wait", deferrable=False).expand(sites=["site-00001", "site-00002"])
    context = run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z")
    assert mapping.unmap({"sites": "site-00002"}).execute(context)["expected"] == 4
    assert [request.path.split("/")[-2] for request in stem.requests] == ["site-00002"]


def test_the_name_does_not_hide_the_error_of_the_task(stem):
    """Airflow renders the name after a failure too, and an error of the name would replace the failure."""
    with DAG("dag", schedule=None):
        mapping = StemStreamsSensor.partial(task_id="wait").expand(sites=["site-00001"])
    sensor: Any = mapping.unmap({"sites": 17})
    with pytest.raises(AirflowFailException, match="Invalid sites 17. Use a site id"):
        sensor.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z"))
    assert sensor.batch_name == "17"


@pytest.mark.parametrize(
    ("task_class", "of", "mapped"),
    [
        (StemSiteListOperator, {}, {"client_id": ["a"]}),
        (StemStreamsToS3Operator, {}, {"sites": ["a"]}),
        (StemStreamsSensor, {}, {"sites": ["a"]}),
        (StemObjectsToSqlOperator, {"sql_conn_id": "warehouse"}, {"objects": [[]]}),
        (StemSitesToSqlOperator, {"sql_conn_id": "warehouse"}, {"sites": [[]]}),
    ],
)
def test_a_mapped_task_keeps_airflows_defaults(task_class, of, mapped):
    """Without a list of inlets Airflow 3.3 fails each of its tasks before the operator is called."""
    with DAG("dag", schedule=None):
        task = task_class.partial(task_id="task", **of).expand(**mapped)
    assert (task.inlets, task.outlets) == ([], [])


# --- a listing of the other kind --------------------------------------------------------------------------------------


def test_records_instead_of_batches_fail_when_the_dag_is_parsed(task_class):
    with DAG("dag", schedule=None):
        records, batches = StemSiteListOperator(task_id="records"), StemSiteListOperator(task_id="b", batches=4)
        with pytest.raises(StemConfigError, match=r"lists site records\. Set batches in it"):
            task_class.partial(task_id="one").expand_kwargs(records.output)
        with pytest.raises(StemConfigError, match=r"lists batches\. Map with \.expand_kwargs"):
            task_class.partial(task_id="two").expand(sites=batches.output)
        # The result of .map is known only when the task runs.
        task_class.partial(task_id="three").expand_kwargs(records.output.map(lambda record: {"sites": record}))
        task_class.partial(task_id="four").expand(sites=batches.output.map(lambda batch: batch["sites"]))


def test_records_instead_of_batches_fail_without_retries_when_the_task_runs(task_class):
    with DAG("dag", schedule=None):
        listing = StemSiteListOperator(task_id="records")
        mapping = task_class.partial(task_id="task").expand_kwargs(listing.output.map(lambda record: record))
    with pytest.raises(AirflowFailException, match=r"lists site records\. Set batches in it, or map with .expand\("):
        mapping.unmap({"site_id": "a", "name": "n", "client_id": "c", "stream_start_times": {}})


def rendered(dag, mapping, mapped):
    """Return a mapped task's instance with its templates rendered; ``{{ mine }}`` becomes ``rendered``."""
    task = mapping.unmap(mapped)
    task.render_template_fields({"dag": dag, "ti": SimpleNamespace(map_index=0), "mine": "rendered"})
    return task


@pytest.mark.parametrize("owner", ["dag", "group"])
@pytest.mark.parametrize("of", [{}, {"batch": "{{ mine }} too"}])
def test_templates_in_default_args_are_rendered(task_class, owner, of):
    templates = {"stem_conn_id": "{{ mine }}", "batch": "{{ mine }}"}
    defaults: dict[str, Any] = {name: templates if name == owner else {} for name in ("dag", "group")}
    with DAG("dag", schedule=None, default_args=defaults["dag"]) as dag:
        listing = StemSiteListOperator(task_id="list", stem_conn_id="stem_default")
        with TaskGroup("group", default_args=defaults["group"]):
            mapping = task_class.partial(task_id="task", **of).expand(sites=listing.output)
    task = rendered(dag, mapping, {"sites": "{{ mine }}"})
    batch = "rendered too" if of else "rendered"
    assert (task.sites, task.stem_conn_id, task.batch) == ("{{ mine }}", "rendered", batch)


def test_default_args_that_are_mapped_are_not_rendered(task_class):
    with DAG("dag", schedule=None) as dag:
        listing = StemSiteListOperator(task_id="list", batches=2)
        mapping = task_class.partial(task_id="task").expand_kwargs(listing.output)
    task = rendered(dag, mapping, {"sites": ["a"], "default_args": {"batch": "{{ mine }}"}})
    assert task.batch == "{{ mine }}"


@pytest.mark.parametrize("owner", ["dag", "group"])
def test_sites_may_be_in_default_args(task_class, owner):
    defaults: dict[str, Any] = {name: {"sites": ["a"]} if name == owner else {} for name in ("dag", "group")}
    with DAG("dag", schedule=None, default_args=defaults["dag"]), TaskGroup("group", default_args=defaults["group"]):
        mapping = task_class.partial(task_id="task").expand(start=["2025-07-01T00:00Z"])
    assert mapping.unmap({"start": "2025-07-01T00:00Z"}).sites == ["a"]


@pytest.mark.parametrize("sites", [BATCHES[0], BATCHES])
def test_a_batch_instead_of_sites_names_the_remedy(task_class, sites, stem):
    task = task_class(task_id="task", sites=sites[0]["sites"] if isinstance(sites, list) else sites["sites"])
    task.sites = sites
    with pytest.raises(AirflowFailException, match=r"^sites contains a batch of .*\. Map with \.expand_kwargs"):
        task.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z"))
    assert stem.requests == []


@pytest.mark.parametrize("listed", [["site-00001", "b"], [{"site_id": "a"}], BATCHES])
def test_the_string_of_a_list_names_the_remedy(task_class, listed, stem):
    with DAG("dag", schedule=None) as dag:
        task = task_class(task_id="task", sites="{{ listed }}")
    context = run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z", listed=listed, dag=dag)
    task.render_template_fields(context)
    with pytest.raises(
        AirflowFailException, match=r"^sites is a list that was rendered to a string\. Pass the output itself"
    ):
        task.execute(context)
    assert stem.requests == []


def test_an_id_that_only_looks_like_a_list_is_an_id(task_class):
    task = task_class(task_id="task", sites="['a']")
    task.render_template_fields({})
    assert type(task.sites) is str


def test_a_final_error_is_one_line_and_one_cause(task_class, stem, monkeypatch, caplog):
    connection = {**json.loads(stem.connection), "password": "wrong-key"}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))
    arguments = {} if task_class is StemStreamsSensor else {"s3_bucket": "lake", "aws_conn_id": None}
    store = "airflow_provider_stem._s3.S3Store"
    monkeypatch.setattr(f"{store}.check", lambda *_, **__: None)
    monkeypatch.setattr(f"{store}.head", lambda *_: (None, instant("2025-07-01T01:00Z")))
    monkeypatch.setattr(f"{store}.keys", lambda *_, **__: iter(()))
    with pytest.raises(AirflowFailException) as raised:
        task_class(task_id="task", sites="site-00001", **arguments).execute(
            run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z")
        )
    message = str(raised.value)
    assert message.startswith("HTTP 401: ")
    assert "\n" not in message
    assert message.index("Check the API key (Password) of connection 'stem_default'.") < message.index("[GET http")
    cause = raised.value.__cause__
    assert cause is not None
    assert (cause.__cause__, cause.__context__, cause.__traceback__) == (None, None, None)
