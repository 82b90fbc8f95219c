"""Asset events about landed streams; for tasks that emit them, and for runs that they triggered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_stem._text import number_of, one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.records import Receipt, read_objects, read_receipt, receipt_entries, without_counts
from airflow_provider_stem.streams.windows import WindowRecord, check_resolution

__all__ = ["as_alias_extra", "combined", "event_extras", "landed_objects", "summary"]

_EPOCH = datetime.fromtimestamp(0, UTC)


def landed_objects(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Return the objects that the run's triggering events list: what there is to load.

    An object that several events list was rewritten in between. It is returned once, as the last event lists it.

    :param context: context of a task in a run that events of
        :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator` triggered.
    :return: ``{"uri", "rows", "bytes", "sha256", "read_at", "start", "end", "resolution"}`` of each object, sorted by
        ``uri``. Times are ISO 8601, UTC; ``resolution`` is in seconds. Other keys are removed and each value's type is
        validated, because anyone who may create an event can write anything into it.
    :raises StemConfigError: an event lists something else than landed objects.
    """
    try:
        objects = read_objects([extra for extra in event_extras(context) if "objects" in extra])
        for landed in objects:
            check_resolution(landed.resolution)
    except StemConfigError as exc:
        raise StemConfigError(
            "An asset event that triggered this run lists invalid objects. Schedule the DAG on assets whose events "
            f"a landing operator emits. ({exc})"
        ) from None
    objects.sort(key=lambda landed: landed.uri)
    return [landed.as_json() | {"resolution": landed.resolution} for landed in objects]


def combined(receipts: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """
    Return the extra of one asset event for the receipts of several tasks, such as those of all batches of a run.

    :param receipts: return values of :class:`~airflow_provider_stem.operators.StemStreamsToS3Operator`; ``None``, of a
        skipped task, is ignored.
    :return: ``window`` from the earliest start to the latest end, all ``objects``, and the sum of ``rows``. A receipt
        that is listed twice counts once.
    :raises StemConfigError: there is no receipt, one is invalid, or their resolutions differ.
    """
    valid, window = _read_receipts(receipts)
    return {
        "window": window,
        "objects": [landed for receipt in valid for landed in receipt["objects"]],
        "rows": sum(receipt["rows"] for receipt in valid),
    }


def summary(receipts: Mapping[str, Any] | Iterable[Mapping[str, Any] | None]) -> str:
    """
    Return a summary of one or more receipts, as one line for people.

    :param receipts: return value of a landing operator, or those of the tasks that landed one window, such as all
        batches of a run; ``None``, of a skipped task, is ignored.
    :return: such as ``96 of 96 sites complete, 27,648 rows, 0 missing; window 2025-07-01T00:00:00Z to
        2025-07-02T00:00:00Z``. A site is complete if it was read and no row of it is missing. If receipts do not list
        all incomplete streams, the number of complete sites is an upper bound and begins with ``at most``. A receipt
        that is listed twice counts once.
    :raises StemConfigError: there is no receipt, one is invalid or its counts contradict each other, or their windows
        differ.
    """
    valid, window = _read_receipts([receipts] if isinstance(receipts, Mapping) else receipts)
    # A site in two windows would count twice, and a gap between them would not be seen.
    if any(receipt["window"] != window for receipt in valid):
        raise StemConfigError(
            f"receipts must be of one window, got several from {window['start']} to {window['end']}. Call summary for "
            "each window."
        )
    counts = [_counts(receipt) for receipt in valid]
    sites, rows, missing, failed, incomplete, listed, with_gaps = map(sum, zip(*counts, strict=True))
    complete = f"{sites - failed - with_gaps:,} of {number_of(sites, 'site')} complete"
    if listed != incomplete:
        complete = f"at most {complete}"
    parts = [complete, number_of(rows, "row"), f"{missing:,} missing"]
    if failed:
        parts.append(f"{number_of(failed, 'site')} failed")
    return f"{', '.join(parts)}; window {window['start']} to {window['end']}"


def _counts(receipt: Receipt) -> tuple[int, ...]:
    """Return the counts of a receipt for :func:`summary`, after a check that none contradicts another."""
    try:
        sites, _, missing, failed, incomplete = counts = tuple(
            receipt[name] for name in ("sites", "rows", "missing", "failed_count", "incomplete_count")
        )
        listed = len(receipt["incomplete"])
        with_gaps = len({stream["site_id"] for stream in receipt["incomplete"]})
    except (KeyError, TypeError):
        raise without_counts() from None
    if (
        any(type(count) is not int or count < 0 for count in counts)
        or failed + with_gaps > sites
        or listed > incomplete
        or incomplete > missing
        or (missing and not incomplete)
    ):
        raise StemConfigError(
            f"receipts contains the impossible counts {one_line(repr(counts))[:100]} of sites, rows, missing rows, "
            "failed sites and incomplete streams. Use what a landing operator returned."
        )
    return (*counts, listed, with_gaps)


def _read_receipts(receipts: Any) -> tuple[list[Receipt], WindowRecord]:
    """Return the valid receipts, and the time from the start of the first window to the end of the last one."""
    # The same receipt twice describes one task. Those of two tasks differ at least in their objects.
    valid = list({repr(receipt): read_receipt(receipt) for receipt in receipt_entries(receipts) if receipt}.values())
    if not valid:
        raise StemConfigError(
            "receipts contains no receipt, since every landing task was skipped. Use the trigger rule "
            "'none_failed_min_one_success', so that this task is skipped too."
        )
    resolutions = {receipt["window"]["resolution"] for receipt in valid}
    if len(resolutions) != 1:
        raise StemConfigError(
            f"receipts must be of one resolution, got {sorted(resolutions)}. Call this for each resolution."
        )
    # Their times have the same format in UTC, so they sort by time as strings.
    return valid, {
        "start": min(receipt["window"]["start"] for receipt in valid),
        "end": max(receipt["window"]["end"] for receipt in valid),
        "resolution": resolutions.pop(),
    }


def as_alias_extra(extra: Mapping[str, Any], airflow: str) -> dict[str, Any]:
    """
    Return an extra in the form that the event of an ``AssetAlias`` needs.

    :param extra: extra of an asset event.
    :param airflow: version of Airflow. Before 3.1 Airflow hashes the values, so lists and dicts are returned as JSON
        strings, which :func:`event_extras` parses.
    """
    if tuple(map(int, airflow.split(".")[:2])) >= (3, 1):
        return dict(extra)
    return {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in extra.items()}


def event_extras(context: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """
    Iterate over the extras of the events that triggered the run, the oldest first.

    For an event of an ``AssetWatcher``, this is the payload that its trigger emitted.

    :param context: context of a running task.
    :raises StemConfigError: ``context`` is not a mapping.
    """
    if not isinstance(context, Mapping):
        raise StemConfigError(f"context must be the context of a running task, got {str(context)[:100]!r}.")
    events_by_asset = context.get("triggering_asset_events") or _events_on_airflow_2(context) or {}
    events = [event for events in events_by_asset.values() for event in events]
    events.sort(key=_time_of)
    for event in events:
        extra = dict(_field(event, "extra") or {})
        if extra.get("from_trigger") is True:
            payload = extra.get("payload")
            extra = dict(payload) if isinstance(payload, Mapping) else {}
        texts = {name: extra[name] for name in ("window", "objects") if isinstance(extra.get(name), str)}
        try:
            yield extra | {name: json.loads(text) for name, text in texts.items()}
        except ValueError:
            yield extra  # of an event that another package emitted


def _field(event: Any, name: str) -> Any:
    """Return a field of an event, which is a dict in a context that a test made from JSON."""
    return event.get(name) if isinstance(event, Mapping) else getattr(event, name, None)


def _time_of(event: Any) -> datetime:
    time = _field(event, "timestamp") or _EPOCH
    time = datetime.fromisoformat(time) if isinstance(time, str) else time
    return time.replace(tzinfo=time.tzinfo or UTC)


def _events_on_airflow_2(context: Mapping[str, Any]) -> Any:
    # Airflow 2 reads these from the database, which fails in DAG.test() after another task has failed. So only read
    # them in runs that have some.
    run_type = getattr(context.get("dag_run"), "run_type", None)
    if getattr(run_type, "value", run_type) not in (None, "dataset_triggered"):
        return None
    return context.get("triggering_dataset_events")
