"""Errors of the worker's disk and limits, with the remedy; for code that stores rows or responses on disk."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WorkerError(OSError):
    """The worker's disk is full or a limit of the worker is reached; no server failed."""


@contextmanager
def own_disk() -> Iterator[None]:
    """
    Add the remedy to errors of files on this worker.

    :raises WorkerError: instead of any ``OSError`` in the ``with`` block.
    """
    try:
        yield
    except OSError as exc:
        error = worker_error(exc)
    else:
        return
    raise error


def worker_error(exc: OSError) -> WorkerError:
    """Return a ``WorkerError`` with the remedy for an error of a file."""
    if isinstance(exc, WorkerError):
        return exc
    if exc.errno in _TOO_MANY_FILES:
        remedy = "Raise the worker's limit of open files (ulimit -n), or lower max_workers"
    else:
        # It is None if no directory was usable, for example because all disks are full.
        folder = tempfile.tempdir or "the directory for temporary files"
        remedy = f"Free space in {folder}, or set TMPDIR to a directory with more"
    return WorkerError(exc.errno, f"Rows or responses could not be stored on this worker: {exc.strerror}. {remedy}.")


def is_of_the_worker(cause: object) -> TypeGuard[OSError]:
    """Return whether an error is caused by the worker, not by a connection."""
    is_limit = isinstance(cause, OSError) and cause.errno in _TOO_MANY_FILES | _DISK_IS_FULL
    return is_limit or isinstance(cause, WorkerError)
