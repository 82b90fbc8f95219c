"""Receipts of landing tasks, from the XComs and asset events in Airflow's database. For the app."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.models import DagRun
from sqlalchemy import select

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_MAX_RECEIPTS = 2000
_NUMBERS = ("expected", "missing", "rows", "changed", "sites", "incomplete_count", "failed_count")


class Task(NamedTuple):
    """A task instance. ``map_index`` is -1 if the task is not mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


@dataclass(frozen=True, slots=True)
class Landing:
    """
    What one task landed, as its receipt describes it.

    :param start: start of the window, UTC.
    :param end: end of the window, UTC.
    :param resolution: seconds.
    :param counts: the receipt's numbers, by name.
    :param incomplete: site and stream type of the streams with missing rows, with what was expected and received; at
        most 100.
    :param uris: of the objects.
    """

    task: Task
    start: datetime
    end: datetime
    resolution: int
    counts: Mapping[str, int]
    incomplete: tuple[tuple[str, str, int, int], ...]
    uris: frozenset[str]


def latest_runs(session: Session, dag_id: str, limit: int) -> list[str]:
    """
    Return the ids of the latest runs of a DAG, the latest first.

    :param session: of Airflow's database.
    :param dag_id: id of the DAG.
    :param limit: maximum number of runs.
    """
    query = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(limit)
    return list(session.scalars(query))


def landings(session: Session, dag_id: str, run_ids: Iterable[str]) -> Iterator[Landing]:
    """
    Iterate over the receipts that tasks of runs returned; at most 2,000.

    :param session: of Airflow's database.
    :param dag_id: id of the DAG.
    :param run_ids: ids of its runs.
    """
    from airflow.models.xcom import XComModel  # Airflow 2 has no such class

    query = (
        select(XComModel)
        .where(XComModel.dag_id == dag_id, XComModel.run_id.in_(list(run_ids)), XComModel.key == "return_value")
        .order_by(XComModel.timestamp.desc())
        .limit(_MAX_RECEIPTS)
    )
    for row in session.scalars(query):
        landing = _landing(Task(row.dag_id, row.run_id, row.task_id, row.map_index), row.value)
        if landing is not None:
            yield landing


def landing_task(session: Session, uri: str, dag_id: str, run_id: str) -> Task | None:
    """
    Return the task that landed an object; ``None`` unless it is in the run of the load, or in an event that started it.

    :param session: of Airflow's database.
    :param uri: of the object.
    :param dag_id: DAG of the load.
    :param run_id: run of the load.
    """
    for landing in landings(session, dag_id, [run_id]):
        if uri in landing.uris:
            return landing.task
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    for event in run.consumed_asset_events if run else ():
        objects = event.extra.get("objects") if isinstance(event.extra, Mapping) else None
        if uri in _uris(objects) and event.source_dag_id and event.source_run_id and event.source_task_id:
            return Task(event.source_dag_id, event.source_run_id, event.source_task_id, event.source_map_index)
    return None


def _landing(task: Task, value: Any) -> Landing | None:
    """Return the receipt in an XCom, or ``None`` if it is another value."""
    try:
        receipt = json.loads(value) if isinstance(value, str) else value
        window = receipt["window"]
        return Landing(
            task,
            start=datetime.fromisoformat(window["start"]),
            end=datetime.fromisoformat(window["end"]),
            resolution=int(window["resolution"]),
            counts={name: int(receipt[name]) for name in _NUMBERS},
            incomplete=tuple(
                (str(one["site_id"]), str(one["stream_type"]), int(one["expected"]), int(one["received"]))
                for one in receipt["incomplete"]
            ),
            uris=_uris(receipt["objects"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _uris(objects: Any) -> frozenset[str]:
    if not isinstance(objects, list):
        return frozenset()
    return frozenset(str(one.get("uri")) for one in objects if isinstance(one, Mapping))
