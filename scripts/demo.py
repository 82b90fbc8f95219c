"""
Run an example DAG on one day of telemetry, from the Stem API to S3 or a folder, and show what it landed.

Without connections in the environment, the demo starts the simulated API and an S3 server on this machine, and compares
every landed row with the simulator's values. With ``AIRFLOW_CONN_STEM_DEFAULT``, ``AIRFLOW_CONN_AWS_DEFAULT`` and
``STEM_DEMO_BUCKET``, it reads the real API and writes to the real bucket. With ``--store folder`` it needs no S3.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
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
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.servers.airflow_server import AirflowServer
from tests.servers.processes import ServerProcess, Stopped, stoppable
from tests.servers.s3 import S3Server

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
DAG_IDS = {"s3": "stem_streams_to_s3", "folder": "stem_streams_to_object_storage"}
LIST_TASK, LAND_TASK = "list_sites", "land_streams"
STEM, AWS, BUCKET = "AIRFLOW_CONN_STEM_DEFAULT", "AIRFLOW_CONN_AWS_DEFAULT", "STEM_DEMO_BUCKET"
WAREHOUSE = "AIRFLOW_CONN_STEM_WAREHOUSE"
LOCAL_BUCKET = "stem-telemetry"
PAST_DAY, SITES = date(2025, 7, 1), 20
NEEDED = ("airflow", "airflow_provider_stem", "boto3", "fastapi", "matplotlib", "numpy", "pyarrow", "uvicorn")
NEEDED_TO_KEEP = ("duckdb", "duckdb_provider")
# Everything that the demo creates in its folder. --fresh removes only these, because the folder may hold other files.
MADE = ("airflow", "lake", "landed", "s3", "airflow.log", "landed.log", "migrate.log", "warehouse.duckdb", "day-*.png")
# The path of a Unix socket has at most 107 characters, and the S3 server creates sockets in its folder.
LONGEST_FOLDER = 107 - len("/s3/filer.sock")

State: TypeAlias = dict[str, tuple[str, int]]
"""Objects by address: ETag and size."""


class DemoError(Exception):
    """An error that the user can correct. The message says how."""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings from the command line and the environment."""

    day: date
    sites: int
    folder: Path
    fresh: bool
    keep: bool
    real: bool
    store: str
    bucket: str


class Screen:
    """Prints progress and results, each line immediately."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def title(self, text: str) -> None:
        """Print a heading."""
        print(self._in("1", text), flush=True)

    def line(self, text: str) -> None:
        """Print an indented line."""
        print(f"  {text}", flush=True)

    def done(self, text: str, began: float) -> None:
        """Print a completed step and the seconds since it began."""
        print(f"  {self._in('32', 'ok')}  {text:<82} {time.monotonic() - began:5.1f} s", flush=True)

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str]) -> Options:
    """
    Parse the command line and the environment.

    :raises SystemExit: an argument is invalid.
    :raises DemoError: a connection or the bucket is missing.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2], prog="python -m scripts.demo")
    parser.add_argument("--day", type=date.fromisoformat, help=f"UTC day (default {PAST_DAY}; real API: yesterday)")
    parser.add_argument("--sites", type=int, help=f"number of simulated sites (default {SITES})")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="folder for all files (default .demo)")
    parser.add_argument("--fresh", action="store_true", help="remove the files of earlier runs first")
    parser.add_argument("--keep", action="store_true", help="load a warehouse, and leave everything open until Ctrl-C")
    parser.add_argument("--store", choices=DAG_IDS, default="s3", help="where to land (default: %(default)s)")
    given = parser.parse_args(arguments)
    real = bool(environ.get(STEM)) if given.store == "folder" else has_connections(environ)
    today = datetime.now(UTC).date()
    day = given.day or (today - timedelta(days=1) if real else PAST_DAY)
    if day >= today:
        parser.error(f"--day {day} has not ended (UTC). Use a past day.")
    if real and given.sites is not None:
        parser.error(f"--sites applies to the simulated API, but {STEM} is set. Remove one of them.")
    if given.sites is not None and given.sites < 1:
        parser.error(f"--sites must be >= 1, got {given.sites}")
    return Options(
        day=day,
        sites=given.sites or SITES,
        folder=given.folder.expanduser().absolute(),
        fresh=given.fresh,
        keep=given.keep,
        real=real,
        store=given.store,
        bucket=environ[BUCKET] if real and given.store == "s3" else LOCAL_BUCKET,
    )


def has_connections(environ: Mapping[str, str]) -> bool:
    """
    Return whether the environment has the connections to the real API and the real S3.

    :raises DemoError: only one of them is set, or the bucket is missing.
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


def check_tools(*, keep: bool) -> None:
    """
    Check that all required packages are installed.

    :raises DemoError: some are missing.
    """
    missing = [name for name in NEEDED + (NEEDED_TO_KEEP if keep else ()) if find_spec(name) is None]
    if missing:
        raise DemoError(
            f"Not installed for {sys.executable}: {', '.join(missing)}.\n"
            "Install them: pip install -e '.[simulator,duckdb]' --group demo"
        )


def isolate(environ: MutableMapping[str, str]) -> None:
    """Remove the user's settings for AWS and proxies, which must not apply to servers on loopback."""
    for name in [name for name in environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del environ[name]
    environ["AWS_CONFIG_FILE"] = environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    environ["AWS_EC2_METADATA_DISABLED"] = "true"


def airflow_environment(environ: Mapping[str, str], home: Path, connections: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a separate Airflow, without those of the user's Airflow."""
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
    """Return the secrets in a connection, which is JSON or a URI."""
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


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """
    Lock the folder.

    :raises DemoError: another demo is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"Another demo is running in {folder}.\nWait for it, or use another --folder.") from None
        yield


@dataclass
class Watch:
    """Reads the output of ``airflow dags test``, and prints each task that has ended."""

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
        Parse a line.

        :raises DemoError: a task has failed. Airflow would wait five minutes before it retries the task.
        """
        if match := self._BEGIN.search(line):
            self.end_task()  # Airflow 3.0 does not log the end
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
        """Print the current task, unless it has been printed."""
        if self.running:
            self.screen.done(f"  {self.task:<18} {self.note}", self.began)
            self.running, self.began = False, time.monotonic()

    def failure(self, what: str) -> DemoError:
        """Return the error for a failure."""
        why = f": {self.error}" if self.error else "."
        return DemoError(f"{what}{why}\nSee {shown(self.log)}, correct the cause, and run the demo again.")


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self.options = options
        self.screen = screen
        self.home = options.folder / "airflow"
        self.landed = options.folder / "landed"
        self.logical_date = datetime.combine(options.day + timedelta(days=1), datetime.min.time(), UTC)
        names = (STEM, AWS) if options.store == "s3" else (STEM,)
        self.connections = {name: os.environ[name] for name in names} if options.real else {}
        self.dag_id = DAG_IDS[options.store]
        self.lake = options.folder / "lake"
        self.addresses: dict[str, str] = {}
        self.objects_page = ""
        self.is_open = False
        self.warehouse = options.folder / "warehouse.duckdb"
        if options.keep:
            self.connections[WAREHOUSE] = json.dumps({"conn_type": "duckdb", "host": str(self.warehouse)})

    def run(self, stack: ExitStack) -> None:
        """Run all steps. Everything that is started ends with the stack."""
        self._prepare(stack)
        before = self._serve(stack)
        report = self._run_dag(stack)
        self._show_objects(report, before)
        if report["objects"]:
            from scripts import demo_report

            table = demo_report.read_objects([Path(landed["file"]) for landed in report["objects"]])
            self._show_energy(table)
            self._compare(table)
            self._draw(table, report["names"])
        else:
            self.screen.line("No object was landed.")
        if self.options.keep:
            self._keep_open(stack)

    def _prepare(self, stack: ExitStack) -> None:
        folder, options = self.options.folder, self.options
        if len(str(folder)) > LONGEST_FOLDER and options.store == "s3" and not options.real:
            raise DemoError(
                f"The path of {folder} is too long for the S3 server's socket.\nUse a shorter one: --folder /tmp/demo"
            )
        stack.enter_context(claimed(folder))
        if options.fresh:
            for made in [path for pattern in MADE for path in folder.glob(pattern)]:
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        source = "the real API" if options.real else f"{options.sites:,} simulated sites"
        to = "S3" if options.store == "s3" else "a folder"
        self.screen.title(f"Stem telemetry of {options.day} (UTC), {source}, to {to} through Airflow")

    def _serve(self, stack: ExitStack) -> State:
        """Start everything that the run needs, and return the objects that exist already."""
        began = time.monotonic()
        in_folder = self.options.store == "folder"
        if self.options.real:
            place = self.lake if in_folder else f"s3://{self.options.bucket}"
            self.screen.line(f"With your own connections, to {place}")
            before = self._state_of_last_run()
            migration = self._start_migration(stack)
        else:
            isolate(os.environ)
            migration = self._start_migration(stack)
            before = self._state_of_last_run() if in_folder else self._start_s3(stack, began)
            self._start_simulator(stack, began)
        if migration is not None:
            if migration.guard.wait():
                log = shown(self.options.folder / "migrate.log")
                raise DemoError(f"Airflow could not create its database.\nSee {log}, or start again with --fresh.")
            # `airflow dags test` of 3.0 does not run a task whose outlets no DAG processor has parsed.
            if version("apache-airflow").startswith("3.0."):
                log_path = self.options.folder / "migrate.log"
                self._start_airflow(stack, "dags", "reserialize", log=log_path).guard.wait()
            (self.home / "migrated").write_text(version("apache-airflow"))
        self.screen.done(f"Airflow {version('apache-airflow')}, with a separate database", began)
        return before

    def _start_migration(self, stack: ExitStack) -> ServerProcess | None:
        migrated = self.home / "migrated"
        if migrated.exists() and migrated.read_text() == version("apache-airflow"):
            return None
        # A database of another version, or of a run that was stopped during its migration, is removed.
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        log = self.options.folder / "migrate.log"
        log.unlink(missing_ok=True)
        return self._start_airflow(stack, "db", "migrate", log=log)

    def _start_airflow(self, stack: ExitStack, *arguments: str, log: Path | None) -> ServerProcess:
        return self._start(
            stack,
            # -P: no module in the current folder can shadow Airflow's.
            [sys.executable, "-P", "-m", "airflow", *arguments],
            log=log,
            environment=airflow_environment(os.environ, self.home, self.connections),
        )

    def _start(self, stack: ExitStack, command: Sequence[str], **options: Any) -> ServerProcess:
        process = ServerProcess(command, folder=self.home, **options)
        stack.callback(process.stop, patience=3)
        return process

    def _start_simulator(self, stack: ExitStack, began: float) -> None:
        from airflow_provider_stem.simulator import Settings, Simulator

        simulator = stack.enter_context(Simulator(Settings(sites=self.options.sites), keep_requests=False))
        self.connections[STEM] = simulator.connection
        schema = simulator.url.replace("/api/v1/", "/openapi.json")
        self.addresses["Stem API"] = f"{schema} (key {simulator.settings.api_key})"
        self.screen.done(f"Simulated Stem API at {simulator.url}", began)

    def _start_s3(self, stack: ExitStack, began: float) -> State:
        folder = self.options.folder / "s3"
        try:
            server = stack.enter_context(S3Server(folder))
        except RuntimeError as error:
            # Without the end of the log, which may follow.
            raise DemoError(f"{str(error).partition(' Its log ends with')[0]}\nSee {shown(folder / 'server.log')}, or "
                            "start again with --fresh.") from None  # fmt: skip
        self.connections[AWS] = server.connection
        self.objects_page = f"{server.browser_url}{self.options.bucket}/"
        self.addresses["S3"] = f"{server.url} (access key {server.access_key}, secret key {server.secret_key})"
        state = _bucket_state(server.client(), self.options.bucket)
        self.screen.done(f"S3 server at {server.url}, bucket {self.options.bucket}: {len(state)} objects", began)
        return state

    def _state_of_last_run(self) -> State:
        # The permission to list a real bucket may be missing, and it may hold other objects, as a folder may.
        path = self.landed / "landed.json"
        return _state(json.loads(path.read_text())["objects"]) if path.exists() else {}

    def _run_dag(self, stack: ExitStack) -> dict[str, Any]:
        began = time.monotonic()
        log_path = self.options.folder / "airflow.log"
        self.screen.line(f"    airflow dags test {self.dag_id} {self.logical_date:%Y-%m-%d}   (log: {shown(log_path)})")
        reader = self._start_reader(stack)
        in_folder = self.options.store == "folder"
        conf = json.dumps({"path": f"file://{self.lake}/"} if in_folder else {"bucket": self.options.bucket})
        # On this timetable, the data interval ends at the logical date.
        arguments = ("dags", "test", "--conf", conf, self.dag_id, self.logical_date.isoformat())
        airflow = self._start_airflow(stack, *arguments, log=None)
        watch = Watch(self.screen, log_path)
        # The longest first, because a secret may contain another.
        secrets = sorted({s for c in self.connections.values() for s in secrets_of(c)}, key=len, reverse=True)
        with log_path.open("w", buffering=1) as log:
            for line in airflow.guard.stdout or ():
                for secret in secrets:
                    line = line.replace(secret, "***")  # noqa: PLW2901
                log.write(line)
                watch.read(line)
        if code := airflow.guard.wait():
            raise watch.failure(f"Airflow ended with exit code {code}")
        watch.end_task()
        self.screen.done("Airflow's run of the DAG: success", began)
        return self._read_back(reader)

    def _start_reader(self, stack: ExitStack) -> ServerProcess:
        """Start the program that reads the results during the run: its imports take as long as a small run."""
        script = str(Path(__file__).resolve().with_name("demo_landed.py"))
        log = self.options.folder / "landed.log"
        log.unlink(missing_ok=True)
        connections = {name: value for name, value in self.connections.items() if name in (AWS, WAREHOUSE)}
        return self._start(
            stack,
            [sys.executable, "-P", script, self.dag_id, LIST_TASK, LAND_TASK, str(self.landed)],
            log=log,
            environment=airflow_environment(os.environ, self.home, connections),
            stdin=subprocess.PIPE,
        )

    def _read_back(self, reader: ServerProcess) -> dict[str, Any]:
        began = time.monotonic()
        shutil.rmtree(self.landed, ignore_errors=True)
        self.landed.mkdir()
        reader.guard.communicate(f"{self.logical_date.isoformat()}\n")
        if reader.guard.returncode:
            log = shown(self.options.folder / "landed.log")
            raise DemoError(f"The receipts and objects of the run could not be read.\nSee {log}.")
        report: dict[str, Any] = json.loads((self.landed / "landed.json").read_text())
        self.screen.done("Receipts read from XCom, and the objects that they list", began)
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
        from scripts import demo_report

        self.screen.title("\nEnergy in kWh")
        for each in demo_report.energy(table):
            taken, given = ("charged", "discharged") if each.stream_type == "CONVERTER" else ("imported", "exported")
            self.screen.line(
                f"{each.stream_type:<17} {each.sites:>5,} sites {each.taken - each.given:>13,.1f} net"
                f" {each.taken:>13,.1f} {taken:<8} {each.given:>11,.1f} {given}"
            )

    def _compare(self, table: pa.Table) -> None:
        self.screen.title("\nComparison of every landed row with the simulator")
        if self.options.real:
            self.screen.line("Not available with the real API.")
            return
        from airflow_provider_stem.simulator import Settings
        from airflow_provider_stem.simulator.model import Fleet
        from scripts import demo_report

        began = time.monotonic()
        fleet = Fleet(Settings(sites=self.options.sites))
        found = demo_report.compare(demo_report.expected_rows(fleet, self.options.day, datetime.now(UTC)), table)
        counts = f"{found.missing:,} missing, {found.doubled:,} doubled, {found.off:,} off, {found.stray:,} unexpected"
        text = f"{found.landed:,} rows landed of {found.expected:,}: {counts}"
        if not found.same:
            raise DemoError(f"The landed rows differ from the simulator's: {text}.\nStart again with --fresh.")
        self.screen.done(text, began)

    def _draw(self, table: pa.Table, names: Mapping[str, str | None]) -> None:
        from scripts import demo_report

        began, day = time.monotonic(), self.options.day
        self.screen.title("\nPicture")
        if not len(table):
            self.screen.line("There is no row to draw.")
            return
        site_id = demo_report.choose_site(table)
        name = f"{names[site_id]} ({site_id})" if names.get(site_id) else site_id
        path = self.options.folder / f"day-{day}.png"
        demo_report.draw(demo_report.curves(demo_report.landed_rows(table), site_id, day), name, day, path)
        self.screen.done(f"{name}: {shown(path)}", began)

    def _keep_open(self, stack: ExitStack) -> None:
        """
        Start Airflow on the database of the run, print all addresses, and wait for a signal.

        :raises DemoError: Airflow does not start, or ends.
        """
        self.screen.title("\nStarting Airflow")
        began = time.monotonic()
        environment = {
            **self.connections,
            "STEM_BUCKET": self.options.bucket,
            "STEM_LAKE": f"s3://{self.options.bucket}/stem",
        }
        server = AirflowServer(self.home, ROOT / "example_dags", environment=environment, paused=True)
        try:
            airflow = stack.enter_context(server)
            airflow.wait_for_dags(self.dag_id)
        except RuntimeError as error:
            raise DemoError(f"Airflow did not start: {error}") from None
        self.screen.done("All components are healthy", began)
        page = f"{airflow.url}/dags/{self.dag_id}{'/grid' if airflow.version.startswith('2.') else ''}"
        self.is_open = True
        self.addresses = {
            "Airflow": f"{airflow.url} (no login)",
            **self.addresses,
            "Warehouse": f"{shown(self.warehouse)} (DuckDB)",
        }
        self.screen.title("\nOpen until Ctrl-C")
        for name, address in self.addresses.items():
            self.screen.line(f"{name:<10} {address}")
        self.screen.title("\nTo try")
        self.screen.line(f"See the run, its tasks, logs and receipts (XCom): {page}")
        if self.objects_page:
            self.screen.line(f"See the objects: {self.objects_page}")
            self.screen.line("Load three more days into the warehouse: unpause the DAG stem_warehouse in Airflow")
        query = f"import duckdb; duckdb.connect('{self.warehouse}').sql('FROM stem.energy').show()"
        self.screen.line(f'Query the warehouse: {shown(Path(sys.executable))} -c "{query}"')
        while not (ended := airflow.ended()):
            time.sleep(1)
        raise DemoError(f"{', '.join(ended)} ended.\nSee {shown(airflow.log_file)}.")


def changes(before: State, after: State) -> str:
    """Return a line that counts new, changed and unchanged objects."""
    new = len(after.keys() - before.keys())
    changed = sum(1 for uri in after.keys() & before.keys() if after[uri] != before[uri])
    same = len(after) - new - changed
    if after and same == len(after):
        return f"{same:,} objects, unchanged"
    counts = ((new, "new"), (changed, "changed"), (same, "unchanged"))
    return f"{len(after):,} objects: " + (", ".join(f"{n:,} {what}" for n, what in counts if n) or "none")


def receipts_in_words(receipts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return lines with the totals of the receipts of all mapped tasks."""
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
    """Return a path relative to the current folder, if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _state(objects: Sequence[Mapping[str, Any]]) -> State:
    return {landed["uri"]: (landed["etag"], landed["bytes"]) for landed in objects}


def _bucket_state(client: Any, bucket: str) -> State:
    """Create the bucket unless it exists, and list its objects."""
    if bucket not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    listed = [one for page in pages for one in page.get("Contents", ())]
    return {f"s3://{bucket}/{one['Key']}": (one["ETag"].strip('"'), one["Size"]) for one in listed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, and return the exit code."""
    began = time.monotonic()
    screen = Screen()
    demo: Demo | None = None
    try:
        with stoppable(), ExitStack() as stack:
            options = parse(arguments, os.environ)
            check_tools(keep=options.keep)
            demo = Demo(options, screen)
            demo.run(stack)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("\nStopped: all programs that the demo started have ended.", file=sys.stderr)
        return 0 if demo is not None and demo.is_open else 128 + stopped.signum
    screen.title(f"\nDone in {time.monotonic() - began:.0f} s. All programs that the demo started have ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
