"""What only a folder has: links, and addresses of the machine's own file system."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import threading
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_stem._stores import folder
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.operators import StemStreamsToObjectStorageOperator
from airflow_provider_stem.streams.spool import ScratchFile
from tests.stores.places import FolderPlace
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


@pytest.mark.parametrize("path", ["file:///lake/.stem/x.parquet", "file:///lake/.stem/", "file:///.stem/{start}"])
def test_the_folder_of_the_stores_own_files_is_not_an_address(path, stem):
    with pytest.raises(StemConfigError, match=r"'\.stem' parts"):
        StemStreamsToObjectStorageOperator(task_id="t", sites="site-00001", path=path)
    assert not stem.requests


def test_a_task_that_waits_for_a_lock_names_it_and_its_holder(tmp_path, monkeypatch, caplog):
    logged = threading.Event()

    def noted(_):
        logged.set()
        return True

    monkeypatch.setattr(folder, "_LOG_AFTER", 0.0)
    monkeypatch.setattr(folder.log, "filters", [noted])
    place = FolderPlace(tmp_path)
    path = tmp_path / ".stem" / "lock"
    store, key = place.store(), place.key("x")
    path.parent.mkdir()
    with ScratchFile() as file, path.open("w+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        holder.write("process 17 on worker-3")
        holder.flush()
        file.write(b"x")
        task = threading.Thread(target=store.put, args=(key, file, store.head(key)[1], None))
        task.start()
        logged.wait()
        assert place.objects() == {}
        fcntl.flock(holder, fcntl.LOCK_UN)
        task.join()
    assert place.objects() == {"x": b"x"}
    assert f"its holder is suspended: process 17 on worker-3 [{path}]" in caplog.text
    assert re.search(rf"Took the lock after \d+ s \[{path}\]", caplog.text)
    assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_file_that_another_program_changed_is_merged_with_after_the_remedy_of_the_message(stem, tmp_path):
    path = tmp_path / "day.parquet"

    def land(site):
        task = StemStreamsToObjectStorageOperator(task_id="t", sites=[site], path=f"file://{path}")
        return task.execute(run_context(*DAY))

    for site in ("site-00001", "site-00002"):
        land(site)
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.equal(table["site_id"], "site-00002")), path)
    with pytest.raises(AirflowFailException, match="To merge with it as it is, delete (.*?meta)") as error:
        land("site-00003")
    [metadata] = re.findall("delete (.*?meta)", str(error.value))
    assert metadata == str(tmp_path / ".stem" / "day.parquet.meta")
    Path(metadata).unlink()
    receipt = land("site-00003")
    assert (receipt["kept"], receipt["inserted"]) == (96, 96)
    assert set(pq.read_table(path)["site_id"].to_pylist()) == {"site-00002", "site-00003"}


@pytest.mark.parametrize("path", ["file://", "file:///", "file://folder/x"])
def test_an_address_that_names_no_folder_is_an_error(path, stem):
    with pytest.raises(StemConfigError, match="Use three slashes and an absolute path"):
        StemStreamsToObjectStorageOperator(task_id="t", sites="site-00001", path=path)
    assert not stem.requests
