"""Create the pictures of the documentation, with a real Airflow, the simulator and an S3 server."""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import progress
from tests.servers.airflow_pages import Connections3, MappedTask3, browse
from tests.servers.airflow_server import AirflowServer
from tests.servers.s3 import S3Server

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Page

    from airflow_provider_stem.simulator import Simulator

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
KEY = "your-api-key"
DAG_ID, TASK_ID, BUCKET = "stem_streams_to_s3", "land_streams", "stem-telemetry"
CONN_ID = "stem_default"


@dataclass(frozen=True, slots=True)
class Scene:
    """The servers and the browser page that the screenshots use."""

    airflow: AirflowServer
    simulator: Simulator
    page: Page


@contextmanager
def scene() -> Iterator[Scene]:
    """Start Airflow, the servers that it uses, and a browser."""
    from airflow_provider_stem.simulator import Settings, Simulator

    with (
        tempfile.TemporaryDirectory(prefix="stem-") as folder,
        Simulator(Settings(api_key=KEY, sites=40)) as simulator,
        S3Server(Path(folder, "s3")) as s3,
    ):
        s3.client().create_bucket(Bucket=BUCKET)
        environment = {
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        home = Path(folder, "airflow")
        progress("Starting Airflow")
        with (
            AirflowServer(home, ROOT / "example_dags", environment=environment, paused=True) as airflow,
            browse(1200, 1000) as page,
        ):
            yield Scene(airflow, simulator, page)


def connection_form(scene: Scene) -> Image:
    """Fill in and save the form, and return both of its sections."""
    import PIL.Image

    connections = Connections3(scene.page, scene.airflow.url)
    host, port = scene.simulator.url.split("/")[2].split(":")
    connections.add(CONN_ID)
    for name, text in {"host": host, "password": KEY, "port": port, "schema": "http"}.items():
        connections.fill(name, text)
    standard = form_of(connections)
    for name, text in {"timeout": "30", "verify": "true"}.items():
        connections.fill(name, text)
    options = form_of(connections)
    connections.save()
    both = PIL.Image.new("RGB", (standard.width + options.width, max(standard.height, options.height)), "white")
    both.paste(standard, (0, 0))
    both.paste(options, (standard.width, 0))
    return both


def form_of(connections: Connections3) -> Image:
    """Return the form without its rounded corners."""
    picture = picture_of(connections.form.screenshot(animations="disabled"))
    return picture.crop((8, 8, picture.width - 8, picture.height - 8))


def connection_test_passed(scene: Scene) -> Image:
    """Return the list after a successful test."""
    return after_test(scene, KEY, passes=True)


def connection_test_failed(scene: Scene) -> Image:
    """Return the list after a test with a wrong key."""
    return after_test(scene, "another-key", passes=False)


def after_test(scene: Scene, key: str, *, passes: bool) -> Image:
    """
    Test the connection with a key, and return the list with the message.

    :raises RuntimeError: the result is not the expected one.
    """
    connections = Connections3(scene.page, scene.airflow.url)
    connections.edit(CONN_ID)
    connections.fill("password", key)
    connections.save()
    scene.page.set_viewport_size({"width": 1200, "height": 420})
    if connections.test(CONN_ID)[0] is not passes:
        raise RuntimeError(f"The test of the connection should have {'passed' if passes else 'failed'}.")
    return picture_of(scene.page.screenshot(animations="disabled"))


def mapped_run_grid(scene: Scene) -> Image:
    """
    Return the instances of the mapped task after a run of the example DAG.

    :raises RuntimeError: the run fails.
    """
    airflow = scene.airflow
    connections = Connections3(scene.page, airflow.url)
    connections.edit(CONN_ID)
    connections.fill("password", KEY)
    connections.save()
    airflow.wait_for_dags(DAG_ID)
    airflow.call("PATCH", f"dags/{DAG_ID}", json={"is_paused": False})
    run_id = airflow.wait_until(lambda: airflow.runs(DAG_ID), f"a run of {DAG_ID}")[0]["dag_run_id"]
    if (state := airflow.wait_for_run(DAG_ID, run_id)) != "success":
        raise RuntimeError(f"The run of {DAG_ID} ended with the state {state}.")
    names = [task["rendered_map_index"] for task in airflow.tasks(DAG_ID, run_id) if task["task_id"] == TASK_ID]
    scene.page.set_viewport_size({"width": 1500, "height": 840})
    MappedTask3(scene.page, airflow.url).open(DAG_ID, run_id, TASK_ID, names)
    # Without the navigation bar.
    return picture_of(
        scene.page.screenshot(animations="disabled", clip={"x": 64, "y": 0, "width": 1436, "height": 840})
    )


def completeness(scene: Scene) -> Image:
    """Return the completeness page, with the pointer on a day with missing intervals."""
    from airflow_provider_stem.completeness import write_page

    first = date(2025, 7, 1)
    days = [first + timedelta(n) for n in range(90)]
    with tempfile.NamedTemporaryFile(suffix=".html") as file:
        made = datetime(2025, 9, 29, 6, 0, 12, tzinfo=UTC)
        write_page(completeness_rows(days), file.file, first_day=first, last_day=days[-1], made=made)
        file.flush()
        scene.page.set_viewport_size({"width": 1320, "height": 900})
        scene.page.goto(f"file://{file.name}")
        scene.page.locator("#canvas[data-ready]").wait_for()
        scene.page.locator("#canvas").hover(position={"x": 480, "y": 319})
        scene.page.locator("#tip").wait_for()
        return picture_of(scene.page.screenshot(animations="disabled"))


def completeness_rows(days: list[date]) -> Iterator[tuple[str, str, int, date, int, int, int, str]]:
    """Iterate over rows of simulated sites, some with gaps, losses or late values, and one bad day for all sites."""
    from airflow_provider_stem.simulator import Settings
    from airflow_provider_stem.simulator.model import Fleet

    drawn = random.Random(7)  # noqa: S311 - not for cryptography
    fleet = Fleet(Settings(sites=400))
    bad_day = days[57]
    for site_id in fleet.site_ids:
        begin = days[drawn.randrange(len(days))] if drawn.random() < 0.04 else days[0]
        out = drawn.randrange(len(days)) if drawn.random() < 0.12 else len(days)
        back = out + drawn.choice([1, 2, 2, 4, 9, 20])
        lossy, tardy = drawn.random() < 0.06, drawn.random() < 0.1
        for stream_type in sorted(fleet.site(site_id).stream_start_times):
            for number, day in enumerate(days):
                expected = 96 if day >= begin else 0
                lost = 96 if out < number < back else drawn.randrange(97) if number in (out, back) else 0
                if (lossy and drawn.random() < 0.12) or (day == bad_day and drawn.random() < 0.3):
                    lost = max(lost, drawn.randrange(1, 24))
                received = max(0, expected - lost)
                late = drawn.randrange(1, 20) if received and drawn.random() < (0.15 if tardy else 0.002) else 0
                late = min(late, received)
                status = "missing" if received < expected else "late" if late else "complete"
                yield (
                    site_id, stream_type, 900, day, expected, received, late, status if expected else "not expected",
                )  # fmt: skip


def site_day(scene: Scene) -> Image:
    """Return the plot that the demo draws of a day of a site."""
    import PIL.Image

    from scripts import demo_report

    site_id, day = "site-00004", date(2025, 7, 1)
    fleet = scene.simulator.fleet
    rows = demo_report.expected_rows(fleet, day, datetime.now(UTC)).items()
    name = f"{fleet.site_name(fleet.site_index(site_id))} ({site_id})"
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        demo_report.draw(demo_report.curves(rows, site_id, day), name, day, Path(file.name))
        return PIL.Image.open(io.BytesIO(file.read()))


def picture_of(png: bytes) -> Image:
    """Decode a screenshot."""
    import PIL.Image

    return PIL.Image.open(io.BytesIO(png)).convert("RGB")


def write(picture: Image, path: Path) -> None:
    """Write a picture, and print its size."""
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {picture.width} x {picture.height}  {path.stat().st_size / 1000:.0f} kB")


# In this order: each uses the connection that the previous one has left.
SCREENSHOTS: dict[str, Callable[[Scene], Image]] = {
    "connection-form": connection_form,
    "connection-test-passed": connection_test_passed,
    "connection-test-failed": connection_test_failed,
    "mapped-run-grid": mapped_run_grid,
    "completeness": completeness,
    "site-day": site_day,
}


def main() -> int:
    """Create all pictures, and return the exit code."""
    # The user's own settings must not appear.
    for name in [name for name in os.environ if name.startswith(("AIRFLOW", "AWS_"))]:
        del os.environ[name]
    with scene() as started:
        for name, take in SCREENSHOTS.items():
            progress(name)
            write(take(started), IMAGES / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
