"""What it costs to land streams: requests, objects and rows, before anything is read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import Partition, Window, check_resolution

__all__ = ["LandingCosts"]


class LandingCosts:
    """
    The costs of a task that lands streams, as the sum over the runs that are added.

    :param batches: the argument ``sites`` of each instance of the task, such as ``batch["sites"]`` of each batch that
        :class:`~airflow_provider_stem.operators.StemSiteListOperator` returns.
    :param stream_types: as the task has them.
    :param resolution: seconds; as the task has it.
    :param partition: as the task has it.
    :ivar runs: number of runs.
    :ivar tasks: number of task instances.
    :ivar requests: requests of streams, if each is answered at once. A stream that begins later is requested from there
        on (guide: "Obtaining sites"). The requests of the listing, and retries, come on top.
    :ivar writes: number of PUTs of objects. With a look-back, several runs write an object.
    :ivar rows: number of intervals that are expected.
    :raises StemConfigError: the sites of a batch are invalid, or it has none; or the API lacks a type or resolution.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        partition: Partition = "interval",
    ) -> None:
        check_resolution(resolution)
        types = parse_stream_types(stream_types)
        self.runs = self.tasks = self.requests = self.writes = self.rows = 0
        self._resolution = resolution
        self._partition = partition
        self._periods: set[Window] = set()
        self._first: Window | None = None
        self._last: Window | None = None
        self._batches = 0
        # The ends of the first intervals: of each stream, and of the earliest stream of each site.
        self._streams: list[int] = []
        self._sites: list[int] = []
        for batch in batches:
            self._batches += 1
            for site in read_sites(batch):
                starts = [site.expected_from(name, resolution) or 0 for name in types if not site.lacks(name)]
                self._streams += starts
                self._sites += [min(starts)] if starts else []
        self._streams.sort()
        self._sites.sort()

    @property
    def objects(self) -> int:
        """The number of objects: one for each period and instance of the task."""
        return self._batches * len(self._periods)

    def add(self, start: datetime, end: datetime) -> None:
        """
        Add a run that reads the wall time ``[start, end)``, including a look-back.

        :param start: aware instant.
        :param end: aware instant.
        :raises StemConfigError: a bound is naive, or ``end <= start``.
        """
        self.add_window(Window.covering(start, end, self._resolution))

    def add_window(self, window: Window) -> None:
        """
        Add a run that reads a window, as the command ``plan`` computes it.

        :param window: of the same resolution. A run whose window has no interval is skipped, and writes nothing.
        """
        self._first, self._last = self._first or window, window
        self.runs += 1
        self.tasks += self._batches
        before, late = _split(self._sites, window)
        self.requests += before * len(list(window.parts())) + sum(len(list(window.parts(first))) for first in late)
        periods = list(window.periods(self._partition)) if window.intervals else []
        self.writes += self._batches * len(periods)
        self._periods.update(periods)
        before, late = _split(self._streams, window)
        self.rows += before * window.intervals + sum(
            (window.last_end - first) // window.resolution + 1 for first in late
        )

    def described(self) -> dict[str, str]:
        """Return what was added in words, by label; empty if there is no run."""
        if self._first is None or self._last is None:
            return {}
        return {
            "runs": f"{self.runs:,}",
            "first window": f"{self._first} of {self._first.resolution} s",
            "last window": f"{self._last} of {self._last.resolution} s",
            "tasks": f"{self.tasks:,}",
            "requests": f"{self.requests:,}",
            "objects": f"{self.objects:,}, with {self.writes:,} writes",
            "rows": f"{self.rows:,}",
        }


def _split(starts: Sequence[int], window: Window) -> tuple[int, Sequence[int]]:
    """Return how many of the sorted starts are before the window's second interval, and those that are later in it."""
    before = bisect_right(starts, window.first_end)
    return before, starts[before : bisect_right(starts, window.last_end)]
