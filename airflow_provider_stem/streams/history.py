"""Days of streams that have landed, and the next ones to read, for one batch of sites; for the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, time, timedelta
from typing import Any, TypedDict

from airflow_provider_stem.streams.records import Receipt
from airflow_provider_stem.streams.sites import stream_starts
from airflow_provider_stem.streams.windows import parse_instant

EARLIEST = date(2010, 1, 1)
"""First day of the history of a stream whose start the API does not report, or reports as a year before 2000."""

_DAY = timedelta(days=1)
# Extended to the start of its month this is eleven months. A year, padded on both sides, would need two requests.
_MAX_SPAN = timedelta(days=330)
_FIRST_REAL_YEAR = 2000  # earlier years, such as 1, stand for an unknown time

Span = tuple[date, date]
"""The first day, and the day after the last one, in UTC."""


class Piece(TypedDict):
    """
    The arguments of one task of the history, for ``StemStreamsToObjectStorageOperator``.

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
class _Absence:
    """
    Days that were read while the API had no stream of a type.

    They count as landed as long as the listing is the same, so that they are not read in each run.

    :param listed: first day of the type in the listing; ``None`` if the listing reported no types.
    :param spans: as in :class:`_Site`.
    """

    listed: date | None
    spans: list[Span] = field(default_factory=list)


@dataclass(slots=True)
class _Site:
    """
    The history of one site.

    :param streams: the days that landed, by stream type; sorted spans that neither overlap nor touch.
    :param absent: types that the site lacked when it was last read.
    :param tries: number of pieces of its history that failed since the last one that landed.
    """

    streams: dict[str, list[Span]] = field(default_factory=dict)
    absent: dict[str, _Absence] = field(default_factory=dict)
    tries: int = 0

    def read_days(self, stream_type: str, listed: date | None) -> list[Span]:
        """Return the days of a type that are not missing, while the listing has this first day of it."""
        absence = self.absent.get(stream_type)
        spans = self.streams.get(stream_type, [])
        return _joined([*spans, *absence.spans]) if absence and absence.listed == listed else spans


@dataclass(frozen=True, slots=True)
class _SiteGap:
    """A site that lacks days of the history: the oldest and the newest of its streams' newest gaps."""

    site: Mapping[str, Any]
    tries: int
    start: date
    end: date


class BatchHistory:
    """
    The history of one batch.

    :param stream_types: the types that the DAGs read.
    :param content: earlier result of :meth:`as_json`.
    :raises ValueError: the content is not such a result.
    """

    def __init__(self, stream_types: Sequence[str], content: bytes = b"{}") -> None:
        self._stream_types = stream_types
        try:
            self._sites = {site_id: _parse_site(site) for site_id, site in json.loads(content).items()}
        except (AttributeError, LookupError, TypeError) as exc:
            raise ValueError(str(exc)) from None

    def as_json(self) -> bytes:
        """Return the state as JSON. The same state has the same bytes."""
        plain = {site_id: asdict(site) for site_id, site in self._sites.items()}
        return json.dumps(plain, default=str, sort_keys=True).encode()

    def ends(self) -> Iterator[date]:
        """Iterate over the days after the last one that was read, of all streams."""
        for site in self._sites.values():
            for spans in [*site.streams.values(), *(absence.spans for absence in site.absent.values())]:
                yield spans[-1][1]

    def record(self, sites: Sequence[Mapping[str, Any]], receipt: Receipt | None, *, count_tries: bool) -> None:
        """
        Record the result of one task.

        :param sites: records of the task's sites.
        :param receipt: receipt of the task, ``None`` if it failed.
        :param count_tries: count a try of each site that did not land.
        """
        failed: set[str] = set()
        unavailable: set[tuple[str, str]] = set()
        if receipt:
            first, last = (parse_instant(bound, receipt["window"][bound]) for bound in ("start", "end"))
            start, end = first.date(), last.date()
            if first.time() != time():
                start += _DAY
            ids = {site["site_id"] for site in sites}
            failed = ids & {site["site_id"] for site in receipt["failed_sites"]}
            unavailable = {(one["site_id"], one["stream_type"]) for one in receipt["unavailable"]}
            unavailable = {one for one in unavailable if one[0] in ids}
        for record in sites:
            site = self._sites.setdefault(record["site_id"], _Site())
            # A receipt lists at most a hundred failed sites, and an id that contains the API key is redacted in it.
            if not receipt or record["site_id"] in failed or len(failed) < receipt["failed_count"]:
                site.tries += count_tries
                continue
            if count_tries:
                site.tries = 0
            for stream_type, listed in self._types(record):
                # Days before its start do not count as landed: if the start moves back, the days in between are
                # missing.
                span = max(start, listed or EARLIEST), end
                if span[0] >= end:
                    continue
                # A receipt lists at most a hundred unavailable streams. If some are not listed, a type that the listing
                # does not report may be one of them.
                is_unknown = listed is None and len(unavailable) < receipt["unavailable_count"]
                if is_unknown or (record["site_id"], stream_type) in unavailable:
                    absence = site.absent.get(stream_type)
                    if absence is None or absence.listed != listed:
                        absence = site.absent[stream_type] = _Absence(listed)
                    absence.spans = _joined([*absence.spans, span])
                else:
                    # The site has the type now, perhaps with a past that the days of its absence lack.
                    site.absent.pop(stream_type, None)
                    site.streams[stream_type] = _joined([*site.streams.get(stream_type, []), span])

    def next_piece(self, batch: Mapping[str, Any], daily_start: date, end: date) -> Piece | None:
        """
        Return the newest piece of history that is missing, or ``None``.

        A piece needs one request per site: at most eleven months, of all sites that lack some of them. Sites whose
        pieces failed come last, and fewer at a time after each failure, so one site does not block its batch.

        :param batch: ``{"sites", "batch"}``.
        :param daily_start: first day of the daily load's objects, the first of a month, UTC.
        :param end: the first day that is left to the daily load, UTC.
        """
        site_gaps = list(self._gaps(batch["sites"], end if end > daily_start else _month_of(end)))
        if not site_gaps:
            return None
        tries = min(gap.tries for gap in site_gaps)
        site_gaps = [gap for gap in site_gaps if gap.tries == tries]
        piece_end = max(gap.end for gap in site_gaps)
        is_daily = piece_end > daily_start
        if is_daily:
            earliest = max(daily_start, _month_of(piece_end - _MAX_SPAN))
        else:
            piece_end = _month_of(_month_of(piece_end - _DAY) + 31 * _DAY)  # the first of a month: this day or the next
            earliest = _month_of(piece_end - _MAX_SPAN)
        site_gaps = [gap for gap in site_gaps if gap.end > earliest]
        start = max(earliest, min(gap.start for gap in site_gaps))
        return {
            "sites": [gap.site for gap in site_gaps[: max(1, len(site_gaps) // 2**tries)]],
            "batch": batch["batch"],
            "start": f"{start if is_daily else _month_of(start)}T00:00:00Z",
            "end": f"{piece_end}T00:00:00Z",
            "partition": "day" if is_daily else "month",
        }

    def _gaps(self, sites: Iterable[Mapping[str, Any]], end: date) -> Iterator[_SiteGap]:
        for record in sites:
            site = self._sites.get(record["site_id"], _Site())
            gaps = []
            for stream_type, listed in self._types(record):
                gap = _newest_gap(site.read_days(stream_type, listed), listed or EARLIEST, end)
                if gap:
                    gaps.append(gap)
            if gaps:
                yield _SiteGap(record, site.tries, min(start for start, _ in gaps), max(gap_end for _, gap_end in gaps))

    def _types(self, record: Mapping[str, Any]) -> Iterator[tuple[str, date | None]]:
        """Iterate over the types that a site may have, with the first day of each in UTC; ``None`` if unreported."""
        starts = stream_starts(record, record["site_id"])
        for stream_type in self._stream_types:
            if starts is None:
                yield stream_type, None
            elif stream_type in starts:
                start = starts[stream_type]
                yield stream_type, start.date() if start and start.year >= _FIRST_REAL_YEAR else EARLIEST


def _parse_site(plain: Mapping[str, Any]) -> _Site:
    tries = plain["tries"]
    if type(tries) is not int or tries < 0:
        raise ValueError(tries)
    return _Site(
        {stream_type: _parse_spans(spans) for stream_type, spans in plain["streams"].items()},
        {
            stream_type: _Absence(
                absence["listed"] and date.fromisoformat(absence["listed"]), _parse_spans(absence["spans"])
            )
            for stream_type, absence in plain["absent"].items()
        },
        tries,
    )


def _parse_spans(plain: Sequence[Any]) -> list[Span]:
    spans = [(date.fromisoformat(start), date.fromisoformat(end)) for start, end in plain]
    if not spans or spans != _joined(spans) or any(start >= end for start, end in spans):
        raise ValueError(plain)
    return spans


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Return spans sorted, and joined where they overlap or touch."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _newest_gap(spans: Sequence[Span], begin: date, end: date) -> Span | None:
    """Return the newest days from ``begin`` to ``end`` that no span covers."""
    for span_start, span_end in reversed(spans):
        if span_end < end:
            begin = max(begin, span_end)
            break
        end = min(end, span_start)
    return (begin, end) if begin < end else None


def _month_of(day: date) -> date:
    return day.replace(day=1)
