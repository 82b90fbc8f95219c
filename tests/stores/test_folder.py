"""What only a folder has: links, and addresses of the machine's own file system."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.operators import StemStreamsToObjectStorageOperator
from tests.support import run_context

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_one_and_its_target_is_written(exists, stem, tmp_path):
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "target.parquet", tmp_path / "day.parquet"
    link.symlink_to(target)
    sites = ["site-00001", "site-00002"] if exists else ["site-00002"]
    for site in sites:
        StemStreamsToObjectStorageOperator(task_id="t", sites=[site], path=f"file://{link}").execute(run_context(*DAY))
    assert link.is_symlink()
    assert set(pq.read_table(target)["site_id"].to_pylist()) == set(sites)


@pytest.mark.parametrize("path", ["file://", "file:///", "file://folder/x"])
def test_an_address_that_names_no_folder_is_an_error(path, stem):
    with pytest.raises(StemConfigError, match="Use three slashes and an absolute path"):
        StemStreamsToObjectStorageOperator(task_id="t", sites="site-00001", path=path)
    assert not stem.requests
