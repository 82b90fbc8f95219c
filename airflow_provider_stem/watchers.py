"""Trigger that emits an asset event as soon as a window is complete; for ``AssetWatcher`` (Airflow 3.0 or later)."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_stem._arguments import check_trigger_arguments, checked
from airflow_provider_stem._polling import in_thread, open_source, request_each
from airflow_provider_stem._text import missing_connection, one_line
from airflow_provider_stem._watcher_state import WatcherState
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.streams.sites import read_site, read_sites
from airflow_provider_stem.streams.stream_types import parse_stream_types

try:
    from airflow.triggers.base import BaseEventTrigger
except ImportError:  # Airflow 2
    BaseEventTrigger = BaseTrigger  # type: ignore[misc, assignment]
try:
    from airflow.triggers.shared_stream import SharedStreamProducer
except ImportError:  # before Airflow 3.3
    SharedStreamProducer = object  # type: ignore[misc, assignment]

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import AdvanceItem

    from airflow_provider_stem.streams.announcements import Announcement, Announcements, AnnouncementsRecord
    from airflow_provider_stem.streams.arrivals import Arrivals, Snapshot

__all__ = ["StemWindowsTrigger"]

_MOST = 1000
_DO_NOT_IDENTIFY = ("lookback", "restatement_interval", "poll_interval", "max_workers")
"""Arguments that can be changed without starting again, since they do not decide when a window is complete."""

_DELIVERY = 10.0
"""Seconds after which Airflow has stored an event, where it does not report that (before Airflow 3.3)."""
_LONGEST_PAUSE = 900.0
"""Seconds between two polls that fail, unless ``poll_interval`` is longer."""


class StemWindowsTrigger(BaseEventTrigger):
    """
    Emit an asset event as soon as a window is complete, and again when its values change.

    Use it as the trigger of an ``AssetWatcher``. Windows are consecutive, have the same length, and are aligned to UTC
    days. Each window is announced once: when it is complete, or, if it is not, when ``lookback`` has passed. The
    payload of an event is ``{"window": {"start", "end", "resolution"}, "reason"}``; operators and the sensor read its
    window, as for events of other assets. Consecutive windows are announced in one event, and a poll emits at most one.
    The reason is ``complete``, ``overdue`` (``lookback`` has passed) or ``restated`` (values have changed or arrived
    since the window was announced).

    What has been announced survives a restart: in the asset's state store (Airflow 3.3), else in an Airflow variable
    ``stem_windows_...``. An event may be emitted again if the triggerer was killed within seconds after it; none is
    lost. On Airflow 3.3, triggers whose arguments differ only in ``min_completeness`` share their requests. The
    arguments contain no credentials.

    :param sites: a site id, a record of :class:`~airflow_provider_stem.operators.StemSiteListOperator`, or a list of
        either; known when the DAG is parsed.
    :param stream_types: any of ``MONITOR``, ``CONVERTER`` and ``INTERVAL_REVENUE``.
    :param resolution: length of an interval in seconds: 900, 1800 or 3600.
    :param window: length of a window in seconds: a multiple of ``resolution`` that divides a day.
    :param min_completeness: share of the intervals expected of all sites that is enough, above 0 and up to 1.
    :param settle: seconds to wait after the end of a window, 0 or more, because the last values arrive late.
    :param lookback: for how many seconds after its end a window is watched, at most a thousand windows.
    :param restatement_interval: seconds between two readings of all windows within ``lookback``, to find changes of
        values; ``None`` does not look for them.
    :param poll_interval: seconds between two polls, 1 or more. A poll requests only sites with incomplete windows.
    :param max_workers: how many sites to request at a time, 1 or more.
    :param stem_conn_id: connection of type ``stem``.
    :raises StemConfigError: an argument is wrong, or Airflow is older than 3.0.
    """

    @checked
    def __init__(
        self,
        *,
        sites: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        window: float = 3600,
        min_completeness: float = 1.0,
        settle: float = 0,
        lookback: float = 86_400,
        restatement_interval: float | None = None,
        poll_interval: float = 60,
        max_workers: int = 8,
        stem_conn_id: str = StemHook.default_conn_name,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Sorted, since Airflow replaces a trigger whose arguments differ, and a set has another order in each process.
        entries = [sites] if isinstance(sites, (str, Mapping)) else sites
        self.sites = sorted(entries, key=lambda entry: read_site(entry).site_id)
        self.stream_types = list(parse_stream_types(stream_types))
        self.resolution = resolution
        self.window = window
        self.min_completeness = min_completeness
        self.settle = settle
        self.lookback = lookback
        self.restatement_interval = restatement_interval
        self.poll_interval = poll_interval
        self.max_workers = max_workers
        self.stem_conn_id = stem_conn_id

    def check(self, **arguments: Any) -> None:
        """Validate all arguments."""
        if BaseEventTrigger is BaseTrigger:
            raise StemConfigError("StemWindowsTrigger needs Airflow 3.0 or later. Use StemStreamsSensor instead.")
        check_trigger_arguments(type(self), **arguments)
        sites = arguments["sites"]
        if not isinstance(sites, Collection):  # an iterator would be empty when it is read again
            raise StemConfigError(
                f"Invalid sites {one_line(repr(sites))}. Use a site id, a site record, or a list of either."
            )
        read_sites(sites)
        window, resolution, lookback = (arguments[name] for name in ("window", "resolution", "lookback"))
        if window % resolution or 86_400 % window:
            raise StemConfigError(
                f"window must be a multiple of the resolution of {resolution} s that divides a day, got {window!r}. "
                "Use 3600 for an hour or 86400 for a day."
            )
        if not arguments["settle"] + window <= lookback <= _MOST * window:
            raise StemConfigError(
                f"lookback must be at least settle and one window, and at most {_MOST:,} windows, got {lookback!r} s "
                f"for a window of {window!r} s. Set another lookback or window."
            )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and its arguments, as JSON types."""
        names = inspect.signature(type(self)).parameters
        return "airflow_provider_stem.watchers.StemWindowsTrigger", {name: getattr(self, name) for name in names}

    def shared_stream_key(self) -> str:
        """Return the arguments that must be equal to share requests, as JSON; Airflow 3.3 calls this."""
        return self._arguments_without("min_completeness")

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> _Polls:
        """Return the polls that triggers with one key share; Airflow 3.3 calls this."""
        return _Polls(cls(**kwargs))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Emit events for ever. After an error, which is logged, the next poll follows later."""
        async for event in self.filter_shared_stream(self._own_polls()):
            yield event

    async def filter_shared_stream(self, shared_stream: AsyncIterator[_Poll]) -> AsyncIterator[TriggerEvent]:
        """
        Emit the events that follow from polls, for ever; :meth:`run` and Airflow 3.3 call this.

        An event is emitted only after Airflow has stored the one before, and only then is that one saved as announced.
        """
        state = WatcherState(f"stem_windows_{self._digest()}", getattr(self, "asset_state_store", None))
        announcements: Announcements | None = None
        pending: tuple[Announcement, _Poll] | None = None
        saved: AnnouncementsRecord | None = None
        logged = ""
        async for poll in shared_stream:
            if pending is not None and not pending[1].is_stored:
                continue
            due = None
            try:
                if announcements is None:
                    saved = await state.load()
                    announcements = await in_thread(self._new_announcements, saved)
                if pending is not None:
                    announcements.confirm(pending[0])
                    pending = None
                if poll.snapshot is not None:
                    due = announcements.next(poll.snapshot)
                if (record := announcements.as_json()) and record != saved:
                    await state.save(record)
                    saved = record
                logged = ""
            except Exception as exc:  # noqa: BLE001 - a trigger that raises is started again, and repeats its event
                error = f"{type(exc).__name__}: {exc}"
                if error != logged:  # it can be repeated at each poll
                    message = "Cannot read or save what was announced. Correct or delete %s: %s"
                    self.log.error(message, state.key, error)  # noqa: TRY400
                logged = error
            if due is not None:
                pending = due, poll
                poll.has_event = True
                self.log.info("Announcing %s as %s", due.window, due.reason)
                payload = {"window": due.window.as_json(), "reason": due.reason}
                yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _own_polls(self) -> AsyncIterator[_Poll]:
        polls = _Polls(self)
        async for poll, _ in polls.open_stream():
            yield poll
            if poll.has_event:
                await asyncio.sleep(_DELIVERY)
                polls.mark_stored(poll)

    def _new_announcements(self, record: AnnouncementsRecord | None) -> Announcements:
        # Imported here, in a thread: importing pyarrow is slow.
        from airflow_provider_stem.streams.announcements import Announcements

        every = self.restatement_interval
        return Announcements(
            int(self.window),
            self.resolution,
            self.min_completeness,
            None if every is None else timedelta(seconds=every),
            record,
        )

    def _digest(self) -> str:
        # The ids only: a record can get another name or start.
        identity = self._arguments_without("sites", *_DO_NOT_IDENTIFY)
        identity += json.dumps([site.site_id for site in read_sites(self.sites)])
        return blake2b(identity.encode(), digest_size=8).hexdigest()

    def _arguments_without(self, *names: str) -> str:
        arguments = self.serialize()[1]
        return json.dumps({name: value for name, value in arguments.items() if name not in names}, sort_keys=True)


class _Poll:
    """
    One poll, which several triggers share.

    :param snapshot: what has arrived; ``None`` if this only reports that events were stored.
    """

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.has_event = False
        """Whether a trigger has emitted an event because of this poll."""
        self.is_stored = False
        """Whether Airflow has stored these events."""


class _Polls(SharedStreamProducer):
    """
    Poll the API for ever, for all triggers with equal arguments.

    :param trigger: one of them.
    """

    def __init__(self, trigger: StemWindowsTrigger) -> None:
        self._trigger = trigger
        self._stored = asyncio.Event()
        self._redact: Callable[[str], str] = str  # until the connection is read

    async def open_stream(self) -> AsyncIterator[tuple[_Poll, _Poll]]:
        """Iterate over polls; each is its own acknowledgement."""
        arrivals, failures = None, 0
        while True:
            try:
                if arrivals is None:
                    arrivals = await in_thread(self._new_arrivals)
                snapshot = await self._poll(arrivals)
            except Exception as exc:  # noqa: BLE001 - the same
                failures += 1
                self._report(exc, failures)
            else:
                failures = 0
                poll = _Poll(snapshot)
                yield poll, poll
            until = monotonic() + self._pause_after(failures)
            while (left := until - monotonic()) > 0:
                with suppress(TimeoutError):
                    # wait_for can swallow a cancellation before Python 3.12, and the trigger would run on.
                    async with asyncio.timeout(left):
                        await self._stored.wait()
                    self._stored.clear()
                    poll = _Poll(None)
                    yield poll, poll

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Mark polls whose events Airflow has stored."""
        for item in batch:
            self.mark_stored(item.broker_payload)

    def mark_stored(self, poll: _Poll) -> None:
        """Record that the events about a poll were stored, so that the triggers save it without waiting."""
        poll.is_stored = True
        if poll.has_event:
            self._stored.set()

    def _pause_after(self, failures: int) -> float:
        interval = self._trigger.poll_interval
        return min(interval * 2.0 ** min(failures, 20), max(_LONGEST_PAUSE, interval))

    def _new_arrivals(self) -> Arrivals:
        # Imported here, in a thread: importing pyarrow is slow.
        from airflow_provider_stem.streams.arrivals import Arrivals

        trigger, every = self._trigger, self._trigger.restatement_interval
        return Arrivals(
            read_sites(trigger.sites),
            trigger.stream_types,
            trigger.resolution,
            int(trigger.window),
            timedelta(seconds=trigger.settle),
            timedelta(seconds=trigger.lookback),
            None if every is None else timedelta(seconds=every),
        )

    async def _poll(self, arrivals: Arrivals) -> Snapshot:
        if sites := await in_thread(arrivals.begin_poll, datetime.now(UTC)):
            async with open_source(self._trigger.stem_conn_id) as source:
                self._redact = source.client.redact
                await request_each(
                    sites,
                    self._trigger.max_workers,
                    lambda site_id: arrivals.poll_site(source, site_id, sites[site_id]),
                )
        return await in_thread(arrivals.snapshot)

    def _report(self, exc: Exception, failures: int) -> None:
        message = missing_connection(exc) if isinstance(exc, AirflowNotFoundException) else self._redact(str(exc))
        if not isinstance(exc, (AirflowNotFoundException, StemError)):
            message = f"{type(exc).__name__}: {message}"
        self._trigger.log.error("%s The next poll follows in %g s.", message, self._pause_after(failures))
