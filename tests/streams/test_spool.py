from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.streams.spool import ScratchFile, Spool
from airflow_provider_stem.streams.tables import STREAM_SCHEMA

from .helpers import examples, stream


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rows(number: int, length: int) -> pa.RecordBatch:
    values = [None if k % 7 == 3 else number + k / 3 for k in range(length)]
    return stream([900 * (number + k) for k in range(length)], values)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads switch as often as possible, so that missing locks show."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


class TestSpool:
    def test_rows_are_read_back_unchanged(self) -> None:
        with Spool() as spool:
            kept = [rows(number, length) for number, length in enumerate([0, 1, 7, 96, 35_040])]
            pieces = [spool.append(batch) for batch in kept]
            for batch, piece in reversed(list(zip(kept, pieces, strict=True))):
                for _ in range(2):
                    back = spool.read(piece)
                    assert back.equals(batch)
                    assert back.schema.equals(STREAM_SCHEMA)

    def test_a_slice_takes_the_space_of_a_slice(self) -> None:
        whole = rows(0, 10_000)
        with Spool() as spool:
            piece = spool.append(whole.slice(5000, 3))
            assert piece.size < 1000
            assert spool.read(piece).equals(whole.slice(5000, 3))

    @pytest.mark.usefixtures("hasty_threads")
    def test_many_threads_write_and_read_at_once(self) -> None:
        with Spool() as spool:

            def work(worker: int) -> int:
                draw = random.Random(worker)
                mine = []
                for turn in range(60):
                    batch = rows(worker * 1000 + turn, draw.randrange(200))
                    mine.append((batch, spool.append(batch)))
                    kept, piece = draw.choice(mine)
                    assert spool.read(piece).equals(kept)
                assert all(spool.read(piece).equals(kept) for kept, piece in mine)
                return sum(piece.size for _, piece in mine)

            with ThreadPoolExecutor(8) as pool:
                sizes = list(pool.map(work, range(8)))
            # No pieces overlap, and there are no gaps.
            assert os.fstat(spool._file.fileno()).st_size == sum(sizes)

    def test_the_file_has_no_name(self, temporary: Path) -> None:
        with Spool() as spool, ScratchFile() as file:
            spool.append(rows(0, 1000))
            file.write(b"x" * 100_000)
            assert list(temporary.iterdir()) == []
        assert list(temporary.iterdir()) == []

    def test_it_is_in_the_directory_of_temporary_files(self, temporary: Path) -> None:
        with Spool() as spool:
            assert os.fstat(spool._file.fileno()).st_dev == temporary.stat().st_dev

    def test_closing_frees_the_space_and_can_be_repeated(self) -> None:
        spool = Spool()
        piece = spool.append(rows(0, 10))
        spool.close()
        spool.close()
        with pytest.raises(ValueError, match="closed"):
            spool.read(piece)

    def test_a_truncated_file_is_an_error(self) -> None:
        with Spool() as spool:
            piece = spool.append(rows(0, 100))
            os.ftruncate(spool._file.fileno(), piece.size // 2)
            with pytest.raises(EOFError, match="shorter"):
                spool.read(piece)


class TestScratchFile:
    @examples(200)
    @given(data=st.data())
    def test_it_reads_like_a_file_in_memory(self, data: st.DataObject) -> None:
        content = data.draw(st.binary(max_size=60))
        model = io.BytesIO(content)
        with ScratchFile() as file:
            file.write(b"an earlier attempt")
            file.clear()
            file.write(content)
            assert file.size == len(content)
            file.seek(0)
            for _ in range(data.draw(st.integers(1, 12))):
                match data.draw(st.sampled_from(["read", "all", "seek", "current", "end", "into"])):
                    case "read":
                        size = data.draw(st.integers(0, 70))
                        assert file.read(size) == model.read(size)
                    case "all":
                        assert file.read() == model.read()
                    case "seek":
                        offset = data.draw(st.integers(0, 80))
                        assert file.seek(offset) == model.seek(offset)
                    case "current":
                        offset = data.draw(st.integers(0, 20))
                        assert file.seek(offset, io.SEEK_CUR) == model.seek(offset, io.SEEK_CUR)
                    case "end":
                        offset = data.draw(st.integers(-len(content), 5))
                        assert file.seek(offset, io.SEEK_END) == model.seek(offset, io.SEEK_END)
                    case _:
                        buffer, other = bytearray(9), bytearray(9)
                        assert file.readinto(buffer) == model.readinto(other)
                        assert buffer == other
                assert file.tell() == model.tell()

    def test_it_works_with_other_readers_and_writers_of_files(self) -> None:
        content = os.urandom(300_000)
        with ScratchFile() as file:
            buffered = io.BufferedWriter(cast(io.RawIOBase, file))
            shutil.copyfileobj(io.BytesIO(content), buffered)
            buffered.flush()
            buffered.detach()
            assert file.readable()
            assert file.writable()
            assert file.seekable()
            file.seek(0)
            assert io.BufferedReader(file).read() == content
            assert file.sha256 == hashlib.sha256(content).hexdigest()

    def test_it_must_be_written_sequentially(self) -> None:
        with ScratchFile() as file:
            file.write(b"abc")
            file.seek(0)
            with pytest.raises(io.UnsupportedOperation, match="sequentially"):
                file.write(b"x")
            file.seek(0, io.SEEK_END)
            assert file.write(memoryview(b"def")) == 3
            file.seek(0)
            assert file.read() == b"abcdef"

    def test_all_types_of_bytes_can_be_written(self) -> None:
        with ScratchFile() as file:
            for data in (b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], pa.py_buffer(b"gh"), b""):
                file.write(cast(bytes, data))
            file.seek(0)
            assert file.read() == b"abcdefgh"
            assert file.sha256 == hashlib.sha256(b"abcdefgh").hexdigest()

    def test_closing_frees_its_descriptor(self) -> None:
        before = open_files()
        with ScratchFile() as file:
            file.write(b"x")
            assert open_files() == before + 1
        assert open_files() == before
