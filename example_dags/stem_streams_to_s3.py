"""
List the sites, land yesterday's telemetry in S3, and log a summary, every day.

Needs the connections ``stem_default``, with the API key as Password, and ``aws_default``, and the bucket below.
"""

from __future__ import annotations

import logging
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset, task
from airflow.timetables.interval import CronDataIntervalTimetable

from airflow_provider_stem.assets import combined
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator

log = logging.getLogger(__name__)

TELEMETRY = Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")

with DAG(
    dag_id="stem_streams_to_s3",
    description="Stem's site, battery and revenue meter telemetry, daily, as Parquet in S3",
    # On Airflow 3 the runs of a plain "@daily" have no data interval.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=2,
    params={"bucket": "stem-telemetry"},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:
    # [START list_sites_in_batches]
    # Each batch is one task and one object per day. A site stays in its batch if other sites are added or removed.
    sites = StemSiteListOperator(task_id="list_sites", batches=8)
    # [END list_sites_in_batches]

    # [START land_streams]
    land = StemStreamsToS3Operator.partial(
        task_id="land_streams",
        stream_types=["MONITOR", "CONVERTER", "INTERVAL_REVENUE"],
        s3_bucket="{{ params.bucket }}",
    ).expand_kwargs(sites.output)
    # [END land_streams]

    # One asset event for all batches of a run, which starts stem_energy_from_asset.py.
    @task(outlets=[TELEMETRY])
    def summarise(receipts: list[dict[str, Any]], **context: Any) -> dict[str, dict[str, float]]:
        """Read the landed objects, return rows and energy by stream type, and list the objects in the asset event."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        # As a slice: when receipts of mapped tasks are iterated over, Airflow 3 logs an error after the last one.
        receipts = receipts[:]
        s3 = S3Hook()
        tables = []
        for receipt in receipts:
            for landed in receipt["objects"]:
                bucket, key = s3.parse_s3_url(landed["uri"])
                body = s3.get_conn().get_object(Bucket=bucket, Key=key)["Body"].read()
                tables.append(
                    pq.read_table(pa.BufferReader(body), columns=["stream_type", "resolution", "kw_total_avg"])
                )
        rows = pa.concat_tables(tables)
        energy = pc.divide(pc.multiply(rows["kw_total_avg"], rows["resolution"].cast(pa.float64())), 3600.0)
        totals = (
            rows.append_column("kwh", energy)
            .group_by("stream_type")
            .aggregate([("kwh", "sum"), ("kwh", "count")])
            .sort_by("stream_type")
        )
        summary = {
            row["stream_type"]: {"rows": row["kwh_count"], "kwh": round(row["kwh_sum"], 3)}
            for row in totals.to_pylist()
        }
        for stream_type, figures in summary.items():
            log.info("%-16s %9s rows %14s kWh net", stream_type, f"{figures['rows']:,}", f"{figures['kwh']:,.0f}")
        missing = sum(receipt["missing"] for receipt in receipts)
        log.info("%s rows landed, %s missing", f"{rows.num_rows:,}", f"{missing:,}")
        context["outlet_events"][TELEMETRY].extra.update(combined(receipts))
        return summary

    summarise(land.output)
