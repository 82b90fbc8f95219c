"""
Landing of one window of many sites in objects; used by the operator.

All data is read, checked and stored on local disk before anything is uploaded. A run that fails earlier changes no
object. A run that fails during the upload leaves complete objects, and a retry writes the others.
"""

from __future__ import annotations

import logging
import re
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa

from airflow_provider_stem._text import list_counts, number_of, one_line
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.errors import StemConfigError, StemError, StemIncompleteError, StemTransportError
from airflow_provider_stem.streams.extraction import Extraction
from airflow_provider_stem.streams.keys import KeyTemplate
from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.objects import IfExists, ObjectWriter, OvertakenError, Written
from airflow_provider_stem.streams.reading import SiteResult
from airflow_provider_stem.streams.receipts import receipt_of
from airflow_provider_stem.streams.records import LandedObject, Receipt
from airflow_provider_stem.streams.sites import Site
from airflow_provider_stem.streams.spool import Piece, ScratchFile, Spool
from airflow_provider_stem.streams.store import ObjectStore, Version
from airflow_provider_stem.streams.tables import landing_batch
from airflow_provider_stem.streams.windows import Window, epoch, iso

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 10
_MAX_CLOCK_ERROR = timedelta(seconds=60)
_NUMBERED = re.compile(r"\d+-of-(\d+)")


@dataclass(frozen=True, slots=True)
class Landing:
    """
    What to land, and how.

    :param window: what to read; see :meth:`Window.with_lookback` for whole periods.
    :param stream_types: the types to read.
    :param objects: the periods of the window by key; see :meth:`KeyTemplate.plan`.
    :param template: the template of these keys.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: as :func:`~airflow_provider_stem.streams.formats.resolve_compression` returns it.
    :param parquet_encoding: see :data:`~airflow_provider_stem.streams.formats.ParquetEncoding`.
    :param if_exists: see :class:`~airflow_provider_stem.streams.objects.ObjectWriter`.
    :param on_incomplete: if rows are missing, ``warn``, or ``fail`` before anything is uploaded.
    :param on_unavailable: see :class:`~airflow_provider_stem.streams.extraction.Extraction`.
    :param on_empty: if there are no rows at all, ``write`` objects without rows, ``skip`` or ``fail``.
    :param on_site_error: see :class:`~airflow_provider_stem.streams.extraction.Extraction`.
    :param max_workers: number of sites to read concurrently, 1 or more.
    """

    window: Window
    stream_types: Sequence[str]
    objects: Mapping[str, Window]
    template: KeyTemplate
    file_format: str
    compression: str
    parquet_encoding: str
    if_exists: IfExists
    on_incomplete: Literal["warn", "fail"]
    on_unavailable: Literal["skip", "fail"]
    on_empty: Literal["write", "skip", "fail"]
    on_site_error: Literal["skip", "fail"]
    max_workers: int

    def run(self, client: StemClient, sites: Sequence[Site], store: ObjectStore) -> Receipt:
        """
        Read the window, write its objects and upload them. Return the receipt.

        If another task has landed rows that it read later, the window is read again.

        :param client: client of the API; it is closed when a site fails.
        :param sites: the sites to read, in order of their ids.
        :param store: where to write the objects.
        :return: the receipt; it lists no objects if ``on_empty="skip"`` applies.
        :raises StemConfigError: the objects under the prefix belong to another number of batches.
        :raises StemIncompleteError: rows are missing with ``on_incomplete="fail"``, or there are none with
            ``on_empty="fail"``.
        :raises StemTransportError: other tasks landed later rows during every attempt.
        :raises StemError: a site failed; see :mod:`airflow_provider_stem.errors`.
        """
        began = time.monotonic()
        merges: dict[str, Merge] = {}
        overtaken: dict[str, Version | None] | None = None
        for _ in range(_MAX_ATTEMPTS):
            seen, read_at = self._look_up(store)
            if seen == overtaken:
                raise StemTransportError(
                    f"HEAD and GET of the store describe different objects of {self.window}. Check the store and the "
                    "proxies in front of it."
                )
            self._check_batches([self.objects[key] for key, version in seen.items() if not version], sites, store)
            writer = ObjectWriter(
                store, self.file_format, self.compression, self.parquet_encoding, self.if_exists, read_at
            )
            try:
                receipt = self._attempt(client, sites, writer, seen, merges)
            except OvertakenError as exc:
                overtaken = seen
                log.warning("Another task landed rows that it read later. The window is read again [%s]", exc)
            else:
                break
        else:
            raise StemTransportError(
                f"Other tasks landed later rows of {self.window} {_MAX_ATTEMPTS} times. Try again when they are done."
            )
        log.info(
            "Landed %s in %s with %s in %.1f s: %s",
            number_of(receipt["rows"], "row"),
            number_of(len(receipt["objects"]), "object"),
            number_of(receipt["requests"], "request"),
            time.monotonic() - began,
            list_counts({name: receipt[name] for name in ("inserted", "changed", "unchanged", "kept")}),
        )
        return receipt

    def _look_up(self, store: ObjectStore) -> tuple[dict[str, Version | None], datetime]:
        """Return the version of each object and the store's time, before anything is read."""
        with ThreadPoolExecutor(self.max_workers, thread_name_prefix="stem-store") as pool:
            found = dict(zip(self.objects, pool.map(store.head, self.objects), strict=True))
        seen = {key: version for key, (version, _) in found.items()}
        read_at = max(time for _, time in found.values())
        for key, version in seen.items():
            if version and version.read_at and version.read_at > read_at + _MAX_CLOCK_ERROR:
                raise StemTransportError(
                    f"The object was read at {iso(version.read_at)} according to its metadata, but the store's clock "
                    f"shows {iso(read_at)}. Correct that clock, or delete the object [{one_line(store.uri(key))}]"
                )
        return seen, read_at

    def _check_batches(self, new: Iterable[Window], sites: Sequence[Site], store: ObjectStore) -> None:
        """Raise `StemConfigError` if objects of other batches exist, since every interval would be there twice."""

        def scheme(batch: str) -> str | None:
            if site_ids == {batch}:
                return "one batch per site"
            if numbered := _NUMBERED.fullmatch(batch):
                return f"batches={int(numbered[1])}"
            if batch == "all":
                return "one batch"
            return "one batch per site" if batch in site_ids else None

        site_ids = {site.site_id for site in sites}
        own = scheme(self.template.batch)
        if own is None:
            return
        for period in new:
            described = self.template.batches(period)
            for key in store.keys(described[0], required=own.startswith("batches=")) if described else ():
                found = described[1].fullmatch(key) if described else None
                other = scheme(unquote(found["batch"])) if found else None
                if other not in (None, own):
                    raise StemConfigError(
                        f"Objects of {other} exist for {period}, and this task writes {own}: every interval would be "
                        f"there twice. Go back to {other}, use another key, or delete the other objects "
                        f"[{one_line(store.uri(key))}]"
                    )

    def _attempt(
        self,
        client: StemClient,
        sites: Sequence[Site],
        writer: ObjectWriter,
        seen: Mapping[str, Version | None],
        merges: dict[str, Merge],
    ) -> Receipt:
        """
        Read the window once, write its objects and return the receipt.

        :param seen: the version of each object before the reading.
        :param merges: the counts of the objects that earlier attempts have written; updated.
        """
        with Spool() as spool, ScratchFile() as scratch:
            partitioner = _Partitioner(spool, list(self.objects.values()))
            results: list[SiteResult[_Pieces]] = []
            incoming = _collected(self._read(client, sites, partitioner), results, len(sites))
            prepared = None
            if seen[next(iter(self.objects))] is None:
                # A new object is written while other sites are still being read.
                prepared = scratch, writer.write_file(scratch, partitioner.rows(incoming, 0, self.window.resolution))
            deque(incoming, maxlen=0)

            receipt = receipt_of(results, self.window, client.redact)
            self._check(receipt, results)
            if receipt["rows"] or self.on_empty == "write":
                for number, (key, period) in enumerate(self.objects.items()):
                    read = partial(partitioner.rows, results, number, self.window.resolution)
                    written = writer.write(key, seen[key], read, None if number else prepared)
                    merges[key] = written.merge.after(merges.get(key))
                    receipt["objects"].append(_landed(writer.store.uri(key), written, period).as_json())
                for merge in merges.values():
                    receipt["inserted"] += merge.inserted
                    receipt["changed"] += merge.changed
                    receipt["unchanged"] += merge.unchanged
                    receipt["kept"] += merge.kept
        receipt["requests"] = client.requests_sent
        return receipt

    def _read(
        self, client: StemClient, sites: Sequence[Site], partitioner: _Partitioner
    ) -> Iterator[SiteResult[_Pieces]]:
        """Iterate over the results of the sites; their rows are in the partitioner."""
        extraction: Extraction[_Pieces] = Extraction(
            client,
            self.stream_types,
            self.window,
            partitioner.store,
            on_unavailable=self.on_unavailable,
            on_site_error=self.on_site_error,
        )
        log.info(
            "Reading %s of %s at %s s: %s to %s, with %s or more, to land in %s",
            ", ".join(self.stream_types),
            number_of(len(sites), "site"),
            self.window.resolution,
            iso(self.window.start),
            iso(self.window.end),
            number_of(extraction.planned_requests(sites), "request"),
            number_of(len(self.objects), "object"),
        )
        return extraction.read(sites, self.max_workers)

    def _check(self, receipt: Receipt, results: Sequence[SiteResult[_Pieces]]) -> None:
        """Apply ``on_incomplete`` and ``on_empty`` before anything is uploaded."""
        if receipt["failed_count"] == len(results):
            raise results[0].error or StemError("No site was read.")
        if receipt["incomplete_count"]:
            first = receipt["incomplete"][0]
            message = (
                f"{receipt['missing']:,} of {receipt['expected']:,} rows are missing in "
                f"{number_of(receipt['incomplete_count'], 'stream')}, first {first['stream_type']} of site "
                f"{one_line(first['site_id'])} for the interval that ends at {first['first_missing']}"
            )
            if self.on_incomplete == "fail":
                raise StemIncompleteError(
                    f"{message}; nothing was uploaded. Try again later, or set on_incomplete='warn'."
                )
            log.warning("%s", message)
        if not receipt["rows"] and self.on_empty == "fail":
            raise StemIncompleteError(
                f"No rows for {self.window} from {number_of(len(results), 'site')}; nothing was uploaded. "
                "Try again later, or set on_empty='write' or 'skip'."
            )


_Pieces = dict[int, Piece]
"""The rows of one part of a stream, by the number of the period that they belong to."""


class _Partitioner:
    """Store rows on local disk by period, and read them back period by period."""

    def __init__(self, spool: Spool, periods: Sequence[Window]) -> None:
        self._spool = spool
        self._edges = [epoch(period.end) * 10**6 for period in periods]

    def store(self, stream: pa.RecordBatch) -> _Pieces:
        ends = stream.column(0)
        pieces = {}
        begin = 0
        while begin < stream.num_rows:
            # An interval belongs to the period in which it ends; the end of the period is inclusive.
            period = bisect_left(self._edges, ends[begin].value)
            upto = bisect_right(range(stream.num_rows), self._edges[period], lo=begin, key=lambda row: ends[row].value)
            pieces[period] = self._spool.append(stream.slice(begin, upto - begin))
            begin = upto
        return pieces

    def rows(self, results: Iterable[SiteResult[_Pieces]], period: int, resolution: int) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows of one period in the landing schema, one part of a stream at a time."""
        for result in results:
            for stream_type, parts in sorted(result.kept.items()):
                for part in parts:
                    if period in part:
                        yield landing_batch(result.site_id, stream_type, resolution, self._spool.read(part[period]))


def _landed(uri: str, written: Written, period: Window) -> LandedObject:
    return LandedObject(uri, written.rows, written.size, written.sha256, written.read_at, period.start, period.end)


def _collected(
    incoming: Iterator[SiteResult[_Pieces]], results: list[SiteResult[_Pieces]], total: int
) -> Iterator[SiteResult[_Pieces]]:
    """Iterate over the results; append each to ``results``, and log the progress."""
    step = max(1, total // 10)
    for result in incoming:
        results.append(result)
        if len(results) % step == 0 and total >= 20:
            log.info("Read %s of %s", f"{len(results):,}", number_of(total, "site"))
        yield result
