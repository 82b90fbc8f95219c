"""Text from the API is never rendered as a template, templates in the DAG file are: real runs of real DAGs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import duckdb
import pytest

from tests.support import Lake, full_depth_only

pytestmark = [pytest.mark.airflow, pytest.mark.s3, full_depth_only]

ROOT = Path(__file__).parent.parent
KEY = "k3y/of+the=hostile@api"
# Each mapped task takes long, so that an id has several traits. Rendering one of them changes the id.
IDS = [
    "{{ 7*7 }}",
    "{{ var.value.secret }}{{ conn.stem_default.password }}",
    "{# gone #}site-b{% for i in range(3) %}a{% endfor %}",
    "${HOME}%(key)sa{b}c{0}{start}",
    "=cmd|'/c calc'!A1/../b",
    "12345",
]
NAMES = ["{{ conn.stem_default.password }}", "{% include '/etc/passwd' %}", "%s %d {x}", "plain"]

DAG = """
import os

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator

try:
    from airflow.sdk import task, task_group
except ImportError:
    from airflow.decorators import task, task_group

PARAMS = {"day": "2025-07-01", "site": "{{ 6*7 }}", "client": "c", "bucket": os.environ["LAKE"]}


def window(hour):
    return {"start": "{{ params.day }}T%02d:00Z" % hour, "end": "{{ params.day }}T%02d:00Z" % (hour + 1)}


def land(hour, **more):
    task_id = f"land_{hour:02}"
    return StemStreamsToS3Operator.partial(task_id=task_id, s3_bucket="{{ params.bucket }}", **window(hour), **more)


def wait(hour, **more):
    return StemStreamsSensor.partial(task_id=f"wait_{hour:02}", **window(hour), **more)


with DAG(
    "templates",
    schedule=None,
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    params=PARAMS,
    render_template_as_native_obj=bool(os.environ["NATIVE"]),
) as dag:
    batches = StemSiteListOperator(task_id="batches", batches=2, client_id="{{ params.client }}").output
    records = StemSiteListOperator(task_id="records").output

    @task
    def first_batch(listed):
        return listed[0]

    @task
    def second_batch(listed):
        return listed[1]

    # The server identifies the task by the hour of its window.
    land(0).expand_kwargs(batches)
    land(1).expand_kwargs(batches.map(lambda batch: {"sites": batch["sites"], "batch": batch["batch"]}))
    land(2).expand_kwargs(records.map(lambda record: {"sites": record}))
    land(3).expand_kwargs([first_batch(batches), second_batch(batches)])
    loaded = land(4).expand(sites=records).output
    land(5).expand(sites=records.zip(records).map(lambda pair: pair[0]["site_id"]))
    land(6).expand_kwargs([{"sites": records, "batch": "{{ params.day }}"}])
    StemStreamsToS3Operator(task_id="land_07", s3_bucket="{{ params.bucket }}", sites=records, **window(7))
    land(8, batch="of the DAG").expand_kwargs(
        batches.map(lambda batch: {"sites": batch["sites"], "batch": "{{ 7*7 }}" + batch["batch"]}), strict=False
    )
    wait(9, deferrable=False).expand_kwargs(batches)
    wait(10, deferrable=True).expand_kwargs(batches)
    wait(11, deferrable=True).expand(sites=records)

    @task_group
    def group(site):
        StemStreamsToS3Operator(task_id="land_12", s3_bucket="{{ params.bucket }}", sites=site, **window(12))

    group.expand(site=records)

    # Templates in the DAG file are rendered once.
    land(20).expand(sites=["{{ params.site }}", "at {{ params.day }}"])
    land(21).expand_kwargs([{"sites": ["{{ params.site }}"], "batch": "at {{ params.day }}"}])
    wait(22, deferrable=False).expand_kwargs([{"sites": ["{{ params.site }}"], "batch": "at {{ params.day }}"}])

    StemSitesToSqlOperator.partial(task_id="sites", sql_conn_id="warehouse", max_active_tis_per_dag=1).expand_kwargs(
        batches.map(lambda batch: {"sites": batch["sites"]})
    )
    StemObjectsToSqlOperator.partial(
        task_id="objects", sql_conn_id="warehouse", max_active_tis_per_dag=1
    ).expand_kwargs(loaded.map(lambda receipt: {"objects": receipt}))

if __name__ == "__main__":
    from airflow.utils.db import initdb

    from tests.support import read_botocore_files_once

    read_botocore_files_once()
    initdb()
    run = dag.test()
    assert str(run.state).endswith("success"), run.state
"""
READS_ALL = [*range(13)]
RENDERED = {20: ["at 2025-07-01", "{{ 6*7 }}"], 21: ["{{ 6*7 }}"], 22: ["{{ 6*7 }}"]}


class _HostileApi(BaseHTTPRequestHandler):
    """One client with hostile sites; every site has streams."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        url = urlsplit(self.path)
        server.asked.append(self.path)
        match url.path.removeprefix("/api/v1/").split("/"):
            case ["clients"]:
                answer = {"clients": [{"id": "c", "name": NAMES[0], "link": "/"}], "total": 1, "page": 1}
            case ["clients", "c", "sites"]:
                sites = [
                    {
                        "id": site_id,
                        "name": NAMES[number % len(NAMES)],
                        "link": "/",
                        "stream_start_times": {"MONITOR": "2020-01-01T00:00:01Z"},
                    }
                    for number, site_id in enumerate(IDS)
                ]
                answer = {"sites": sites, "total": len(sites), "page": 1}
            case ["sites", segment, "streams"]:
                query = parse_qs(url.query)
                start, end = (datetime.fromisoformat(query[name][0]) for name in ("start_datetime", "end_datetime"))
                server.streams.append(((start + timedelta(minutes=15)).hour, segment))
                rows = []
                while start < end:
                    begin, start = start, start + timedelta(minutes=15)
                    rows.append(
                        {
                            "start_datetime": (begin + timedelta(seconds=1)).isoformat(),
                            "end_datetime": start.isoformat(),
                            "kw_total_avg": 1.5,
                        }
                    )
                answer = {"id": unquote(segment), "stream_types": [{"stream_type": "MONITOR", "streams": rows}]}
            case _:
                answer = {}
        body = json.dumps(answer).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module", params=["", "native"])
def run(request, s3_server, tmp_path_factory):
    """The DAG's run, without and with native rendering: the requests, the log, the database."""
    home = tmp_path_factory.mktemp("templates")
    (home / "dags").mkdir()
    (home / "dags" / "templates.py").write_text(DAG)
    lake = Lake(s3_server)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _HostileApi)
    server.asked, server.streams = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        connection = {"conn_type": "stem", "host": f"http://127.0.0.1:{server.server_port}", "password": KEY}
        done = subprocess.run(
            [sys.executable, str(home / "dags" / "templates.py")],
            env={
                **os.environ,
                "AIRFLOW_HOME": str(home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
                "AIRFLOW_CONN_STEM_DEFAULT": json.dumps(connection),
                "AIRFLOW_CONN_AWS_DEFAULT": s3_server.connection,
                "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": str(home / "telemetry.duckdb")}),
                "AIRFLOW_VAR_SECRET": "the-secret-variable",
                "LAKE": lake.bucket,
                "NATIVE": request.param,
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    log = done.stdout + done.stderr
    (home / "log").write_text(log)
    assert done.returncode == 0, log[-8000:]
    return SimpleNamespace(log=log, home=home, asked=server.asked, streams=server.streams, lake=lake)


@pytest.mark.parametrize("hour", READS_ALL)
def test_ids_of_the_api_reach_the_server_verbatim(run, hour):
    assert sorted(unquote(segment) for at, segment in run.streams if at == hour) == sorted(IDS)


@pytest.mark.parametrize("hour", sorted(RENDERED))
def test_templates_of_the_dag_file_are_rendered_once(run, hour):
    assert sorted(unquote(segment) for at, segment in run.streams if at == hour) == RENDERED[hour]


def test_each_id_is_one_path_segment(run):
    assert {segment.count("/") for _, segment in run.streams} == {0}
    assert not [path for path in run.asked if "49" in path.partition("?")[0]]


def test_batches_are_not_rendered(run):
    keys = [key.rpartition("_")[2] for key in run.lake.objects() if "/land_08/" in key]
    assert sorted(keys) == ["%7B%7B 7%2A7 %7D%7D001-of-002.parquet", "%7B%7B 7%2A7 %7D%7D002-of-002.parquet"]
    [key] = [key for key in run.lake.objects() if "/land_21/" in key]
    assert key.endswith("_at 2025-07-01.parquet")


def test_the_warehouse_has_ids_and_names_as_the_api_sent_them(run):
    with duckdb.connect(str(run.home / "telemetry.duckdb"), read_only=True) as warehouse:
        sites = warehouse.execute("SELECT site_id, name FROM stem.sites ORDER BY ALL").fetchall()
        loaded = warehouse.execute("SELECT DISTINCT site_id FROM stem.streams ORDER BY ALL").fetchall()
    assert sites == sorted((site_id, NAMES[number % len(NAMES)]) for number, site_id in enumerate(IDS))
    assert loaded == sorted((site_id,) for site_id in IDS)


def test_no_secret_is_rendered_or_logged(run):
    database = (run.home / "airflow.db").read_bytes()
    # Airflow 3.0 logs in dag.test() the values that it is asked to mask.
    log = [line for line in run.log.splitlines() if "MaskSecret(" not in line]
    for secret in (KEY, "the-secret-variable"):
        assert not [line for line in log if secret in line]
        assert secret.encode() not in database
        assert not [key for key, body in run.lake.objects().items() if secret in key or secret.encode() in body]
