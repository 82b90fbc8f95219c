"""The command ``doctor``: checks of a set-up, each with its remedy."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import entry_points, version
from typing import Any, TextIO

from airflow_provider_stem._text import missing_connection, number_of, one_line
from airflow_provider_stem.cli import redacted
from airflow_provider_stem.cli.dags import LandingTask, landing_tasks
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.streams.keys import check_key, parse_path
from airflow_provider_stem.streams.store import (
    DEFAULT_CONNECTIONS,
    check_bucket,
    object_uri,
    resolve_address,
    split_uri,
)
from airflow_provider_stem.streams.windows import iso

_Found = Iterator[str]
"""What a check found, a line each. It raises an error for a problem."""

_OLDEST = (2, 11)
_MAX_CLOCK_ERROR = timedelta(seconds=60)
_REACH = timedelta(days=32)  # so that a monthly run is in it
_PACKAGES = ("apache-airflow", "apache-airflow-providers-amazon", "pyarrow", "boto3")


def doctor(arguments: argparse.Namespace, output: TextIO) -> int:
    """Check a set-up, print what was found, and return the exit code: 1 if there is a problem."""
    problems = 0
    for name, check in _steps(arguments):
        try:
            output.writelines(f"ok       {name}: {line}\n" for line in check())
        except Exception as exc:  # noqa: BLE001 - the other checks are made all the same
            problems += 1
            known = isinstance(exc, StemError)
            message = redacted(str(exc) if known else f"{type(exc).__name__}: {exc}", arguments)
            output.write(f"PROBLEM  {name}: {one_line(message)}\n")
        output.flush()
    output.write(f"{number_of(problems, 'problem')} found\n")
    return 1 if problems else 0


def _steps(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], _Found]]]:
    yield "versions", _versions
    tasks: list[LandingTask] = []
    if arguments.dag_file:
        yield "DAG file", partial(_read_file, arguments.dag_file, tasks)
    for connection in sorted({task.arguments["stem_conn_id"] for task in tasks} or {arguments.stem_conn_id}):
        yield f"connection {connection}", partial(_api, connection)
    if arguments.bucket is not None:
        yield (
            f"bucket {one_line(arguments.bucket) or 'of the connection'}",
            lambda: _store(_parse_place(arguments.bucket, arguments.aws_conn_id)),
        )
    else:
        for place in sorted({place for task in tasks if (place := _place_of(task))}, key=str):
            yield place.name, partial(_store, place)
    for task in tasks:
        yield f"schedule of {task}", partial(_schedule, task)
    for pool in sorted({task.pool for task in tasks}):
        yield f"pool {pool}", partial(_pool, pool)


def _versions() -> _Found:
    found = {name: version(name) for name in ("airflow-provider-stem", *_PACKAGES)}
    yield f"Python {platform.python_version()}, {', '.join(f'{name} {number}' for name, number in found.items())}"
    airflow = found["apache-airflow"]
    if tuple(int(part) for part in airflow.split(".")[:2]) < _OLDEST:
        raise StemConfigError(f"Airflow {airflow} is too old. Install {'.'.join(map(str, _OLDEST))} or later.")
    if not any(one.value.startswith("airflow_provider_stem:") for one in entry_points(group="apache_airflow_provider")):
        raise StemConfigError(
            "The provider is not registered in Airflow, because it is not installed as a package. Install it with pip, "
            "and restart Airflow."
        )


def _read_file(dag_file: str, tasks: list[LandingTask]) -> _Found:
    """Add the tasks of a file that land streams."""
    tasks.extend(landing_tasks(dag_file))
    yield f"{dag_file} has {', '.join(map(str, tasks)) or 'no task that lands streams'}"
    for task in tasks:
        if _place_of(task) is None:
            yield f"the place of {task} is known in a run only. To check one, use --bucket"


def _api(stem_conn_id: str) -> _Found:
    """Check the key, the address, and that the key can list sites and read streams."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException

    from airflow_provider_stem.hooks import StemHook

    hook = StemHook(stem_conn_id)
    try:
        hook.get_connection(stem_conn_id)
        is_working, message = hook.test_connection()
        if not is_working:
            raise StemConfigError(message)
        yield message
        site = next(hook.list_sites(), None)
    except AirflowNotFoundException as exc:
        raise StemConfigError(missing_connection(exc)) from None
    if site is None:
        raise StemConfigError("The key can access no site. Ask Stem to grant it permission.")
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    types = sorted(site.get("stream_start_times") or {"MONITOR": None})
    rows = hook.get_streams(
        site["id"], day - timedelta(days=1), day, stream_types=types, on_unavailable="skip"
    ).num_rows
    hook.client.close()
    yield f"site {one_line(site['id'])} can be read: {rows:,} rows of {', '.join(types)} yesterday (UTC)"


@dataclass(frozen=True, slots=True)
class _Place:
    """The folder that a task writes to; ``bucket`` is empty for that of the connection, and for a folder on a disk."""

    scheme: str
    conn_id: str | None
    bucket: str
    prefix: str

    @property
    def name(self) -> str:
        """The place in a line of the output."""
        return f"folder /{self.prefix}" if self.scheme == "file" else f"bucket {self.bucket or 'of the connection'}"


def _place_of(task: LandingTask) -> _Place | None:
    """Return where a task writes, or ``None`` if that is a template, or if the task is mapped over it."""
    arguments = task.arguments
    address = arguments["path"] if "path" in arguments else arguments["s3_key"]
    if not isinstance(address, str) or address.startswith(("{{", "{%")):
        return None
    known = [split_uri(address)[1], *(arguments.get(name) for name in ("conn_id", "aws_conn_id", "s3_bucket"))]
    if any("{{" in str(name) for name in known):
        return None
    if "path" in arguments:
        path = parse_path(address)
        scheme, conn_id, bucket, key = path.scheme, path.connection(arguments["conn_id"]), path.bucket, path.key
    else:
        bucket_or_none, key = resolve_address(arguments["s3_bucket"], address)
        scheme, conn_id, bucket = "s3", arguments["aws_conn_id"], bucket_or_none or ""
    return _Place(scheme, conn_id, bucket, key.partition("{")[0].rpartition("/")[0])


def _parse_place(bucket: str, aws_conn_id: str) -> _Place:
    """Return the place that ``--bucket`` names: a bucket, or an address as the operators accept it."""
    if "/" not in bucket:
        check_bucket("--bucket", bucket)
        return _Place("s3", aws_conn_id, bucket, "")
    address = bucket if "://" in bucket else f"s3://{bucket}"
    path = parse_path(f"{address.removesuffix('/')}/", "")
    conn_id = path.conn_id or (aws_conn_id if path.scheme == "s3" else DEFAULT_CONNECTIONS[path.scheme])
    return _Place(path.scheme, conn_id, path.bucket, path.key.removesuffix("/"))


def _store(place: _Place) -> _Found:
    """Check the permissions, conditional writes and the clock."""
    from airflow_provider_stem._stores import open_store, require_folder

    store = open_store(place.scheme, place.bucket, place.conn_id)
    prefix = place.prefix
    folder = f"{prefix}/" if prefix else ""
    probe = check_key("path", f"{folder}.stem-doctor")
    require_folder(object_uri(place.scheme, place.bucket, prefix))
    store.check(probe, may_be_unconditional=False)
    yield f"{store.uri(prefix)}: objects can be written, with conditions"
    next(iter(store.keys(folder, required=True)), None)
    yield "objects can be listed"
    _, now = store.head(probe)
    error = abs(datetime.now(UTC) - now)
    if error > _MAX_CLOCK_ERROR:
        raise StemConfigError(
            f"The clocks of this machine and of the store differ by {round(error.total_seconds()):,} s. Set this "
            "machine's clock with NTP."
        )
    yield f"the clocks agree to {_MAX_CLOCK_ERROR.total_seconds():g} s"


def _schedule(task: LandingTask) -> _Found:
    """Check that recent runs of the schedule have windows, one after another."""
    if name := task.set_by_runs:
        yield f"not checked, since a run sets its {name}"
        return
    now = datetime.now(UTC)
    if task.dag.end_date and task.dag.end_date <= now:
        raise StemConfigError(
            f"No run is due any more, since the end_date of the DAG was {iso(task.dag.end_date)}. Remove it, or set a "
            "later one."
        )
    windows = [window for window in task.windows(now - _REACH, now) if window.end <= now]
    if not windows:
        yield "no run was due in the last 32 days, so it is started by hand or by assets"
        return
    last: Any = windows[-1]
    yield f"{len(windows):,} runs in the last 32 days; the last one reads {last} of {last.resolution} s"


def _pool(name: str) -> _Found:
    """Check that a pool exists: the tasks of another one never start."""
    from airflow.models.pool import Pool
    from sqlalchemy.exc import SQLAlchemyError

    try:
        pool = Pool.get_pool(name)
    except SQLAlchemyError as exc:
        yield f"not checked, since Airflow's database cannot be read ({type(exc).__name__})"
        return
    if pool is None:
        raise StemConfigError(
            f"There is no pool {name!r}, so its tasks never start. Create it with the number of slots: airflow pools "
            f"set {name} SLOTS DESCRIPTION"
        )
    yield f"{pool.slots} slots"
