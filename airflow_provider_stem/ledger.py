"""
Record which days of which streams have landed, and find those that are missing; for DAGs.

A daily load and a history share one ledger. Each records what it has landed, and the history reads what is missing.
Rows are merged into existing objects, so a piece that landed but was not recorded is read again without any change. The
order of runs does not matter, nor does the time at which a site is first listed.

The history moves back in time, from the newest day that is missing. ``#`` is what one run reads of a batch, ``=`` what
has landed before it::

                first day                        daily_start               end - settle     end
                    |                                 |                          |           |
    objects by      |------------- month -------------|---------- day -----------|--- day ---|
                    |                                 |                          |           |
    daily load      |                                 |                          |===========|
    history, run 1  |                                 |##########################|           |
             run 2  |              ###################|==========================|           |
             run 3  |##############===================|==========================|           |

A run reads at most eleven months, so that each site needs one request, and never crosses ``daily_start``. The days of
``settle`` are left to the daily load, which reads them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any

from airflow_provider_stem._arguments import check_templated
from airflow_provider_stem._stores import allows_unconditional_writes, open_store, require_folder
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.history import EARLIEST, BatchHistory, Piece
from airflow_provider_stem.streams.keys import check_key, key_part, parse_path
from airflow_provider_stem.streams.records import (
    FailedSite,
    Receipt,
    UnavailableStream,
    as_entries,
    read_receipt,
    receipt_entries,
    without_counts,
)
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import Update, Version, update_object
from airflow_provider_stem.streams.stream_types import parse_stream_types

__all__ = ["EARLIEST", "Ledger", "Piece"]

_LONGEST = timedelta(days=3_650)
_LISTS = (("failed_sites", "failed_count", FailedSite), ("unavailable", "unavailable_count", UnavailableStream))
_EXTENSIONS = [one.extension(compression) for one in FORMATS.values() for compression in one.compressions]


class Ledger:
    """
    The ledger in an object store or a folder: one JSON object per batch.

    An object is written only if it has not changed since it was read.

    :param path: address of the folder with the objects ``{batch}.json``, as for ``StemStreamsToObjectStorageOperator``:
        ``s3://bucket/folder``, ``gs://bucket/folder``, ``abfs://container/folder`` or ``file:///folder``.
    :param stream_types: the types that the DAGs read. A type that is added later is missing since each stream's start.
    :param conn_id: connection of type ``aws``, ``google_cloud_platform`` or ``wasb``; default: ``aws_default``,
        ``google_cloud_default`` or ``wasb_default``. A folder needs none.
    :param s3_extra_args: more arguments of each PUT to S3, as for ``StemStreamsToS3Operator``; for ``s3://`` only.
    :raises StemConfigError: an argument is wrong; the message names it and the remedy.
    """

    def __init__(
        self,
        path: str,
        stream_types: Sequence[str],
        *,
        conn_id: str | None = None,
        s3_extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(path, str):
            raise StemConfigError(f"path must be a string, got {path!r}. Use an address such as 's3://lake/ledger'.")
        check_templated(conn_id=conn_id, s3_extra_args=s3_extra_args)
        place = parse_path(f"{path.removesuffix('/')}/", "")
        self._store = open_store(place.scheme, place.bucket, place.connection(conn_id), s3_extra_args)
        self._folder = place.key
        self._stream_types = parse_stream_types(stream_types)

    def enter(
        self, batches: Iterable[Mapping[str, Any]], receipts: Iterable[Receipt], *, count_tries: bool = False
    ) -> None:
        """
        Record what tasks landed. Doing so again changes nothing, except that tries are counted again.

        Only whole days in UTC count as landed: of a window that begins or ends within a day, that day does not.

        :param batches: ``{"sites", "batch"}`` that the tasks were mapped over.
        :param receipts: receipts of the tasks that succeeded; ``None`` is ignored. Their keys must end with
            ``_{batch}.{extension}``.
        :param count_tries: count a try of each site that did not land, so that :meth:`missing` postpones it.
        :raises StemConfigError: an argument is wrong, a receipt is of none of the batches, writing is forbidden, an
            object of the ledger is damaged, or the store ignores conditional writes and
            ``[stem] allow_unconditional_writes`` is not set.
        :raises StemTransportError: the store failed, or other runs changed the ledger again and again.
        """
        listed = _read_batches(batches)
        landed: dict[str, list[Receipt]] = {batch["batch"]: [] for batch in listed}
        for entry in receipt_entries(receipts):
            if entry is not None:
                receipt = _read_receipt(entry)
                landed[_batch_of(receipt, landed)].append(receipt)
        recorded = [batch for batch in listed if landed[batch["batch"]] or count_tries]
        if recorded:
            self._check_store()
        for batch in recorded:
            self._record(batch, landed[batch["batch"]] or [None], count_tries=count_tries)

    def missing(self, batches: Iterable[Mapping[str, Any]], daily_start: date, settle: timedelta) -> list[Piece]:
        """
        List the pieces of history to read next: at most one for each batch, the newest first.

        :param batches: ``{"sites", "batch"}`` of the sites that are listed now.
        :param daily_start: first day of the daily load's objects, the first of a month, UTC. Must never change.
        :param settle: whole days at the end of what has landed that are left to the daily load, which reads them again.
        :return: arguments for tasks of ``StemStreamsToObjectStorageOperator``.
        :raises StemConfigError: an argument is wrong, an object of the ledger is damaged, or nothing is recorded and
            the bucket or folder does not exist or cannot be written to.
        :raises StemTransportError: the store failed.
        """
        _check_times(daily_start, settle)
        histories = [(batch, self._read(batch["batch"])) for batch in _read_batches(batches)]
        ends = [end for _, history in histories for end in history.ends()]
        if not ends:
            require_folder(self._store.uri(self._folder.removesuffix("/")))
            self._check_store()
            return []
        pieces = [history.next_piece(batch, daily_start, max(ends) - settle) for batch, history in histories]
        return sorted(filter(None, pieces), key=lambda piece: piece["start"], reverse=True)

    def _check_store(self) -> None:
        self._store.check(self._key(".stem-probe"), may_be_unconditional=allows_unconditional_writes())

    def _read(self, batch: str) -> BatchHistory:
        version, _ = self._store.head(self._key(batch))
        with ScratchFile() as copy:
            return self._history(batch, self._store.get(self._key(batch), copy) if version else None, copy)

    def _record(self, batch: Mapping[str, Any], receipts: Sequence[Receipt | None], *, count_tries: bool) -> None:
        key = self._key(batch["batch"])
        seen, read_at = self._store.head(key)
        with ScratchFile() as copy, ScratchFile() as changed:

            def prepare(current: Version | None) -> Update[None]:
                history = self._history(batch["batch"], current, copy)
                before = history.as_json()
                for receipt in receipts:
                    history.record(batch["sites"], receipt, count_tries=count_tries)
                after = history.as_json()
                changed.clear()
                changed.write(after)
                return Update(None if after == before else changed, read_at, None)

            update_object(self._store, key, copy, prepare, exists=seen is not None)

    def _history(self, batch: str, version: Version | None, copy: ScratchFile) -> BatchHistory:
        copy.seek(0)
        content = copy.read() if version else b"{}"
        if version is None or version.sha256 in (None, copy.sha256):
            with suppress(ValueError):
                return BatchHistory(self._stream_types, content)
        raise StemConfigError(
            "The object of the ledger is damaged. Delete it, so that the history of its batch is read again "
            f"[{one_line(self._store.uri(self._key(batch)))}]"
        )

    def _key(self, batch: str) -> str:
        return check_key("path", f"{self._folder}{batch}.json")


def _check_times(daily_start: Any, settle: Any) -> None:
    if not isinstance(daily_start, date) or isinstance(daily_start, datetime) or daily_start.day != 1:
        raise StemConfigError(f"daily_start must be a date, the first of a month, got {daily_start!r}.")
    if not isinstance(settle, timedelta) or not timedelta() <= settle <= _LONGEST or settle % timedelta(days=1):
        raise StemConfigError(f"settle must be a timedelta of 0 to {_LONGEST.days:,} whole days, got {settle!r}.")


def _read_batches(batches: Any) -> list[Mapping[str, Any]]:
    """
    Return validated batches.

    :raises StemConfigError: one is invalid.
    """
    entries = as_entries(batches)
    read = None if entries is None else list(entries)
    for entry in [batches] if read is None else read:
        sites = entry.get("sites") if isinstance(entry, Mapping) and isinstance(entry.get("batch"), str) else None
        if not isinstance(sites, (list, tuple)) or not all(
            isinstance(site, Mapping) and isinstance(site.get("site_id"), str) for site in sites
        ):
            raise StemConfigError(
                f"batches contains {one_line(repr(entry))[:100]}. Use what StemSiteListOperator(batches=...) returned."
            )
    return read or []


def _read_receipt(entry: Any) -> Receipt:
    """
    Return a receipt with all that the ledger reads of it validated.

    :raises StemConfigError: it is not a valid receipt.
    """
    receipt = read_receipt(entry)
    for name, count, kind in _LISTS:
        listed = entry.get(name)
        if (
            not isinstance(listed, list)
            or type(entry.get(count)) is not int
            or not all(isinstance(one, Mapping) and one.keys() >= kind.__required_keys__ for one in listed)
        ):
            raise without_counts()
    return receipt


def _batch_of(receipt: Receipt, batches: Iterable[str]) -> str:
    """
    Return the batch that a receipt is of, by the keys of its objects.

    :raises StemConfigError: it is of none of the batches.
    """
    uris = [landed["uri"] for landed in receipt["objects"]]
    for batch in sorted(batches, key=len, reverse=True):  # the batch "1" also ends a key of the batch "west_1"
        ends = tuple(f"_{key_part(batch)}.{extension}" for extension in _EXTENSIONS)
        if uris and all(uri.endswith(ends) for uri in uris):
            return batch
    raise StemConfigError(
        f"receipts contains one of {one_line(str(uris[:1]))[:300]}, which is of none of the batches. Use the batches "
        "that the tasks were mapped over, keys that end with _{batch}.{extension}, and on_empty='write'."
    )
