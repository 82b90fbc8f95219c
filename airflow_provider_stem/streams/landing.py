"""
A window of many sites to objects, whole or not at all, and the receipt of what landed; for the operator.

First everything is read, checked and written to local files; only then is anything uploaded. So a run that fails
earlier leaves what was there, and one that fails during the upload leaves whole objects that a retry completes.
"""

from __future__ import annotations

import itertools
import logging
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol, cast

import pyarrow as pa

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemConfigError, StemError, StemIncompleteError
from airflow_provider_stem.streams.extraction import Extraction
from airflow_provider_stem.streams.files import write_file
from airflow_provider_stem.streams.keys import object_key
from airflow_provider_stem.streams.reading import SiteResult
from airflow_provider_stem.streams.sites import Site
from airflow_provider_stem.streams.spool import Piece, Shelf, ShelvedFile, Spool
from airflow_provider_stem.streams.tables import landing_batch
from airflow_provider_stem.streams.windows import Partition, Window, iso
from airflow_provider_stem.text import one_line

log = logging.getLogger(__name__)

Receipt = dict[str, Any]

MAX_OBJECTS = 1000
_MAX_LISTED = 100


class ObjectStore(Protocol):
    """Where finished files go."""

    def put(self, key: str, file: ShelvedFile) -> None:
        """Store a file under a key, visible whole or not at all."""

    def uri(self, key: str) -> str:
        """Give the address of a key."""


@dataclass(frozen=True, slots=True)
class Landing:
    """
    What is to be landed, and how.

    :param window: what to read; see :meth:`Window.moved_back` for whole periods.
    :param keys: one key for each of the window's periods; see :func:`plan_keys`.
    :param compression: as :func:`~airflow_provider_stem.streams.formats.check_format` gave it.
    :param on_incomplete: where rows are missing: ``warn``, or ``fail`` before anything is uploaded.
    :param on_empty: where the run has no row at all: ``write`` objects without rows, ``skip`` or ``fail``.
    """

    window: Window
    stream_types: Sequence[str]
    partition: Partition
    keys: Sequence[str]
    file_format: str
    compression: str
    on_incomplete: Literal["warn", "fail"]
    on_unavailable: Literal["skip", "fail"]
    on_empty: Literal["write", "skip", "fail"]
    on_site_error: Literal["skip", "fail"]
    max_workers: int

    def run(self, client: StemClient, sites: Sequence[Site], store: ObjectStore) -> Receipt:
        """
        Read, write and upload.

        :return: the receipt; without objects where ``on_empty="skip"`` applies.
        :raises StemIncompleteError: rows are missing and the policy says so, or every site failed.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        began = time.monotonic()
        periods = list(self.window.periods(self.partition))
        with Spool() as spool, Shelf() as shelf:
            keeper = _Keeper(spool, periods)
            extraction: Extraction[_Kept] = Extraction(
                client,
                self.stream_types,
                self.window,
                keeper.keep,
                on_unavailable=self.on_unavailable,
                on_site_error=self.on_site_error,
            )
            log.info(
                "Reading %s of %s at %s s: %s to %s, with %s or more, to land in %s",
                ", ".join(self.stream_types),
                _count(len(sites), "site"),
                self.window.resolution,
                iso(self.window.start),
                iso(self.window.end),
                _count(extraction.planned_requests(sites), "request"),
                _count(len(periods), "object"),
            )
            results: list[SiteResult[_Kept]] = []
            incoming = _collected(extraction.read(sites, self.max_workers), results, len(sites))
            # The first period's file is written while sites come in, the others from what was kept of them.
            turns = itertools.tee(incoming, len(periods))
            files = []
            for number, (period, turn) in enumerate(zip(periods, turns, strict=True)):
                file = shelf.new_file()
                batches = keeper.batches(turn, number, self.window.resolution)
                rows = write_file(batches, cast(BinaryIO, file), self.file_format, self.compression, period)
                files.append((period, file, rows))

            receipt = self._receipt(results)
            self._judge(receipt, results)
            receipt["requests"] = client.requests_sent
            if receipt["rows"] or self.on_empty == "write":
                for key, (period, file, rows) in zip(self.keys, files, strict=True):
                    store.put(key, file)
                    receipt["objects"].append(
                        {
                            "uri": store.uri(key),
                            "rows": rows,
                            "bytes": file.size,
                            "start": iso(period.start),
                            "end": iso(period.end),
                        }
                    )
        log.info(
            "Landed %s in %s with %s in %.1f s: %s missing of %s expected",
            _count(receipt["rows"], "row"),
            _count(len(receipt["objects"]), "object"),
            _count(receipt["requests"], "request"),
            time.monotonic() - began,
            f"{receipt['missing']:,}",
            f"{receipt['expected']:,}",
        )
        return receipt

    def _receipt(self, results: Sequence[SiteResult[_Kept]]) -> Receipt:
        whole = [result for result in results if result.error is None]
        accounts = [(r.site_id, t, a) for r in whole for t, a in sorted(r.accounts.items())]
        expected = sum(account.expected for _, _, account in accounts)
        incomplete = [
            {
                "site_id": site_id,
                "stream_type": stream_type,
                "expected": account.expected,
                "received": account.received,
                "first_missing": iso(account.first_missing),
            }
            for site_id, stream_type, account in accounts
            if account.first_missing is not None
        ]
        unavailable = [{"site_id": r.site_id, "stream_type": t} for r in whole for t in sorted(r.unavailable)]
        failed = [{"site_id": r.site_id, "error": str(r.error)} for r in results if r.error is not None]
        return {
            "window": self.window.as_json(),
            "objects": [],
            "rows": sum(result.rows for result in whole),
            "expected": expected,
            "missing": expected - sum(account.received for _, _, account in accounts),
            "sites": len(results),
            "requests": 0,
            "incomplete": incomplete[:_MAX_LISTED],
            "unavailable": unavailable[:_MAX_LISTED],
            "failed_sites": failed[:_MAX_LISTED],
            "incomplete_count": len(incomplete),
            "unavailable_count": len(unavailable),
            "failed_count": len(failed),
        }

    def _judge(self, receipt: Receipt, results: Sequence[SiteResult[_Kept]]) -> None:
        if receipt["failed_count"] == len(results):
            raise results[0].error or StemError("no site was read")
        if receipt["incomplete_count"]:
            first = receipt["incomplete"][0]
            message = (
                f"{receipt['missing']:,} of {receipt['expected']:,} rows are missing in "
                f"{_count(receipt['incomplete_count'], 'stream')}, first {first['stream_type']} of site "
                f"{one_line(first['site_id'])} for the interval that ends at {first['first_missing']}"
            )
            if self.on_incomplete == "fail":
                raise StemIncompleteError(f"{message}; nothing was uploaded (on_incomplete='fail').")
            log.warning("%s", message)
        if not receipt["rows"] and self.on_empty == "fail":
            raise StemIncompleteError(
                f"No row came for {self.window} from {_count(len(results), 'site')}; "
                "nothing was uploaded (on_empty='fail')."
            )


def plan_keys(
    s3_key: str, window: Window, partition: Partition, *, batch: str, dag_id: str, task_id: str, extension: str
) -> list[str]:
    """
    Give the key of each period.

    :raises StemConfigError: too many objects for one task, or two periods with the same key.
    """
    periods = list(window.periods(partition))
    if len(periods) > MAX_OBJECTS:
        larger = {"hour": "'day'", "day": "'month'"}.get(partition, "'interval'")
        raise StemConfigError(
            f"partition={partition!r} makes {len(periods):,} objects of {window}, more than {MAX_OBJECTS:,}: "
            f"use partition={larger}, or shorter windows."
        )
    keys = [
        object_key(s3_key, period, batch=batch, dag_id=dag_id, task_id=task_id, extension=extension)
        for period in periods
    ]
    if len(set(keys)) < len(keys):
        raise StemConfigError(
            f"s3_key {s3_key!r} gives several {partition}s the same key, such as {keys[0]!r}: "
            "let it hold {start}, as finely as the partition."
        )
    return keys


_Kept = dict[int, Piece]
"""The rows of one part of a stream by the number of the period that they lie in."""


class _Keeper:
    """Sorts rows into periods on their way to the spool, and brings them back as an object needs them."""

    def __init__(self, spool: Spool, periods: Sequence[Window]) -> None:
        self._spool = spool
        self._edges = [period.end for period in periods]

    def keep(self, stream: pa.RecordBatch) -> _Kept:
        ends = stream.column(0)
        kept = {}
        begin = 0
        while begin < stream.num_rows:
            # An interval belongs to the period in which it ends, the period's own end included.
            period = bisect_left(self._edges, ends[begin].as_py())
            upto = bisect_right(
                range(stream.num_rows), self._edges[period], lo=begin, key=lambda row: ends[row].as_py()
            )
            kept[period] = self._spool.append(stream.slice(begin, upto - begin))
            begin = upto
        return kept

    def batches(self, results: Iterator[SiteResult[_Kept]], period: int, resolution: int) -> Iterator[pa.RecordBatch]:
        for result in results:
            for stream_type, parts in sorted(result.kept.items()):
                for part in parts:
                    if period in part:
                        yield landing_batch(result.site_id, stream_type, resolution, self._spool.read(part[period]))


def _collected(
    incoming: Iterator[SiteResult[_Kept]], results: list[SiteResult[_Kept]], total: int
) -> Iterator[SiteResult[_Kept]]:
    """Note each result, and tell how far it is."""
    step = max(1, total // 10)
    for result in incoming:
        results.append(result)
        if len(results) % step == 0 and total >= 20:
            log.info("Read %s of %s", f"{len(results):,}", _count(total, "site"))
        yield result


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
