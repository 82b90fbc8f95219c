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
from datetime import date, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_stem.streams.history import EARLIEST, BatchHistory, Piece
from airflow_provider_stem.streams.keys import check_key, parse_path
from airflow_provider_stem.streams.records import Receipt
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import Update, Version, update_object

__all__ = ["EARLIEST", "Ledger", "Piece"]


class Ledger:
    """
    The ledger in an object store or a folder: one JSON object per batch.

    An object is written only if it has not changed since it was read.

    :param path: address of the folder with the objects ``{batch}.json``, as for ``StemStreamsToObjectStorageOperator``:
        ``s3://bucket/folder``, ``gs://bucket/folder``, ``abfs://container/folder`` or ``file:///folder``.
    :param stream_types: the types that the DAGs read. A type that is added later is missing since each stream's start.
    :param conn_id: connection of type ``aws``, ``google_cloud_platform`` or ``wasb``; default: ``aws_default``,
        ``google_cloud_default`` or ``wasb_default``. A folder needs none.
    :param s3_extra_args: more arguments of each PUT to S3, as for ``StemStreamsToS3Operator``.
    :raises StemConfigError: the address is invalid.
    """

    def __init__(
        self,
        path: str,
        stream_types: Sequence[str],
        *,
        conn_id: str | None = None,
        s3_extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        from airflow_provider_stem._stores import open_store

        place = parse_path(f"{path.removesuffix('/')}/", "")
        self._store = open_store(place.scheme, place.bucket, place.connection(conn_id), s3_extra_args)
        self._folder = place.key
        self._stream_types = stream_types

    def enter(
        self, batches: Iterable[Mapping[str, Any]], receipts: Iterable[Receipt], *, count_tries: bool = False
    ) -> None:
        """
        Record what tasks landed. Doing so again changes nothing.

        :param batches: ``{"sites", "batch"}`` that the tasks were mapped over.
        :param receipts: receipts of the tasks that succeeded. Their keys must end with ``_{batch}.{extension}``.
        :param count_tries: count a try of each site that did not land, so that :meth:`missing` postpones it.
        :raises StemConfigError: writing is forbidden, or the store ignores conditional writes and
            ``[stem] allow_unconditional_writes`` is not set.
        :raises StemTransportError: the store failed, or other runs changed the ledger again and again.
        """
        landed = {receipt["objects"][0]["uri"].rpartition("_")[2].partition(".")[0]: receipt for receipt in receipts}
        results = [(batch, landed.get(batch["batch"])) for batch in batches]
        recorded = [(batch, receipt) for batch, receipt in results if receipt or count_tries]
        if recorded:
            self._store.check(
                self._key(".stem-probe"),
                may_be_unconditional=conf.getboolean("stem", "allow_unconditional_writes", fallback=False),
            )
        for batch, receipt in recorded:
            self._record(batch, receipt, count_tries=count_tries)

    def missing(self, batches: Iterable[Mapping[str, Any]], daily_start: date, settle: timedelta) -> list[Piece]:
        """
        List the pieces of history to read next: at most one for each batch, the newest first.

        :param batches: ``{"sites", "batch"}`` of the sites that are listed now.
        :param daily_start: first day of the daily load's objects, the first of a month, UTC. Must never change.
        :param settle: time at the end of what has landed that is left to the daily load, which reads it again.
        :return: arguments for tasks of ``StemStreamsToObjectStorageOperator``.
        :raises StemTransportError: the store failed.
        """
        histories = [(batch, self._read(batch["batch"])) for batch in batches]
        ends = [end for _, history in histories for end in history.ends()]
        if not ends:
            return []
        pieces = [history.next_piece(batch, daily_start, max(ends) - settle) for batch, history in histories]
        return sorted(filter(None, pieces), key=lambda piece: piece["start"], reverse=True)

    def _read(self, batch: str) -> BatchHistory:
        version, _ = self._store.head(self._key(batch))
        with ScratchFile() as copy:
            return self._history(self._store.get(self._key(batch), copy) if version else None, copy)

    def _record(self, batch: Mapping[str, Any], receipt: Receipt | None, *, count_tries: bool) -> None:
        key = self._key(batch["batch"])
        seen, read_at = self._store.head(key)
        with ScratchFile() as copy, ScratchFile() as changed:

            def prepare(current: Version | None) -> Update[None]:
                history = self._history(current, copy)
                before = history.as_json()
                history.record(batch["sites"], receipt, count_tries=count_tries)
                after = history.as_json()
                changed.clear()
                changed.write(after)
                return Update(None if after == before else changed, read_at, None)

            update_object(self._store, key, copy, prepare, exists=seen is not None)

    def _history(self, version: Version | None, copy: ScratchFile) -> BatchHistory:
        copy.seek(0)
        return BatchHistory(self._stream_types, copy.read() if version else b"{}")

    def _key(self, batch: str) -> str:
        return check_key("path", f"{self._folder}{batch}.json")
