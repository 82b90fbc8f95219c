"""
Record which days of which streams have landed, and find those that are missing; for DAGs.

A daily load and a history share one ledger. Each records what it has landed, and the history reads what is missing.
Rows are merged into existing objects, so a piece that landed but was not recorded is read again without any change. The
order of runs does not matter, nor does the time at which a site is first listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from airflow_provider_stem.errors import StemTransportError
from airflow_provider_stem.streams.objects import ObjectChangedError, Version
from airflow_provider_stem.streams.records import Receipt
from airflow_provider_stem.streams.sites import stream_starts
from airflow_provider_stem.streams.spool import ScratchFile

if TYPE_CHECKING:
    from airflow_provider_stem._s3 import S3Store

__all__ = ["EARLIEST", "Ledger", "Piece", "SiteEntry", "next_piece", "record"]

EARLIEST = date(2010, 1, 1)
"""First day of the history of a stream whose start the API does not report, or reports as a year before 2000."""

_DAY = timedelta(days=1)
# Extended to the start of its month this is eleven months. A year, padded on both sides, would need two requests.
_MAX_SPAN = timedelta(days=330)
_MAX_WRITES = 20  # each fails only if another run has written the object in between

Span = tuple[date, date]
"""The first day, and the day after the last one, in UTC."""


class Piece(TypedDict):
    """
    The arguments of one task of the history, for ``StemStreamsToS3Operator``.

    :param sites: records of ``StemSiteListOperator``.
    :param batch: name of the batch.
    :param start: first instant; ISO 8601, UTC. ``end`` is the instant after the last one.
    :param partition: ``month`` before the first day of the daily load's objects, ``day`` from it on.
    """

    sites: list[Mapping[str, Any]]
    batch: str
    start: str
    end: str
    partition: str


@dataclass(slots=True)
class SiteEntry:
    """
    The record of one site.

    :param streams: the days that landed, by stream type; sorted spans that neither overlap nor touch.
    :param tries: number of pieces of its history that failed since the last one that landed.
    """

    streams: dict[str, list[Span]] = field(default_factory=dict)
    tries: int = 0


Entries = dict[str, SiteEntry]
"""The entries of one batch, by site id."""


class Ledger:
    """
    The ledger in S3: one JSON object per batch, written only if it has not changed since it was read.

    :param bucket: name of the bucket.
    :param prefix: prefix of the keys ``{prefix}/{batch}.json``.
    :param stream_types: the types that the DAGs read. A type that is added later is missing since each stream's start.
    :param s3_extra_args: more arguments of each PUT, as for ``StemStreamsToS3Operator``.
    :param aws_conn_id: connection of type ``aws``.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        stream_types: Sequence[str],
        *,
        s3_extra_args: Mapping[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
    ) -> None:
        from airflow_provider_stem._s3 import S3Store

        self._store: S3Store = S3Store(aws_conn_id, bucket, s3_extra_args)
        self._prefix = prefix
        self._stream_types = stream_types

    def enter(
        self, batches: Iterable[Mapping[str, Any]], receipts: Iterable[Receipt], *, count_tries: bool = False
    ) -> None:
        """
        Record what tasks landed. Doing so again changes nothing.

        :param batches: ``{"sites", "batch"}`` that the tasks were mapped over.
        :param receipts: receipts of the tasks that succeeded. Their keys must end with ``_{batch}.{extension}``.
        :param count_tries: count a try of each site that did not land, so that :meth:`missing` postpones it.
        :raises StemTransportError: the store failed, or other runs changed the ledger again and again.
        """
        landed = {receipt["objects"][0]["uri"].rpartition("_")[2].partition(".")[0]: receipt for receipt in receipts}
        for batch in batches:
            receipt = landed.get(batch["batch"])
            if receipt or count_tries:
                self._update(batch, receipt, count_tries=count_tries)

    def missing(self, batches: Iterable[Mapping[str, Any]], cut: date, settle: timedelta) -> list[Piece]:
        """
        List the pieces of history to read next: at most one for each batch, the newest first.

        :param batches: ``{"sites", "batch"}`` of the sites that are listed now.
        :param cut: first day of the daily load's objects, the first of a month, UTC. Must never change.
        :param settle: time at the end of what has landed that is left to the daily load, which reads it again.
        :return: arguments for tasks of ``StemStreamsToS3Operator``.
        :raises StemTransportError: the store failed.
        """
        read = [(batch, self._read(batch["batch"])[0]) for batch in batches]
        ends = [spans[-1][1] for _, entries in read for entry in entries.values() for spans in entry.streams.values()]
        if not ends:
            return []
        pieces = [next_piece(batch, entries, self._stream_types, cut, max(ends) - settle) for batch, entries in read]
        return sorted(filter(None, pieces), key=lambda piece: piece["start"], reverse=True)

    def _update(self, batch: Mapping[str, Any], receipt: Receipt | None, *, count_tries: bool) -> None:
        for _ in range(_MAX_WRITES):
            entries, version, read_at = self._read(batch["batch"])
            before = _to_json(entries)
            record(entries, batch["sites"], receipt, self._stream_types, count_tries=count_tries)
            after = _to_json(entries)
            if after == before:
                return
            with ScratchFile() as file:
                file.write(after)
                try:
                    self._store.put(self._key(batch["batch"]), file, read_at, version)
                except ObjectChangedError:
                    continue
            return
        raise StemTransportError(
            f"Other runs changed the ledger {_MAX_WRITES} times. Try again later "
            f"[{self._store.uri(self._key(batch['batch']))}]"
        )

    def _read(self, batch: str) -> tuple[Entries, Version | None, datetime]:
        """Return a batch's entries, the version of their object, and the store's time."""
        version, read_at = self._store.head(self._key(batch))
        with ScratchFile() as file:
            version = self._store.get(self._key(batch), file) if version else None
            file.seek(0)
            return _from_json(file.read() if version else b"{}"), version, read_at

    def _key(self, batch: str) -> str:
        return f"{self._prefix}/{batch}.json"


def record(
    entries: Entries,
    sites: Sequence[Mapping[str, Any]],
    receipt: Receipt | None,
    stream_types: Sequence[str],
    *,
    count_tries: bool,
) -> None:
    """
    Record the result of one task in a batch's entries.

    :param entries: entries of the batch; updated.
    :param sites: records of the task's sites.
    :param receipt: receipt of the task, ``None`` if it failed.
    :param stream_types: the types that the task read.
    :param count_tries: count a try of each site that did not land.
    """
    failed: set[str] = set()
    if receipt:
        start, end = (datetime.fromisoformat(str(receipt["window"][bound])).date() for bound in ("start", "end"))
        failed = {site["site_id"] for site in sites} & {one["site_id"] for one in receipt["failed_sites"]}
    for site in sites:
        entry = entries.setdefault(site["site_id"], SiteEntry())
        # A receipt lists at most a hundred failed sites, and an id that contains the API key is redacted in it.
        if not receipt or site["site_id"] in failed or len(failed) < receipt["failed_count"]:
            entry.tries += count_tries
            continue
        if count_tries:
            entry.tries = 0
        for stream_type, began in _starts(site, stream_types):
            # Days before its start do not count as landed: if the start moves back, the days in between are missing.
            if (first := max(start, began)) < end:
                entry.streams[stream_type] = _united(entry.streams.get(stream_type, []), (first, end))


def next_piece(
    batch: Mapping[str, Any], entries: Entries, stream_types: Sequence[str], cut: date, end: date
) -> Piece | None:
    """
    Return the newest piece of history that a batch lacks, or ``None``.

    A piece needs one request per site: at most eleven months, of all sites that lack some of them. Sites whose pieces
    failed come last, and fewer at a time after each failure, so one site does not block its batch.

    :param batch: ``{"sites", "batch"}``.
    :param entries: entries of the batch.
    :param stream_types: the types that the DAGs read.
    :param cut: see :meth:`Ledger.missing`.
    :param end: the first day that is left to the daily load, UTC.
    """
    end = end if end > cut else _month(end)
    lacking: list[tuple[int, date, date, Mapping[str, Any]]] = []
    for site in batch["sites"]:
        entry = entries.get(site["site_id"], SiteEntry())
        gaps = [_newest_gap(entry.streams.get(name, []), began, end) for name, began in _starts(site, stream_types)]
        if found := [gap for gap in gaps if gap]:
            lacking.append((entry.tries, min(found)[0], max(gap_end for _, gap_end in found), site))
    if not lacking:
        return None
    tries = min(entry_tries for entry_tries, *_ in lacking)
    lacking = [one for one in lacking if one[0] == tries]
    upto = max(gap_end for _, _, gap_end, _ in lacking)
    is_daily = upto > cut
    if not is_daily:
        upto = _month(_month(upto - _DAY) + 31 * _DAY)  # the first of a month: this day, or the next one
    earliest = _month(upto - _MAX_SPAN)
    if is_daily:
        earliest = max(cut, earliest)
    lacking = [one for one in lacking if one[2] > earliest]
    start = max(earliest, min(gap_start for _, gap_start, _, _ in lacking))
    return {
        "sites": [site for *_, site in lacking[: max(1, len(lacking) >> tries)]],
        "batch": batch["batch"],
        "start": f"{start if is_daily else _month(start)}T00:00:00Z",
        "end": f"{upto}T00:00:00Z",
        "partition": "day" if is_daily else "month",
    }


def _starts(site: Mapping[str, Any], stream_types: Sequence[str]) -> Iterator[tuple[str, date]]:
    """Iterate over the types of a site's streams, with the first day of each, in UTC."""
    starts = stream_starts(site, site["site_id"])
    for stream_type in stream_types:
        if starts is None or stream_type in starts:
            start = starts and starts[stream_type]
            # Years such as 1 stand for an unknown time.
            yield stream_type, start.date() if start and start.year >= 2000 else EARLIEST


def _united(spans: Iterable[Span], new: Span) -> list[Span]:
    united: list[Span] = []
    for start, end in sorted([*spans, new]):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united


def _newest_gap(spans: Sequence[Span], begin: date, end: date) -> Span | None:
    for span_start, span_end in reversed(spans):
        if span_end < end:
            begin = max(begin, span_end)
            break
        end = min(end, span_start)
    return (begin, end) if begin < end else None


def _month(day: date) -> date:
    return day.replace(day=1)


def _to_json(entries: Entries) -> bytes:
    plain = {site_id: asdict(entry) for site_id, entry in entries.items()}
    return json.dumps(plain, default=str, sort_keys=True).encode()


def _from_json(content: bytes) -> Entries:
    return {
        site_id: SiteEntry(
            {
                stream_type: [(date.fromisoformat(start), date.fromisoformat(end)) for start, end in spans]
                for stream_type, spans in entry["streams"].items()
            },
            entry["tries"],
        )
        for site_id, entry in json.loads(content).items()
    }
