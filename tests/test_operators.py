from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, Asset, AssetAlias, BaseHook
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem._s3 import S3Store
from airflow_provider_stem.assets import as_alias_extra, summary
from airflow_provider_stem.errors import (
    StemAuthError,
    StemConfigError,
    StemDataError,
    StemIncompleteError,
    StemServerError,
    StemTransportError,
    StemUnavailableError,
)
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator, _in_batches
from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.support import expected_rows, instant, landed_rows, run_context

ALL_TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")


def streams_to_s3(lake=None, **arguments):
    arguments = {
        "task_id": "land",
        "sites": ["site-00001", "site-00002"],
        "stream_types": ALL_TYPES,
        "s3_bucket": lake.bucket if lake else "lake",
        **arguments,
    }
    return StemStreamsToS3Operator(**arguments)


# --- listing ----------------------------------------------------------------------------------------------------------


def test_a_listing_returns_records_for_mapping(stem):
    records = StemSiteListOperator(task_id="list").execute(run_context())
    assert [record["site_id"] for record in records] == sorted(stem.fleet.site_ids)
    assert set(records[0]) == {"site_id", "name", "client_id", "stream_start_times"}
    assert {record["client_id"] for record in records} == {client.id for client in stem.fleet.clients}
    json.dumps(records)


def test_a_listing_accepts_one_client_or_several(stem):
    first, second = (client.id for client in stem.fleet.clients)
    one = StemSiteListOperator(task_id="list", client_id=first).execute(run_context())
    both = StemSiteListOperator(task_id="list", client_id=[first, second]).execute(run_context())
    assert {record["client_id"] for record in one} == {first}
    assert len(one) < len(both) == 20


def test_a_listing_filters_by_name_and_by_stream_type(stem):
    everything = StemSiteListOperator(task_id="list").execute(run_context())
    with_meter = StemSiteListOperator(task_id="list", stream_types=["INTERVAL_REVENUE"]).execute(run_context())
    assert [r for r in everything if "INTERVAL_REVENUE" in r["stream_start_times"]] == with_meter
    assert 0 < len(with_meter) < len(everything)
    named = StemSiteListOperator(task_id="list", name=everything[0]["name"]).execute(run_context())
    assert everything[0] in named
    assert len(named) < len(everything)


def test_no_site_skips_with_a_message(stem):
    with pytest.raises(AirflowSkipException, match="No site found .*name='nowhere'"):
        StemSiteListOperator(task_id="list", name="nowhere").execute(run_context())


@pytest.mark.stem_simulator(sites=5000, clients=7)
def test_five_thousand_sites_are_mapped_to_few_tasks(stem):
    batches = StemSiteListOperator(task_id="list", batches=32).execute(run_context())
    assert len(batches) == 32
    assert [batch["batch"] for batch in batches] == [f"{number:03}-of-032" for number in range(1, 33)]
    assert sorted(site["site_id"] for batch in batches for site in batch["sites"]) == sorted(stem.fleet.site_ids)
    assert max(len(batch["sites"]) for batch in batches) < 1.5 * 5000 / 32


@given(
    st.sets(st.text(min_size=1), min_size=1, max_size=60),
    st.sets(st.text(min_size=1), max_size=60),
    st.integers(1, 1500),
)
def test_a_site_keeps_its_batch_when_others_are_added_and_removed(sites, others, batches):
    def batch_by_site(ids):
        grouped = _in_batches([{"site_id": site_id} for site_id in sorted(ids)], batches)
        assert len(grouped) <= batches
        assert all(batch["sites"] for batch in grouped)
        return {site["site_id"]: batch["batch"] for batch in grouped for site in batch["sites"]}

    before, after = batch_by_site(sites), batch_by_site(sites | others)
    assert before.keys() == sites
    assert before.items() <= after.items()


def test_a_listing_that_is_too_long_to_map_logs_a_warning(stem, monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "10")
    StemSiteListOperator(task_id="list").execute(run_context())
    output = capsys.readouterr().out
    assert "max_map_length = 10" in output
    assert "Set batches to map fewer tasks" in output


# --- landing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["A", "B"])
@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_every_interval_of_the_run_lands_once(reading, resolution, stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(reading=reading, sites=8, gaps=0.05, null_values=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    receipt = streams_to_s3(lake, sites=list(sim.fleet.site_ids), resolution=resolution).execute(run_context(*DAY))
    table = lake.table()
    expected = expected_rows(sim, sim.fleet.site_ids, ALL_TYPES, resolution, *DAY)
    assert landed_rows(table) == expected
    assert table.schema.equals(LANDING_SCHEMA, check_metadata=True)
    assert receipt["rows"] == len(expected)
    assert receipt["window"] == {
        "start": "2025-07-01T00:00:00Z",
        "end": "2025-07-02T00:00:00Z",
        "resolution": resolution,
    }
    streams = sum(t in sim.fleet.site(s).stream_start_times for s in sim.fleet.site_ids for t in ALL_TYPES)
    assert receipt["expected"] == streams * 86400 // resolution
    assert receipt["missing"] == receipt["expected"] - receipt["rows"] > 0
    assert receipt["requests"] == len(sim.requests)
    assert receipt["sites"] == 8
    json.dumps(receipt)


def test_consecutive_runs_are_adjacent(stem, lake):
    edges = [
        "2025-03-08T22:10:07Z",
        "2025-03-09T01:59:59Z",
        "2025-03-09T03:00Z",
        "2025-03-09T03:15Z",
        "2025-03-10T00:07Z",
    ]
    for start, end in pairwise(edges):
        streams_to_s3(lake, sites="site-00001").execute(run_context(start, end))
    expected = expected_rows(stem, ["site-00001"], ALL_TYPES, 900, edges[0], edges[-1])
    assert sorted(landed_rows(lake.table())) == expected


def test_all_types_of_a_known_site_cost_one_request(stem, lake):
    records = StemSiteListOperator(task_id="list").execute(run_context())
    stem.reset_requests()
    receipt = streams_to_s3(lake, sites=records).execute(run_context(*DAY))
    assert receipt["requests"] == len(stem.requests) == 20
    lacking = [r["site_id"] for r in records if "INTERVAL_REVENUE" not in r["stream_start_times"]]
    assert receipt["unavailable"] == [{"site_id": s, "stream_type": "INTERVAL_REVENUE"} for s in lacking]
    assert receipt["unavailable_count"] == len(lacking) > 0


@pytest.mark.parametrize(
    ("arguments", "is_portable"), [({}, True), ({"parquet_encoding": "smallest"}, False)], ids=["portable", "smallest"]
)
def test_parquet_has_the_requested_encoding(arguments, is_portable, stem, lake):
    streams_to_s3(lake, sites="site-00001", stream_types=["MONITOR"], **arguments).execute(run_context(*DAY))
    [body] = lake.objects().values()
    group = pq.read_metadata(io.BytesIO(body)).row_group(0)
    found = {encoding for column in range(6) for encoding in group.column(column).encodings}
    assert (found <= {"PLAIN", "RLE_DICTIONARY", "RLE"}) is is_portable


@pytest.mark.parametrize("compression", ["default", "none"])
@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_text_formats_have_the_same_rows_as_parquet(file_format, compression, stem, lake):
    arguments = {"file_format": file_format, "compression": compression}
    receipt = streams_to_s3(lake, **arguments).execute(run_context(*DAY))
    [(key, body)] = lake.objects().items()
    assert key.endswith(f".{file_format}" if compression == "none" else f".{file_format}.gz")
    assert receipt["objects"][0]["bytes"] == len(body)
    text = (body if compression == "none" else gzip.decompress(body)).decode()
    if file_format == "csv":
        rows = [{**row, "resolution": int(row["resolution"])} for row in csv.DictReader(io.StringIO(text))]
        rows = [{**row, "kw_total_avg": float(row["kw_total_avg"])} for row in rows]
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    assert list(rows[0]) == LANDING_SCHEMA.names
    got = [
        (
            row["site_id"],
            row["stream_type"],
            row["resolution"],
            int(instant(row["interval_start"]).timestamp()),
            int(instant(row["interval_end"]).timestamp()),
            row["kw_total_avg"],
        )
        for row in rows
    ]
    assert got == expected_rows(stem, ["site-00001", "site-00002"], ALL_TYPES, 900, *DAY)


def assert_unchanged(receipt, before):
    """Check the receipt of a run whose rows had all landed before."""
    rows = before["rows"]
    assert receipt["objects"] == [
        {**one, "read_at": new["read_at"]} for one, new in zip(before["objects"], receipt["objects"], strict=True)
    ]
    assert all(
        instant(new["read_at"]) >= instant(one["read_at"])
        for one, new in zip(before["objects"], receipt["objects"], strict=True)
    )
    counts = {"inserted": 0, "changed": 0, "unchanged": rows, "kept": 0}
    assert {**receipt, "objects": None} == {**before, "objects": None, **counts}


def test_the_same_data_produces_the_same_bytes(stem, lake):
    task = streams_to_s3(lake, max_workers=4, sites=list(stem.fleet.site_ids))
    first_receipt = task.execute(run_context(*DAY))
    first = lake.objects()
    again = streams_to_s3(lake, max_workers=1, sites=list(reversed(stem.fleet.site_ids)))
    assert_unchanged(again.execute(run_context(*DAY)), first_receipt)
    assert lake.objects() == first


def test_periods_are_complete_and_a_lookback_rewrites_the_same_keys(stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(restate=86400 * 2)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    arguments = {"partition": "day", "lookback": timedelta(days=2), "sites": "site-00001"}
    sim.now = instant("2025-07-04T01:00Z")
    streams_to_s3(lake, **arguments).execute(run_context("2025-07-03T00:00Z", "2025-07-04T00:00Z"))
    provisional = lake.objects()
    assert [key.split("/")[3] for key in provisional] == ["date=2025-07-01", "date=2025-07-02", "date=2025-07-03"]
    sim.now = instant("2025-07-20T00:00Z")
    receipt = streams_to_s3(lake, **arguments).execute(run_context("2025-07-04T00:00Z", "2025-07-05T00:00Z"))
    assert receipt["window"]["start"] == "2025-07-02T00:00:00Z"
    assert [one["start"] for one in receipt["objects"]] == [f"2025-07-0{day}T00:00:00Z" for day in (2, 3, 4)]
    final = lake.objects()
    assert len(final) == 4
    assert final.keys() >= provisional.keys()
    # A reader of the prefix sees each interval once, with restated values in the look-back.
    table = lake.table()
    keys = list(zip(table["stream_type"].to_pylist(), table["interval_end"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys) == 3 * 4 * 96
    restated = expected_rows(sim, ["site-00001"], ALL_TYPES, 900, "2025-07-02T00:00Z", "2025-07-05T00:00Z")
    assert set(restated) <= set(landed_rows(table))


@pytest.mark.parametrize(
    ("partition", "start", "end", "objects"),
    [
        ("hour", "2025-07-01T00:00Z", "2025-07-01T05:00Z", 5),
        ("hour", "2025-07-01T00:30Z", "2025-07-01T05:00Z", 5),
        ("day", "2024-02-28T00:00Z", "2024-03-01T00:00Z", 2),
        ("month", "2025-01-15T00:00Z", "2025-03-01T00:00Z", 2),
        ("interval", "2025-01-15T00:00Z", "2025-03-01T00:00Z", 1),
    ],
)
def test_one_object_per_period(partition, start, end, objects, stem, lake):
    receipt = streams_to_s3(lake, sites="site-00001", partition=partition).execute(run_context(start, end))
    assert len(receipt["objects"]) == len(lake.objects()) == objects
    begin = receipt["window"]["start"]
    assert landed_rows(lake.table().sort_by([("stream_type", "ascending"), ("interval_end", "ascending")])) == (
        expected_rows(stem, ["site-00001"], ALL_TYPES, 900, begin, end)
    )
    assert sum(one["rows"] for one in receipt["objects"]) == receipt["rows"]


def test_a_task_mapped_over_records_names_its_batch_after_the_site(stem, lake):
    receipt = streams_to_s3(lake, sites={"site_id": "site-00003"}).execute(run_context(*DAY))
    assert receipt["objects"][0]["uri"].endswith("_site-00003.parquet")


def test_the_key_may_be_a_full_address(stem, lake):
    key = f"s3://{lake.bucket}/x/{{batch}}/{{start}}-{{end:%H}}.{{extension}}"
    receipt = streams_to_s3(s3_bucket=None, s3_key=key, batch="a/b").execute(run_context(*DAY))
    assert receipt["objects"][0]["uri"] == f"s3://{lake.bucket}/x/a%2Fb/20250701T000000Z-00.parquet"
    assert list(lake.objects()) == ["x/a%2Fb/20250701T000000Z-00.parquet"]


def test_template_fields_are_rendered(stem, lake):
    task = streams_to_s3(
        sites="{{ params.site }}",
        start="{{ params.day }}T00:00:00Z",
        end="{{ params.day }}T01:00:00Z",
        s3_bucket="{{ params.bucket }}",
        s3_key="{{ params.day }}/{start:%H}.{extension}",
    )
    context = run_context(params={"site": "site-00002", "day": "2025-07-01", "bucket": lake.bucket})
    task.render_template_fields(context)
    receipt = task.execute(context)
    assert list(lake.objects()) == ["2025-07-01/00.parquet"]
    assert receipt["expected"] == 4 * len(stem.fleet.site("site-00002").stream_start_times)


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.stem_simulator(gaps=0.2)
def test_missing_rows_are_reported_and_land_or_fail(stem, lake, caplog):
    receipt = streams_to_s3(lake).execute(run_context(*DAY))
    assert receipt["incomplete_count"] == len(receipt["incomplete"]) > 0
    assert receipt["missing"] == sum(one["expected"] - one["received"] for one in receipt["incomplete"])
    first = receipt["incomplete"][0]
    have = {row[4] for row in landed_rows(lake.table()) if row[:2] == (first["site_id"], first["stream_type"])}
    begin = int(instant(DAY[0]).timestamp())
    missing = [k for k in range(begin + 900, begin + 86401, 900) if k not in have]
    assert int(instant(first["first_missing"]).timestamp()) == missing[0]
    assert "rows are missing" in caplog.text
    before = lake.objects()
    with pytest.raises(StemIncompleteError, match="nothing was uploaded"):
        streams_to_s3(lake, on_incomplete="fail", s3_key="other.{extension}").execute(run_context(*DAY))
    assert lake.objects() == before


def test_an_unavailable_type_is_skipped_or_fails(stem, lake):
    lacking = next(s for s in stem.fleet.site_ids if "INTERVAL_REVENUE" not in stem.fleet.site(s).stream_start_times)
    receipt = streams_to_s3(lake, sites=lacking).execute(run_context(*DAY))
    assert receipt["unavailable"] == [{"site_id": lacking, "stream_type": "INTERVAL_REVENUE"}]
    assert landed_rows(lake.table()) == expected_rows(stem, [lacking], ALL_TYPES, 900, *DAY)
    with pytest.raises(StemUnavailableError, match="INTERVAL_REVENUE"):
        streams_to_s3(lake, sites=lacking, on_unavailable="fail").execute(run_context(*DAY))


def test_an_empty_run_writes_the_schema_or_skips_or_fails(stem, lake):
    before_all = ("2001-01-01T00:00Z", "2001-01-02T00:00Z")
    receipt = streams_to_s3(lake, sites="site-00001").execute(run_context(*before_all))
    assert (receipt["rows"], receipt["expected"], len(receipt["objects"])) == (0, 0, 1)
    table = lake.table()
    assert table.num_rows == 0
    assert table.schema.equals(LANDING_SCHEMA)
    lake.client.delete_object(Bucket=lake.bucket, Key=receipt["objects"][0]["uri"].split("/", 3)[3])
    with pytest.raises(AirflowSkipException, match="The API has no rows for .*. Nothing was uploaded"):
        streams_to_s3(lake, sites="site-00001", on_empty="skip").execute(run_context(*before_all))
    with pytest.raises(StemIncompleteError, match="No rows for"):
        streams_to_s3(lake, sites="site-00001", on_empty="fail").execute(run_context(*before_all))
    assert lake.objects() == {}


def test_single_sites_that_fail_are_skipped_or_fail_the_run(stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(forbidden=["site-00002"])
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)

    def without_grid(request, payload):
        if "site-00003/streams" in request.path and "stream_types" in payload:
            payload["stream_types"][0]["streams"][5]["end_datetime"] = "2025-07-01T00:00:07+00:00"
        return payload

    sim.rewrite = without_grid
    sites = ["site-00001", "site-00002", "site-00003", "unknown"]
    receipt = streams_to_s3(lake, sites=sites, on_site_error="skip").execute(run_context(*DAY))
    assert landed_rows(lake.table()) == expected_rows(sim, ["site-00001"], ALL_TYPES, 900, *DAY)
    assert [one["site_id"] for one in receipt["failed_sites"]] == sites[1:]
    assert receipt["failed_count"] == 3
    for site_id, error, text in [
        ("site-00002", AirflowFailException, "403"),
        ("site-00003", StemDataError, "site-00003, CONVERTER, row 5"),
        ("unknown", AirflowFailException, "404"),
    ]:
        with pytest.raises(error, match=text):
            streams_to_s3(lake, sites=["site-00001", site_id]).execute(run_context(*DAY))
        with pytest.raises(error, match=text):
            streams_to_s3(lake, sites=[site_id], on_site_error="skip").execute(run_context(*DAY))


def test_the_lists_of_a_receipt_are_bounded(stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(sites=150, gaps=0.5)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    sites = [*sim.fleet.site_ids, *(f"unknown-{number:03}" for number in range(120))]
    receipt = streams_to_s3(lake, sites=sites, on_site_error="skip").execute(
        run_context("2025-07-01T00:00Z", "2025-07-01T04:00Z")
    )
    assert len(receipt["incomplete"]) == 100 < receipt["incomplete_count"]
    assert len(receipt["failed_sites"]) == 100 < receipt["failed_count"] == 120
    assert receipt["sites"] == 270


# --- failures and existing objects ------------------------------------------------------------------------------------


def test_a_run_that_fails_keeps_existing_objects(stem, lake):
    streams_to_s3(lake, partition="day").execute(run_context("2025-07-01T00:00Z", "2025-07-04T00:00Z"))
    before = lake.objects()
    stem.fail(400, path="site-00002/streams", times=None)
    with pytest.raises(Exception, match="400"):
        streams_to_s3(lake, partition="day").execute(run_context("2025-07-01T00:00Z", "2025-07-04T00:00Z"))
    assert lake.objects() == before


@pytest.mark.parametrize("if_exists", ["merge", "replace", "fail"])
def test_an_upload_that_fails_halfway_leaves_whole_objects_and_a_retry_writes_the_rest(
    if_exists, stem, lake, monkeypatch
):
    context = run_context("2025-07-01T00:00Z", "2025-07-04T00:00Z")
    receipt = streams_to_s3(lake, partition="day").execute(context)
    undisturbed = lake.objects()
    for key in undisturbed:
        lake.client.delete_object(Bucket=lake.bucket, Key=key)
    put = S3Store.put
    calls = []

    def put_twice(self, key, *arguments):
        calls.append(key)
        if len(calls) == 3:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")
        put(self, key, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "put", put_twice)
        with pytest.raises(ClientError):
            streams_to_s3(lake, partition="day", if_exists=if_exists).execute(context)
    landed = lake.objects()
    assert len(landed) == 2
    assert landed.items() <= undisturbed.items()
    retried = streams_to_s3(lake, partition="day", if_exists=if_exists).execute(context)
    assert (retried["inserted"], retried["unchanged"]) == (receipt["rows"] // 3, receipt["rows"] // 3 * 2)
    assert [one["sha256"] for one in retried["objects"]] == [one["sha256"] for one in receipt["objects"]]
    assert lake.objects() == undisturbed
    assert lake.uploads() == []


def test_an_object_with_other_content_is_replaced_only_if_requested(stem, lake):
    lake.client.put_object(Bucket=lake.bucket, Key="taken.parquet", Body=b"precious")
    with pytest.raises(AirflowFailException, match=r"exists with other content.*if_exists='fail'.*taken.parquet"):
        streams_to_s3(lake, s3_key="taken.{extension}", if_exists="fail").execute(run_context(*DAY))
    with pytest.raises(AirflowFailException, match=r"cannot be merged with.*use if_exists='replace'.*taken.parquet"):
        streams_to_s3(lake, s3_key="taken.{extension}").execute(run_context(*DAY))
    assert lake.read("taken.parquet") == b"precious"
    streams_to_s3(lake, s3_key="taken.{extension}", if_exists="replace").execute(run_context(*DAY))
    assert pq.read_table(io.BytesIO(lake.read("taken.parquet"))).num_rows > 0


def test_transient_faults_cost_one_request_each(stem, lake):
    undisturbed = streams_to_s3(lake).execute(run_context(*DAY))
    body = lake.objects()
    for fault in (500, 503, "cut_body", "reset", "html", "cut_json", "empty"):
        stem.fail(fault, path="site-00001/streams")
        disturbed = streams_to_s3(lake).execute(run_context(*DAY))
        assert_unchanged(disturbed, {**undisturbed, "requests": undisturbed["requests"] + 1})
        assert lake.objects() == body


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_wrong_key_fails_without_retries(stem, lake, monkeypatch):
    connection = {**json.loads(stem.connection), "password": "wrong-key"}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))
    with pytest.raises(AirflowFailException, match="HTTP 401") as caught:
        streams_to_s3(lake).execute(run_context(*DAY))
    assert isinstance(caught.value.__cause__, StemAuthError)
    assert "wrong-key" not in str(caught.value)


def test_a_permanent_server_error_is_retryable(stem, lake, monkeypatch):
    connection = {**json.loads(stem.connection), "extra": {"max_attempts": 2}}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))
    stem.fail(502, times=None)
    with pytest.raises(StemServerError, match="HTTP 502"):
        streams_to_s3(lake).execute(run_context(*DAY))


def test_a_missing_bucket_is_reported_before_any_request(stem, lake):
    with pytest.raises(AirflowFailException, match="s3_bucket 'nowhere' does not exist"):
        streams_to_s3(s3_bucket="nowhere").execute(run_context(*DAY))
    assert stem.requests == []


def test_an_s3_server_that_is_down_is_reported_before_any_request(stem, lake, monkeypatch):
    connection = json.loads(lake.server.connection)
    connection["extra"]["endpoint_url"] = "http://127.0.0.1:1"
    connection["extra"]["config_kwargs"]["retries"] = {"max_attempts": 0}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    with pytest.raises(StemTransportError, match="S3 cannot be used through connection 'aws_default'"):
        streams_to_s3(lake).execute(run_context(*DAY))
    assert stem.requests == []


def test_a_stem_api_that_is_down_is_retryable(stem, lake, monkeypatch):
    connection = {**json.loads(stem.connection), "host": "http://127.0.0.1:1", "extra": {"max_attempts": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))
    with pytest.raises(StemTransportError, match=r"No complete response \(.*\[GET http://127.0.0.1:1/api/v1/sites"):
        streams_to_s3(lake).execute(run_context(*DAY))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 60}, "Invalid resolution 60. Use one of 900, 1800, 3600"),
        ({"resolution": "900"}, "Invalid resolution '900'"),
        ({"resolution": True}, "Invalid resolution True"),
        ({"stream_types": []}, r"Invalid stream_types \[\]. Use one or more of MONITOR"),
        ({"stream_types": ["METER"]}, "stream_types contains 'METER'"),
        ({"stream_types": None}, "Invalid stream_types None"),
        ({"default_interval": timedelta(0)}, "default_interval must be a timedelta above zero"),
        ({"default_interval": 3600}, "default_interval must be a timedelta .*got 3600"),
        ({"lookback": timedelta(days=-1), "partition": "day"}, "lookback must be a timedelta above zero"),
        ({"lookback": timedelta(days=1)}, "lookback=1 day.*Set partition to 'hour'"),
        ({"partition": "week"}, "partition must be one of interval, hour, day, month, got 'week'"),
        ({"file_format": "orc"}, "Invalid file_format 'orc'. Use one of parquet, csv, jsonl"),
        ({"compression": "lzo"}, "Invalid compression 'lzo' for 'parquet'. Use one of default, zstd"),
        ({"file_format": "csv", "compression": "snappy"}, "Invalid compression 'snappy' for 'csv'"),
        ({"parquet_encoding": "tiny"}, "parquet_encoding must be one of portable, smallest, got 'tiny'"),
        ({"on_incomplete": "ignore"}, "on_incomplete must be one of warn, fail, got 'ignore'"),
        ({"on_unavailable": True}, "on_unavailable must be one of skip, fail, got True"),
        ({"on_empty": "warn"}, "on_empty must be one of write, skip, fail, got 'warn'"),
        ({"on_site_error": "warn"}, "on_site_error must be one of fail, skip, got 'warn'"),
        ({"max_workers": 0}, "max_workers must be an integer >= 1, got 0"),
        ({"max_workers": "8"}, "max_workers must be an integer >= 1, got '8'"),
        ({"sites": []}, "sites is empty"),
        ({"sites": [{}]}, "records with a 'site_id'"),
        ({"sites": 7}, "Invalid sites 7"),
        ({"sites": [".."]}, "invalid site id '..'"),
        ({"start": "2025-07-01", "end": "2025-07-02T00:00Z"}, "Invalid start '2025-07-01.*no UTC offset"),
        ({"start": "yesterday", "end": "2025-07-02T00:00Z"}, "Invalid start 'yesterday'. Use an ISO 8601"),
        ({"start": "", "end": "2025-07-02T00:00Z"}, "Invalid start ''"),
        ({"start": "2025-07-02T00:00Z", "end": "2025-07-01T00:00Z"}, "end .* is not after start"),
        ({"s3_key": "/x"}, "Use a key without empty"),
        ({"s3_key": "a/../x"}, "Use a key without empty, '.', '..' or '.stem' parts"),
        ({"s3_key": "x/{site}.parquet"}, r"unknown placeholder \{site\}"),
        ({"s3_key": "{{ ds }}/{strat}.parquet"}, r"unknown placeholder \{strat\}"),
        ({"s3_key": "x/{start.parquet"}, "cannot be formatted"),
        ({"s3_key": "x/{start.year}"}, r"unknown placeholder \{start.year\}"),
        ({"s3_bucket": "lake", "s3_key": "s3://other/{{ ds }}_{start}"}, "names a bucket too. Remove one of them"),
    ],
)
def test_wrong_arguments_are_rejected_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(StemConfigError, match=message):
        streams_to_s3(**arguments)
    with pytest.raises(StemConfigError, match=message):
        StemStreamsToS3Operator.partial(task_id="land", **arguments)


@pytest.mark.parametrize(
    ("arguments", "interval", "message"),
    [
        ({"end": "2999-01-01T00:00Z"}, DAY, "is in the future.*StemStreamsSensor"),
        ({"s3_bucket": None}, DAY, "s3_bucket is missing"),
        ({"s3_key": "x{start:%Y}", "partition": "hour"}, DAY, "the same key for several hours, such as 'x2025'"),
        ({"partition": "hour"}, ("2025-01-01T00:00Z", "2025-03-01T00:00Z"), "1,416 objects.*Use partition='day'"),
        ({"partition": "day"}, ("2025-07-01T00:00Z", "2025-07-01T13:00Z"), "Use partition='hour'"),
        ({"partition": "month"}, DAY, "Use partition='day'"),
        ({"partition": "hour"}, ("2025-07-01T00:00Z", "2025-07-01T13:15Z"), "Use partition='interval'"),
    ],
)
def test_wrong_arguments_at_run_time_fail_before_any_request(arguments, interval, message, stem, lake):
    with pytest.raises(AirflowFailException, match=message):
        streams_to_s3(lake, **arguments).execute(run_context(*interval))
    assert stem.requests == []


def test_a_bucket_that_is_rendered_beside_the_bucket_of_the_key_is_an_error(stem):
    task = streams_to_s3(s3_bucket="{{ params.bucket }}", s3_key="s3://other/x")
    context = run_context(*DAY, params={"bucket": "lake"})
    task.render_template_fields(context)
    with pytest.raises(AirflowFailException, match="names a bucket too. Remove one of them"):
        task.execute(context)
    assert stem.requests == []


def test_tasks_mapped_over_lists_must_not_share_a_key(stem, lake):
    mapped = run_context(*DAY, ti=SimpleNamespace(map_index=3))
    with pytest.raises(AirflowFailException, match="batch is missing"):
        streams_to_s3(lake, if_exists="replace").execute(mapped)
    assert stem.requests == []
    assert streams_to_s3(lake, batch="004-of-008").execute(mapped)["objects"][0]["uri"].endswith("_004-of-008.parquet")


# --- outlets ----------------------------------------------------------------------------------------------------------


def test_asset_events_have_the_receipt(stem, lake):
    asset, alias = Asset("s3://lake/stem"), AssetAlias("stem-streams")
    context = run_context(*DAY)
    receipt = streams_to_s3(lake, outlets=[asset, alias]).execute(context)
    extra_of_receipt = {name: receipt[name] for name in ("window", "objects", "rows")}
    events = context["outlet_events"]
    assert events[asset].extra == extra_of_receipt
    assert events[asset].partition_keys == set()
    [(concrete, extra)] = events[alias].added
    assert concrete.uri == f"s3://{lake.bucket}/stem/adhoc_airflow/land"
    assert extra == as_alias_extra(extra_of_receipt, airflow_version)


class OnlyPushes:
    """A task instance of a test that is made by hand."""

    def __init__(self):
        self.pushed = {}

    def xcom_push(self, key, value):
        self.pushed[key] = value


@pytest.mark.parametrize("ti", [OnlyPushes(), MagicMock(), SimpleNamespace(map_index=None), None])
def test_a_context_made_by_hand_is_enough(ti, stem, lake):
    task = streams_to_s3(lake, if_exists="replace", outlets=[Asset("s3://lake/stem")])
    context = {"data_interval_start": instant(DAY[0]), "data_interval_end": instant(DAY[1]), "ti": ti}
    receipt = task.execute(context)
    assert receipt["missing"] == 0
    if isinstance(ti, OnlyPushes):
        assert set(ti.pushed) == {"landed_objects_link", "summary"}


@pytest.mark.parametrize("partitioned", ["by argument", "by the run"])
def test_partitioned_events_have_the_window_as_key(partitioned, stem, lake):
    asset = Asset("s3://lake/stem")
    if partitioned == "by argument":
        context = run_context(*DAY)
        streams_to_s3(lake, outlets=[asset], partition_events=True).execute(context)
    else:
        context = run_context(partition_key="2025-07-01T00:00:00Z/2025-07-02T00:00:00Z")
        streams_to_s3(lake, outlets=[asset]).execute(context)
    assert context["outlet_events"][asset].partition_keys == {"2025-07-01T00:00:00Z/2025-07-02T00:00:00Z"}


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_run_without_an_interval_never_succeeds_without_rows(stem, lake):
    for context in (
        run_context("2025-07-01T00:00Z", "2025-07-01T00:00Z"),
        run_context(),
        run_context(dag_run=SimpleNamespace(run_after=instant("2025-07-01T06:00Z"))),
    ):
        with pytest.raises(AirflowFailException, match=r"CronDataIntervalTimetable.*default_interval.*start and end"):
            streams_to_s3(lake).execute(context)
    assert stem.requests == []


def test_a_window_without_an_interval_skips_the_task(stem, lake):
    with pytest.raises(AirflowSkipException, match="nothing to land"):
        streams_to_s3(lake).execute(run_context("2025-07-01T00:01Z", "2025-07-01T00:14:59Z"))
    assert stem.requests == []
    assert lake.objects() == {}


# --- the log ----------------------------------------------------------------------------------------------------------


def logged(capsys, caplog):
    """Return the log messages; Airflow 3 prints those of a task, Airflow 2 passes them to logging."""
    return capsys.readouterr().out + "\n".join(record.getMessage() for record in caplog.records)


def test_the_log_has_plan_progress_findings_and_total(stem_simulator_factory, lake, monkeypatch, capsys, caplog):
    sim = stem_simulator_factory(sites=40, gaps=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    sites = StemSiteListOperator(task_id="list").execute(run_context())
    lacking = sum(stream_type not in site["stream_start_times"] for site in sites for stream_type in ALL_TYPES)
    capsys.readouterr()
    caplog.clear()
    caplog.set_level("INFO")
    receipt = streams_to_s3(lake, sites=sites, partition="day").execute(
        run_context("2025-07-01T00:00Z", "2025-07-03T00:00Z")
    )
    log = logged(capsys, caplog)
    assert "of 40 sites at 900 s: 2025-07-01T00:00:00Z to 2025-07-03T00:00:00Z, with 40 requests or more" in log
    assert all(f"Read {done} of 40 sites" in log for done in range(4, 41, 4))
    assert "::group::Objects to land" in log
    assert all(landed["uri"] in log for landed in receipt["objects"])
    assert f"::group::Incomplete streams ({receipt['incomplete_count']:,})" in log
    assert f"::group::Unavailable streams ({lacking:,})" in log
    assert log.count("::group::") == log.count("::endgroup::")
    assert f"{receipt['rows']:,} rows in 2 objects with {receipt['requests']:,} requests" in log
    first, *_ = receipt["incomplete"]
    assert f"site id: {first['site_id']}, stream type: {first['stream_type']}, expected: {first['expected']:,}" in log
    assert summary(receipt) in log


def test_a_long_list_of_objects_is_shortened_in_the_log(stem, lake, capsys, caplog):
    caplog.set_level("INFO")
    streams_to_s3(lake, partition="hour", resolution=3600, sites="site-00001").execute(
        run_context("2025-07-01T00:00Z", "2025-07-06T00:00Z")
    )
    assert "and 20 more" in logged(capsys, caplog)


@pytest.mark.parametrize(("status", "error"), [(401, AirflowFailException), (503, StemServerError)])
def test_the_remedy_is_above_a_short_traceback_and_once(status, error, stem, lake, monkeypatch, caplog):
    monkeypatch.setenv("AIRFLOW__STEM__MAX_ATTEMPTS", "1")
    stem.fail(status, times=None)
    caplog.set_level("DEBUG")
    with pytest.raises(error) as raised:
        streams_to_s3(lake).execute(run_context("2025-07-01T00:00Z", "2025-07-01T01:00Z"))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert str(raised.value).startswith(f"{line} [GET http://")
    # Of the package, only the operator and the place that raises again.
    frames = [frame.path for frame in raised.traceback if "airflow_provider_stem" in str(frame.path)]
    assert [Path(frame).name for frame in frames] == ["operators.py", "failures.py"]
    complete = [record.exc_text or "" for record in caplog.records if record.name == "airflow_provider_stem.failures"]
    assert any("landing.py" in text for text in complete) == (status == 503)


# --- Airflow's configuration ------------------------------------------------------------------------------------------


def test_configuration_options_are_defaults(stem_simulator, monkeypatch):
    from airflow_provider_stem.hooks import StemHook

    monkeypatch.setenv("AIRFLOW__STEM__PAGE_SIZE", "7")
    monkeypatch.setenv("AIRFLOW__STEM__MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    stem_simulator.fail(503, times=2, path="/clients")
    with pytest.raises(StemServerError):
        list(StemHook().list_clients())
    assert [request.query["per_page"] for request in stem_simulator.requests] == [["7"], ["7"]]

    own = json.loads(stem_simulator.connection)
    own["extra"] = {**own.get("extra", {}), "page_size": 3}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(own))
    stem_simulator.reset_requests()
    list(StemHook().list_clients())
    assert {request.query["per_page"][0] for request in stem_simulator.requests} == {"3"}


def test_a_wrong_configuration_option_is_named(stem, monkeypatch):
    monkeypatch.setenv("AIRFLOW__STEM__TIMEOUT", "soon")
    message = r"\[stem\] timeout of Airflow's configuration must be .*, got 'soon'"
    with pytest.raises(AirflowFailException, match=message):
        StemSiteListOperator(task_id="list").execute(run_context())


def test_the_configuration_section_has_the_default_values():
    import inspect

    from airflow_provider_stem import get_provider_info
    from airflow_provider_stem.api.config import ClientConfig
    from airflow_provider_stem.api.key import ApiKey
    from airflow_provider_stem.sensors import StemStreamsSensor

    options = {
        name: int(option["default"])
        for name, option in get_provider_info()["config"]["stem"]["options"].items()
        if option["type"] == "integer"
    }
    for task in (StemStreamsToS3Operator, StemStreamsSensor):
        assert inspect.signature(task).parameters["max_workers"].default == options["max_workers"]
    config = ClientConfig(ApiKey("key"))
    assert {name: getattr(config, name) for name in options if name != "max_workers"} == {
        name: value for name, value in options.items() if name != "max_workers"
    }


@pytest.mark.parametrize("failing", ["stem_default", "aws_default"])
def test_a_connection_that_cannot_be_read_is_retryable(stem, lake, monkeypatch, failing):
    look_up = BaseHook.get_connection
    down = [True]

    def get_connection(conn_id):
        if down and conn_id == failing:
            raise ConnectionError("the secrets backend does not answer")
        return look_up(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    with pytest.raises(ConnectionError, match="the secrets backend does not answer"):
        streams_to_s3(lake, s3_key="streams.{extension}").execute(run_context(*DAY))
    assert stem.requests == []
    assert lake.objects() == {}
    # The retry by Airflow.
    down.clear()
    streams_to_s3(lake, s3_key="streams.{extension}").execute(run_context(*DAY))
    sites = ["site-00001", "site-00002"]
    assert landed_rows(lake.table()) == expected_rows(stem, sites, ALL_TYPES, 900, *DAY)
