from __future__ import annotations

import inspect
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_stem import links
from airflow_provider_stem.links import LandedObjectsLink
from airflow_provider_stem.operators import StemStreamsToS3Operator

TASK = StemStreamsToS3Operator(task_id="land", sites="site-00001", s3_bucket="lake")
KEY = SimpleNamespace(dag_id="dag", task_id="land", run_id="run", map_index=7)


@pytest.fixture
def link(monkeypatch):
    """``link(*uris)`` of a task that landed these objects; without any of one that gave no receipt."""

    def of(*uris, receipt=None):
        def get_value(*, ti_key, key):
            assert (ti_key, key) == (KEY, "return_value")
            return {"objects": [{"uri": uri} for uri in uris], "rows": 1} if uris else receipt

        monkeypatch.setattr(links, "XCom", SimpleNamespace(get_value=get_value))
        return LandedObjectsLink().get_link(TASK, ti_key=KEY)  # type: ignore[arg-type]

    return of


def parts(address):
    split = urlsplit(address)
    assert (split.scheme, split.netloc) == ("https", "console.aws.amazon.com")
    return split.path, parse_qs(split.query, keep_blank_values=True)["prefix"]


def test_one_object_is_opened_itself(link):
    address = link("s3://lake/stem/dag/date=2025-07-01/a_b c&d=é+.parquet")
    assert parts(address) == ("/s3/object/lake", ["stem/dag/date=2025-07-01/a_b c&d=é+.parquet"])


def test_several_objects_open_what_they_share(link):
    address = link("s3://lake/stem/date=2025-07-01/x.parquet", "s3://lake/stem/date=2025-07-02/x.parquet")
    assert parts(address) == ("/s3/buckets/lake", ["stem/"])
    # What the names begin with alike is no folder.
    assert parts(link("s3://lake/stem/day-1.csv", "s3://lake/stem/day-2.csv")) == ("/s3/buckets/lake", ["stem/"])
    assert parts(link("s3://lake/day-1.csv", "s3://lake/day-2.csv")) == ("/s3/buckets/lake", [""])


@pytest.mark.parametrize("receipt", [None, {}, {"objects": []}])
def test_there_is_none_where_nothing_landed(link, receipt):
    assert link(receipt=receipt) == ""


def test_airflow_knows_the_link_and_its_xcom_can_be_asked_so():
    from airflow_provider_stem import get_provider_info

    assert [link.name for link in TASK.operator_extra_links] == ["Landed objects"]
    (path,) = get_provider_info()["extra-links"]
    assert path == f"{LandedObjectsLink.__module__}.{LandedObjectsLink.__qualname__}"
    inspect.signature(vars(links)["XCom"].get_value).bind(ti_key=KEY, key="return_value")
