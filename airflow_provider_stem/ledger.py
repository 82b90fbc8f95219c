"""
Which sites a daily load holds, and from which day on, so that another load can bring what lies before; for DAGs.

The rule: **a day's objects hold the sites that the ledger had when a run first set out to read that day.** A site that
is listed for the first time is entered with the first day that no run has yet set out to read. So whatever reads a day
again, a later run's look-back, a retry, a backfill, in whichever order and however many at a time, reads it for the
same sites. What lies before a site's day is nobody's but the history's, for good.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import groupby
from typing import Any

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.streams.keys import KeyTemplate
from airflow_provider_stem.streams.sites import stream_starts
from airflow_provider_stem.streams.windows import Partition, Window, iso
from airflow_provider_stem.text import one_line

Batches = Iterable[Mapping[str, Any]]
"""As :class:`~airflow_provider_stem.operators.StemSiteListOperator` gives them."""

EARLIEST = date(2010, 1, 1)
"""Where history begins for a site whose streams' starts the API does not tell."""

_DAY = timedelta(days=1)
_MONTHS = 11  # a year together with the interval that is asked for on each side would take two requests
_PATIENCE = timedelta(days=7)
_ATTEMPTS = 50  # in each of them another run was faster


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What is known of one site.

    :param since: the first day whose objects hold it.
    :param cohort: the number of the ledger that it was entered with; sites of one cohort share ``since``.
    :param batch: the batch that it is in.
    :param gone: the first day that no run had set out to read when it was no longer listed.
    :param missed: where the periods begin that the history set out to read for its cohort without it.
    """

    since: date
    cohort: int
    batch: str
    gone: date | None = None
    missed: tuple[date, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """
    One state of the ledger. Each follows from the one before, and none is changed.

    :param number: counts the states, from 1 on; 0 is the empty one.
    :param end: the first day that no run has yet set out to read.
    :param sites: by id.
    """

    number: int = 0
    end: date | None = None
    sites: Mapping[str, Entry] = field(default_factory=dict)

    def with_run(self, batches: Batches, end: date, first: date) -> Ledger:
        """
        Enter a run that is about to read.

        :param batches: the sites that are listed.
        :param end: where its window ends.
        :param first: the day on which the daily load begins, for the sites that are there from the start.
        :return: the next state, or this one where nothing is new.
        :raises StemConfigError: a site is in another batch than before, or the first day has moved past what was read.
        """
        if self.end and first > self.end:
            raise StemConfigError(
                f"the daily load is to begin on {first}, but has come to {self.end} already: nobody would read "
                "what is between. Leave its first day as it was."
            )
        since = max(self.end or first, first)
        listed = {site["site_id"]: batch["batch"] for batch in batches for site in batch["sites"]}
        sites = {}
        for site_id, entry in self.sites.items():
            if listed.get(site_id, entry.batch) != entry.batch:
                raise StemConfigError(
                    f"site {one_line(site_id)} is in batch {listed[site_id]}, and its rows are in the objects of batch "
                    f"{entry.batch}: leave the number of batches as it was, or every site would land twice."
                )
            sites[site_id] = replace(entry, gone=None if site_id in listed else entry.gone or since)
        for site_id in listed.keys() - sites.keys():
            sites[site_id] = Entry(since, self.number + 1, listed[site_id])
        entered = Ledger(self.number, max(since, end), sites)
        return self if entered == self else replace(entered, number=self.number + 1)

    def pieces(
        self, batches: Batches, start: date, end: date, is_there: Callable[[str, date], bool]
    ) -> Iterator[dict[str, Any]]:
        """
        Cut a run's window where a batch's sites change, for ``StemStreamsToS3Operator`` to be mapped over.

        Most batches are one piece. A day whose object holds a site that is no longer listed is left out, so that the
        site's rows stay.

        :param batches: the sites that are listed.
        :param is_there: tells whether a batch's object of a day is there.
        :return: ``{"sites", "batch", "start", "end"}``.
        """
        lost: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.sites.values():
            if entry.gone:
                lost[entry.batch].append(entry)
        days = [start + number * _DAY for number in range((end - start).days)]
        for batch in batches:

            def members(day: date, batch: Mapping[str, Any] = batch) -> list[Mapping[str, Any]]:
                name = batch["batch"]
                if any(e.gone and e.since <= day < e.gone for e in lost[name]) and is_there(name, day):
                    return []
                return [site for site in batch["sites"] if self.sites[site["site_id"]].since <= day]

            for sites, piece in groupby(days, members):
                if sites:
                    first, *_, last = [*piece] * 2
                    yield {"sites": sites, "batch": batch["batch"], **_bounds(first, last + _DAY)}

    def history(
        self, batches: Batches, settle: timedelta, key: str, there: Collection[str]
    ) -> Iterator[dict[str, Any]]:
        """
        Tell what lies before the days that the daily load holds, for ``StemStreamsToS3Operator`` to be mapped over.

        Sites that were entered together share objects, so that what an object holds is settled once and for all. While
        one of them is not listed the others wait, for a week: it may have been a mishap of the list. What is then read
        without it is read for it alone, once it is listed again; see :meth:`with_history`.

        :param batches: the sites that are listed.
        :param settle: how long after its end a day may still be restated: what is younger has to wait.
        :param key: the template of the history's keys, of resolution 900 and in Parquet.
        :param there: the keys that are there. A piece is left out where all of its objects are.
        :return: ``{"sites", "batch", "start", "end", "partition"}``: whole months, at most eleven of them, and
            as one object the days of the month that the daily load begins in.
        """
        listed = {site["site_id"]: site for batch in batches for site in batch["sites"]}
        settled = None if self.end is None else self.end - settle
        for group, members in self._groups().items():
            sites = [listed[site_id] for site_id in members if site_id in listed]
            if any(self._may_return(site_id) for site_id in members if site_id not in listed):
                continue
            if sites:
                yield from self._lacking(group, sites, settled, key, there, alone=False)
            for site in sites:
                # Opaque, and of any length, so that it is hashed in a key.
                digest = hashlib.sha256(site["site_id"].encode(errors="surrogatepass")).hexdigest()[:16]
                yield from self._lacking(f"{group}_{digest}", [site], settled, key, there, alone=True)

    def with_history(self, pieces: Iterable[Mapping[str, Any]]) -> Ledger:
        """
        Enter pieces of the history that are about to be read.

        :param pieces: of those that :meth:`history` gave.
        :return: the next state, or this one where each of them is read for all of its sites.
        """
        groups = self._groups()
        missed: dict[str, set[date]] = defaultdict(set)
        for piece in pieces:
            read = {site["site_id"] for site in piece["sites"]}
            start, end = (datetime.fromisoformat(piece[bound]) for bound in ("start", "end"))
            begins = {period.start.date() for period in Window.covering(start, end, 900).periods(piece["partition"])}
            for site_id in groups.get(piece["batch"], ()):
                if site_id not in read:
                    missed[site_id] |= begins
        sites = {
            site_id: replace(entry, missed=tuple(sorted(missed[site_id].union(entry.missed))))
            if site_id in missed
            else entry
            for site_id, entry in self.sites.items()
        }
        return self if sites == self.sites else replace(self, number=self.number + 1, sites=sites)

    def _lacking(
        self,
        group: str,
        sites: Sequence[Mapping[str, Any]],
        settled: date | None,
        key: str,
        there: Collection[str],
        *,
        alone: bool,
    ) -> Iterator[dict[str, Any]]:
        """Give the pieces of sites that share objects, but for what each missed, or of one alone just that."""
        template = KeyTemplate(key, batch=group, dag_id="", task_id="", extension="parquet")
        since = self.sites[sites[0]["site_id"]].since
        for start, end, partition in _chunks(min(map(_began, sites)), since):
            if settled is None or end > settled:
                continue

            def members(period: Window) -> list[Mapping[str, Any]]:
                began = period.start.date()
                return [site for site in sites if (began in self.sites[site["site_id"]].missed) is alone]

            periods = Window.covering(_midnight(start), _midnight(end), 900).periods(partition)
            for read, run in groupby(periods, members):
                first, *_, last = piece = [*run] * 2
                if read and not all(template.key(period) in there for period in piece):
                    bounds = {"start": iso(first.start), "end": iso(last.end)}
                    yield {"sites": read, "batch": group, **bounds, "partition": partition}

    def _groups(self) -> dict[str, list[str]]:
        """Give the sites that share objects of the history, by these objects' batch."""
        groups: dict[str, list[str]] = defaultdict(list)
        for site_id, entry in sorted(self.sites.items()):
            groups[f"{entry.cohort:05d}_{entry.batch}"].append(site_id)
        return dict(sorted(groups.items()))

    def _may_return(self, site_id: str) -> bool:
        gone = self.sites[site_id].gone
        return gone is None or self.end is None or gone + _PATIENCE > self.end


class LedgerStore:
    """
    Keeps the ledger's states in S3, each as one object that is written once; whoever comes second begins anew.

    :param bucket: where to.
    :param prefix: what the keys begin with.
    :param aws_conn_id: connection of type ``aws``.
    """

    def __init__(self, bucket: str, prefix: str, aws_conn_id: str | None = "aws_default") -> None:
        self._bucket = bucket
        self._prefix = prefix.rstrip("/") + "/"
        self._aws_conn_id = aws_conn_id

    @cached_property
    def _client(self) -> Any:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        return S3Hook(aws_conn_id=self._aws_conn_id).get_conn()

    def read(self) -> Ledger:
        """Give the newest state."""
        keys = [
            listed["Key"]
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for listed in page.get("Contents", ())
        ]
        if not keys:
            return Ledger()
        body = self._client.get_object(Bucket=self._bucket, Key=max(keys))["Body"].read()
        kept = json.loads(gzip.decompress(body))
        return Ledger(
            kept["number"],
            date.fromisoformat(kept["end"]),
            {
                site_id: Entry(
                    date.fromisoformat(entry["since"]),
                    entry["cohort"],
                    entry["batch"],
                    date.fromisoformat(entry["gone"]) if entry["gone"] else None,
                    tuple(map(date.fromisoformat, entry["missed"])),
                )
                for site_id, entry in kept["sites"].items()
            },
        )

    def enter(self, batches: Batches, end: date, first: date) -> Ledger:
        """
        Enter a run before it reads; see :meth:`Ledger.with_run`. A second time changes nothing.

        :raises StemTransportError: others were faster, again and again.
        """
        batches = list(batches)
        return self._enter(lambda ledger: ledger.with_run(batches, end, first))

    def enter_history(self, choose: Callable[[Ledger], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """
        Enter pieces of the history before they are read; see :meth:`Ledger.with_history`.

        :param choose: gives them, of a state; asked again where that is not the newest any more.
        :raises StemTransportError: others were faster, again and again.
        """
        chosen: list[dict[str, Any]] = []

        def step(ledger: Ledger) -> Ledger:
            nonlocal chosen
            chosen = choose(ledger)
            return ledger.with_history(chosen)

        self._enter(step)
        return chosen

    def _enter(self, step: Callable[[Ledger], Ledger]) -> Ledger:
        from botocore.exceptions import ClientError

        for _ in range(_ATTEMPTS):
            ledger = self.read()
            entered = step(ledger)
            if entered is ledger:
                return ledger
            text = json.dumps(asdict(entered), default=str, sort_keys=True)
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=f"{self._prefix}{entered.number:08d}.json.gz",
                    Body=gzip.compress(text.encode(), mtime=0),
                    IfNoneMatch="*",
                )
            except ClientError as exc:
                if exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (409, 412):
                    raise
            else:
                return entered
        raise StemTransportError(f"the ledger in s3://{self._bucket}/{self._prefix} was busy {_ATTEMPTS} times")


def whole_days(start: datetime, end: datetime) -> tuple[date, date]:
    """
    Give a window as days.

    :raises StemConfigError: it does not begin and end at midnight UTC.
    """
    bounds = [start.astimezone(UTC), end.astimezone(UTC)]
    if any(bound.time() != time() for bound in bounds):
        raise StemConfigError(
            f"the run's window is {iso(start)} to {iso(end)}: the daily load needs whole UTC days, as "
            'CronDataIntervalTimetable("0 0 * * *", timezone="UTC") gives them.'
        )
    return bounds[0].date(), bounds[1].date()


def _began(site: Mapping[str, Any]) -> date:
    starts = stream_starts(site, site["site_id"])
    if starts is None or None in starts.values():
        return EARLIEST
    return min((start.date() for start in starts.values() if start), default=date.max)


def _chunks(began: date, since: date) -> Iterator[tuple[date, date, Partition]]:
    """Cut the days from one to another into pieces of one request a site, the newest first."""
    month = since.replace(day=1)
    if max(began, month) < since:
        yield month, since, "interval"
    while began < month:
        earlier = month
        for _ in range(_MONTHS):
            if began < earlier:
                earlier = (earlier - _DAY).replace(day=1)
        yield earlier, month, "month"
        month = earlier


def _bounds(start: date, end: date) -> dict[str, str]:
    return {"start": iso(_midnight(start)), "end": iso(_midnight(end))}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
