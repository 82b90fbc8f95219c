from __future__ import annotations

import inspect
import json
from importlib.metadata import version
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_provider_stem import links
from airflow_provider_stem.assets import summary
from airflow_provider_stem.links import CompletenessLink, LandedObjectsLink
from airflow_provider_stem.operators import StemStreamsToS3Operator
from tests.support import run_context
from tests.test_operators import streams_to_s3

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
TASK = StemStreamsToS3Operator(task_id="land", sites="site-00001", s3_bucket="lake")
KEY = SimpleNamespace(dag_id="dag", task_id="land", run_id="run", map_index=7)


class TaskInstance(SimpleNamespace):
    """Store XComs like a task instance."""

    def __init__(self, task=TASK):
        super().__init__(map_index=-1, task=task, xcoms={})

    def xcom_push(self, key, value):
        self.xcoms[key] = json.loads(json.dumps(value))


@pytest.fixture
def link(monkeypatch):
    """``link(*uris, **extra)``: the link of a task that landed these objects with a connection with this extra."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)

    def of(*uris, **extra):
        connection = {"conn_type": "aws", "login": "AKIAEXAMPLE", "password": "the-secret-key", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        ti = TaskInstance()
        LandedObjectsLink.persist({"ti": ti}, "aws_default", uris)
        return stored(ti, monkeypatch)

    return of


def stored(ti, monkeypatch):
    def get_value(*, ti_key, key):
        assert ti_key is KEY
        return ti.xcoms.get(key)

    monkeypatch.setattr(links, "XCom", SimpleNamespace(get_value=get_value))
    # On Airflow 2 the web server asks, whose copy of the task has no receipt.
    asked = ti.task if ti.task.receipt else SimpleNamespace()
    address = LandedObjectsLink().get_link(asked, ti_key=KEY)  # type: ignore[arg-type]
    for secret in ("AKIAEXAMPLE", "the-secret-key", "Signature", "Credential"):
        assert secret not in json.dumps(ti.xcoms)
    return address


def parts(address):
    split = urlsplit(address)
    return f"{split.scheme}://{split.netloc}{split.path}", parse_qs(split.query, keep_blank_values=True)


@pytest.mark.parametrize(
    ("region", "console"),
    [
        ("eu-central-1", "https://console.aws.amazon.com"),
        ("us-east-1", "https://console.aws.amazon.com"),
        ("cn-north-1", "https://console.amazonaws.cn"),
        ("us-gov-west-1", "https://console.amazonaws-us-gov.com"),
    ],
)
def test_the_link_opens_the_console_of_region_and_partition(link, region, console):
    address = link("s3://lake/stem/dag/date=2025-07-01/a_b c&d=é+.parquet", region_name=region)
    assert parts(address) == (
        f"{console}/s3/object/lake",
        {"region": [region], "prefix": ["stem/dag/date=2025-07-01/a_b c&d=é+.parquet"]},
    )


def test_a_partition_without_a_known_console_has_no_link(link):
    assert link("s3://lake/key", region_name="us-iso-east-1") == ""


def test_several_objects_link_to_their_common_prefix(link):
    def prefix(*uris):
        base, query = parts(link(*uris, region_name="eu-central-1"))
        assert base == "https://console.aws.amazon.com/s3/buckets/lake"
        return query["prefix"]

    assert prefix("s3://lake/stem/date=2025-07-01/x.parquet", "s3://lake/stem/date=2025-07-02/x.parquet") == ["stem/"]
    # A common prefix of names is not a folder.
    assert prefix("s3://lake/stem/day-1.csv", "s3://lake/stem/day-2.csv") == ["stem/"]
    assert prefix("s3://lake/day-1.csv", "s3://lake/day-2.csv") == [""]


@pytest.mark.parametrize(
    "extra",
    [
        {"endpoint_url": "https://user:hidden@minio.example:9000/"},
        {"service_config": {"s3": {"endpoint_url": "https://minio.example:9000"}}, "endpoint_url": "https://other"},
    ],
)
def test_a_compatible_server_is_linked_by_its_own_address(link, extra):
    one = link("s3://lake/stem/a b&c=é.parquet", region_name="eu-central-1", **extra)
    assert unquote(one) == "https://minio.example:9000/lake/stem/a b&c=é.parquet"
    several = link("s3://lake/stem/1.csv", "s3://lake/stem/2.csv", region_name="eu-central-1", **extra)
    assert several == "https://minio.example:9000/lake/?prefix=stem%2F"


def test_there_is_no_link_if_nothing_landed(link):
    assert link() == ""
    assert link("s3://arn:aws:s3:eu-central-1:1:accesspoint/lake/key", region_name="eu-central-1") == ""


def test_an_error_of_the_link_does_not_fail_the_task(monkeypatch):
    def refuse(self):
        raise AirflowNotFoundException("gone")

    monkeypatch.setattr(S3Hook, "get_conn", refuse)
    ti = TaskInstance()
    LandedObjectsLink.persist({"ti": ti}, "aws_default", ["s3://lake/key"])
    assert ti.xcoms == {}


@pytest.mark.s3
def test_a_task_stores_the_link_to_what_it_landed(stem, lake, monkeypatch):
    task = streams_to_s3(lake)
    ti = TaskInstance(task)
    receipt = task.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z", ti=ti))
    uri = receipt["objects"][0]["uri"]
    assert unquote(stored(ti, monkeypatch)) == uri.replace("s3:/", lake.client.meta.endpoint_url)
    task.do_xcom_push = False
    ti.xcoms.clear()
    task.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z", ti=ti))
    assert ti.xcoms == {}


@pytest.mark.s3
def test_a_task_that_landed_nothing_asks_for_no_xcom(stem, lake, monkeypatch):
    """Airflow 3 would log that the XCom was not found, as an error, below the task's own message."""
    monkeypatch.delattr(links, "XCom")
    task = streams_to_s3(lake, stem_conn_id="absent")
    with pytest.raises(AirflowFailException):
        task.execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z", ti=TaskInstance(task)))
    assert LandedObjectsLink().get_link(task, ti_key=KEY) == ""  # type: ignore[arg-type]
    skipped = streams_to_s3(lake)
    skipped.receipt = {"objects": []}  # on_empty="skip"
    assert LandedObjectsLink().get_link(skipped, ti_key=KEY) == ""  # type: ignore[arg-type]


@pytest.mark.s3
def test_a_task_stores_its_summary_and_links_to_the_completeness_of_its_days(stem, lake, monkeypatch):
    task = streams_to_s3(lake)
    ti = TaskInstance(task)
    of = CompletenessLink().get_link
    monkeypatch.setenv("AIRFLOW__STEM__COMPLETENESS_CONN_ID", "warehouse")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.com/airflow/")
    assert of(task, ti_key=KEY) == ""  # type: ignore[arg-type]
    receipt = task.execute(run_context("2025-06-30T22:00Z", "2025-07-02T00:00Z", ti=ti))
    assert ti.xcoms["summary"] == summary(receipt)
    page = "https://example.com/airflow/stem/completeness?first_day=2025-06-30&last_day=2025-07-01"
    assert of(task, ti_key=KEY) == page  # type: ignore[arg-type]
    monkeypatch.delenv("AIRFLOW__API__BASE_URL")
    assert of(task, ti_key=KEY) == page.removeprefix("https://example.com/airflow")  # type: ignore[arg-type]
    monkeypatch.delenv("AIRFLOW__STEM__COMPLETENESS_CONN_ID")
    assert of(task, ti_key=KEY) == ""  # type: ignore[arg-type]


def test_airflow_registers_the_links_and_their_xcom_can_be_read():
    from airflow_provider_stem import get_provider_info

    names = ["Landed objects", "Completeness"] if AIRFLOW >= (3, 1) else ["Landed objects"]
    assert [link.name for link in TASK.operator_extra_links] == names
    assert get_provider_info()["extra-links"] == [
        f"{link.__module__}.{link.__qualname__}" for link in (LandedObjectsLink, CompletenessLink)
    ]
    inspect.signature(vars(links)["XCom"].get_value).bind(ti_key=KEY, key="return_value")


@pytest.mark.parametrize(
    ("uris", "address"),
    [
        (["gs://lake/a b/c.csv"], "https://console.cloud.google.com/storage/browser/_details/lake/a%20b/c.csv"),
        (["gs://lake/a/b1", "gs://lake/a/b2"], "https://console.cloud.google.com/storage/browser/lake/a/"),
        (["abfs://lake/a/b"], ""),
        (["file:///data/lake/b"], ""),
    ],
)
def test_the_link_to_other_stores_is_that_of_their_console_or_none(link, uris, address):
    assert link(*uris) == address
