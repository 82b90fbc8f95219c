"""Airflow's own ObjectStoragePath reads what landed: its rows are those of the API."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from tests.stores.test_guarantees import DAYS, SITES, landing
from tests.support import expected_rows, landed_rows, run_context

FILE_SYSTEMS = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}
"""What ObjectStoragePath needs for each scheme."""


def test_object_storage_path_reads_the_rows_of_the_api(place, stem, monkeypatch):
    # Otherwise gcsfs asks Google for the type of the bucket, through an interface that the emulator does not have.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    scheme, _, conn_id = place.arguments
    if scheme in FILE_SYSTEMS:
        pytest.importorskip(FILE_SYSTEMS[scheme], reason="make test-stores has it")
    receipt = landing(place, partition="day").execute(run_context(*DAYS))
    found = []
    for landed in receipt["objects"]:
        with ObjectStoragePath(landed["uri"], conn_id=conn_id).open("rb") as file:
            found += landed_rows(pq.read_table(file))
    assert len(receipt["objects"]) == 3
    assert sorted(found) == expected_rows(stem, SITES, ["MONITOR"], 900, *DAYS)
