"""A folder: locks, what readers see, and files that another program has changed."""

from __future__ import annotations

import fcntl
import os
import shutil

import pyarrow.dataset
import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.spool import ScratchFile
from tests.stores.places import FolderPlace


@pytest.fixture
def folder(tmp_path):
    return FolderPlace(tmp_path / "lake")


def write(folder, name, body, version=None):
    store, key = folder.store(), folder.key(name)
    with ScratchFile() as file:
        file.write(body)
        store.put(key, file, store.head(key)[1], version or store.head(key)[0])
    return store.head(key)[0]


def test_a_file_system_without_locks_is_found_out(folder, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(StemConfigError, match=r"The file system of .* does not honour locks"):
        folder.store().check(folder.key("probe"), may_be_unconditional=False)
    folder.store().check(folder.key("probe"), may_be_unconditional=True)
    assert "does not honour locks" in caplog.text


def test_the_metadata_survive_a_copy_with_new_times(folder, tmp_path):
    write(folder, "a/x", b"one")
    version = write(folder, "a/x", b"two")
    shutil.copytree(folder.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    copied, _ = FolderPlace(tmp_path / "copy").store().head(f"{tmp_path}/copy/a/x".lstrip("/"))
    assert (copied.sha256, copied.read_at) == (version.sha256, version.read_at)


def test_metadata_that_are_written_before_a_kill_leave_the_old_version(folder, monkeypatch):
    version = write(folder, "x", b"one")
    replace = type(folder.folder).replace

    def killed(self, target):
        if target.name == "x":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder.folder), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder, "x", b"two")
    assert folder.store().head(folder.key("x"))[0] == version
    assert folder.objects() == {"x": b"one"}


def test_a_file_that_another_program_changed_has_another_digest_than_recorded(folder):
    version = write(folder, "x", b"one")
    (folder.folder / "x").write_bytes(b"on")
    with ScratchFile() as file:
        found = folder.store().get(folder.key("x"), file)
        assert found.sha256 == version.sha256 != file.sha256


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_is_not_read(make, folder):
    folder.folder.mkdir()
    make(folder.folder / "x")
    with pytest.raises(StemConfigError, match="not that of a regular file"):
        folder.store().head(folder.key("x"))


def test_a_path_below_a_file_is_an_error(folder):
    folder.write("x", b"")
    with pytest.raises(StemConfigError, match="The file cannot be used. Check the path"):
        write(folder, "x/y", b"")


def test_readers_of_the_folder_do_not_see_what_is_hidden(folder):
    duckdb = pytest.importorskip("duckdb")
    body = b"site_id\na\n"
    for name in ("d=1/x.csv", "d=2/x.csv"):
        write(folder, name, body)
    found = pyarrow.dataset.dataset(folder.folder, format="csv", partitioning="hive")
    assert len(found.files) == 2
    assert duckdb.execute(f"SELECT count(*) FROM read_csv('{folder.folder}/**/*.csv')").fetchall() == [(2,)]
