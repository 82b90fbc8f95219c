"""What asset events tell of landed streams; for tasks that make such events, and for runs that they triggered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.records import read_objects, read_receipt
from airflow_provider_stem.streams.windows import check_resolution

_EPOCH = datetime.fromtimestamp(0, UTC)


def landed_objects(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    List the objects that the run's triggering events tell of: what there is to load, and nothing else.

    An object that several events list was rewritten in between; it is returned once, as the last of them lists it.

    :param context: of a task in a run that events of
        :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` triggered.
    :return: ``{"uri", "rows", "bytes", "sha256", "read_at", "start", "end", "resolution"}`` of each, sorted by uri;
        times in ISO 8601, UTC; resolution in seconds. No other keys, and each value of its type: anyone who may create
        an event could have written anything into it.
    :raises StemConfigError: an event tells of something else.
    """
    try:
        objects = read_objects([extra for extra in event_extras(context) if "objects" in extra])
        for landed in objects:
            check_resolution(landed.resolution)
    except StemConfigError as exc:
        raise StemConfigError(
            "An asset event that triggered this run lists wrong objects. Schedule the DAG on assets whose events "
            f"StemStreamsToS3Operator makes. ({exc})"
        ) from None
    objects.sort(key=lambda landed: landed.uri)
    return [landed.as_json() | {"resolution": landed.resolution} for landed in objects]


def combined(receipts: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """
    Make one event's extra of the receipts of several tasks, such as those of all batches of a run.

    :param receipts: as :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` returns them; those of tasks
        that were skipped (``None``) are passed over.
    :return: ``window`` from the earliest start to the latest end, ``objects`` of all, ``rows`` in sum.
    :raises StemConfigError: there is no receipt, or they are of several resolutions.
    """
    given: Any = receipts
    if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
        raise StemConfigError(f"receipts is {str(receipts)[:100]!r}: give a list of what the tasks returned.")
    told = [read_receipt(receipt) for receipt in given if receipt]
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


def as_alias_extra(extra: Mapping[str, Any], airflow: str) -> dict[str, Any]:
    """
    Give an extra as the event of an ``AssetAlias`` can carry it.

    :param airflow: the version. Before 3.1 it makes a key of the values, so that they must be plain: there what is a
        list or an object becomes its JSON text, which :func:`event_extras` reads.
    """
    if tuple(map(int, airflow.split(".")[:2])) >= (3, 1):
        return dict(extra)
    return {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in extra.items()}


def event_extras(context: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the extras of the events that triggered the run, the oldest first."""
    if not isinstance(context, Mapping):
        raise StemConfigError(f"context is {str(context)[:100]!r}: give the context of a running task.")
    events_by_asset = context.get("triggering_asset_events") or _events_on_airflow_2(context) or {}
    events = [event for events in events_by_asset.values() for event in events]
    events.sort(key=lambda event: getattr(event, "timestamp", None) or _EPOCH)
    for event in events:
        extra = dict(event.extra or {})
        texts = {name: extra[name] for name in ("window", "objects") if isinstance(extra.get(name), str)}
        try:
            yield extra | {name: json.loads(text) for name, text in texts.items()}
        except ValueError:
            yield extra  # of another's making


def _events_on_airflow_2(context: Mapping[str, Any]) -> Any:
    # A look there asks the database, and fails in a DAG's test() after another task's failure: only where some are.
    run_type = getattr(context.get("dag_run"), "run_type", None)
    if getattr(run_type, "value", run_type) not in (None, "dataset_triggered"):
        return None
    return context.get("triggering_dataset_events")
