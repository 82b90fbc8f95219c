"""
Land a day of Stem telemetry in S3 through Airflow, and show what happened.

By itself it starts a simulated Stem API and a real S3 server. With ``AIRFLOW_CONN_STEM_DEFAULT``,
``AIRFLOW_CONN_AWS_DEFAULT`` and ``STEM_DEMO_BUCKET`` set it runs the same DAG against the real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from s3_server import S3Server, end_with_parent

if TYPE_CHECKING:
    from airflow_provider_stem.simulator.model import Fleet

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "stem_streams_to_s3"
BUCKET = "stem-telemetry"
DAY = date(2025, 7, 1)
CONNECTIONS = ("AIRFLOW_CONN_STEM_DEFAULT", "AIRFLOW_CONN_AWS_DEFAULT")

_ENDED = re.compile(r"\[DAG TEST\] end task task_id=(\S+) map_index=(-?\d+)")
_LANDED = re.compile(r"\b(Landed .+ expected)\b")
_FAILED = re.compile(r"Task failed with exception|Dag run in failure state|Failed to (?:load|import)|Broken DAG")
_ERROR = re.compile(r"^\w*(?:Error|Exception|Interrupt)\b.*: .+")


class DemoError(Exception):
    """Something failed; the message says what to do."""


@dataclass
class Steps:
    """Tells what is going on, with the seconds that each step took."""

    began: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def done(self, text: str) -> None:
        """Tell of a step that took time."""
        now = time.monotonic()
        print(f"{now - self.last:6.1f} s  {text}", flush=True)
        self.last = now

    def note(self, text: str = "") -> None:
        """Tell something that took none."""
        print(f"{'':10}{text}" if text else "", flush=True)


@dataclass(frozen=True)
class World:
    """Where the data comes from and where it goes."""

    bucket: str
    connections: Mapping[str, str]
    fleet: Fleet | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; give the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run(options)
    except DemoError as exc:
        print(f"\nThe demo ended early. {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; everything that the demo started has been stopped.", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--day", type=date.fromisoformat, help=f"the UTC day to land (default {DAY}; real API: yesterday)"
    )
    parser.add_argument("--sites", type=int, default=20, help="how many sites the simulator has")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where data, logs and the picture are kept")
    parser.add_argument("--fresh", action="store_true", help="begin with an empty folder")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Start what is needed, let Airflow land the day, show it."""
    steps = Steps()
    given = real_connections(os.environ)
    day = options.day or (datetime.now(UTC).date() - timedelta(days=1) if given else DAY)
    if day >= datetime.now(UTC).date():
        raise DemoError(f"--day {day} is not over yet: choose an earlier one.")
    folder: Path = options.folder.resolve()
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if given:
            world = World(os.environ["STEM_DEMO_BUCKET"], given, None)
            steps.note(f"Landing {day} from the real Stem API in s3://{world.bucket}")
        else:
            world = simulated(stack, steps, folder, options.sites)
        environment = airflow_environment(folder, world)
        migrate(environment, folder)
        steps.done("Airflow's database")
        before = read_landed(folder)
        land(steps, environment, folder, day, world.bucket)
        landed = collect(environment, folder, day)
        steps.done("Read back what landed")
        show(steps, landed, before, folder, day, world)


def real_connections(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Give the user's own connections, if there are."""
    given = {name: environ[name] for name in CONNECTIONS if environ.get(name)}
    if not given:
        return None
    missing = [name for name in (*CONNECTIONS, "STEM_DEMO_BUCKET") if not environ.get(name)]
    if missing:
        raise DemoError(
            f"{' and '.join(given)} is set, but {' and '.join(missing)} is not: set all three to run against the real "
            "API and S3, or none for the simulated run."
        )
    return given


def simulated(stack: ExitStack, steps: Steps, folder: Path, sites: int) -> World:
    """Start a Stem API and an S3 server on free ports of the loopback address."""
    from airflow_provider_stem.simulator import Settings, Simulator

    try:
        api = stack.enter_context(Simulator(Settings(sites=sites)))
        steps.done(f"A simulated Stem API with {sites} sites on {api.url}")
        s3 = stack.enter_context(S3Server(folder / "s3"))
    except (RuntimeError, ValueError) as exc:
        raise DemoError(str(exc)) from None
    client: Any = s3.client()
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    steps.done(f"A real S3 server (SeaweedFS) on {s3.url}, with the bucket {BUCKET}")
    return World(BUCKET, dict(zip(CONNECTIONS, (api.connection, s3.connection), strict=True)), api.fleet)


def airflow_environment(folder: Path, world: World) -> dict[str, str]:
    """Give Airflow a home of its own: nothing of the user's decides where the demo writes."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    return {
        **own,
        **world.connections,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def migrate(environment: Mapping[str, str], folder: Path) -> None:
    """Make the metadata database, where there is none yet."""
    if (folder / "airflow" / "airflow.db").exists():
        return
    with process(["-m", "airflow", "db", "migrate"], environment) as migration:
        told, _ = migration.communicate()
    if migration.returncode:
        raise DemoError(f"Airflow could not make its database; it says:\n{told[-800:]}")


def land(steps: Steps, environment: Mapping[str, str], folder: Path, day: date, bucket: str) -> None:
    """Let Airflow run the DAG for the day, and tell of its tasks as they end."""
    log_file = folder / "airflow.log"
    arguments = ["dags", "test", DAG_ID, logical_date(day), "--conf", json.dumps({"bucket": bucket})]
    steps.note(f"airflow dags test {DAG_ID} {logical_date(day)}   (log: {log_file})")
    said = error = ""
    with log_file.open("w") as log, process(["-m", "airflow", *arguments], environment) as airflow:
        failing = False
        for line in airflow.stdout or ():
            log.write(line)
            if found := _LANDED.search(line):
                said = found[1]
            elif _ERROR.match(line):
                error = line.strip()
            failing = failing or bool(_FAILED.search(line))
            if not (ended := _ENDED.search(line)):
                continue
            if failing:
                # Airflow would wait for the time of the next attempt, as the DAG says; here nothing would change.
                raise DemoError(f"The task {ended[1]} failed: {error or 'see the log'}\nThe whole log is {log_file}")
            index = "" if ended[2] == "-1" else f"[{ended[2]}]"
            steps.done(f"task {ended[1]}{index}{': ' if said else ''}{said}")
            said = ""
    if airflow.returncode:
        raise DemoError(
            f"Airflow ended with code {airflow.returncode}: {error or 'see its log'}\nThe log is {log_file}"
        )


def collect(environment: Mapping[str, str], folder: Path, day: date) -> dict[str, Any]:
    """Read the receipts from Airflow and the objects from S3."""
    copies = folder / "landed"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    reader = str(ROOT / "scripts" / "demo_landed.py")
    with process(
        [reader, DAG_ID, "list_sites", "land_streams", logical_date(day), str(copies)], environment
    ) as reading:
        told, _ = reading.communicate()
    if reading.returncode:
        raise DemoError(f"What landed could not be read back:\n{told[-800:]}")
    return read_landed(folder) or {}


def read_landed(folder: Path) -> dict[str, Any] | None:
    """Give what the last run landed, where there was one."""
    path = folder / "landed" / "landed.json"
    landed: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return landed


def show(
    steps: Steps, landed: dict[str, Any], before: dict[str, Any] | None, folder: Path, day: date, world: World
) -> None:
    """Tell of objects, receipt, energy and correctness, and draw a site's day."""
    import demo_report as report

    receipts = landed["receipts"]
    rows = {one["uri"]: one["rows"] for receipt in receipts for one in receipt["objects"]}
    steps.note()
    steps.note("Objects")
    for one in landed["objects"]:
        steps.note(f"  {rows[one['uri']]:7,} rows {one['bytes']:9,} bytes  {one['uri']}")
    if before:
        same = changes(before, landed) == 0
        steps.note(f"  {len(landed['objects'])} objects, {'unchanged' if same else 'CHANGED'} since the last run")

    window = receipts[0]["window"]
    total = {name: sum(receipt[name] for receipt in receipts) for name in ("rows", "expected", "missing", "requests")}
    lacking = sum(receipt["unavailable_count"] for receipt in receipts)
    steps.note()
    steps.note(f"Receipt of {len(receipts)} tasks, {window['start']} to {window['end']} at {window['resolution']} s")
    steps.note(
        f"  {total['rows']:,} rows, {total['missing']:,} missing of {total['expected']:,} expected, "
        f"{total['requests']:,} requests; {lacking} streams that sites do not have"
    )

    table = report.read_objects([Path(one["file"]) for one in landed["objects"]])
    steps.note()
    steps.note(f"{'Energy':18}{'sites':>6}{'kWh in':>12}{'kWh out':>12}")
    for one in report.energy(table):
        steps.note(f"  {one.stream_type:16}{one.sites:>6}{one.taken:>12,.0f}{one.given:>12,.0f}")

    steps.note()
    if world.fleet is None:
        steps.note("Not compared row by row: only the simulator's own values are known")
    else:
        found = report.compare(report.expected_rows(world.fleet, day, datetime.now(UTC)), table)
        steps.note(
            f"Compared with the simulator's own values: {found.landed:,} rows, {found.missing} missing, "
            f"{found.doubled} doubled, {found.off} off, {found.stray} that nobody expected"
        )
        if not found.same:
            raise DemoError("The landed rows are not the simulator's: this is a defect of the provider.")
    if table.num_rows:
        site = report.choose_site(table)
        picture = folder / "site-day.png"
        name = landed["names"].get(site) or site
        report.draw(report.curves(table, site, day), name, day, picture)
        steps.note(f"A day of {name}: {picture}")
    steps.note(f"Done in {time.monotonic() - steps.began:.0f} s")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """Count the objects that are new, gone or of other content since the last run."""
    old, new = (
        {(one["uri"], one["bytes"], one["etag"], one["sha256"]) for one in landed["objects"]}
        for landed in (before, now)
    )
    return len(old ^ new)


def logical_date(day: date) -> str:
    """Give the moment at which the day's interval is over: what its run is dated."""
    return f"{day + timedelta(days=1)}T00:00:00+00:00"


@contextmanager
def process(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run Python, and see that nothing of it is left, however the block ends."""
    started = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing but a system call happens in it
    )
    try:
        yield started
        started.wait()
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        if started.stdout:
            started.stdout.close()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
