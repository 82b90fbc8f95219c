"""Errors of this worker's own disk and limits, with the remedy; for code that stores rows or answers on disk."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WorkerError(OSError):
    """The worker's own disk or limits failed, not a server."""


@contextmanager
def own_disk() -> Iterator[None]:
    """
    Raise errors of files on this worker with the remedy.

    :raises WorkerError: instead of any ``OSError``.
    """
    try:
        yield
    except OSError as exc:
        error = worker_error(exc)
    else:
        return
    raise error


def worker_error(exc: OSError) -> WorkerError:
    """Return an error of this worker with the remedy."""
    if isinstance(exc, WorkerError):
        return exc
    if exc.errno in _TOO_MANY_FILES:
        remedy = "Raise the worker's limit of open files (ulimit -n), or lower max_workers"
    else:
        remedy = f"Free space in {tempfile.gettempdir()}, or set TMPDIR to a directory with more"
    return WorkerError(exc.errno, f"{exc.strerror}: rows or answers could not be stored on this worker. {remedy}.")


def is_of_the_worker(cause: object) -> TypeGuard[OSError]:
    """Return whether an error is one of the worker, not of a connection."""
    is_limit = isinstance(cause, OSError) and cause.errno in _TOO_MANY_FILES | _DISK_IS_FULL
    return is_limit or isinstance(cause, WorkerError)
