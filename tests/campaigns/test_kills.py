"""Tasks that are killed at any moment, and what is left of them; ``KILLS`` says how many."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from processes import HUNG_AFTER

from tests.support import RUNS_KEY, expected_rows, landed_rows, until

pytestmark = [pytest.mark.s3, pytest.mark.timeout(0)]

KILLS = int(os.environ.get("KILLS", "200"))
INTERVAL = ("2025-07-01T00:00Z", "2025-07-05T00:00Z")
TYPES = ("CONVERTER", "MONITOR")
EARLIER = b"of an earlier run"

# As Airflow does: a process that has imported everything forks one for each task.
FORKS = """
import json, os, sys, traceback
import airflow_provider_stem.storage, airflow_provider_stem.streams.landing
from airflow_provider_stem.operators import StemStreamsToS3Operator
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            StemStreamsToS3Operator(task_id="land", **json.loads(line)).execute({})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # until then its number is nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Tasks:
    """Starts tasks in processes of their own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: dict[str, Any]) -> int:
        """Begin one and give its process id."""
        self._tell(json.dumps(arguments))
        return self._number()

    def end(self) -> int:
        """Wait for it and give its exit code."""
        self._tell("")
        return self._number()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(HUNG_AFTER) == 0

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _number(self) -> int:
        assert self._process.stdout
        while not (line := self._process.stdout.readline().strip()).lstrip("-").isdigit():
            assert self._process.poll() is None, "the process that forks has ended"
        return int(line)


@pytest.mark.parametrize("replace", [True, False], ids=["replace", "no replace"])
def test_whenever_a_task_is_killed_its_retry_makes_the_same_objects(
    replace: bool,
    stem: Any,
    lake: Any,
    tmp_path: Any,
    request: pytest.FixtureRequest,
) -> None:
    dice = random.Random(f"kills/{replace}")
    sites = list(stem.fleet.site_ids)
    arguments = {
        "sites": sites,
        "stream_types": TYPES,
        "s3_bucket": lake.bucket,
        "s3_key": "{start}.{extension}",
        "partition": "day",
        "replace": replace,
        "max_workers": 2,
        "start": INTERVAL[0],
        "end": INTERVAL[1],
    }
    tasks = Tasks({**os.environ, "TMPDIR": str(tmp_path), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"})
    preparing = working = 0.0
    for _ in range(3):
        stem.reset_requests()
        began = time.monotonic()
        tasks.start(arguments)
        until(lambda: stem.requests)
        first = time.monotonic()
        assert tasks.end() == 0
        preparing, working = first - began, time.monotonic() - first
    undisturbed = lake.objects()
    assert len(undisturbed) == 4
    assert sorted(landed_rows(lake.table())) == sorted(expected_rows(stem, sites, TYPES, 900, *INTERVAL))

    moments: Counter[str] = Counter()
    for _ in range(KILLS // 2):
        before = {key: EARLIER for key in undisturbed if replace and dice.random() < 0.5}
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
        code = tasks.end()
        assert code in (0, -signal.SIGKILL)

        left = lake.objects()
        landed = [key for key in undisturbed if left.get(key) == undisturbed[key]]
        others = {key: body for key, body in left.items() if key not in landed}
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

        tasks.start(arguments)
        assert tasks.end() == 0
        assert lake.objects() == undisturbed
        assert lake.uploads() == []
    tasks.close()
    told = ", ".join(f"{number} {moment}" for moment, number in moments.most_common())
    request.config.stash[RUNS_KEY].append(f"killed with replace={replace}: {told}; all retries byte for byte the same")
    assert sum(moments.values()) == KILLS // 2


@pytest.mark.parametrize("replace", [True, False], ids=["replace", "no replace"])
def test_two_attempts_at_once_leave_one_whole_version(
    replace: bool,
    stem: Any,
    lake: Any,
    tmp_path: Any,
    stem_simulator_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """One saw the values before they were restated, the other after; either may end last."""
    restated = stem_simulator_factory(seed=stem.settings.seed, restate=10**9)
    monkeypatch.setenv("AIRFLOW_CONN_STEM_RESTATED", restated.connection)
    dice = random.Random(f"two/{replace}")
    arguments = {
        "sites": list(stem.fleet.site_ids),
        "stream_types": TYPES,
        "s3_bucket": lake.bucket,
        "s3_key": "streams.{extension}",
        "replace": replace,
        "max_workers": 2,
        "start": INTERVAL[0],
        "end": INTERVAL[1],
    }
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    both = {"stem_default": Tasks(environment), "stem_restated": Tasks(environment)}
    versions = {}
    for conn_id, tasks in both.items():
        lake.client.delete_object(Bucket=lake.bucket, Key="streams.parquet")
        tasks.start({**arguments, "stem_conn_id": conn_id})
        assert tasks.end() == 0
        versions[conn_id] = lake.read("streams.parquet")
    assert len(set(versions.values())) == 2

    last: Counter[str] = Counter()
    looks = 0
    for _ in range(max(1, KILLS // 10)):
        lake.client.delete_object(Bucket=lake.bucket, Key="streams.parquet")
        one, other = dice.sample(list(both), 2)
        pids = [both[one].start({**arguments, "stem_conn_id": one})]
        time.sleep(dice.uniform(0, 0.5))
        pids.append(both[other].start({**arguments, "stem_conn_id": other}))
        while any(_is_alive(pid) for pid in pids):
            looks += 1
            assert set(lake.objects().values()) <= set(versions.values())
        codes = {one: both[one].end(), other: both[other].end()}
        (left,) = lake.objects().values()
        (winner,) = (conn_id for conn_id, version in versions.items() if version == left)
        last["the one that began first" if winner == one else "the one that began last"] += 1
        # Without replace the first stays, and the other one says so.
        assert codes == {winner: 0, ({one, other} - {winner}).pop(): 0 if replace else 1}
        assert lake.uploads() == []
    for tasks in both.values():
        tasks.close()
    told = ", ".join(f"{number} left by {which}" for which, number in last.most_common())
    request.config.stash[RUNS_KEY].append(
        f"two at once with replace={replace}: {told}; {looks} looks meanwhile, all whole"
    )


def _is_alive(pid: int) -> bool:
    """Tell whether a process has not ended; one that nobody has waited for yet has."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
