"""The models over an Iceberg table in a REST catalog, which DuckDB reads."""

from __future__ import annotations

import shutil

import duckdb
import pytest

from tests.dbt.conftest import DBT, Dbt
from tests.iceberg.helpers import Target

EXTENSIONS = ("httpfs", "avro", "iceberg")


@pytest.mark.s3
@pytest.mark.parametrize("catalog", ["rest"], indirect=True)
def test_the_models_read_an_iceberg_table(catalog, lake, tmp_path):
    target = Target()
    streams = {("site-a", "MONITOR"): [10.0, -4.0, None, 0.0], ("site-a", "CONVERTER"): [2.0, -8.0, 1.0, 0.0]}
    target.load(target.bucket.land("july", streams, "01T22:00", "01T23:00"))
    restated = {**streams, ("site-a", "MONITOR"): [12.0, -4.0, 8.0, None]}
    target.load(target.bucket.land("july", restated, "01T22:00", "01T23:00"))
    # As INSTALL would store them.
    installed = tmp_path / "extensions" / "v1.5.5" / _platform()
    installed.mkdir(parents=True)
    for name in EXTENSIONS:
        [path] = (DBT.parents[1] / "lib").glob(f"python*/site-packages/**/{name}.duckdb_extension")
        shutil.copy(path, installed)
    server, warehouse = lake.server, str(tmp_path / "bills.duckdb")
    dbt = Dbt(
        tmp_path,
        {
            "type": "duckdb",
            "path": warehouse,
            "config_options": {
                "allow_unsigned_extensions": True,
                "extension_directory": str(tmp_path / "extensions"),
            },
            "extensions": list(EXTENSIONS),
            "secrets": [
                {
                    "type": "s3",
                    "name": "objects",
                    "key_id": server.access_key,
                    "secret": server.secret_key,
                    "region": "us-east-1",
                    "endpoint": server.url.partition("//")[2],
                    "url_style": "path",
                    "use_ssl": "false",
                },
                {
                    "type": "iceberg",
                    "name": "catalog",
                    "client_id": server.access_key,
                    "client_secret": server.secret_key,
                    "oauth2_server_uri": f"{server.iceberg_url}/v1/oauth/tokens",
                },
            ],
            "attach": [
                {
                    "path": catalog["extra"]["warehouse"],
                    "alias": "lake",
                    "type": "iceberg",
                    "secret": "catalog",
                    "options": {"endpoint": server.iceberg_url, "access_delegation_mode": "none"},
                }
            ],
        },
    )
    statuses = dbt.run(
        "build",
        stem_streams_database="lake",
        stem_warehouse=False,
        stem_time_zone="Europe/Berlin",
        stem_materialized="table",
        stem_now="2025-07-02 00:00:00+00:00",
    )
    assert set(statuses.values()) <= {"success", "pass", "no-op"}
    assert {"stem_completeness", "stem_daily_restatements"}.isdisjoint(statuses)
    with duckdb.connect(warehouse) as found:
        # 22:00 UTC is midnight in Berlin.
        energy = (
            "SELECT CAST(day AS VARCHAR), sum(import_kwh), sum(export_kwh), count(load_kw) FROM analytics.stem_energy"
        )
        assert found.sql(f"{energy} GROUP BY day").fetchall() == [("2025-07-02", 5.0, 1.0, 3)]
        bill = "SELECT import_kwh, peak_kw, expected, known FROM analytics.stem_billing_determinants"
        assert found.sql(bill).fetchall() == [(5.0, 12.0, 2976, 3)]


def _platform():
    [[name]] = duckdb.execute("PRAGMA platform").fetchall()
    return name
