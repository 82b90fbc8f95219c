"""
Compute energy from landed streams whenever an asset event lists new objects.

Runs after ``stem_streams_to_s3``, which lists the landed objects in an event of the asset below. Needs the connection
``aws_default``. For each landed object, writes one object with energy by site, type and UTC day under ``energy/``.
"""

from __future__ import annotations

import logging
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, Asset, task

from airflow_provider_stem.assets import landed_objects

log = logging.getLogger(__name__)

# [START schedule_on_asset]
with DAG(
    dag_id="stem_energy_from_asset",
    description="Energy and peak demand of newly landed streams",
    schedule=[Asset("s3://stem-telemetry/stem/stem_streams_to_s3/land_streams")],
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task
    def list_objects(**context: Any) -> list[dict[str, Any]]:
        """List the objects of the asset events that triggered the run."""
        return landed_objects(context)

    # [END schedule_on_asset]

    @task
    def sum_up(landed: dict[str, Any]) -> dict[str, Any]:
        """Compute energy from the average power in an object, and write it to a separate key."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3 = S3Hook()
        bucket, key = s3.parse_s3_url(landed["uri"])
        body = s3.get_conn().get_object(Bucket=bucket, Key=key)["Body"].read()
        rows = pq.read_table(pa.BufferReader(body))
        if rows.num_rows != landed["rows"]:
            raise ValueError(f"{landed['uri']} has {rows.num_rows} rows, its event lists {landed['rows']}")

        hours = pc.divide(rows["resolution"].cast(pa.float64()), 3600.0)
        power = rows["kw_total_avg"]
        # Import and export are separated before they are summed, or they would cancel each other within a day.
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
        # The key depends only on the object's key, so a repeated run replaces its own result.
        s3.load_bytes(file.getvalue().to_pybytes(), f"energy/{key}", bucket, replace=True)
        log.info("%s: %s rows to %s", landed["uri"], f"{rows.num_rows:,}", f"s3://{bucket}/energy/{key}")
        return {"uri": f"s3://{bucket}/energy/{key}", "rows": energy.num_rows}

    sum_up.expand(landed=list_objects())
