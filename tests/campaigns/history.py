"""
Random histories of tasks that write one lake, and a check that explains each row of it.

A sequence runs real tasks in their own processes against the simulator and a real S3 server. Each request passes a
gateway, which records it and decides when it goes on. So the order of all reads and writes is exact, and a process can
be paused or killed just before a PUT.

- *Stepped* sequences let one request pass at a time: the seed decides the whole history. The store's clock is the
  sequence's own, so that it can advance between any two requests.
- *Free* sequences let everything pass at once, on the real clock, and pause and kill at random moments.

The rules come from the documentation of ``if_exists``, not from the code. A *reading* is one pass of a task over its
window. It begins when the store last answered about the objects before the first request to the API. After each PUT,
the object must hold for each row the value of the reading that began last among those that landed it.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from airflow_provider_stem.simulator import Simulator
from tests.campaigns.forker import Forker, ended
from tests.campaigns.gateway import Answer, Request, forward, listen
from tests.servers import progress

Key = tuple[str, str, int, int]
"""Site, stream type, resolution and interval end in epoch seconds."""
Rows = dict[Key, float | None]

BEGIN = int(datetime(2025, 7, 1, tzinfo=UTC).timestamp())
HOUR = 3600
HOURS = 4
"""Of the window in which all runs of a sequence lie."""
TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
SITES = 4
COLUMNS = ["site_id", "stream_type", "resolution", "interval_start", "interval_end", "kw_total_avg"]
EXTENSIONS = {"parquet": "parquet", "csv": "csv.gz", "jsonl": "jsonl.gz"}
SHORT = ("missing rows", "no entry", "no entries", "null entries", "null rows", "empty rows")
FAILING = ("403", "404", "503", "another site", "another window")
MAX_TASKS = 5
SMALL_JUMPS = (-840, -60, -5, 5, 60, 840)  # seconds
LARGE_JUMPS = (-86_400, 86_400)


class HistoryError(AssertionError):
    """A history that the rules do not explain."""


# --- what the API answers ---------------------------------------------------------------------------------------------


class World:
    """What the API answers now: restated values, short answers and failing sites."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._values: Rows = {}
        self._versions = 0
        self.short: dict[tuple[str, str], str] = {}
        self.failing: dict[str, str] = {}

    def value(self, key: Key) -> float | None:
        site, stream_type, resolution, end = key
        first = int(site[-1]) * 1000 + TYPES.index(stream_type) * 100 + (end - BEGIN) / resolution
        return self._values.get(key, first)

    def restate(self, keys: Iterable[Key]) -> None:
        """Change values, some of them back to what they were."""
        for key in keys:
            self._versions += 1
            self._values.pop(key, None)
            change = self._dice.choice(("null", "first", "other", "new"))
            if change != "first":
                changed = {"null": None, "other": -1.5, "new": 10_000.0 + self._versions}
                self._values[key] = changed[change]

    def answer(self, path: str, resolution: int, answer: Answer) -> tuple[Answer, Rows, bool]:
        """Return what is sent instead of the simulator's answer, the rows in it, and whether the site failed."""
        site = path.split("/sites/")[1].partition("/")[0]
        failing = self.failing.get(site)
        sends_rows = False
        if failing in ("403", "404", "503"):
            body = json.dumps({"errors": [{"message": "Injected.", "code": int(failing)}]}).encode()
            return Answer(int(failing), answer.headers, body), {}, True
        if answer.status != 200 or not path.endswith("/streams"):
            return answer, {}, False
        payload, rows = json.loads(answer.body), {}
        for entry in list(payload["stream_types"]):
            short = self.short.get((site, entry["stream_type"]))
            for row in list(entry["streams"]):
                end = int(datetime.fromisoformat(row["end_datetime"]).timestamp())
                key = (site, entry["stream_type"], resolution, end)
                row["kw_total_avg"] = self.value(key)
                if failing == "another window":
                    row["start_datetime"] = row["start_datetime"].replace("2025", "2019")
                    row["end_datetime"] = row["end_datetime"].replace("2025", "2019")
                if short == "missing rows" and end // resolution % 3:
                    entry["streams"].remove(row)
                elif short in (None, "missing rows"):
                    rows[key] = row["kw_total_avg"]
            sends_rows |= short in (None, "missing rows") and bool(entry["streams"])
            if short == "no entry":
                payload["stream_types"].remove(entry)
            elif short == "null rows":
                entry["streams"] = None
            elif short == "empty rows":
                entry["streams"] = []
            elif short in ("no entries", "null entries"):
                payload["stream_types"] = [] if short == "no entries" else None
                rows, sends_rows = {}, False
                break
        if failing == "another site":
            payload["id"] = "site-elsewhere"
        # An answer without rows does not say which window it is for.
        has_failed = failing == "another site" or (failing == "another window" and sends_rows)
        return Answer(200, answer.headers, json.dumps(payload).encode()), rows, has_failed


# --- what the lake holds ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reading:
    """
    One pass of a task over its window.

    :param began: tick of the store's last answer about the objects before it.
    :param read_at: the store's time then, the latest of these answers.
    :param received: rows of the window in the API's answers, with those of sites that failed.
    """

    began: int
    read_at: datetime
    received: Rows = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    @property
    def rows(self) -> Rows:
        return {key: value for key, value in self.received.items() if key[0] not in self.failed}


@dataclass(frozen=True, slots=True)
class Version:
    """
    One version of an object.

    :param rows: each value, and when its reading began.
    :param by: number of the task that wrote it, in which of its readings.
    :param merged: rows of the reading that were inserted, changed and unchanged, and rows that were kept.
    """

    rows: dict[Key, tuple[float | None, int]]
    size: int
    sha256: str
    read_at: datetime
    by: int
    reading: int
    merged: Counter[str]


def content(body: bytes, file_format: str) -> Rows:
    """Return the rows of an object; raise ``ValueError`` where it is not in the landing schema, sorted and unique."""
    if file_format == "parquet":
        table = pq.read_table(io.BytesIO(body))
        names, records = table.column_names, table.to_pylist()
    else:
        text = gzip.decompress(body).decode()
        if file_format == "csv":
            reader = csv.DictReader(io.StringIO(text))
            records, names = list(reader), list(reader.fieldnames or ())
        else:
            records = [json.loads(line) for line in text.splitlines()]
            names = list(records[0]) if records else COLUMNS
    if names != COLUMNS:
        raise ValueError(f"columns {names}")
    rows: Rows = {}
    order = []
    for record in records:
        begin, end = (_epoch(record[name]) for name in ("interval_start", "interval_end"))
        resolution, value = int(record["resolution"]), record["kw_total_avg"]
        if end - begin != resolution:
            raise ValueError(f"a row of {resolution} s covers {end - begin} s")
        key = (record["site_id"], record["stream_type"], resolution, end)
        if key in rows:
            raise ValueError(f"two rows of {key}")
        rows[key] = None if value in (None, "") else float(value)
        order.append((key[0], key[1], end))
    if order != sorted(order):
        raise ValueError("rows are not sorted")
    return rows


def _epoch(instant: Any) -> int:
    return int((datetime.fromisoformat(instant) if isinstance(instant, str) else instant).timestamp())


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Pending:
    """A request that waits at the gateway; ``decision`` is ``pass``, ``drop`` or ``lose`` (the answer)."""

    request: Request
    decision: asyncio.Future[str]
    answered: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, slots=True)
class Task:
    """
    One attempt of a task, in its own process.

    :param pending: its requests that wait at the gateway.
    :param looked: by object, the version that it last saw.
    :param heads: tick and store's time of the answers about objects since the last request to the API.
    :param puts_of_others: how many PUTs of other tasks succeeded since it began.
    """

    number: int
    arguments: dict[str, Any]
    map_index: int
    folder: Path
    pid: int = 0
    state: Literal["running", "paused", "killed", "succeeded", "failed"] = "running"
    pending: list[Pending] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    looked: dict[str, Version | None] = field(default_factory=dict)
    heads: list[tuple[int, datetime]] = field(default_factory=list)
    requests: int = 0
    puts_of_others: int = 0
    large_jump: bool = False
    pauses_before_put: bool = False
    loses_answer: bool = False
    was_retried: bool = False

    @property
    def is_alive(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def window(self) -> tuple[int, int]:
        """The window of its rows in epoch seconds, begin exclusive."""
        start, end = (_epoch(self.arguments[name]) for name in ("start", "end"))
        unit = _unit(self.arguments["partition"])
        return (start - (self.arguments["lookback"] or 0)) // unit * unit, end


def _unit(partition: str) -> int:
    return 24 * HOUR if partition == "day" else HOUR


class Machine:
    """
    What sequences share: the servers, and a process that forks tasks.

    :param lake: a bucket.
    :param mutation: one of :data:`~tests.campaigns.forker.MUTATIONS`, or empty.
    """

    def __init__(self, simulator: Simulator, lake: Any, folder: Path, mutation: str = "") -> None:
        self.simulator_port = urlsplit(simulator.url).port or 0
        self.store_port = urlsplit(lake.server.url).port or 0
        self.fleet = simulator.fleet
        self.lake = lake
        self.folder = folder
        clock = folder / "clock"
        clock.write_text("+0\n")
        environment = {
            **os.environ,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW_CONN_STEM_DEFAULT": simulator.connection,
            "AIRFLOW_CONN_AWS_DEFAULT": lake.server.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.forkers = {False: Forker(environment, mutation)}
        """By whether the clocks of their tasks can jump, which makes a task several times as expensive."""
        if faketime := next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None):
            environment |= {
                "LD_PRELOAD": str(faketime),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_TIMESTAMP_FILE": str(clock),
            }
            self.forkers[True] = Forker(environment, mutation)
        warm = {"sites": ["site-00001"], "s3_bucket": lake.bucket, "s3_key": "warm/{start}.{extension}"}
        for forker in self.forkers.values():
            forker.warm({**warm, "start": "2025-07-01T00:00Z", "end": "2025-07-01T01:00Z"})

    def close(self) -> None:
        for forker in self.forkers.values():
            forker.close()


# --- one sequence -----------------------------------------------------------------------------------------------------


class History:
    """
    One random sequence of operations.

    :param seed: decides all of a stepped sequence, and what is done in a free one.
    """

    def __init__(self, seed: int, machine: Machine) -> None:
        self.seed = seed
        self.dice = dice = random.Random(f"history/{seed}")
        self.machine = machine
        self.world = World(dice)
        self.free = dice.random() < 0.25
        self.file_format = dice.choice(("parquet", "parquet", "csv", "jsonl"))
        self.partition = dice.choice(("hour", "hour", "hour", "day"))
        self.resolutions = dice.choice(((900,), (900,), (1800,), (900, 1800)))
        self.modes = dice.choice((*[("merge",)] * 7, ("replace",), ("fail",), ("merge", "replace", "fail")))
        self.servers_differ = dice.random() < 0.3
        self.clocks_jump = dice.random() < 0.3 and True in machine.forkers
        self.forker = machine.forkers[self.clocks_jump]
        self.operations_left = dice.randint(3, 12)
        self.prefix = f"history-{seed}-{time.monotonic_ns()}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{seed}-", dir=machine.folder))
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()
        self.store_time = float(int(time.time()))
        self.ticks = 0
        self.tasks: list[Task] = []
        self.versions: dict[str, list[Version]] = defaultdict(list)
        self.landed: list[tuple[int, Rows]] = []
        self.sampled: list[tuple[str, str]] = []
        self.others: dict[str, Task] = {}
        """Objects beside the landed ones, which probe the store, and the task that wrote them."""
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.violations: list[str] = []
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()
        self._ends: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._is_over = False

    # --- what happens ---

    async def run(self) -> Counter[str]:
        """
        Run it, check it, and return its counts.

        :raises HistoryError: the rules do not explain it; the message holds the history.
        """
        mode = "free" if self.free else "stepped"
        self.note(f"{mode}, {self.file_format}, one object a {self.partition}, {'/'.join(self.modes)}")
        await self._operate("run")
        sampling = asyncio.ensure_future(self._sample_always()) if self.free else None
        while True:
            await self._settle()
            waiting = [task for task in self.tasks if task.pending and task.state != "paused"]
            if self.operations_left and (self.free or not waiting or self.dice.random() < 0.25):
                self.operations_left -= 1
                await self._operate(self._draw())
            elif waiting:
                await self._grant(self.dice.choice(waiting))
            elif paused := [task for task in self.tasks if task.state == "paused"]:
                self._resume(self.dice.choice(paused))
            elif self._running():
                await self._change()
            else:
                break
            if self.free and self.operations_left:
                await asyncio.sleep(self.dice.choice((0, 0.05, 0.3)) * self.dice.random())
        await asyncio.gather(*self._ends)
        # A request may arrive after the process that sent it was killed.
        self._is_over = True
        await asyncio.gather(*self._connections)
        if sampling:
            sampling.cancel()
        for server in self._servers:
            server.close()
        await asyncio.to_thread(self._check_the_end)
        self.counts[f"sequences, {mode}"] += 1
        if self.violations:
            logs = [
                f"--- task {task.number}: {(task.folder / 'output.log').read_text()[-1200:]}"
                for task in self.tasks
                if (task.folder / "output.log").exists()
            ]
            raise HistoryError("\n".join([f"seed {self.seed}:", *self.violations, "", *self.lines, "", *logs]))
        shutil.rmtree(self.folder)
        return self.counts

    def note(self, text: str) -> None:
        self.lines.append(f"{self.ticks:4} {text}")

    def violation(self, text: str) -> None:
        self.note(f"VIOLATION: {text}")
        self.violations.append(text)

    def _running(self) -> list[Task]:
        return [task for task in self.tasks if task.state == "running"]

    async def _change(self) -> None:
        """Wait until a task sends a request, is paused or ends."""
        self._changed.clear()
        await self._changed.wait()

    async def _settle(self) -> None:
        """Wait until each task that runs waits at the gateway, in a stepped sequence."""
        while not self.free and any(not task.pending for task in self._running()):
            await self._change()

    async def _grant(self, task: Task, verdict: str = "pass") -> None:
        """Decide on a task's request, and wait until it is answered."""
        pending = task.pending.pop(0)
        pending.decision.set_result(verdict)
        await pending.answered.wait()
        if self.dice.random() < 0.05:
            await asyncio.to_thread(self._sample)

    def _draw(self) -> str:
        alive = [task for task in self.tasks if task.is_alive]
        weights = {
            "run": 4.0 * (len(self.tasks) < MAX_TASKS),
            "run, mapped over types": 1.5 * (len(self.tasks) < MAX_TASKS - 1),
            "retry": 2.5 * bool(self._retriable()) * (len(self.tasks) < MAX_TASKS + 1),
            "pause before a PUT": 2.5 * bool(self._running()),
            "pause": 1.0 * bool(self._running()),
            "continue": 1.0 * (len(self._running()) < len(alive)),
            "kill": 1.5 * bool(alive),
            "clock jump": 3.0 * bool(alive) * self.clocks_jump,
            "lost answer": 0.5 * bool(self._running()),
            "restatement": 3.0,
            "short answer": 1.0,
            "failing site": 1.0,
            "recovery": 1.5 * bool(self.world.short or self.world.failing),
            "wait": 2.0 * bool(self._running()),
        }
        return self.dice.choices(list(weights), list(weights.values()))[0]

    def _retriable(self) -> list[Task]:
        return [task for task in self.tasks if task.state in ("killed", "failed") and not task.was_retried]

    async def _operate(self, operation: str) -> None:
        self.counts[f"operation: {operation}"] += 1
        dice, world = self.dice, self.world
        sites = self.machine.fleet.site_ids
        if operation == "run":
            await self._start(self._arguments())
        elif operation == "run, mapped over types":
            arguments = {**self._arguments(), "if_exists": "merge"}
            for index, stream_type in enumerate(dice.sample(TYPES, 2)):
                await self._start({**arguments, "stream_types": [stream_type]}, index)
        elif operation == "retry":
            task = dice.choice(self._retriable())
            task.was_retried = True
            await self._start(task.arguments, task.map_index)
        elif operation in ("pause before a PUT", "lost answer"):
            task = dice.choice(self._running())
            self.note(f"task {task.number}: {operation} is next")
            if operation == "lost answer":
                task.loses_answer = True
            else:
                task.pauses_before_put = True
        elif operation == "pause":
            task = dice.choice(self._running())
            self._pause(task)
            if task.pending and dice.random() < 0.3:
                self.note(f"task {task.number}: its request is answered meanwhile")
                await self._grant(task)
        elif operation == "continue":
            self._resume(dice.choice([task for task in self.tasks if task.state == "paused"]))
        elif operation == "kill":
            await self._kill(dice.choice([task for task in self.tasks if task.is_alive]))
        elif operation == "clock jump":
            task = dice.choice([task for task in self.tasks if task.is_alive])
            self._jump(task, dice.choice(LARGE_JUMPS if dice.random() < 0.1 else SMALL_JUMPS))
        elif operation == "restatement":
            ends = [(r, BEGIN + k) for r in self.resolutions for k in range(r, HOURS * HOUR + 1, r)]
            keys = [(site, t, r, end) for site in sites for t in TYPES for r, end in ends]
            share = dice.choice((0.02, 0.3, 1))
            world.restate(key for key in keys if dice.random() < share)
            self.note(f"restatement of {share:.0%}")
        elif operation == "short answer":
            which = dice.choice(sites), dice.choice(TYPES)
            world.short[which] = dice.choice(SHORT)
            self.note(f"short answer: {which[1]} of {which[0]}: {world.short[which]}")
        elif operation == "failing site":
            site = dice.choice(sites)
            world.failing[site] = dice.choice(FAILING)
            self.note(f"failing site: {site}: {world.failing[site]}")
        elif operation == "recovery":
            world.short.clear()
            world.failing.clear()
            self.note("recovery")
        elif operation == "wait":
            while self._running():
                await self._settle()
                waiting = [task for task in self._running() if task.pending]
                if waiting:
                    await self._grant(dice.choice(waiting))
                elif self._running():
                    await self._change()

    def _arguments(self) -> dict[str, Any]:
        dice = self.dice
        begin = dice.randrange(HOURS)
        window = (0, 24) if self.partition == "day" else (begin, dice.randint(begin + 1, HOURS))
        start, end = (datetime.fromtimestamp(BEGIN + hour * HOUR, UTC).isoformat() for hour in window)
        return {
            "sites": dice.sample(self.machine.fleet.site_ids, dice.randint(1, SITES)),
            "stream_types": dice.sample(TYPES, dice.choice((1, 2, 3))),
            "resolution": dice.choice(self.resolutions),
            "start": start,
            "end": end,
            "lookback": HOUR if self.partition == "hour" and begin and dice.random() < 0.5 else None,
            "partition": self.partition,
            "s3_bucket": self.machine.lake.bucket,
            "s3_key": f"{self.prefix}/{{start:%H}}.{{extension}}",
            "file_format": self.file_format,
            "on_site_error": dice.choice(("skip", "skip", "skip", "fail")),
            "on_incomplete": dice.choice(("warn", "warn", "warn", "fail")),
            "on_empty": dice.choice(("write", "write", "skip")),
            "if_exists": dice.choice(self.modes),
            "max_workers": 2 if self.free else 1,
        }

    async def _start(self, arguments: dict[str, Any], map_index: int = -1) -> None:
        number = len(self.tasks)
        folder = self.folder / str(number)
        folder.mkdir()
        (folder / "clock").write_text("+0\n")
        task = Task(number, arguments, map_index, folder)
        server, port = await listen(lambda request: self._handle(task, request), self._connections)
        self._servers.append(server)
        url = f"http://127.0.0.1:{port}"
        # A request waits at the gateway for as long as other tasks take.
        extra = {"max_attempts": 1, "timeout": 3600}
        stem = {"conn_type": "stem", "host": f"{url}/api/v1/", "password": "demo-key", "extra": extra}
        aws = json.loads(self.machine.lake.server.connection)
        aws["extra"]["endpoint_url"] = url
        aws["extra"]["config_kwargs"] |= {"read_timeout": 3600}
        task.pid = self.forker.start(
            arguments,
            environment={
                "AIRFLOW_CONN_STEM_DEFAULT": json.dumps(stem),
                "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
                "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
                "TMPDIR": str(self.temporary),
            },
            map_index=map_index,
            folder=folder,
        )
        self.tasks.append(task)
        shown = {name: value for name, value in arguments.items() if name not in ("s3_bucket", "s3_key", "partition")}
        self.note(f"task {number}: starts {shown}")
        self.counts["tasks"] += 1
        self.counts["tasks with a look-back"] += bool(arguments["lookback"])
        self._ends.append(asyncio.ensure_future(self._wait_for(task)))

    def _pause(self, task: Task) -> None:
        os.kill(task.pid, signal.SIGSTOP)
        task.state = "paused"
        self.note(f"task {task.number}: paused")
        self._changed.set()

    def _resume(self, task: Task) -> None:
        self.note(f"task {task.number}: continues")
        task.state = "running"
        os.kill(task.pid, signal.SIGCONT)
        if self.free:
            for pending in task.pending:
                pending.decision.set_result("pass")
            task.pending.clear()

    async def _kill(self, task: Task) -> None:
        self.note(f"task {task.number}: killed")
        os.kill(task.pid, signal.SIGKILL)
        while task.is_alive:
            await self._change()
        for pending in list(task.pending):
            # A request may arrive long after the process that sent it has ended.
            if pending.request.method != "PUT" or self.dice.random() < 0.5:
                task.pending.remove(pending)
                pending.decision.set_result("drop")
            elif self.free:
                task.pending.remove(pending)
                pending.decision.set_result("pass")

    def _jump(self, task: Task, seconds: int) -> None:
        # Renamed, so that no reader finds the file empty.
        (task.folder / "next").write_text(f"{seconds:+d}\n")
        (task.folder / "next").rename(task.folder / "clock")
        task.large_jump |= seconds in LARGE_JUMPS
        self.note(f"task {task.number}: its clock jumps to {seconds:+d} s")

    async def _wait_for(self, task: Task) -> None:
        await ended(task.pid)
        code = self.forker.reap(task.pid)
        if code == -signal.SIGKILL:
            task.state = "killed"
        else:
            result = json.loads((task.folder / "result.json").read_text())
            task.state = "failed" if "error" in result else "succeeded"
            if "error" in result:
                self.note(f"task {task.number}: {result['error']}: {result['message'][:300]}")
                self._check_failure(task, result["error"], result["message"])
            else:
                self.note(f"task {task.number}: {json.dumps(result['receipt'])}")
                self._check_receipt(task, result["receipt"])
        self.counts[f"tasks that {'were killed' if task.state == 'killed' else task.state}"] += 1
        self._changed.set()

    # --- what passes the gateway ---

    async def _handle(self, task: Task, request: Request) -> Answer | None:
        pending = Pending(request, asyncio.get_running_loop().create_future())
        is_put = request.method == "PUT" and self._key(request) is not None
        if task.pauses_before_put and is_put and task.state == "running":
            task.pauses_before_put = False
            self._pause(task)
        if (not self.free or task.state == "paused") and not self._is_over:
            task.pending.append(pending)
            self._changed.set()
            verdict = await pending.decision
        else:
            verdict = "pass"
        if verdict == "pass" and task.loses_answer and is_put:
            task.loses_answer, verdict = False, "lose"
        answer = None
        try:
            if verdict == "drop":
                pass
            elif request.target.startswith("/api/v1/"):
                answer = await self._ask(task, request)
            else:
                # One request at a time, so that the order of answers is the store's order.
                async with self._locks[urlsplit(request.target).path]:
                    answer = self._observe(task, request, await forward(self.machine.store_port, request))
        except Exception as exc:
            self.violation(f"the gateway failed on {request.method} {request.target}: {exc!r}")
        finally:
            pending.answered.set()
        if verdict == "lose":
            self.note(f"task {task.number}: its answer is lost")
            return None
        return answer

    def _key(self, request: Request) -> str | None:
        """Return the key of the object that a request is about, or ``None``."""
        key = unquote(urlsplit(request.target).path).removeprefix(f"/{self.machine.lake.bucket}/")
        return key if re.fullmatch(rf"{self.prefix}/\d\d\.{EXTENSIONS[self.file_format]}", key) else None

    async def _ask(self, task: Task, request: Request) -> Answer:
        """Answer a request to the API."""
        task.requests += 1
        path = unquote(urlsplit(request.target).path)
        if task.heads:
            task.readings.append(Reading(task.heads[-1][0], max(read_at for _, read_at in task.heads)))
            task.heads.clear()
            self.counts["readings"] += 1
        if not task.readings:
            self.violation(f"task {task.number} reads from the API before it has looked at its objects")
            task.readings.append(Reading(self.ticks, datetime.now(UTC)))
        answer, rows, has_failed = self.world.answer(
            path, task.arguments["resolution"], await forward(self.machine.simulator_port, request)
        )
        self.ticks += 1
        reading, (start, end) = task.readings[-1], task.window
        reading.received |= {key: value for key, value in rows.items() if start < key[3] <= end}
        if has_failed:
            reading.failed.add(path.split("/sites/")[1].partition("/")[0])
        self.note(f"task {task.number}: {answer.status} for {path}: {len(rows)} rows")
        return answer

    def _observe(self, task: Task, request: Request, answer: Answer) -> Answer:
        """Note what the store did."""
        self.ticks += 1
        if not self.free:
            self.store_time += self.dice.choice((0, 0, 0.4, 1, 3, 60))
            shown = int(self.store_time) + (self.dice.choice((-1, 0, 1)) if self.servers_differ else 0)
            answer = answer.replacing("Date", format_datetime(datetime.fromtimestamp(shown, UTC), usegmt=True))
        date = next(parsedate_to_datetime(value) for name, value in answer.headers if name.lower() == "date")
        succeeded = 200 <= answer.status < 300
        key = self._key(request)
        if key is None:
            path = unquote(urlsplit(request.target).path).removeprefix(f"/{self.machine.lake.bucket}/")
            if succeeded and request.method == "PUT":
                self.others[path] = task
            elif succeeded and request.method == "DELETE":
                self.others.pop(path, None)
            return answer
        current = self.versions[key][-1] if self.versions[key] else None
        if request.method in ("HEAD", "GET"):
            if task.large_jump and answer.status == 403:
                pass  # S3 refuses requests of a clock that is wrong by 15 minutes
            elif answer.status not in (200, 404) or (answer.status == 200) != (current is not None):
                self.violation(f"task {task.number}: {request.method} {key} is answered {answer.status}")
            task.looked[key] = current
        if request.method == "HEAD":
            task.heads.append((self.ticks, date))
        else:
            task.heads.clear()
        self.note(f"task {task.number}: {answer.status} for {request.method} {key} at {date:%H:%M:%S}")
        if request.method == "PUT" and succeeded:
            self._landed(task, key, request)
        return answer

    # --- what must be ---

    def _landed(self, task: Task, key: str, request: Request) -> None:
        """Check a version of an object against the rules, and note it."""
        self.counts["PUTs checked"] += 1
        versions = self.versions[key]
        prior = versions[-1] if versions else None
        looked = task.looked.get(key)
        sha256 = hashlib.sha256(request.body).hexdigest()
        if request.header("x-amz-meta-sha256") != sha256:
            self.violation(f"task {task.number}: the metadata of {key} say {request.header('x-amz-meta-sha256')}")
        try:
            rows = content(request.body, self.file_format)
        except Exception as exc:
            self.violation(f"task {task.number}: {key} cannot be read: {exc!r}")
            return
        reading = task.readings[-1]
        mine = self._mine(reading, key)
        read_at = datetime.fromisoformat(request.header("x-amz-meta-read-at") or "1970-01-01T00:00Z")

        expected, expected_read_at = self._expected(task, prior, mine)
        is_right = self._is_right(expected, rows, expected_read_at, read_at)
        same_bytes = prior is not looked and prior is not None and looked is not None and prior.sha256 == looked.sha256
        if not is_right and same_bytes:
            # The store compares bytes: to it nothing has changed since the look.
            expected, expected_read_at = self._expected(task, looked, mine)
            is_right = self._is_right(expected, rows, expected_read_at, read_at)
            if is_right:
                self.counts["exceptions: same bytes written again before the PUT"] += 1
                self.note(f"task {task.number}: same bytes were written again, so its PUT was not refused")
                prior = looked
        if not is_right:
            wrong = "it must not be written" if expected is None else _difference(_values(expected), rows)
            self.violation(
                f"task {task.number}, which began to read at {reading.began}, writes {key}: {wrong}; read-at "
                f"{read_at}, expected {expected_read_at}"
            )
        before = _values(prior.rows) if prior else {}
        merged = Counter(
            inserted=len(mine.keys() - before.keys()),
            changed=sum(k in before and before[k] != value for k, value in mine.items()),
            kept=len(before.keys() - mine.keys()) if task.arguments["if_exists"] == "merge" else 0,
        )
        merged["unchanged"] = len(mine) - merged["inserted"] - merged["changed"]
        known = expected or {}
        marked = {k: (v, known[k][1] if k in known else reading.began) for k, v in rows.items()}
        versions.append(Version(marked, len(request.body), sha256, read_at, task.number, len(task.readings), merged))
        self.landed.append((reading.began, mine))
        for other in self.tasks:
            other.puts_of_others += other is not task

    def _mine(self, reading: Reading, key: str) -> Rows:
        """Return the rows of a reading that belong to an object."""
        unit = _unit(self.partition)
        hour = int(key.rpartition("/")[2][:2])
        return {k: v for k, v in reading.rows.items() if (k[3] - 1 - BEGIN) // unit * unit == hour * HOUR}

    @staticmethod
    def _is_right(
        expected: dict[Key, tuple[float | None, int]] | None, rows: Rows, expected_read_at: datetime, read_at: datetime
    ) -> bool:
        if expected is None or _values(expected) != rows:
            return False
        # Versions of the same second may differ by some microseconds.
        return timedelta() <= read_at - expected_read_at < timedelta(milliseconds=1)

    def _expected(
        self, task: Task, prior: Version | None, mine: Rows
    ) -> tuple[dict[Key, tuple[float | None, int]] | None, datetime]:
        """Return what an object holds after a PUT, ``None`` where it must not be written, and its read-at."""
        reading, if_exists = task.readings[-1], task.arguments["if_exists"]
        read_at = max(prior.read_at, reading.read_at) if prior else reading.read_at
        own = {key: (value, reading.began) for key, value in mine.items()}
        if prior is None:
            return own, read_at
        newest = max((began for _, began in prior.rows.values()), default=-1)
        if if_exists == "fail" or (if_exists == "replace" and newest > reading.began):
            return None, read_at
        if if_exists == "replace":
            return own, read_at
        later = {key: held for key, held in prior.rows.items() if key in own and held[1] > reading.began}
        return {**prior.rows, **own, **later}, read_at

    def _check_receipt(self, task: Task, receipt: Mapping[str, Any]) -> None:
        """Check a receipt against what passed the gateway."""
        self.counts["receipts checked"] += 1
        reading, arguments = task.readings[-1], task.arguments
        start, end = task.window
        rows = reading.rows
        has = {
            site: set(arguments["stream_types"]) & set(self.machine.fleet.site(site).stream_start_times)
            for site in arguments["sites"]
        }
        expected = sum(len(has[site]) for site in has if site not in reading.failed)
        expected *= (end - start) // arguments["resolution"]
        versions = {
            key: next((v for v in reversed(versions) if v.by == task.number and v.reading == len(task.readings)), None)
            for key, versions in self.versions.items()
        }
        unit = _unit(self.partition)
        keys = [
            f"{self.prefix}/{(begin - BEGIN) // HOUR:02d}.{EXTENSIONS[self.file_format]}"
            for begin in range(start, end, unit)
        ]
        nothing = not rows and arguments["on_empty"] == "skip"
        right: dict[str, Any] = {
            "rows": len(rows),
            "expected": expected,
            "missing": expected - len(rows),
            "sites": len(has),
            "requests": task.requests,
            "failed_count": len(reading.failed),
            "inserted + changed + unchanged": len(rows),
            "uris": [] if nothing else [f"s3://{self.machine.lake.bucket}/{key}" for key in keys],
        }
        mine = [version for version in versions.values() if version]
        if len(task.readings) == 1 and len(mine) == len(keys):
            self.counts["receipts checked with their counts"] += 1
            right |= {n: sum(v.merged[n] for v in mine) for n in ("inserted", "changed", "unchanged", "kept")}
        stated = {
            **receipt,
            "inserted + changed + unchanged": receipt["inserted"] + receipt["changed"] + receipt["unchanged"],
            "uris": [landed["uri"] for landed in receipt["objects"]],
        }
        for landed in receipt["objects"]:
            key = landed["uri"].split("/", 3)[3]
            version = versions.get(key)
            # The object of another task counts as landed where it is, to the byte, what this task would have written.
            seen = task.looked.get(key)
            is_mine = seen is not None and self._mine(reading, key).items() <= _values(seen.rows).items()
            stated_version = landed["sha256"], datetime.fromisoformat(landed["read_at"])
            if version is None and seen and is_mine:
                is_same = (seen.sha256, seen.read_at) == stated_version
                version = seen if is_same or arguments["if_exists"] == "fail" else None
            if version is None:
                self.violation(f"task {task.number} says that it landed {key}, and did not")
                continue
            about = {
                "rows": len(version.rows),
                "bytes": version.size,
                "sha256": version.sha256,
                "read_at": version.read_at,
            }
            right |= {f"{key} {name}": value for name, value in about.items()}
            stated |= {f"{key} {name}": landed[name] for name in about}
            stated[f"{key} read_at"] = datetime.fromisoformat(landed["read_at"])
        wrong = {name: (stated[name], value) for name, value in right.items() if stated[name] != value}
        if wrong:
            self.violation(f"the receipt of task {task.number}: (stated, right) is {wrong}")

    def _check_failure(self, task: Task, error: str, message: str) -> None:
        """Check that a task had a reason to fail."""
        reading, arguments = task.readings[-1] if task.readings else None, task.arguments
        failed, rows = (reading.failed, reading.rows) if reading else (set(), {})
        if task.large_jump:
            reason = "a clock jump of a day"
        elif "exists with other content" in message and arguments["if_exists"] == "fail":
            reason = "an object exists (if_exists='fail')"
        elif "times. Try again" in message and task.puts_of_others >= 4:
            reason = "other tasks wrote again and again"
        elif failed and (
            arguments["on_site_error"] == "fail" or len(failed) == len(arguments["sites"]) or "503" in message
        ):
            reason = "failing sites"
        elif error == "StemIncompleteError" and arguments["on_incomplete"] == "fail":
            reason = "missing rows (on_incomplete='fail')"
        elif error == "AirflowSkipException" and not rows and arguments["on_empty"] == "skip":
            reason = "no rows (on_empty='skip')"
        else:
            self.violation(f"task {task.number} fails without a reason: {error}: {message}")
            return
        self.counts[f"tasks that failed: {reason}"] += 1

    def _sample(self) -> None:
        """Read an object past the gateway."""
        if keys := [key for key, versions in self.versions.items() if versions]:
            key = random.Random(self.ticks).choice(keys)  # not from the dice, which decide the history
            answer = self.machine.lake.client.get_object(Bucket=self.machine.lake.bucket, Key=key)
            sha256 = hashlib.sha256(answer["Body"].read()).hexdigest()
            self.counts["objects sampled during runs"] += 1
            self.sampled.append((key, sha256))
            if answer["Metadata"].get("sha256") != sha256:
                self.violation(f"{key} is read with the SHA-256 {sha256}, its metadata say {answer['Metadata']}")

    async def _sample_always(self) -> None:
        while True:
            await asyncio.to_thread(self._sample)
            await asyncio.sleep(0.1)

    def _check_the_end(self) -> None:
        """Check what is left: the objects, their rows, and nothing else."""
        lake = self.machine.lake
        listed = lake.client.list_objects_v2(Bucket=lake.bucket, Prefix=f"{self.prefix}/").get("Contents", [])
        keys = {one["Key"] for one in listed}
        written = {key for key, versions in self.versions.items() if versions}
        # A process that is killed cannot delete its probe, and S3 refuses the request of one whose clock is wrong.
        probes = {key for key, task in self.others.items() if task.state == "killed" or task.large_jump}
        if keys != written | probes:
            self.violation(f"the lake holds {keys}, right is {written | probes}")
        self.counts["probe objects left by tasks that were killed or had a wrong clock"] += len(probes)
        if left := [one["Key"] for one in lake.uploads() if one["Key"].startswith(self.prefix)]:
            self.violation(f"uploads are left: {left}")
        if left := [path.name for path in self.temporary.iterdir()]:
            self.violation(f"files are left: {left}")
        for key, sha256 in self.sampled:
            if sha256 not in {version.sha256 for version in self.versions[key]}:
                self.violation(f"{key} was read with content that no task has written")

        held: Rows = {}
        for key in sorted(written):
            answer = lake.client.get_object(Bucket=lake.bucket, Key=key)
            body = answer["Body"].read()
            version = self.versions[key][-1]
            if not version.sha256 == answer["Metadata"]["sha256"] == hashlib.sha256(body).hexdigest():
                self.violation(f"{key} does not hold what was written last")
            rows = content(body, self.file_format)
            if twice := rows.keys() & held.keys():
                self.violation(f"{len(twice)} rows of {key} are in another object too")
            held |= rows
        self.counts["objects at the end"] += len(written)
        self.counts["rows checked at the end"] += len(held)
        if self.modes == ("merge",) and not self.counts["exceptions: same bytes written again before the PUT"]:
            explained: Rows = {}
            for _, rows in sorted(self.landed, key=lambda one: one[0]):
                explained |= rows
            self.counts["rows explained by the reading that began last"] += len(explained)
            if explained != held:
                self.violation(f"at the end: {_difference(explained, held)}")


def _values(rows: Mapping[Key, tuple[float | None, int]]) -> Rows:
    return {key: value for key, (value, _) in rows.items()}


def _difference(right: Rows, rows: Rows) -> str:
    lost, invented = right.keys() - rows.keys(), rows.keys() - right.keys()
    wrong = {key: (rows[key], right[key]) for key in right.keys() & rows.keys() if rows[key] != right[key]}
    some_wrong = dict(list(wrong.items())[:5])
    return f"lost {sorted(lost)[:5]}, invented {sorted(invented)[:5]}, wrong (held, right) {some_wrong}"


# --- many sequences ---------------------------------------------------------------------------------------------------


def check_histories(
    seeds: Iterable[int],
    simulator: Simulator,
    lake: Any,
    folder: Path,
    *,
    lanes: int = 3,
    mutation: str = "",
    violations: list[str] | None = None,
) -> tuple[Counter[str], list[str]]:
    """
    Run sequences.

    :param simulator: with :data:`SITES` sites.
    :param lanes: how many sequences run at a time.
    :param violations: the list to add to.
    :return: the counts, and the histories that the rules do not explain.
    """
    counts: Counter[str] = Counter()
    violations = [] if violations is None else violations
    left = iter(seeds)
    machine = Machine(simulator, lake, folder, mutation)

    async def lane() -> None:
        for seed in left:
            if seed % 10 == 0:
                progress(f"history {seed}")
            try:
                counts.update(await History(seed, machine).run())
            except HistoryError as exc:
                violations.append(str(exc))

    async def all_lanes() -> None:
        await asyncio.gather(*(lane() for _ in range(lanes)))

    try:
        asyncio.run(all_lanes())
    finally:
        machine.close()
    counts["violations"] = len(violations)
    return counts, violations
