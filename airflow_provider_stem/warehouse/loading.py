"""
Load verified objects into the table of streams in one transaction. For the operator.

Objects of one period that have no key in common are merged together. DuckDB and PostgreSQL share the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from airflow_provider_stem._text import list_counts, one_line
from airflow_provider_stem.errors import StemDataError
from airflow_provider_stem.streams.records import LandedObject
from airflow_provider_stem.streams.staging import Fetch, StagedObject, Staging
from airflow_provider_stem.streams.tables import INSTANT, LANDING_SCHEMA
from airflow_provider_stem.streams.windows import RESOLUTIONS
from airflow_provider_stem.warehouse.days import DAYS_SCHEMA, days_of, update_covered, update_days
from airflow_provider_stem.warehouse.session import Session
from airflow_provider_stem.warehouse.sql import SCHEMA, statements

log = logging.getLogger(__name__)

Counts = dict[str, int]
_COUNTED = ("rows", "inserted", "changed", "unchanged", "absent")
_GROUP_ROWS = 500_000
"""Rows that are merged together, unless one object has more."""

STREAMS_SCHEMA = pa.schema([*LANDING_SCHEMA, pa.field("loaded_at", INSTANT), pa.field("changed_at", INSTANT)])
"""The columns of the table ``streams``."""

_STAGED = pa.schema([pa.field("object", pa.int32()), *LANDING_SCHEMA])
_LOG = """
INSERT INTO {{ params.schema }}.loads (
    uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end,
    dag_id, run_id, loaded_at
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """What is stored with each row that a load writes."""

    dag_id: str | None
    run_id: str | None
    now: datetime


def load_objects(
    objects: Sequence[LandedObject],
    fetch: Fetch,
    connect: Callable[[], Session],
    *,
    dag_id: str | None = None,
    run_id: str | None = None,
    loaded_at: datetime | None = None,
) -> Counts:
    """
    Load objects, all or none, and return counts.

    :param objects: what to load, in order; the last value of a key wins.
    :param fetch: copies an object into a file.
    :param connect: opens the warehouse; called once every object is fetched and verified.
    :param dag_id: stored in the tables of loads and restatements.
    :param run_id: stored in the tables of loads and restatements.
    :param loaded_at: time of the load, with a time zone; default: now.
    :return: ``objects``; ``replaced``: how many of them a later run has rewritten since their receipt; ``rows``,
        ``inserted``, ``changed`` and ``unchanged``; ``absent``: rows of the warehouse that an object lacks, of the
        object's streams and period. They are kept.
    :raises StemDataError: an object does not match its receipt, or another program writes the table without its lock.
        Nothing is loaded.
    :raises StemTransportError: an object cannot be fetched, or the warehouse stayed locked.
    """
    with Staging(fetch) as staging:
        staged = [staging.add(landed) for landed in objects]
        replaced = sum(one.replaced for one in staged)
        total: Counts = {"objects": len(objects), "replaced": replaced} | dict.fromkeys(_COUNTED, 0)
        with connect() as session:
            with session.transaction():
                session.create_missing()
            with session.transaction():
                session.lock("streams")
                run = _Run(dag_id, run_id, loaded_at or datetime.now(UTC))
                counted = dict.fromkeys(range(len(staged)), dict.fromkeys(_COUNTED, 0))
                for group in _groups(staged, staging):
                    counted |= _Merge(session, staging, group, run).run()
                update_covered(
                    session,
                    {
                        (one.landed.start, one.landed.end, resolution)
                        for one in staged
                        # An object without rows and without a receipt may be of any resolution.
                        for resolution in ([one.resolution] if one.resolution else RESOLUTIONS)
                    },
                )
                for number, one in enumerate(staged):
                    session.execute(
                        _LOG, one.landed.uri, *counted[number].values(), one.resolution, one.landed.start,
                        one.landed.end, dag_id, run_id, run.now,
                    )  # fmt: skip
                    for name, count in counted[number].items():
                        total[name] += count
                    log.info("%s: %s", one_line(one.landed.uri), list_counts(counted[number]))
    log.info("Loaded %s", list_counts(total))
    return total


@dataclass(slots=True)
class _Group:
    """
    Objects of one period and resolution that have no stream in common.

    :param objects: by their number in the load.
    :param days: their days, in :data:`~airflow_provider_stem.warehouse.days.DAYS_SCHEMA`.
    :param streams: their sites and stream types.
    """

    start: datetime
    end: datetime
    resolution: int
    objects: dict[int, StagedObject] = field(default_factory=dict)
    days: list[pa.Table] = field(default_factory=list)
    streams: set[tuple[str, str]] = field(default_factory=set)

    def accepts(self, one: StagedObject, streams: set[tuple[str, str]]) -> bool:
        """Return whether an object can be merged with this group, or before or after it with the same result."""
        if self.resolution != one.resolution or self.start >= one.landed.end or self.end <= one.landed.start:
            return True
        is_same = (self.start, self.end) == (one.landed.start, one.landed.end)
        rows = sum(other.rows for other in self.objects.values()) + one.rows
        return is_same and rows <= _GROUP_ROWS and self.streams.isdisjoint(streams)


def _groups(staged: Sequence[StagedObject], staging: Staging) -> Iterator[_Group]:
    """Split the objects that have rows into groups. Objects with the same key stay in order."""
    pending: dict[tuple[datetime, datetime, int], _Group] = {}
    for number, one in enumerate(staged):
        if one.resolution is None or not one.rows:
            continue
        days = days_of(number, staging.batches(one))
        pairs = days.group_by(["site_id", "stream_type"]).aggregate([]).to_pydict()
        streams = set(zip(pairs["site_id"], pairs["stream_type"], strict=True))
        if not all(group.accepts(one, streams) for group in pending.values()):
            yield from pending.values()
            pending.clear()
        period = one.landed.start, one.landed.end, one.resolution
        group = pending.setdefault(period, _Group(*period))
        group.objects[number] = one
        group.days.append(days)
        group.streams |= streams
    yield from pending.values()


class _Merge:
    """The merge of one group."""

    def __init__(self, session: Session, staging: Staging, group: _Group, run: _Run) -> None:
        self._session, self._staging, self._group, self._run = session, staging, group, run
        self._period = group.start, group.end
        (
            self._read_known, self._count_stored, self._comparison, self._find_changed, self._change, self._restate,
            self._add,
        ) = statements(session.engine, "load")  # fmt: skip

    def run(self) -> dict[int, Counts]:
        """Merge the objects, verify what was written, and return the counts by the number of the object."""
        session = self._session
        session.prepare(*self._period)
        days = pa.concat_tables(self._group.days)
        session.stage("stem_days", DAYS_SCHEMA, days.to_batches())
        is_new = not session.stage_query("stem_known", self._read_known, self._group.resolution, *self._period)
        counts = self._append() if is_new else self._merge()
        update_days(session, days, self._run.now)
        for table in ("stem_days", "stem_known"):
            session.drop(table)
        return counts

    def _append(self) -> dict[int, Counts]:
        """Insert the rows. The table holds none of these streams in this period."""
        values: dict[int, int] = {}
        now = pa.scalar(self._run.now, INSTANT)

        def rows() -> Iterator[pa.RecordBatch]:
            for number, one in self._group.objects.items():
                values[number] = 0
                for batch in self._staging.batches(one):
                    values[number] += batch.num_rows - batch.column("kw_total_avg").null_count
                    times = [pa.repeat(now, batch.num_rows)] * 2
                    yield pa.RecordBatch.from_arrays([*batch.columns, *times], schema=STREAMS_SCHEMA)

        self._session.append(f"{SCHEMA}.streams", STREAMS_SCHEMA, rows())
        stored = self._session.execute(self._count_stored, self._group.resolution, *self._period)
        found = {number: counts for number, *counts in stored}
        for number, one in self._group.objects.items():
            if found.get(number) != [one.rows, values[number]]:
                got, with_value = found.get(number, (0, 0))
                raise self._wrong(
                    one, f"of {one.rows:,} rows with {values[number]:,} values {got:,} with {with_value:,} were added"
                )
        return {number: _counts(one.rows, one.rows) for number, one in self._group.objects.items()}

    def _merge(self) -> dict[int, Counts]:
        """Compare the rows with those of the table, and write what differs."""
        session, run = self._session, self._run
        session.stage("stem_staged", _STAGED, self._numbered())
        before = self._compare()
        differing = sum(changed for _, _, changed, _ in before.values())
        changes = 0
        if differing:
            session.stage_query("stem_changed", self._find_changed, run.now)
            changes = session.change(self._change, *self._period)
            for number, one in self._group.objects.items():
                session.execute(self._restate, one.landed.uri, run.dag_id, run.run_id, number)
            session.drop("stem_changed")
        missing = sum(one.rows - before[number][1] for number, one in self._group.objects.items())
        additions = session.change(self._add, run.now, run.now) if missing > 0 else 0
        after = before
        # These rows are used for billing, so what was written is verified before it is committed.
        if changes or additions:
            session.drop("stem_known")
            session.stage_query("stem_known", self._read_known, self._group.resolution, *self._period)
            after = self._compare()
        counted = {}
        for number, one in self._group.objects.items():
            compared, known, changed, in_period = before[number]
            expected = (one.rows, one.rows, 0, in_period + one.rows - known)
            if (changes, additions) != (differing, missing) or after[number] != expected:
                raise self._wrong(
                    one,
                    f"{changes:,} rows changed and {additions:,} added, expected {differing:,} and {missing:,}; the "
                    f"table now has {after[number][1]:,} of {one.rows:,} rows, {after[number][2]:,} with other values, "
                    f"{compared - one.rows:,} duplicates",
                )
            # All rows of the object lie in its period.
            counted[number] = _counts(one.rows, one.rows - known, changed, in_period - known)
        session.drop("stem_staged")
        return counted

    def _numbered(self) -> Iterator[pa.RecordBatch]:
        for number, one in self._group.objects.items():
            for batch in self._staging.batches(one):
                numbers = pa.repeat(pa.scalar(number, pa.int32()), batch.num_rows)
                yield pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=_STAGED)

    def _compare(self) -> dict[int, tuple[int, int, int, int]]:
        """Return, by object: the rows compared, known, changed, and in the period."""
        return {
            number: (compared, known, changed, in_period or 0)
            for number, compared, known, changed, in_period in self._session.execute(self._comparison)
        }

    def _wrong(self, one: StagedObject, found: str) -> StemDataError:
        return StemDataError(
            f"The table of streams holds duplicate keys, or another program writes it without a lock: {found}. Stop "
            f"that program, or remove the duplicates, and load again [{one_line(one.landed.uri)}]"
        )


def _counts(rows: int, inserted: int, changed: int = 0, absent: int = 0) -> Counts:
    return {
        "rows": rows,
        "inserted": inserted,
        "changed": changed,
        "unchanged": rows - inserted - changed,
        "absent": absent,
    }
