"""
Read two snapshots of an Iceberg table with one engine, in that engine's environment, and print the rows as JSON.

Usage: ``python -m tests.readers.read_iceberg READER < request.json``. A request has ``metadata`` (the table's metadata
file), ``endpoint``, ``access_key`` and ``secret_key`` of the store, ``catalog`` and ``warehouse`` of the REST catalog,
``table``, and ``snapshots``: the ids to read.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from tests.readers.read import COLUMNS, Columns, as_rows

Request = dict[str, Any]
NAMES = ", ".join(COLUMNS)


class PyIceberg:
    package = "pyiceberg"

    def open(self, request: Request) -> None:
        from pyiceberg.catalog import load_catalog

        catalog = load_catalog(
            "rest",
            **{
                "type": "rest",
                "uri": request["catalog"],
                "warehouse": request["warehouse"],
                "credential": f"{request['access_key']}:{request['secret_key']}",
                "s3.endpoint": request["endpoint"],
                "s3.access-key-id": request["access_key"],
                "s3.secret-access-key": request["secret_key"],
                "s3.region": "us-east-1",
            },
        )
        self._table = catalog.load_table(request["table"])

    def read(self, snapshot: int) -> Columns:
        rows: Columns = self._table.scan(snapshot_id=snapshot, selected_fields=COLUMNS).to_arrow().to_pydict()
        return rows


class DuckDB:
    package = "duckdb"

    def open(self, request: Request) -> None:
        from importlib.metadata import files
        from pathlib import Path

        import duckdb

        self.database = duckdb.connect(config={"allow_unsigned_extensions": "true"})
        for extension in ("httpfs", "avro", "iceberg"):
            [path] = [
                Path(str(one.locate()))
                for one in files(f"duckdb-extension-{extension}") or ()
                if one.name.endswith(".duckdb_extension")
            ]
            self.database.execute(f"LOAD '{path}'")
        self.database.execute("SET TimeZone = 'UTC'")
        self.database.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{request['access_key']}', SECRET '{request['secret_key']}', "
            f"REGION 'us-east-1', ENDPOINT '{request['endpoint'].partition('//')[2]}', URL_STYLE 'path', USE_SSL false)"
        )
        self.prepare(request)

    def prepare(self, request: Request) -> None:
        self._metadata = request["metadata"]

    def source(self, snapshot: int) -> str:
        return f"iceberg_scan('{self._metadata}', snapshot_from_id => {snapshot}::UBIGINT)"

    def read(self, snapshot: int) -> Columns:
        query: Any = self.database.execute(f"SELECT {NAMES} FROM {self.source(snapshot)}")
        rows: Columns = query.to_arrow_table().to_pydict()
        return rows


class DuckDBCatalog(DuckDB):
    def prepare(self, request: Request) -> None:
        self.database.execute(
            f"CREATE SECRET catalog (TYPE iceberg, CLIENT_ID '{request['access_key']}', "
            f"CLIENT_SECRET '{request['secret_key']}', OAUTH2_SERVER_URI '{request['catalog']}/v1/oauth/tokens')"
        )
        self.database.execute(
            f"ATTACH '{request['warehouse']}' AS lake (TYPE iceberg, ENDPOINT '{request['catalog']}', SECRET catalog, "
            "ACCESS_DELEGATION_MODE 'none')"
        )
        self._table = request["table"]

    def source(self, snapshot: int) -> str:
        return f"lake.{self._table} AT (VERSION => {snapshot})"


class Polars:
    package = "polars"

    def open(self, request: Request) -> None:
        self._request = request

    def read(self, snapshot: int) -> Columns:
        import polars as pl

        frame = pl.scan_iceberg(
            self._request["metadata"],
            snapshot_id=snapshot,
            storage_options={
                "s3.endpoint": self._request["endpoint"],
                "s3.access-key-id": self._request["access_key"],
                "s3.secret-access-key": self._request["secret_key"],
                "s3.region": "us-east-1",
                "aws_endpoint_url": self._request["endpoint"],
                "aws_access_key_id": self._request["access_key"],
                "aws_secret_access_key": self._request["secret_key"],
                "aws_region": "us-east-1",
                "aws_allow_http": "true",
            },
        )
        rows: Columns = frame.select(COLUMNS).collect().to_dict(as_series=False)
        return rows


class ChDB:
    package = "chdb"

    def open(self, request: Request) -> None:
        folder = request["metadata"].partition("://")[2].partition("/metadata/")[0]
        self._source = (
            f"icebergS3('{request['endpoint']}/{folder}/', '{request['access_key']}', '{request['secret_key']}')"
        )

    def read(self, snapshot: int) -> Columns:
        import chdb

        names = ", ".join(f"toDateTime64({n}, 6, 'UTC') AS {n}" if "interval" in n else n for n in COLUMNS)
        settings = f"SETTINGS iceberg_snapshot_id={snapshot}, output_format_arrow_string_as_string=1"
        found: Columns = chdb.query(f"SELECT {names} FROM {self._source} {settings}", "ArrowTable").to_pydict()
        return found


class Daft(PyIceberg):
    package = "daft"

    def open(self, request: Request) -> None:
        from daft.io import IOConfig, S3Config

        super().open(request)
        self._config = IOConfig(
            s3=S3Config(
                endpoint_url=request["endpoint"],
                key_id=request["access_key"],
                access_key=request["secret_key"],
                region_name="us-east-1",
                use_ssl=False,
            )
        )

    def read(self, snapshot: int) -> Columns:
        import daft

        frame = daft.read_iceberg(self._table, snapshot_id=snapshot, io_config=self._config)
        rows: Columns = frame.select(*COLUMNS).to_pydict()
        return rows


READERS: dict[str, type[Any]] = {
    "pyiceberg": PyIceberg,
    "duckdb": DuckDB,
    "duckdb-catalog": DuckDBCatalog,
    "polars": Polars,
    "chdb": ChDB,
    "daft": Daft,
}


def main(name: str) -> None:
    """Read every snapshot."""
    request = json.load(sys.stdin)
    reader = READERS[name]()
    reader.open(request)
    answers = [as_rows(reader.read(snapshot)) for snapshot in request["snapshots"]]
    sys.stdout.write("\n" + json.dumps({"version": version(reader.package), "answers": answers}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
