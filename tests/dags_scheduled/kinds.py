"""One DAG for each kind of run; each has the operator and the sensor, where need be with default_interval too."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.metadata import version

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor

try:
    from airflow.sdk import CronPartitionTimetable, PartitionedAssetTimetable
except ImportError:  # before Airflow 3.2
    CronPartitionTimetable = PartitionedAssetTimetable = None  # type: ignore[assignment,misc]

BUCKET, BEGAN = os.environ["STEM_TEST_BUCKET"], pendulum.parse(os.environ["STEM_TEST_BEGAN"])
FROM_3_3 = tuple(map(int, version("apache-airflow").split(".")[:2])) >= (3, 3)
SITES = ["site-00001", "site-00002"]
DEFAULT = timedelta(hours=2)
HOURLY, DAILY_AT_SIX = "0 * * * *", "0 6 * * *"


def july(day, hour=0, minute=0):
    return pendulum.datetime(2025, 7, day, hour, minute, tz="UTC")


def dag(dag_id, schedule, start=july(1), end=None, **more):  # noqa: B008
    """A second attempt would come after an hour: what ends sooner has failed at once."""
    return DAG(
        dag_id,
        schedule=schedule,
        start_date=start,
        end_date=end,
        default_args={"retries": 2, "retry_delay": timedelta(hours=1)},
        **{"catchup": False, **more},
    )


def reads(suffix="", outlets=(), in_triggerer=False, **given):
    """Operator and sensor with the same arguments."""
    StemStreamsToS3Operator(task_id=f"land{suffix}", sites=SITES, s3_bucket=BUCKET, outlets=list(outlets), **given)
    StemStreamsSensor(task_id=f"wait{suffix}", sites=SITES, deferrable=True, **given)
    if in_triggerer and FROM_3_3:
        StemStreamsSensor(task_id=f"wait_in_triggerer{suffix}", sites=SITES, start_from_trigger=True, **given)


def reads_both_ways(**more):
    """Without an interval of the run's own: as it is, and with default_interval."""
    reads(**more)
    reads("_default", default_interval=DEFAULT, **more)


def produces(outlet, start, end, **more):
    StemStreamsToS3Operator(
        task_id="land", sites=SITES, s3_bucket=BUCKET, start=start, end=end, outlets=[outlet], **more
    )


# What the scheduler starts by itself: past runs, caught up with.
with dag("cron_data_interval", CronDataIntervalTimetable(HOURLY, timezone="UTC"), july(1, 4), july(1, 5), catchup=True):
    batches = StemSiteListOperator(task_id="sites", batches=4).output
    StemStreamsToS3Operator.partial(
        task_id="land", s3_bucket=BUCKET, outlets=[Asset("s3://lake/mapped")]
    ).expand_kwargs(batches)
    StemStreamsSensor.partial(task_id="wait").expand_kwargs(batches)
    if FROM_3_3:
        StemStreamsSensor(task_id="wait_in_triggerer", sites=SITES, start_from_trigger=True)

cron_with_interval = CronTriggerTimetable("5 6 * * *", timezone="UTC", interval=timedelta(hours=6))
with dag("cron_trigger_interval", cron_with_interval, july(1), july(1, 12), catchup=True):
    reads()

with dag("cron_trigger", CronTriggerTimetable(DAILY_AT_SIX, timezone="UTC"), july(1), july(1, 12), catchup=True):
    reads_both_ways()

with dag("plain_cron", DAILY_AT_SIX, july(1), july(1, 12), catchup=True):
    reads_both_ways(in_triggerer=True)

with dag("timedelta", timedelta(hours=6), july(1), july(1), catchup=True):
    reads_both_ways()

with dag("once", "@once", july(1, 6)):
    reads_both_ways()

with dag("continuous", "@continuous", BEGAN, max_active_runs=1):
    reads()

# What is started by hand.
for by in ("rest", "cli"):
    with dag(f"manual_{by}", None):
        reads_both_ways()
    with dag(f"manual_{by}_dated", None):
        reads_both_ways()
    hourly = CronDataIntervalTimetable(HOURLY, timezone="UTC")
    with dag(f"manual_{by}_data_interval_dated", hourly, july(1), july(1, 23)):
        reads()
    with dag(f"backfill_{by}", hourly, july(1), july(1, 23)):
        reads()

with dag("manual_rest_conf", None):
    reads(start="{{ dag_run.conf['start'] }}", end="{{ dag_run.conf['end'] }}")

# Its first run of itself would be next month.
with dag("manual_rest_data_interval", CronDataIntervalTimetable("@monthly", timezone="UTC"), BEGAN):
    reads_both_ways(resolution=3600)

# What assets start.
EARLIER, LATER = Asset("s3://lake/earlier"), Asset("s3://lake/later")
with dag("produces_earlier", None):
    produces(EARLIER, july(1, 10), july(1, 11))
with dag("produces_later", None):
    produces(LATER, july(1, 11), july(1, 12))
with dag("assets", [EARLIER, LATER]):
    reads(in_triggerer=True)

with dag("produces_alias", None):
    produces(AssetAlias("telemetry"), july(1, 12), july(1, 13))
with dag("asset_alias", [AssetAlias("telemetry")]):
    reads()

if CronPartitionTimetable is not None:
    DATED, BY_DATE = Asset("s3://lake/dated"), CronPartitionTimetable(DAILY_AT_SIX, timezone="UTC")
    with dag("cron_partition", BY_DATE, july(1), july(1, 12), catchup=True):
        reads(in_triggerer=True)
        reads("_default", default_interval=DEFAULT, outlets=[DATED], in_triggerer=True)
    with dag("asset_of_cron_partition", PartitionedAssetTimetable(assets=DATED)):
        reads()

if FROM_3_3:
    PARTITIONED = Asset("s3://lake/partitioned")
    with dag("produces_partitions", None):
        produces(PARTITIONED, july(1, 14), july(1, 16), partition_events=True)
    with dag("partitioned_asset", PartitionedAssetTimetable(assets=PARTITIONED)):
        reads(in_triggerer=True)
    with dag("asset_with_partition_events", [PARTITIONED]):
        reads()
