"""Tasks that are killed: what is left, and what the next attempt does."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from airflow_provider_stem.api import transport
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import StemRateLimitError, StemServerError, StemTransportError
from airflow_provider_stem.streams.extraction import Extraction
from tests.faults.proxy import FaultyProxy
from tests.servers.processes import HUNG_AFTER
from tests.support import full_depth_only, run_context, until, without_rows
from tests.test_operators import streams_to_s3

INTERVAL = ("2025-07-01T00:00Z", "2025-07-05T00:00Z")

# A separate program, because the tests' conftest clears the environment with the connections.
TASK = """
import sys
from datetime import datetime
from airflow_provider_stem.operators import StemStreamsToS3Operator
StemStreamsToS3Operator(
    task_id="land", sites=sys.argv[2].split(","), stream_types=("CONVERTER", "INTERVAL_REVENUE", "MONITOR"),
    s3_bucket=sys.argv[1], partition="day", max_workers=2, start=sys.argv[3], end=sys.argv[4],
).execute({})
"""


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("while the first sites are read", marks=full_depth_only),
        "while the last sites are read",
        "while uploading",
    ],
)
def test_a_killed_task_leaves_no_files_and_its_retry_writes_the_same_objects(
    moment, stem_simulator_factory, lake, monkeypatch, tmp_path
):
    sim = stem_simulator_factory()
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    sites = list(sim.fleet.site_ids)
    arguments = {"sites": sites, "partition": "day"}
    streams_to_s3(lake, **arguments).execute(run_context(*INTERVAL))
    undisturbed = lake.objects()
    assert len(undisturbed) == 4
    for key in list(undisturbed)[1:]:
        lake.client.delete_object(Bucket=lake.bucket, Key=key)
    lake.client.put_object(Bucket=lake.bucket, Key=next(iter(undisturbed)), Body=without_rows())

    # One response is held until the task is dead: of the API, or of S3 after two of the objects.
    sim.reset_requests()
    reached, killed = threading.Event(), threading.Event()

    def hold(_request, payload):
        if len(sim.requests) >= (3 if "first" in moment else len(sites) - 2):
            reached.set()
            killed.wait(HUNG_AFTER)
        return payload

    def hold_and_hang_up(exchange):
        reached.set()
        killed.wait(HUNG_AFTER)
        exchange.hang_up()

    with FaultyProxy(lake.server.url) as s3:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        if moment == "while uploading":
            connection = lake.server.connection.replace(lake.server.url, s3.url)
            environment["AIRFLOW_CONN_AWS_DEFAULT"] = connection
            s3.go_wrong(
                hold_and_hang_up,
                lambda _: sum(target.startswith("PUT") and ".parquet" in target for target in s3.targets) > 2,
            )
        else:
            sim.rewrite = hold
        process = subprocess.Popen(
            [sys.executable, "-c", TASK, lake.bucket, ",".join(sites), *INTERVAL],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        until(lambda: reached.is_set() or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.set()
    sim.rewrite = None

    left = lake.objects()
    if moment == "while uploading":
        assert left.items() <= undisturbed.items()
    else:
        assert left == {next(iter(undisturbed)): without_rows()}
    assert not [path for path in tmp_path.rglob("*") if "stem-" in path.name]
    streams_to_s3(lake, **arguments).execute(run_context(*INTERVAL))
    assert lake.objects() == undisturbed
    assert lake.uploads() == []


def test_a_kill_ends_waits_between_attempts_at_once(stem, lake, monkeypatch):
    # Only the kill ends a wait of a day.
    monkeypatch.setattr(transport, "RETRY_AFTER_CAP", math.inf)
    stem.fail(429, times=None, retry_after=86_400)
    task = streams_to_s3(lake)

    def kill():
        until(lambda: len(stem.requests) >= 2)
        task.on_kill()

    # The task runs in this thread, because Airflow 2 rejects an execute() in another.
    thread = threading.Thread(target=kill)
    thread.start()
    # Which error depends on whether the wait had begun.
    with pytest.raises((StemRateLimitError, StemTransportError)):
        task.execute(run_context(*INTERVAL))
    thread.join()


def test_a_reader_that_stops_early_ends_the_requests(stem):
    from airflow_provider_stem.hooks import StemHook
    from airflow_provider_stem.streams.sites import read_sites
    from airflow_provider_stem.streams.windows import Window
    from tests.support import instant

    window = Window.covering(instant(INTERVAL[0]), instant(INTERVAL[1]), 900)
    client = StemHook().get_conn()

    def hold(_request, payload):
        if len(stem.requests) > 5:
            client._transport._closed.wait(HUNG_AFTER)
        return payload

    stem.rewrite = hold
    extraction = Extraction(client, ("MONITOR",), window, lambda rows: rows)
    results = extraction.read(read_sites(list(stem.fleet.site_ids)), max_workers=1)
    next(results)
    results.close()
    assert len(stem.requests) <= 6


def test_the_first_failure_ends_the_run_without_waiting_for_the_other_sites(stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(sites=200)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection[:-1] + ', "extra": {"max_attempts": 1}}')
    sim.fail(500, path="site-00003/streams", times=None)
    closed = threading.Event()

    def close(self, original=Transport.close):
        original(self)
        closed.set()

    monkeypatch.setattr(Transport, "close", close)

    def hold(_request, payload):
        if 500 in [request.status for request in sim.requests]:
            closed.wait(HUNG_AFTER)
        return payload

    sim.rewrite = hold
    with pytest.raises(StemServerError, match="site-00003"):
        streams_to_s3(lake, sites=list(sim.fleet.site_ids)).execute(run_context(*INTERVAL))
    # Requests of the seven other workers may still end.
    later = list(itertools.dropwhile(lambda request: request.status != 500, sim.requests))
    assert len(later) <= 8
    assert lake.objects() == {}
