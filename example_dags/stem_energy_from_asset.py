"""
Whenever streams have landed: sum up what the events tell of, and nothing else.

Runs after ``stem_streams_to_s3``, which tells the asset below what it landed. Needs the connection
``aws_default``. Each landed object gives one object of energy by site, type and UTC day beside it, under ``energy/``.
"""

from __future__ import annotations

import logging
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_stem.assets import landed_objects

log = logging.getLogger(__name__)

with DAG(
    dag_id="stem_energy_from_asset",
    description="Energy and peak demand of what has just landed",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task
    def objects_of_the_events(**context: Any) -> list[dict[str, Any]]:
        """List the objects that the triggering events tell of."""
        return landed_objects(context)

    @task
    def sum_up(landed: dict[str, Any]) -> dict[str, Any]:
        """Turn an object's average power into energy, and land that under a key of its own."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3 = S3Hook()
        bucket, key = s3.parse_s3_url(landed["uri"])
        body = s3.get_conn().get_object(Bucket=bucket, Key=key)["Body"].read()
        rows = pq.read_table(pa.BufferReader(body))
        if rows.num_rows != landed["rows"]:
            raise ValueError(f"{landed['uri']} has {rows.num_rows} rows, its event told of {landed['rows']}")

        hours = pc.divide(rows["resolution"].cast(pa.float64()), 3600.0)
        power = rows["kw_total_avg"]
        # Import and export are split before they are summed: within a day they would cancel each other.
        imported = pc.multiply(pc.max_element_wise(power, 0.0, skip_nulls=False), hours)
        exported = pc.negate(pc.multiply(pc.min_element_wise(power, 0.0, skip_nulls=False), hours))
        energy = (
            pa.table(
                {
                    "site_id": rows["site_id"],
                    "stream_type": rows["stream_type"],
                    "day": pc.floor_temporal(rows["interval_start"], unit="day"),
                    "kwh_import": imported,
                    "kwh_export": exported,
                    "peak_kw": power,
                }
            )
            .group_by(["site_id", "stream_type", "day"])
            .aggregate([("kwh_import", "sum"), ("kwh_export", "sum"), ("peak_kw", "max"), ("peak_kw", "count")])
            .sort_by([("site_id", "ascending"), ("stream_type", "ascending"), ("day", "ascending")])
        )
        file = pa.BufferOutputStream()
        pq.write_table(energy, file, compression="zstd")
        # The same object gives the same key: loaded again, it replaces itself.
        s3.load_bytes(file.getvalue().to_pybytes(), f"energy/{key}", bucket, replace=True)
        log.info("%s: %s rows to %s", landed["uri"], f"{rows.num_rows:,}", f"s3://{bucket}/energy/{key}")
        return {"uri": f"s3://{bucket}/energy/{key}", "rows": energy.num_rows}

    sum_up.expand(landed=objects_of_the_events())
