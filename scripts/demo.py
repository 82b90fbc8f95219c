"""
The example DAG on one day of telemetry, from the Stem API to S3 through Airflow, and what it landed.

Without connections in the environment it starts the simulated API and an S3 server on this machine, and holds every
landed row against the simulator's own values. With ``AIRFLOW_CONN_STEM_DEFAULT``, ``AIRFLOW_CONN_AWS_DEFAULT`` and
``STEM_DEMO_BUCKET`` it reads the real API and writes to the real bucket.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
DAG_ID, LIST_TASK, LAND_TASK = "stem_streams_to_s3", "list_sites", "land_streams"
STEM, AWS, BUCKET = "AIRFLOW_CONN_STEM_DEFAULT", "AIRFLOW_CONN_AWS_DEFAULT", "STEM_DEMO_BUCKET"
LOCAL_BUCKET = "stem-telemetry"
PAST_DAY, SITES = date(2025, 7, 1), 20
NEEDED = ("airflow", "airflow_provider_stem", "boto3", "fastapi", "matplotlib", "numpy", "pyarrow", "uvicorn")
# All that the demo makes in its folder, and so all that --fresh removes: the folder may be any.
MADE = ("airflow", "landed", "s3", "airflow.log", "landed.log", "migrate.log", "simulator.log", "day-*.png")
# The address of a Unix socket holds 107 characters, and the S3 server keeps one in its folder.
LONGEST_FOLDER = 107 - len("/s3/filer.sock")

State: TypeAlias = dict[str, tuple[str, int]]
"""Objects by address: ETag and size."""


class DemoError(Exception):
    """Something that the user can mend; the message says how."""


class Stopped(BaseException):
    """SIGINT or SIGTERM came."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line and the environment ask for."""

    day: date
    sites: int
    folder: Path
    fresh: bool
    real: bool
    bucket: str


class Screen:
    """Short lines, each out at once."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def title(self, text: str) -> None:
        """Begin a part."""
        print(self._in("1", text), flush=True)

    def line(self, text: str) -> None:
        """Say something."""
        print(f"  {text}", flush=True)

    def done(self, text: str, began: float) -> None:
        """Tell of a step that has ended."""
        print(f"  {self._in('32', 'ok')}  {text:<82} {time.monotonic() - began:5.1f} s", flush=True)

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str]) -> Options:
    """Read the command line and the environment; a mistake ends the program, or is a :class:`DemoError`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2], prog="demo.py")
    parser.add_argument("--day", type=date.fromisoformat, help=f"UTC day (default {PAST_DAY}; real API: yesterday)")
    parser.add_argument("--sites", type=int, help=f"number of simulated sites (default {SITES})")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where everything is kept (default .demo)")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run left")
    given = parser.parse_args(arguments)
    real = has_connections(environ)
    today = datetime.now(UTC).date()
    day = given.day or (today - timedelta(days=1) if real else PAST_DAY)
    if day >= today:
        parser.error(f"--day {day} is not over yet (UTC): give a past day")
    if real and given.sites is not None:
        parser.error(f"--sites is for the simulated API, and {STEM} is set: leave it out")
    if given.sites is not None and given.sites < 1:
        parser.error("--sites is a number from 1 on")
    return Options(
        day=day,
        sites=given.sites or SITES,
        folder=given.folder.expanduser().absolute(),
        fresh=given.fresh,
        real=real,
        bucket=environ[BUCKET] if real else LOCAL_BUCKET,
    )


def has_connections(environ: Mapping[str, str]) -> bool:
    """
    Tell whether the environment has the connections to the real API and the real S3.

    :raises DemoError: it has one of them alone, or no bucket.
    """
    missing = [name for name in (STEM, AWS) if not environ.get(name)]
    if len(missing) == 1:
        (there,) = {STEM, AWS} - {*missing}
        raise DemoError(
            f"{there} is set, but {missing[0]} is missing.\n"
            "Set both to use the real API and a real bucket, or neither to use the simulator."
        )
    if not missing and not environ.get(BUCKET):
        raise DemoError(f"{STEM} and {AWS} are set, but {BUCKET} is missing.\nSet it to the bucket to write to.")
    return not missing


def check_tools() -> None:
    """See that everything is installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DemoError(
            f"Not installed for {sys.executable}: {', '.join(missing)}.\n"
            "Install the project with what the demo needs: pip install -e '.[simulator]' --group demo"
        )


def isolate(environ: MutableMapping[str, str]) -> None:
    """Keep the user's own settings for AWS and proxies away from servers on loopback."""
    for name in [name for name in environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del environ[name]
    environ["AWS_CONFIG_FILE"] = environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    environ["AWS_EC2_METADATA_DISABLED"] = "true"


def airflow_environment(environ: Mapping[str, str], home: Path, connections: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of an Airflow of our own: nothing of the user's Airflow has a say in it."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("AIRFLOW", "_AIRFLOW")) and name not in ("FORCE_COLOR", "PY_COLORS")
    }
    return {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        **connections,
    }


def secrets_of(connection: str) -> set[str]:
    """Give what of a connection, as JSON or as a URI, must not be shown."""
    try:
        found = _secrets_in(json.loads(connection))
    except ValueError:
        parts = urlsplit(connection)
        password = parts.password or ""
        found = {password, unquote(password)} | {v for k, v in parse_qsl(parts.query) if _is_secret(k)}
    return {secret for secret in found if secret}


def _secrets_in(value: Any, name: str = "") -> set[str]:
    if isinstance(value, dict):
        return {secret for key, inner in value.items() for secret in _secrets_in(inner, key)}
    if name == "extra" and isinstance(value, str) and value.startswith("{"):
        return _secrets_in(json.loads(value))
    return {value} if isinstance(value, str) and _is_secret(name) else set()


def _is_secret(name: str) -> bool:
    return re.search("password|secret|token", name, re.IGNORECASE) is not None


def start(stack: ExitStack, command: Sequence[str], **how: Any) -> subprocess.Popen[str]:
    """Start a program that ends with the stack."""
    with undisturbed():
        process = subprocess.Popen(
            command,
            text=True,
            errors="replace",
            # A Ctrl-C at the terminal goes to the demo alone, which ends the others in its own time.
            start_new_session=True,
            **how,
        )
        stack.callback(end, process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a program and whatever it has started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, signum)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into :class:`Stopped`; those that follow do not disturb the tidying up."""

    def stop(signum: int, _frame: object) -> NoReturn:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signum)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for what must not be left half done: a program that nobody knows of yet."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda signum, _: came.append(signum)) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a second demo out of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"Another demo is running in {folder}.\nWait for it, or give another --folder.") from None
        yield


@dataclass
class Watch:
    """Follows the output of ``airflow dags test``, and tells of each task."""

    screen: Screen
    log: Path
    task: str = ""
    note: str = ""
    error: str = ""
    running: bool = False
    began: float = field(default_factory=time.monotonic)

    _BEGIN = re.compile(r"\[DAG TEST\] starting task_id=(\S+) map_index=(-?\d+)")
    _END = "[DAG TEST] end task task_id="
    _NOTE = re.compile(r"(?:\]|INFO -) (?:Landed (?P<landed>.+?) in [\d.]+ s: .*|(?P<found>Found [\d,]+ sites))")
    _ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception)\b[^:]*: (.+)")
    _STATE = re.compile(
        r"new_state=(up_for_retry|failed|upstream_failed)|unrunnable tasks: .*\[(up_for_retry)\]"
        r"|Marking task as (UP_FOR_RETRY|FAILED|UPSTREAM_FAILED)"  # Airflow 2
    )

    def read(self, line: str) -> None:
        """
        Take in a line.

        :raises DemoError: a task has failed; Airflow would wait five minutes before it tries again.
        """
        if match := self._BEGIN.search(line):
            self.end_task()  # Airflow 3.0 does not tell of the end
            self.task, index = match.groups()
            self.task += "" if index == "-1" else f" [{index}]"
            self.note, self.error, self.running = "", "", True
        elif self._STATE.search(line):
            raise self.failure(f"Task {self.task} failed")
        elif self._END in line:
            self.end_task()
        elif match := self._NOTE.search(line):
            self.note = match["landed"] or match["found"]
        elif match := self._ERROR.match(line):
            self.error = match[1]

    def end_task(self) -> None:
        """Tell of the task that was begun, unless that was done."""
        if self.running:
            self.screen.done(f"  {self.task:<18} {self.note}", self.began)
            self.running, self.began = False, time.monotonic()

    def failure(self, what: str) -> DemoError:
        """Describe a failure."""
        why = f": {self.error}" if self.error else "."
        return DemoError(f"{what}{why}\nThe whole log is in {shown(self.log)}; mend the cause, and run the demo again.")


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self.options = options
        self.screen = screen
        self.home = options.folder / "airflow"
        self.landed = options.folder / "landed"
        self.logical_date = datetime.combine(options.day + timedelta(days=1), datetime.min.time(), UTC)
        self.connections = {name: os.environ[name] for name in (STEM, AWS)} if options.real else {}

    def run(self, stack: ExitStack) -> None:
        """Do everything; whatever is started ends with the stack."""
        self._prepare(stack)
        before = self._serve(stack)
        report = self._run_dag(stack)
        self._show_objects(report, before)
        if not report["objects"]:
            self.screen.line("No object was landed.")
            return
        import demo_report

        table = demo_report.read_objects([Path(landed["file"]) for landed in report["objects"]])
        self._show_energy(table)
        self._compare(table)
        self._draw(table, report["names"])

    def _prepare(self, stack: ExitStack) -> None:
        folder, options = self.options.folder, self.options
        if len(str(folder)) > LONGEST_FOLDER and not options.real:
            raise DemoError(
                f"The path of {folder} is too long for the S3 server's socket.\nGive a shorter one: --folder /tmp/demo"
            )
        stack.enter_context(claimed(folder))
        if options.fresh:
            for made in [path for pattern in MADE for path in folder.glob(pattern)]:
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        source = "the real API" if options.real else f"{options.sites:,} simulated sites"
        self.screen.title(f"Stem telemetry of {options.day} (UTC), {source}, to S3 through Airflow")

    def _serve(self, stack: ExitStack) -> State:
        """Start what the run needs, all at once; give the objects that are there already."""
        began = time.monotonic()
        if self.options.real:
            self.screen.line(f"With your own connections, to s3://{self.options.bucket}")
            before = self._state_of_last_run()
            migration = self._start_migration(stack)
        else:
            isolate(os.environ)
            migration = self._start_migration(stack)
            simulator = self._start_simulator(stack)
            before = self._start_s3(stack, began)
            self._await_simulator(simulator, began)
        if migration is not None:
            if migration.wait():
                log = shown(self.options.folder / "migrate.log")
                raise DemoError(f"Airflow could not set up its database.\nSee {log}, or begin anew with --fresh.")
            self._make_outlets_known(stack)
            (self.home / "migrated").write_text(version("apache-airflow"))
        self.screen.done(f"Airflow {version('apache-airflow')}, with a database of its own", began)
        return before

    def _start_migration(self, stack: ExitStack) -> subprocess.Popen[str] | None:
        migrated = self.home / "migrated"
        if migrated.exists() and migrated.read_text() == version("apache-airflow"):
            return None
        # Left by another version, or by a run that was stopped amid its migration.
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        with (self.options.folder / "migrate.log").open("w") as log:
            return self._start_airflow(stack, "db", "migrate", stdout=log)

    def _make_outlets_known(self, stack: ExitStack) -> None:
        # `airflow dags test` of 3.0 alone refuses to run a task whose outlets no DAG processor has seen.
        if version("apache-airflow").startswith("3.0."):
            with (self.options.folder / "migrate.log").open("a") as log:
                self._start_airflow(stack, "dags", "reserialize", stdout=log).wait()

    def _start_airflow(self, stack: ExitStack, *arguments: str, stdout: Any) -> subprocess.Popen[str]:
        return start(
            stack,
            # -P: no module of the current folder is taken for Airflow's.
            [sys.executable, "-P", "-m", "airflow", *arguments],
            env=airflow_environment(os.environ, self.home, self.connections),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self.home,
        )

    def _start_simulator(self, stack: ExitStack) -> subprocess.Popen[str]:
        command = ["-m", "airflow_provider_stem.simulator", "--port=0", f"--sites={self.options.sites}"]
        with (self.options.folder / "simulator.log").open("w") as log:
            return start(
                stack,
                [sys.executable, "-P", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def _await_simulator(self, process: subprocess.Popen[str], began: float) -> None:
        for line in process.stdout or ():
            name, _, value = line.partition("=")
            if name == STEM:
                (self.connections[STEM],) = shlex.split(value)
                break
        else:
            log = shown(self.options.folder / "simulator.log")
            raise DemoError(f"The simulated API did not start.\nSee {log}.")
        self.screen.done(f"Simulated Stem API at {json.loads(self.connections[STEM])['host']}", began)

    def _start_s3(self, stack: ExitStack, began: float) -> State:
        from s3_server import S3Server

        folder = self.options.folder / "s3"
        try:
            server = S3Server(folder, undisturbed)
            stack.callback(server.stop)
            stack.enter_context(server)
        except RuntimeError as error:
            # The first line: the tail of the log may follow.
            raise DemoError(f"{str(error).partition(' Its log ends with')[0]}\nSee {shown(folder / 'server.log')}, or "
                            "begin anew with --fresh.") from None  # fmt: skip
        self.connections[AWS] = server.connection
        state = _bucket_state(server.client(), self.options.bucket)
        self.screen.done(f"S3 server at {server.url}, bucket {self.options.bucket}: {len(state)} objects", began)
        return state

    def _state_of_last_run(self) -> State:
        # What may be listed in a real bucket, and what it holds besides, is not known: the last report stands in.
        path = self.landed / "landed.json"
        return _state(json.loads(path.read_text())["objects"]) if path.exists() else {}

    def _run_dag(self, stack: ExitStack) -> dict[str, Any]:
        began = time.monotonic()
        log_path = self.options.folder / "airflow.log"
        self.screen.line(f"    airflow dags test {DAG_ID} {self.logical_date:%Y-%m-%d}   (log: {shown(log_path)})")
        reader = self._start_reader(stack)
        conf = json.dumps({"bucket": self.options.bucket})
        # On this timetable a logical date stands for the interval that ends there.
        arguments = ("dags", "test", "--conf", conf, DAG_ID, self.logical_date.isoformat())
        airflow = self._start_airflow(stack, *arguments, stdout=subprocess.PIPE)
        watch = Watch(self.screen, log_path)
        # Longest first, so that no secret is left in parts by one that it holds.
        secrets = sorted({s for c in self.connections.values() for s in secrets_of(c)}, key=len, reverse=True)
        with log_path.open("w", buffering=1) as log:
            for line in airflow.stdout or ():
                for secret in secrets:
                    line = line.replace(secret, "***")  # noqa: PLW2901
                log.write(line)
                watch.read(line)
        if airflow.wait():
            raise watch.failure(f"Airflow ended with exit code {airflow.returncode}")
        watch.end_task()
        self.screen.done("Airflow's run of the DAG: success", began)
        return self._read_back(reader)

    def _start_reader(self, stack: ExitStack) -> subprocess.Popen[str]:
        """Start what reads the results before they are there: its imports take as long as a small run."""
        script = str(Path(__file__).resolve().with_name("demo_landed.py"))
        with (self.options.folder / "landed.log").open("w") as log:
            return start(
                stack,
                [sys.executable, "-P", script, DAG_ID, LIST_TASK, LAND_TASK, str(self.landed)],
                env=airflow_environment(os.environ, self.home, {AWS: self.connections[AWS]}),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
            )

    def _read_back(self, reader: subprocess.Popen[str]) -> dict[str, Any]:
        began = time.monotonic()
        shutil.rmtree(self.landed, ignore_errors=True)
        self.landed.mkdir()
        reader.communicate(f"{self.logical_date.isoformat()}\n")
        if reader.returncode:
            log = shown(self.options.folder / "landed.log")
            raise DemoError(f"The run's receipts and objects could not be read back.\nSee {log}.")
        report: dict[str, Any] = json.loads((self.landed / "landed.json").read_text())
        self.screen.done("Receipts and objects read back, from XCom and S3", began)
        return report

    def _show_objects(self, report: Mapping[str, Any], before: State) -> None:
        objects, receipts = report["objects"], report["receipts"]
        rows = {landed["uri"]: landed["rows"] for receipt in receipts for landed in receipt["objects"]}
        if objects:
            self.screen.title(f"\nObjects in {objects[0]['uri'].rpartition('/')[0]}/")
        for landed in objects:
            name = landed["uri"].rpartition("/")[2]
            self.screen.line(f"{name:<64} {rows[landed['uri']]:>9,} rows {landed['bytes']:>11,} bytes")
        self.screen.line(changes(before, _state(objects)))
        self.screen.title("\nReceipts")
        for text in receipts_in_words(receipts):
            self.screen.line(text)

    def _show_energy(self, table: pa.Table) -> None:
        import demo_report

        self.screen.title("\nEnergy in kWh")
        for each in demo_report.energy(table):
            taken, given = ("charged", "discharged") if each.stream_type == "CONVERTER" else ("imported", "exported")
            self.screen.line(
                f"{each.stream_type:<17} {each.sites:>5,} sites {each.taken - each.given:>13,.1f} net"
                f" {each.taken:>13,.1f} {taken:<8} {each.given:>11,.1f} {given}"
            )

    def _compare(self, table: pa.Table) -> None:
        self.screen.title("\nEvery landed row against the simulator's own values")
        if self.options.real:
            self.screen.line("Not with the real API: there is nothing to compare with but the API itself.")
            return
        import demo_report

        from airflow_provider_stem.simulator import Settings
        from airflow_provider_stem.simulator.model import Fleet

        began = time.monotonic()
        fleet = Fleet(Settings(sites=self.options.sites))
        found = demo_report.compare(demo_report.expected_rows(fleet, self.options.day, datetime.now(UTC)), table)
        counts = f"{found.missing:,} missing, {found.doubled:,} doubled, {found.off:,} off, {found.stray:,} unexpected"
        text = f"{found.landed:,} rows landed of {found.expected:,}: {counts}"
        if not found.same:
            raise DemoError(f"The landed rows differ from the simulator's: {text}.\nBegin anew with --fresh.")
        self.screen.done(text, began)

    def _draw(self, table: pa.Table, names: Mapping[str, str | None]) -> None:
        import demo_report

        began, day = time.monotonic(), self.options.day
        self.screen.title("\nPicture")
        if not len(table):
            self.screen.line("No row, no picture.")
            return
        site_id = demo_report.choose_site(table)
        name = f"{names[site_id]} ({site_id})" if names.get(site_id) else site_id
        path = self.options.folder / f"day-{day}.png"
        demo_report.draw(demo_report.curves(table, site_id, day), name, day, path)
        self.screen.done(f"{name}: {shown(path)}", began)


def changes(before: State, after: State) -> str:
    """Tell what became of the objects."""
    new = len(after.keys() - before.keys())
    changed = sum(1 for uri in after.keys() & before.keys() if after[uri] != before[uri])
    same = len(after) - new - changed
    if after and same == len(after):
        return f"{same:,} objects, unchanged"
    counts = ((new, "new"), (changed, "changed"), (same, "unchanged"))
    return f"{len(after):,} objects: " + (", ".join(f"{n:,} {what}" for n, what in counts if n) or "none")


def receipts_in_words(receipts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give the sum of the mapped tasks' receipts."""
    totals = {
        name: sum(receipt[name] for receipt in receipts)
        for name in ("rows", "expected", "missing", "requests", "sites", "unavailable_count", "failed_count")
    }
    windows = {(w["start"], w["end"], w["resolution"]) for w in (receipt["window"] for receipt in receipts)}
    for begin, until, resolution in sorted(windows):
        yield f"{'window':<13} {begin} to {until}, intervals of {resolution} s"
    yield f"{'sites':<13} {totals['sites']:,} in {len(receipts):,} tasks, {totals['requests']:,} requests"
    yield f"{'rows':<13} {totals['rows']:,} of {totals['expected']:,} expected, {totals['missing']:,} missing"
    yield f"{'unavailable':<13} {totals['unavailable_count']:,} streams that a site does not have"
    if totals["failed_count"]:
        yield f"{'failed':<13} {totals['failed_count']:,} sites"


def shown(path: Path) -> str:
    """Give a path as it is best read here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _state(objects: Sequence[Mapping[str, Any]]) -> State:
    return {landed["uri"]: (landed["etag"], landed["bytes"]) for landed in objects}


def _bucket_state(client: Any, bucket: str) -> State:
    """Create the bucket if need be, and list it."""
    if bucket not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    listed = [one for page in pages for one in page.get("Contents", ())]
    return {f"s3://{bucket}/{one['Key']}": (one["ETag"].strip('"'), one["Size"]) for one in listed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; gives the exit code."""
    began = time.monotonic()
    screen = Screen()
    try:
        with stoppable(), ExitStack() as stack:
            options = parse(arguments, os.environ)
            check_tools()
            Demo(options, screen).run(stack)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("\nStopped: the demo has ended everything that it had started.", file=sys.stderr)
        return 128 + stopped.signum
    screen.title(f"\nDone in {time.monotonic() - began:.0f} s; all that was started has ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
