"""What asset events tell of landed streams; for tasks that make such events, and for runs that they triggered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_stem.errors import StemConfigError

_EPOCH = datetime.fromtimestamp(0, UTC)


def landed_objects(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    List the objects that the run's triggering events tell of: what there is to load, and nothing else.

    An object that several events tell of was landed anew in between; it is listed once, as the last of them tells.

    :param context: of a task in a run that events of
        :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` triggered.
    :return: ``{"uri", "rows", "bytes", "start", "end"}`` of each, by uri; ISO 8601 in UTC.
    """
    objects = {landed["uri"]: dict(landed) for extra in event_extras(context) for landed in extra.get("objects", ())}
    return [objects[uri] for uri in sorted(objects)]


def combined(receipts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Make one event's extra of the receipts of several tasks, such as those of all batches of a run.

    :param receipts: as :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` returns them; those of tasks
        that were skipped (``None``) are passed over.
    :return: ``window`` from the earliest start to the latest end, ``objects`` of all, ``rows`` in sum.
    :raises StemConfigError: there is no receipt, or they are of several resolutions.
    """
    told = [receipt for receipt in receipts if receipt]
    resolutions = {receipt["window"]["resolution"] for receipt in told}
    if len(resolutions) != 1:
        raise StemConfigError(
            f"receipts hold {sorted(resolutions)} as resolutions: give one or more, of one resolution."
        )
    return {
        "window": {
            # All are of one format in UTC, so that their order as text is that of time.
            "start": min(receipt["window"]["start"] for receipt in told),
            "end": max(receipt["window"]["end"] for receipt in told),
            "resolution": resolutions.pop(),
        },
        "objects": [landed for receipt in told for landed in receipt["objects"]],
        "rows": sum(receipt["rows"] for receipt in told),
    }


def event_extras(context: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the extras of the events that triggered the run, the oldest first."""
    events_by_asset = context.get("triggering_asset_events") or _events_on_airflow_2(context) or {}
    events = [event for events in events_by_asset.values() for event in events]
    events.sort(key=lambda event: getattr(event, "timestamp", None) or _EPOCH)
    yield from (event.extra or {} for event in events)


def _events_on_airflow_2(context: Mapping[str, Any]) -> Any:
    # A look there asks the database, and fails in a DAG's test() after another task's failure: only where some are.
    run_type = getattr(context.get("dag_run"), "run_type", None)
    if getattr(run_type, "value", run_type) not in (None, "dataset_triggered"):
        return None
    return context.get("triggering_dataset_events")
