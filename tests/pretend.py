"""A stream type and a file format that are added from outside, and a run with both from the API to a warehouse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, BinaryIO, Literal

import duckdb
import pyarrow as pa

from airflow_provider_stem.simulator import stream_types as simulated
from airflow_provider_stem.streams import formats, stream_types
from airflow_provider_stem.streams.formats import FORMATS, FileFormat

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")


class Arrow(FileFormat):
    """Arrow IPC files."""

    name = "arrow"
    compressions = ("none",)

    def write(self, batches: Iterable[pa.RecordBatch], file: BinaryIO, compression: str, parquet_encoding: str) -> int:  # noqa: ARG002
        from airflow_provider_stem.streams.formats.columns import regrouped
        from airflow_provider_stem.streams.tables import LANDING_SCHEMA

        rows = 0
        with pa.ipc.new_file(file, LANDING_SCHEMA) as writer:
            for table in regrouped(batches, 2**14):
                writer.write_table(table.combine_chunks())
                rows += table.num_rows
        return rows

    def recognizes(self, head: bytes) -> bool:
        return head.startswith(b"ARROW1")

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def add() -> None:
    """Add an entry to each table, as a contributor does in the package. Everything else follows at import."""
    simulated.STREAM_TYPES["SOLAR"] = simulated.StreamType(
        "the solar panels (negative: generation)", attrgetter("load"), lambda _index, monitor, _draw: monitor + 900
    )
    stream_types.STREAM_TYPES["SOLAR"] = stream_types.StreamType(
        "solar panels", "positive is consumption, negative generation", ("panels_kwh", "generation_kwh")
    )
    FORMATS["arrow"] = Arrow()
    vars(formats)["FormatName"] = Literal[*FORMATS]


def main(bucket: str, warehouse: str) -> None:
    """List, land twice, load, and print what came of it as JSON."""
    from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
    from airflow_provider_stem.simulator import Settings, Simulator
    from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator
    from tests.support import expected_rows, run_context

    def land(sites: Any) -> Any:
        task = StemStreamsToS3Operator(
            task_id="land", sites=sites, stream_types=["MONITOR", "SOLAR"], file_format="arrow",
            partition="day", s3_bucket=bucket,
        )  # fmt: skip
        return task.execute(run_context(*DAY))

    with Simulator(Settings(sites=3, clients=1)) as sim:
        os.environ["AIRFLOW_CONN_STEM_DEFAULT"] = sim.connection
        sites = StemSiteListOperator(task_id="list", stream_types=["SOLAR"]).execute(run_context())
        receipts = [land(sites), land(sites[:1])]
        expected = expected_rows(sim, sim.fleet.site_ids, ["MONITOR", "SOLAR"], 900, *DAY)
    load = StemObjectsToSqlOperator(task_id="load", objects=receipts[1], sql_conn_id="warehouse")
    loaded = load.execute(run_context(run_id="run"))
    StemSitesToSqlOperator(task_id="sites", sites=sites, sql_conn_id="warehouse").execute(run_context())
    with duckdb.connect(warehouse) as connection:

        def rows(sql: str) -> Any:
            return connection.execute(sql).fetchall()

        found = {
            "sites": sites,
            "receipts": receipts,
            "loaded": loaded,
            "expected": expected,
            "streams": rows(
                "SELECT site_id, stream_type, resolution, CAST(epoch(interval_start) AS BIGINT), "
                "CAST(epoch(interval_end) AS BIGINT), kw_total_avg FROM stem.streams ORDER BY 1, 2, 5"
            ),
            "energy": rows(
                "SELECT sum(panels_kwh), sum(generation_kwh), sum(CASE WHEN kw_total_avg > 0 THEN kw_total_avg ELSE 0 "
                "END) / 4, sum(CASE WHEN kw_total_avg < 0 THEN -kw_total_avg ELSE 0 END) / 4 FROM stem.energy "
                "JOIN stem.streams USING (site_id, resolution, interval_end) WHERE stream_type = 'SOLAR'"
            ),
            "completeness": rows(
                "SELECT expected, received, status FROM stem.completeness WHERE stream_type = 'SOLAR' ORDER BY site_id"
            ),
            "since": rows("SELECT CAST(epoch(solar_since) AS BIGINT) FROM stem.sites ORDER BY site_id"),
        }
    print(json.dumps(found))  # noqa: T201
