"""Tasks that are killed at any moment, and what is left of them; ``KILLS`` says how many."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections import Counter
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.streams.tables import LANDING_SCHEMA
from tests.campaigns.forker import Forker
from tests.servers import progress
from tests.support import RUNS_KEY, expected_rows, landed_rows, until

pytestmark = [pytest.mark.s3, pytest.mark.timeout(0)]

KILLS = int(os.environ.get("KILLS", "200"))
INTERVAL = ("2025-07-01T00:00Z", "2025-07-05T00:00Z")
TYPES = ("CONVERTER", "MONITOR")


@pytest.mark.parametrize("if_exists", ["merge", "replace"])
def test_whenever_a_task_is_killed_its_retry_makes_the_same_objects(
    if_exists: str,
    stem: Any,
    lake: Any,
    tmp_path: Any,
    request: pytest.FixtureRequest,
) -> None:
    dice = random.Random(f"kills/{if_exists}")
    sites = list(stem.fleet.site_ids)
    arguments = {
        "sites": sites,
        "stream_types": TYPES,
        "s3_bucket": lake.bucket,
        "s3_key": "{start}.{extension}",
        "partition": "day",
        "if_exists": if_exists,
        "max_workers": 2,
        "start": INTERVAL[0],
        "end": INTERVAL[1],
    }
    with io.BytesIO() as file:
        pq.write_table(LANDING_SCHEMA.empty_table(), file)
        earlier = file.getvalue()
    tasks = Forker({**os.environ, "TMPDIR": str(tmp_path), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"})
    preparing = working = 0.0
    for _ in range(3):
        stem.reset_requests()
        began = time.monotonic()
        pid = tasks.start(arguments)
        until(lambda: stem.requests)
        first = time.monotonic()
        assert tasks.reap(pid) == 0
        preparing, working = first - began, time.monotonic() - first
    undisturbed = lake.objects()
    assert len(undisturbed) == 4
    assert sorted(landed_rows(lake.table())) == sorted(expected_rows(stem, sites, TYPES, 900, *INTERVAL))

    moments: Counter[str] = Counter()
    for number in range(KILLS // 2):
        if number % 10 == 0:
            progress(f"if_exists={if_exists}: {number} of {KILLS // 2} tasks killed")
        before = {key: earlier for key in undisturbed if dice.random() < 0.5}
        for key in undisturbed:
            lake.client.delete_object(Bucket=lake.bucket, Key=key)
        for key, body in before.items():
            lake.client.put_object(Bucket=lake.bucket, Key=key, Body=body)
        stem.reset_requests()
        pid = tasks.start(arguments)
        # The work itself is shorter than what comes before it, and more of it can go wrong.
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0, preparing))
        else:
            until(lambda: stem.requests)
            time.sleep(dice.uniform(0, working))
        os.kill(pid, signal.SIGKILL)
        code = tasks.reap(pid)
        assert code in (0, -signal.SIGKILL)

        left = lake.objects()
        landed = [key for key in undisturbed if left.get(key) == undisturbed[key]]
        # A task that is killed cannot delete its probe of the store; the next one does.
        others = {key: body for key, body in left.items() if key not in landed and "probe" not in key}
        assert others == {key: body for key, body in before.items() if key not in landed}
        assert lake.uploads() == []
        assert list(tmp_path.iterdir()) == []
        if code == 0 or len(landed) == len(undisturbed):
            moments["when it was over"] += 1
        elif landed:
            moments["between two uploads"] += 1
        elif len(stem.requests) >= len(sites):
            moments["after the last request"] += 1
        else:
            moments["while sites were read" if stem.requests else "before the first request"] += 1

        assert tasks.reap(tasks.start(arguments)) == 0
        assert lake.objects() == undisturbed
        assert lake.uploads() == []
    tasks.close()
    counts = ", ".join(f"{number} {moment}" for moment, number in moments.most_common())
    request.config.stash[RUNS_KEY].append(
        f"killed with if_exists={if_exists}: {counts}; all retries byte for byte the same"
    )
    assert sum(moments.values()) == KILLS // 2
