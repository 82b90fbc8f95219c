"""
Read objects with one engine, in that engine's environment, and print what it read as JSON.

Usage: ``python read.py READER < requests.json``. A request has ``name``, ``paths``, ``format``, ``compression``,
``hive`` (the paths lie in ``date=...`` folders of ``root``) and ``schema`` (whether the column's type is given).
"""

from __future__ import annotations

import json
import math
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

COLUMNS = ("site_id", "stream_type", "resolution", "interval_start", "interval_end", "kw_total_avg")
Columns = dict[str, list[Any]]
Answer = tuple[Columns, float | None]
"""The columns, and the engine's own sum of ``kw_total_avg``."""

Request = dict[str, Any]


class DuckDB:
    package = "duckdb"

    def read(self, request: Request) -> Answer:
        import duckdb

        database = duckdb.connect()
        database.execute("SET TimeZone = 'UTC'")
        if request["format"] == "parquet":
            source = f"read_parquet({request['paths']!r}, hive_partitioning={request['hive']})"
        elif request["format"] == "csv":
            types = ", types={'kw_total_avg': 'DOUBLE'}" if request["schema"] else ""
            source = f"read_csv({request['paths']!r}{types})"
        else:
            columns = "{site_id: 'VARCHAR', stream_type: 'VARCHAR', resolution: 'INTEGER', interval_start: "
            columns += "'TIMESTAMPTZ', interval_end: 'TIMESTAMPTZ', kw_total_avg: 'DOUBLE'}"
            source = f"read_json({request['paths']!r}{f', columns={columns}' if request['schema'] else ''})"
        names = ", ".join(COLUMNS)
        rows = database.execute(f"SELECT {names} FROM {source}").fetchall()
        [(total,)] = database.execute(f"SELECT sum(kw_total_avg) FROM {source}").fetchall()
        return {name: [row[n] for row in rows] for n, name in enumerate(COLUMNS)}, total


class Polars:
    package = "polars"

    def read(self, request: Request) -> Answer:
        import polars as pl

        schema = {"schema_overrides": {"kw_total_avg": pl.Float64}} if request["schema"] else {}
        if request["format"] == "parquet":
            frame = pl.scan_parquet(request["paths"], hive_partitioning=request["hive"])
        elif request["format"] == "csv":
            frame = pl.scan_csv(request["paths"], **schema)
        else:
            frame = pl.scan_ndjson(request["paths"], **schema)
        rows = frame.select(COLUMNS).collect()
        return rows.to_dict(as_series=False), frame.select(pl.col("kw_total_avg").sum()).collect().item()


class PandasWithPyArrow:
    package = "pandas"
    engine = "pyarrow"

    def read(self, request: Request) -> Answer:
        import pandas as pd

        if request["format"] == "parquet":
            frame = pd.read_parquet(request["root"] if request["hive"] else request["paths"][0], engine=self.engine)
        elif request["format"] == "csv":
            frame = pd.concat([pd.read_csv(path, float_precision="round_trip") for path in request["paths"]])
        else:
            types = {"dtype": {"kw_total_avg": "float64"}} if request["schema"] else {}
            frame = pd.concat([pd.read_json(p, lines=True, precise_float=True, **types) for p in request["paths"]])
        return {name: frame[name].tolist() for name in COLUMNS}, float(frame["kw_total_avg"].sum())


class PandasWithFastparquet(PandasWithPyArrow):
    package = "fastparquet"
    engine = "fastparquet"
    formats = ("parquet",)


class DataFusion:
    package = "datafusion"

    def read(self, request: Request) -> Answer:
        import pyarrow as pa
        from datafusion import SessionContext, col
        from datafusion import functions as f

        context = SessionContext()
        options: dict[str, Any] = {"table_partition_cols": [("date", pa.string())]} if request["hive"] else {}
        path = request["root"] if request["hive"] else request["paths"][0]
        extension = "." + request["paths"][0].rpartition("/")[2].partition(".")[2]
        if request["format"] == "parquet":
            frame = context.read_parquet(path, file_extension=extension, **options)
        else:
            if request["compression"] != "none":
                options["file_compression_type"] = request["compression"]
            if request["schema"]:
                instant = pa.timestamp("us", "UTC")
                types = (pa.string(), pa.string(), pa.int32(), instant, instant, pa.float64())
                options["schema"] = pa.schema(list(zip(COLUMNS, types, strict=True)))
            read = context.read_csv if request["format"] == "csv" else context.read_json
            frame = read(path, file_extension=extension, **options)
        rows = frame.select(*COLUMNS).to_arrow_table().to_pydict()
        return rows, frame.aggregate([], [f.sum(col("kw_total_avg"))]).to_arrow_table().column(0)[0].as_py()


class ChDB:
    package = "chdb"

    def read(self, request: Request) -> Answer:
        import chdb

        formats = {"parquet": "Parquet", "csv": "CSVWithNames", "jsonl": "JSONEachRow"}
        schema = (
            ", 'site_id String, stream_type String, resolution Int32, interval_start DateTime64(6, \\'UTC\\'), "
            "interval_end DateTime64(6, \\'UTC\\'), kw_total_avg Nullable(Float64)'"
        )
        schema = schema if request["schema"] and request["format"] != "parquet" else ""
        path = request["paths"][0] if not request["hive"] else request["pattern"]
        source = f"file('{path}', {formats[request['format']]}{schema})"
        settings = "SETTINGS date_time_input_format='best_effort', output_format_arrow_string_as_string=1"
        # A DateTime, which is what instants are inferred as, would come as a number of seconds.
        names = ", ".join(f"toDateTime64({n}, 6, 'UTC') AS {n}" if "interval" in n else n for n in COLUMNS)
        rows = chdb.query(f"SELECT {names} FROM {source} {settings}", "ArrowTable").to_pydict()
        total = chdb.query(f"SELECT sum(kw_total_avg) AS total FROM {source} {settings}", "ArrowTable")
        return rows, total.column(0)[0].as_py()


class PyIceberg:
    package = "pyiceberg"
    formats = ("parquet",)

    def read(self, request: Request) -> Answer:
        import tempfile

        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from pyiceberg.catalog.sql import SqlCatalog

        with tempfile.TemporaryDirectory() as folder:
            catalog = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
            catalog.create_namespace("stem")
            schema = pa.schema([field.remove_metadata() for field in pq.read_schema(request["paths"][0])])
            table = catalog.create_table("stem.streams", schema)
            table.add_files(request["paths"])
            rows = table.scan().to_arrow()
            catalog.close()
        return rows.to_pydict(), pc.sum(rows["kw_total_avg"]).as_py()


class DeltaLake:
    package = "deltalake"
    formats = ("parquet",)

    def read(self, request: Request) -> Answer:
        import shutil
        import tempfile
        from pathlib import Path

        import pyarrow as pa
        from deltalake import DeltaTable, QueryBuilder, convert_to_deltalake
        from deltalake.schema import Schema

        with tempfile.TemporaryDirectory() as folder:
            root = Path(request["root"]) if request["hive"] else Path(request["paths"][0]).parent
            table = Path(folder) / "table"
            for path in map(Path, request["paths"]):
                (table / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, table / path.relative_to(root))
            options: dict[str, Any] = {}
            if request["hive"]:
                options["partition_by"] = Schema.from_arrow(pa.schema([("date", pa.string())]))
                options["partition_strategy"] = "hive"
            convert_to_deltalake(str(table), **options)
            query = QueryBuilder().register("streams", DeltaTable(str(table)))
            rows = pa.table(query.execute(f"SELECT {', '.join(COLUMNS)} FROM streams").read_all())
            total = pa.table(query.execute("SELECT sum(kw_total_avg) FROM streams").read_all())
        return rows.to_pydict(), total.column(0)[0].as_py()


class Daft:
    package = "daft"

    def read(self, request: Request) -> Answer:
        import daft

        schema = {"schema": {"kw_total_avg": daft.DataType.float64()}} if request["schema"] else {}
        if request["format"] == "parquet":
            frame = daft.read_parquet(request["paths"])
        elif request["format"] == "csv":
            frame = daft.read_csv(request["paths"], **schema)
        else:
            frame = daft.read_json(request["paths"], **schema)
        rows = frame.select(*COLUMNS).to_pydict()
        [total] = frame.sum("kw_total_avg").to_pydict()["kw_total_avg"]
        return rows, total


class Spark:
    package = "pyspark"

    def __init__(self) -> None:
        import logging

        from pyspark.sql import SparkSession

        logging.disable()
        self._session: Any = (
            SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "1")
            .getOrCreate()
        )
        self._session.sparkContext.setLogLevel("OFF")

    def read(self, request: Request) -> Answer:
        paths = request["root"] if request["hive"] else request["paths"]
        reader = self._session.read
        if request["schema"] and request["format"] != "parquet":
            types = ("STRING", "STRING", "INT", "TIMESTAMP", "TIMESTAMP", "DOUBLE")
            reader = reader.schema(", ".join(map(" ".join, zip(COLUMNS, types, strict=True))))
        if request["format"] == "parquet":
            frame = reader.parquet(*paths if isinstance(paths, list) else [paths])
        elif request["format"] == "csv":
            frame = reader.csv(paths, header=True, inferSchema=not request["schema"], escape='"')
        else:
            frame = reader.json(paths)
        rows = frame.select(*COLUMNS).collect()
        [[total]] = frame.selectExpr("sum(kw_total_avg)").collect()
        return {name: [row[name] for row in rows] for name in COLUMNS}, total


READERS: dict[str, type[Any]] = {
    "duckdb": DuckDB,
    "polars": Polars,
    "pandas": PandasWithPyArrow,
    "fastparquet": PandasWithFastparquet,
    "datafusion": DataFusion,
    "chdb": ChDB,
    "pyiceberg": PyIceberg,
    "deltalake": DeltaLake,
    "daft": Daft,
    "spark": Spark,
}


def as_rows(columns: Columns) -> list[list[Any]]:
    """Return sorted rows: instants in microseconds, numbers as the text of their bits."""
    rows = [
        [str(site_id), str(stream_type), int(resolution), _instant(start), _instant(end), _number(value)]
        for site_id, stream_type, resolution, start, end, value in zip(*(columns[n] for n in COLUMNS), strict=True)
    ]
    return sorted(rows, key=lambda row: (row[0], row[1], row[4]))


def _instant(value: str | datetime) -> int:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return (value - epoch) // timedelta(microseconds=1)


def _number(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, float):
        raise TypeError(f"kw_total_avg is read as {type(value).__name__}")
    return value.hex()


def main(name: str) -> None:
    """Answer every request."""
    reader = READERS[name]()
    answers: dict[str, dict[str, Any]] = {}
    for request in json.load(sys.stdin):
        if request["format"] not in getattr(reader, "formats", (request["format"],)):
            continue
        try:
            columns, total = reader.read(request)
            answers[request["name"]] = {"rows": as_rows(columns), "sum": None if total is None else float(total)}
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            answers[request["name"]] = {"error": f"{type(exc).__name__}: {exc}"}
    sys.stdout.write("\n" + json.dumps({"version": version(reader.package), "answers": answers}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
