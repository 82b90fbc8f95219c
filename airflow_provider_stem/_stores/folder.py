"""
Objects as files in a local or shared folder, published atomically; for operators and the landing.

Beside the files of a folder there is one hidden folder ``.stem``, with a lock, files that are being written, and the
metadata of each file::

    date=2025-07-01/all.parquet             the object
    date=2025-07-01/.stem/all.parquet.meta  its SHA-256 and read-at, and those of the version before
    date=2025-07-01/.stem/lock              held while an object is compared and replaced; the last holder's name
    date=2025-07-01/.stem/5f0c….tmp         content that is not published yet

The metadata are written before the content is published, and name both versions. So they are right however the process
ends. They survive a copy of the folder by any program, which extended attributes would not.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast
from uuid import uuid4

from airflow_provider_stem._disk import WorkerError
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemError, StemTransportError
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import (
    DIGEST,
    READ_AT,
    DamagedObjectError,
    ObjectChangedError,
    Version,
    object_uri,
    report_ignored,
    version_of,
)
from airflow_provider_stem.streams.windows import iso_exact

log = logging.getLogger(__name__)

_HIDDEN = ".stem"
_MAX_READS = 100  # a read is repeated only if another task has replaced the file in the meantime
_MAX_METADATA = 10_000  # bytes
_MAX_HOLDER = 300  # characters
_LOCKED_FOR = 300.0  # seconds; the lock is held while two small files are renamed
_LOG_AFTER = 5.0  # seconds
_ABANDONED = 86_400.0  # seconds
_CANNOT_BE_WRITTEN = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSYS,
    errno.ENOTDIR, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS,
}  # fmt: skip
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class FolderStore:
    """
    The files of this machine; the key of an object is its absolute path without the first slash.

    An object is visible completely or not at all. A new one is linked, which fails if there is one already; an existing
    one is compared and replaced while the folder is locked with ``flock``, also by other machines that share it. The
    clock of the store is the worker's.
    """

    def __init__(self) -> None:
        self._conditional = True

    def uri(self, key: str) -> str:
        """Return the address of a key."""
        return object_uri("file", "", key)

    def check(self, probe: str, *, may_be_unconditional: bool) -> None:
        """
        Check that this task may write to a folder, before anything is read from the API.

        The folder is created, and its lock shows whether the file system honours locks. What killed tasks have left
        there a day ago or earlier is removed.

        :param probe: key of a hidden file, in the folder of the objects to write.
        :param may_be_unconditional: write without a lock if the file system ignores locks, and log a warning.
        :raises StemConfigError: the folder cannot be written to, or the file system has no hard links or locks.
        :raises StemTransportError: the file system failed.
        """
        hidden = self._path(probe).parent / _HIDDEN
        with self._errors(probe):
            _make_folder(hidden)
            for left in hidden.glob("*.tmp"):
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _ABANDONED:
                        left.unlink()
            one, other = (hidden / f"{uuid4().hex}.tmp" for _ in range(2))
            try:
                one.touch()
                os.link(one, other)
            finally:
                one.unlink(missing_ok=True)
                other.unlink(missing_ok=True)
            if not _honours_locks(hidden / "lock"):
                report_ignored(
                    f"The file system of {hidden.parent}", "locks", may_be_unconditional=may_be_unconditional
                )
                self._conditional = False

    def head(self, key: str) -> tuple[Version | None, datetime]:
        """
        Return an object's version and the store's time.

        :return: the version, ``None`` if there is no object, and this worker's time in UTC.
        :raises StemConfigError: reading it is not permitted, or it is not a file.
        :raises StemTransportError: the file system failed.
        """
        with self._errors(key):
            return self._version(self._path(key)), datetime.now(UTC)

    def get(self, key: str, file: ScratchFile) -> Version | None:
        """
        Copy an object into a file, replacing the file's content.

        :return: the object's version, or ``None`` if there is no such object.
        :raises StemConfigError: reading it is not permitted, or it is not a file.
        :raises StemTransportError: the file system failed.
        """
        file.clear()
        with self._errors(key):
            found = _open(self._path(key))
            if found is None:
                return None
            with found[0] as content:
                shutil.copyfileobj(content, cast(Any, file), 2**20)
            return found[1]

    def put(self, key: str, file: ScratchFile, read_at: datetime, replaces: Version | None) -> None:
        """
        Write a file to an object, unless the object has changed since it was read.

        :param read_at: when the reading of its newest rows began, by the store's clock.
        :param replaces: version of the object to replace; ``None`` if there is none.
        :raises ObjectChangedError: another task has written the object since.
        :raises StemConfigError: writing is not permitted.
        :raises DamagedObjectError: the file system has other content than was written.
        :raises StemTransportError: the file system failed, or another task kept the folder locked.
        """
        path = self._path(key)
        hidden = path.parent / _HIDDEN
        written = hidden / f"{uuid4().hex}.tmp"
        with self._errors(key):
            _make_folder(hidden)
            try:
                with written.open("xb") as content:
                    file.seek(0)
                    shutil.copyfileobj(cast(Any, file), content, 2**20)
                    content.flush()
                    _sync(content.fileno())
                    status = os.fstat(content.fileno())
                with written.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                        raise DamagedObjectError(self.uri(key))
                with self._locked(hidden):
                    self._publish(path, written, _entry(file.sha256, read_at, status), replaces)
            finally:
                written.unlink(missing_ok=True)
        _report_to_airflow(self, path)

    def keys(self, prefix: str, *, required: bool) -> Iterator[str]:
        """
        Iterate over the keys below a prefix.

        :param required: raise an error if listing is not permitted, instead of skipping what cannot be listed.
        :raises StemConfigError: listing is not permitted.
        :raises StemTransportError: the file system failed.
        """

        def failed(exc: OSError) -> None:
            if required and not isinstance(exc, FileNotFoundError | NotADirectoryError):
                raise exc

        folder, _, name = prefix.rpartition("/")
        with self._errors(prefix):
            for parent, folders, files in os.walk(f"/{folder}", onerror=failed):
                begin = name if parent == f"/{folder}" else ""
                folders[:] = sorted(one for one in folders if one.startswith(begin) and one != _HIDDEN)
                yield from (f"{parent}/{one}".lstrip("/") for one in sorted(files) if one.startswith(begin))

    def _publish(self, path: Path, written: Path, entry: dict[str, Any], replaces: Version | None) -> None:
        """Store the metadata of a new version, then make its content the object, if that is still what it replaces."""
        current = self._version(path)
        if self._conditional and current != replaces:
            raise ObjectChangedError(self.uri(path.as_posix()[1:]))
        kept = [_entry(current.sha256, current.read_at, path.stat())] if current else []
        metadata = written.with_suffix(".meta.tmp")
        try:
            with metadata.open("x") as content:
                json.dump([entry, *kept], content)
                content.flush()
                _sync(content.fileno())
            metadata.replace(_metadata_of(path))
        finally:
            metadata.unlink(missing_ok=True)
        _sync_folder(written.parent)
        if current is None:
            try:
                os.link(written, path)
            except FileExistsError:
                raise ObjectChangedError(self.uri(path.as_posix()[1:])) from None
        else:
            written.replace(path)
        _sync_folder(path.parent)

    def _version(self, path: Path) -> Version | None:
        found = _open(path)
        if found is None:
            return None
        found[0].close()
        return found[1]

    @contextmanager
    def _locked(self, hidden: Path) -> Iterator[None]:
        """Lock a folder against other tasks. The kernel unlocks it however the process ends."""
        if not self._conditional:
            yield
            return
        with (hidden / "lock").open("a+", errors="replace") as lock:
            _wait_for(lock)
            with suppress(OSError):  # for messages only
                os.ftruncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield

    def _path(self, key: str) -> Path:
        # A link stays one: what it points to is read and written.
        return Path(os.path.realpath(f"/{key}"))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Raise this package's errors instead of those of the file system."""
        try:
            yield
        except (WorkerError, StemError):
            raise
        except OSError as exc:
            failed = f"{exc.strerror} [{one_line(self.uri(key))}]"
            if exc.errno in _CANNOT_BE_WRITTEN:
                raise StemConfigError(
                    "The file cannot be used. Check the path, the permissions of its folder, and whether the file "
                    f"system has hard links: {failed}"
                ) from None
            raise StemTransportError(f"The file system failed. Check its free space and its server: {failed}") from None


def _open(path: Path) -> tuple[BinaryIO, Version] | None:
    """Open a file, and return it with the version of its content; ``None`` if there is no file."""
    for _ in range(_MAX_READS):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
        except (FileNotFoundError, NotADirectoryError):
            return None
        with ExitStack() as unused:
            unused.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StemConfigError(f"The path is not that of a regular file. Use another one, or remove it [{path}]")
            metadata = _metadata(path, status)
            # Otherwise the file was replaced in the meantime, and these may be the metadata of the new version.
            if _is_at(path, status):
                unused.pop_all()
                etag = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
                return os.fdopen(descriptor, "rb"), version_of(etag, metadata, metadata_file=str(_metadata_of(path)))
    raise StemTransportError(f"Other tasks replaced the file {_MAX_READS} times while it was read [{path}]")


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, path.stat())
    except FileNotFoundError:
        return False


def _metadata(path: Path, status: os.stat_result) -> dict[str, str]:
    """Return the metadata of a version of a file; the newest if none has its size and time, as after a copy."""
    try:
        with _metadata_of(path).open("rb") as content:
            entries = json.loads(content.read(_MAX_METADATA))
        matching = [one for one in entries if (one["size"], one["mtime_ns"]) == (status.st_size, status.st_mtime_ns)]
        found = [*matching, *entries][0]
        return {name: found[name] for name in (DIGEST, READ_AT) if isinstance(found.get(name), str)}
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _metadata_of(path: Path) -> Path:
    return path.parent / _HIDDEN / f"{path.name}.meta"


def _entry(sha256: str | None, read_at: datetime | None, status: os.stat_result) -> dict[str, Any]:
    time_read = read_at and iso_exact(read_at)
    return {DIGEST: sha256, READ_AT: time_read, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _wait_for(lock: TextIO) -> None:
    """Lock a file, and log a long wait."""
    began = time.monotonic()
    is_logged = False
    while not _try_lock(lock.fileno()):
        waited = time.monotonic() - began
        if waited > _LOCKED_FOR:
            raise StemTransportError(
                f"Another task has locked the folder for {_LOCKED_FOR:,.0f} s. Check whether it is suspended "
                f"[{lock.name}]"
            )
        if waited > _LOG_AFTER and not is_logged:
            lock.seek(0)
            holder = one_line(lock.read(_MAX_HOLDER)) or "an unknown process"
            log.warning("Waiting for a lock. Check whether its holder is suspended: %s [%s]", holder, lock.name)
            is_logged = True
        time.sleep(0.005)
    if is_logged:
        log.warning("Took the lock after %.0f s [%s]", time.monotonic() - began, lock.name)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _honours_locks(path: Path) -> bool:
    """Return whether a lock that is held, by this or by another task, keeps others out."""
    with path.open("a") as one, path.open("a") as other:
        try:
            return not (_try_lock(one.fileno()) and _try_lock(other.fileno()))
        except OSError as exc:
            if exc.errno in _NO_LOCKS:
                return False
            raise


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, so that they are still there after a loss of power."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of a file system without it
            raise


def _report_to_airflow(store: FolderStore, path: Path) -> None:
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    get_hook_lineage_collector().add_output_asset(  # type: ignore[no-untyped-call]
        context=store, scheme="file", asset_kwargs={"path": str(path)}
    )
