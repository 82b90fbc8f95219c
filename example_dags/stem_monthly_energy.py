"""
Land each day as a partition, and compute a month's energy once all its days have landed (Airflow 3.3 or later).

Needs the connections ``stem_default`` and ``aws_default``. On older versions of Airflow the file has no DAG.
"""

from __future__ import annotations

# [START monthly]
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, task

from airflow_provider_stem.assets import combined, landed_objects
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

BUCKET = "stem-telemetry"

try:
    from airflow.sdk import (
        CronPartitionTimetable,
        MonthWindow,
        PartitionedAssetTimetable,
        RollupMapper,
        StartOfMonthMapper,
    )
except ImportError:
    pass
else:
    # Airflow's UI shows the names.
    DAYS = Asset(name="stem_days", uri=f"s3://{BUCKET}/stem/stem_days", group="stem")
    ENERGY = Asset(name="stem_monthly_energy", uri=f"s3://{BUCKET}/energy/monthly", group="stem")

    with DAG(
        dag_id="stem_days",
        description="Stem's telemetry, one partition a day",
        # The run after midnight has the partition of the day before.
        schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
        start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
        catchup=False,
        tags=["stem", "energy"],
    ):
        sites = StemSiteListOperator(task_id="list_sites", batches=8)
        land = StemStreamsToS3Operator.partial(
            task_id="land_streams", default_interval=timedelta(days=1), s3_bucket=BUCKET
        ).expand_kwargs(sites.output)

        @task(outlets=[DAYS])
        def emit(receipts: Any, **context: Any) -> None:
            """Emit one event for the day."""
            context["outlet_events"][DAYS].extra.update(combined(receipts))

        emit(land.output)

    with DAG(
        dag_id="stem_monthly_energy",
        description="Energy of each site, stream type and month, once all days have landed",
        schedule=PartitionedAssetTimetable(
            assets=DAYS,
            default_partition_mapper=RollupMapper(
                upstream_mapper=StartOfMonthMapper(input_format="%Y-%m-%d"), window=MonthWindow()
            ),
        ),
        start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
        catchup=False,
        tags=["stem", "energy"],
    ):

        @task(outlets=[ENERGY])
        def sum_up(**context: Any) -> list[dict[str, Any]]:
            """Return the kWh of each stream in the month, of how many intervals it is, and how many the month has."""
            import pyarrow as pa
            import pyarrow.compute as pc
            import pyarrow.parquet as pq
            from airflow.providers.amazon.aws.hooks.s3 import S3Hook

            keys, s3 = ["site_id", "stream_type", "resolution"], S3Hook()
            days = []  # the sums of each object: the memory does not depend on the number of rows in a month
            for landed in landed_objects(context):
                bucket, key = s3.parse_s3_url(landed["uri"])
                body = s3.get_conn().get_object(Bucket=bucket, Key=key)["Body"].read()
                rows = pq.read_table(pa.BufferReader(body))
                hours = pc.divide(rows["resolution"].cast(pa.float64()), 3600.0)
                kwh = rows.append_column("kwh", pc.multiply(rows["kw_total_avg"], hours))
                # An unknown value is left out, not 0. The sum is null if no value is known.
                days.append(kwh.group_by(keys).aggregate([("kwh", "sum"), ("kwh", "count")]))
            if not days:
                raise AirflowSkipException("No event of a day started this run.")
            seconds = pendulum.from_format(context["dag_run"].partition_key, "YYYY-MM").days_in_month * 86_400
            month = pa.concat_tables(days).group_by(keys).aggregate([("kwh_sum", "sum"), ("kwh_count", "sum")])
            energy = month.rename_columns([*keys, "kwh", "intervals"]).to_pylist()
            return [row | {"intervals_in_month": seconds // row["resolution"]} for row in energy]

        sum_up()
    # [END monthly]
