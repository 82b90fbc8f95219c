"""Tasks that end in every way that there is, among them each class of failure."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor

BUCKET = os.environ["STEM_TEST_BUCKET"]
FROM_3_3 = tuple(map(int, version("apache-airflow").split(".")[:2])) >= (3, 3)
HOUR: Any = {"start": "2025-07-01T00:00Z", "end": "2025-07-01T01:00Z"}
# Beyond the end of all data: these wait until their time is over.
NEVER = {"start": "2035-07-01T00:00Z", "end": "2035-07-01T01:00Z"}
FAULTS = (
    "400",
    "401",
    "403",
    "429",
    "500",
    "503",
    "html",
    "cut_json",
    "cut_body",
    "empty",
    "error_200",
    "redirect",
    "reset",
)


def land(task_id: str, **given: Any) -> None:
    StemStreamsToS3Operator(task_id=task_id, **{"sites": ["site-00001"], "s3_bucket": BUCKET, **HOUR, **given})


with DAG(
    "every_outcome",
    schedule=None,
    start_date=pendulum.datetime(2025, 7, 1, tz="UTC"),
    default_args={"retries": 1, "retry_delay": timedelta(seconds=1)},
):
    batches = StemSiteListOperator(task_id="sites", batches=3).output
    StemStreamsToS3Operator.partial(task_id="land_mapped", s3_bucket=BUCKET, **HOUR).expand_kwargs(batches)
    StemStreamsSensor.partial(task_id="wait_mapped", deferrable=True, **HOUR).expand_kwargs(batches)
    StemStreamsSensor(task_id="wait_reschedule", sites=["site-00001"], mode="reschedule", **HOUR)
    never: dict[str, Any] = {"sites": ["site-00001"], "poke_interval": 1, "timeout": 3, "retries": 0, **NEVER}
    StemStreamsSensor(task_id="wait_in_vain", deferrable=True, **never)
    if FROM_3_3:
        StemStreamsSensor(task_id="wait_in_triggerer", sites=["site-00001"], start_from_trigger=True, **HOUR)
        StemStreamsSensor(task_id="wait_in_triggerer_in_vain", start_from_trigger=True, **never)

    for fault in FAULTS:
        land(f"land_fails_{fault}", sites=[f"site-{fault}"])
        StemStreamsSensor(task_id=f"wait_fails_{fault}", sites=[f"site-{fault}"], deferrable=True, **HOUR)
    land("land_fails_unknown_site", sites=["site-99999"])
    land("land_fails_wrong_key", stem_conn_id="stem_wrong_key")
    land("land_fails_nobody_listens", stem_conn_id="stem_nobody_listens")
    land("land_fails_no_connection", stem_conn_id="stem_not_there")
    land("land_fails_bad_connection", stem_conn_id="stem_bad")
    land("land_fails_no_bucket", s3_bucket="no-such-bucket")
    land("land_fails_without_rows", on_empty="fail", start="2001-01-01T00:00Z", end="2001-01-01T01:00Z")
    # Of templates, since else the DAG itself would fail.
    land("land_fails_bad_interval", start="{{ '2025-07-01T01:00Z' }}", end="{{ '2025-07-01T00:00Z' }}")

    @task
    def shows_all_that_it_has() -> None:
        """Print a traceback with every local variable, and each object in every form, as careless code does."""
        hook = StemHook()
        client = hook.get_conn()
        for thing in (hook, client, vars(hook)):
            print(repr(thing), str(thing))  # noqa: T201
        try:
            with final_errors("stem_default"):
                client.get_site("site-500")
        except Exception as exc:
            print("".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format()))  # noqa: T201
            traceback.print_exc(file=sys.stdout)
        raise RuntimeError(f"{hook!r} {client!r}")

    shows_all_that_it_has()
