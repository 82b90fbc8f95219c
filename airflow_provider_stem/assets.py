"""What asset events tell of landed streams; for tasks that make such events, and for runs that they triggered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.windows import check_resolution, parse_instant

_EPOCH = datetime.fromtimestamp(0, UTC)
_SHA256 = re.compile("[0-9a-f]{64}")


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
    objects: dict[str, dict[str, Any]] = {}
    for extra in event_extras(context):
        told = extra.get("objects", ())
        try:
            objects |= {one["uri"]: one for one in _read_objects(told, extra.get("window"))}
        except (StemConfigError, TypeError, KeyError, IndexError, ValueError) as exc:
            reason = f" ({exc})" if isinstance(exc, StemConfigError) else ""
            raise StemConfigError(
                f"objects of a triggering asset event is {one_line(str(told))[:100]!r}{reason}: schedule the DAG on "
                "assets whose events StemStreamsToS3Operator makes."
            ) from None
    return [objects[uri] for uri in sorted(objects)]


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
    told: list[Any] = [receipt for receipt in given if receipt]
    for receipt in told:
        if not isinstance(receipt, Mapping) or not {"window", "objects", "rows"} <= receipt.keys():
            raise StemConfigError(
                f"receipts holds {str(receipt)[:100]!r}: give what StemStreamsToS3Operator returned, or None."
            )
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


def _read_objects(told: Any, window: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(told, list | tuple):
        raise TypeError
    for one in told:
        uri, rows, size = one["uri"], one["rows"], one["bytes"]
        if not isinstance(uri, str) or not uri.startswith("s3://") or not uri.isprintable():
            raise ValueError
        if type(rows) is not int or type(size) is not int or rows < 0 or size < 0:
            raise ValueError
        if not _SHA256.fullmatch(one["sha256"]):
            raise ValueError
        check_resolution(window["resolution"])
        times = {
            name: parse_instant(name, one[name]).isoformat().replace("+00:00", "Z")
            for name in ("read_at", "start", "end")
        }
        yield {
            "uri": uri,
            "rows": rows,
            "bytes": size,
            "sha256": one["sha256"],
            **times,
            "resolution": window["resolution"],
        }


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
