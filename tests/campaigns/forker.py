"""
Forks one process for each task, as an Airflow worker does: the process has imported everything beforehand.

:class:`Forker` starts it and sends commands; run as a program, this file is the process that forks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MUTATIONS = ("no condition", "no look before the PUT", "the worker's clock", "rows are not kept")
"""Defects that :class:`Forker` can build into the tasks, to show that a test finds them."""


class Forker:
    """
    Starts tasks in their own processes.

    :param environment: of the process that forks.
    :param mutation: one of :data:`MUTATIONS`, or empty.
    """

    def __init__(self, environment: Mapping[str, str], mutation: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, mutation],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        arguments: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        map_index: int = -1,
        folder: Path | None = None,
    ) -> int:
        """
        Start a task and return its process id.

        :param arguments: of the operator, as JSON; ``lookback`` in seconds.
        :param environment: of this task, in addition.
        :param folder: gets what the task prints, and the receipt or the error as ``result.json``.
        """
        command = {"arguments": arguments, "environment": environment or {}, "map_index": map_index}
        return self._call({**command, "folder": str(folder) if folder else None})

    def warm(self, arguments: Mapping[str, Any]) -> None:
        """Run a task in the process that forks, so that it has imported and loaded what is loaded on demand."""
        assert self._call({"arguments": arguments, "environment": {}, "map_index": -1, "warm": True}) == 0

    def reap(self, pid: int) -> int:
        """Wait for a task to end and return its exit code; until then no other process has its id."""
        return self._call({"reap": pid})

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait() == 0
        assert self._process.stdout
        self._process.stdout.close()

    def _call(self, command: Mapping[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline().strip()).lstrip("-").isdigit():
            assert self._process.poll() is None, "the process that forks has ended"
        return int(line)


async def ended(pid: int) -> None:
    """Wait until a process that has not been reaped has ended."""
    descriptor = os.pidfd_open(pid)
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _run(command: Mapping[str, Any]) -> Any:
    from datetime import timedelta
    from types import SimpleNamespace

    from airflow_provider_stem.operators import StemStreamsToS3Operator

    os.environ.update(command["environment"])
    tempfile.tempdir = None  # of this task
    arguments = dict(command["arguments"])
    if arguments.get("lookback"):
        arguments["lookback"] = timedelta(seconds=arguments["lookback"])
    task = StemStreamsToS3Operator(task_id="land", **arguments)
    return task.execute({"ti": SimpleNamespace(map_index=command["map_index"])})  # type: ignore[typeddict-item]


def _run_in_fork(command: Mapping[str, Any]) -> int:
    import traceback

    if folder := command["folder"]:
        output = os.open(Path(folder, "output.log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
    code = 0
    try:
        result = {"receipt": _run(command)}
    except BaseException as exc:
        traceback.print_exc()
        result = {"error": type(exc).__name__, "message": str(exc)}
        code = 1
    if folder:
        Path(folder, "result.json").write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _mutate(mutation: str) -> None:
    from datetime import UTC, datetime

    from airflow_provider_stem._s3 import S3Store
    from airflow_provider_stem.streams.merging import Merge
    from airflow_provider_stem.streams.objects import ObjectWriter

    if mutation == "no condition":
        put = S3Store.put

        def unconditional(self: Any, *arguments: Any) -> None:
            self._conditional = False
            put(self, *arguments)

        S3Store.put = unconditional  # type: ignore[assignment, method-assign]
    elif mutation == "no look before the PUT":
        ObjectWriter._may_be_later = lambda *_: False  # type: ignore[method-assign]
    elif mutation == "the worker's clock":
        S3Store._time_of = lambda *_: datetime.now(UTC)  # type: ignore[method-assign]
    elif mutation == "rows are not kept":
        merged = Merge.merged

        def read_alone(self: Any, held: Any, read: Any) -> Any:
            self.keeps = False
            return merged(self, held, read)

        Merge.merged = read_alone  # type: ignore[method-assign]


def _share_loader() -> None:
    """Load boto3's descriptions of services once: a fork need not read megabytes of JSON again."""
    from functools import cache

    import botocore.session

    botocore.session.create_loader = cache(botocore.session.create_loader)


def main(arguments: Sequence[str]) -> None:
    import airflow_provider_stem._s3
    import airflow_provider_stem.operators
    import airflow_provider_stem.streams.landing  # noqa: F401

    # libfaketime fails the call behind time.sleep(), an absolute clock_nanosleep().
    time.sleep = lambda seconds: select.select([], [], [], float(seconds))  # type: ignore[assignment]
    _share_loader()
    _mutate(arguments[0])
    for line in sys.stdin:
        command = json.loads(line)
        if "reap" in command:
            answer = os.waitstatus_to_exitcode(os.waitpid(command["reap"], 0)[1])
        elif command.get("warm"):
            _run(command)
            gc.collect()
            answer = 0
        else:
            # What is there already is left out of the garbage collection, so its pages stay shared.
            gc.freeze()
            answer = os.fork()
            if not answer:
                os._exit(_run_in_fork(command))
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
