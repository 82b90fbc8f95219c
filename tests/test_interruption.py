"""What is left when a task dies in the middle, and what the next attempt makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from airflow_provider_stem.errors import StemRateLimitError, StemServerError, StemTransportError
from airflow_provider_stem.streams.extraction import Extraction
from tests.support import run_context, until
from tests.test_operators import streams_to_s3

INTERVAL = ("2025-07-01T00:00Z", "2025-07-05T00:00Z")

# On its own, since the tests' conftest clears the environment that the connections come from.
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
    "moment", ["while the first sites are read", "while the last sites are read", "while uploading"]
)
def test_a_killed_task_leaves_nothing_behind_and_its_retry_makes_the_same_objects(
    moment, stem_simulator_factory, lake, monkeypatch, tmp_path
):
    sim = stem_simulator_factory(latency=0.05)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection)
    sites = list(sim.fleet.site_ids)
    arguments = {"sites": sites, "partition": "day"}
    streams_to_s3(lake, **arguments).execute(run_context(*INTERVAL))
    undisturbed = lake.objects()
    assert len(undisturbed) == 4
    for key in list(undisturbed)[1:]:
        lake.client.delete_object(Bucket=lake.bucket, Key=key)
    lake.client.put_object(Bucket=lake.bucket, Key=next(iter(undisturbed)), Body=b"of an earlier run")

    sim.reset_requests()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", TASK, lake.bucket, ",".join(sites), *INTERVAL],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    if moment == "while uploading":
        until(lambda: len(lake.client.list_objects_v2(Bucket=lake.bucket).get("Contents", [])) > 1)
    else:
        until(lambda: len(sim.requests) >= (3 if "first" in moment else len(sites) - 2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    left = lake.objects()
    if moment == "while uploading":
        assert left.items() <= undisturbed.items()
    else:
        assert left == {next(iter(undisturbed)): b"of an earlier run"}
    assert not [path for path in tmp_path.rglob("*") if "stem-" in path.name]
    streams_to_s3(lake, **arguments).execute(run_context(*INTERVAL))
    assert lake.objects() == undisturbed
    assert lake.uploads() == []


def test_a_kill_ends_waits_between_attempts_at_once(stem, lake):
    stem.fail(429, times=None, retry_after=250)
    task = streams_to_s3(lake)
    killed = []

    def kill():
        until(lambda: len(stem.requests) >= 2)
        task.on_kill()
        killed.append(time.monotonic())

    # The task in this thread, as Airflow has it: Airflow 2 refuses an execute() in another.
    thread = threading.Thread(target=kill)
    thread.start()
    # Which one depends on whether the wait had begun.
    with pytest.raises((StemRateLimitError, StemTransportError)):
        task.execute(run_context(*INTERVAL))
    ended = time.monotonic()
    thread.join()
    assert ended - killed[0] < 20


def test_a_reader_that_stops_early_ends_the_requests(stem):
    from airflow_provider_stem.hooks import StemHook
    from airflow_provider_stem.streams.sites import read_sites
    from airflow_provider_stem.streams.windows import Window
    from tests.support import instant

    window = Window.covering(instant(INTERVAL[0]), instant(INTERVAL[1]), 900)
    extraction = Extraction(StemHook().get_conn(), ("MONITOR",), window, lambda rows: rows)
    results = extraction.read(read_sites(list(stem.fleet.site_ids)), max_workers=1)
    next(results)
    results.close()
    assert len(stem.requests) < len(stem.fleet.site_ids)


def test_the_first_failure_ends_the_run_without_waiting_for_the_other_sites(stem_simulator_factory, lake, monkeypatch):
    sim = stem_simulator_factory(sites=200)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", sim.connection[:-1] + ', "extra": {"max_attempts": 1}}')
    sim.fail(500, path="site-00003/streams", times=None)
    with pytest.raises(StemServerError, match="site-00003"):
        streams_to_s3(lake, sites=list(sim.fleet.site_ids)).execute(run_context(*INTERVAL))
    assert len(sim.requests) < 60
    assert lake.objects() == {}
