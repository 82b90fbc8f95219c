"""Responses, instants and counts for several of these tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings

from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.streams.tables import STREAM_SCHEMA
from airflow_provider_stem.streams.windows import Window
from tests.support import at_most

RESOLUTIONS = (900, 1800, 3600)
DAY = 86_400


def examples(number: int) -> settings:
    """
    Return the settings of a property test, with as many examples at full depth.

    Each run has the same cases, since documents quote the figures of its summary. A busy machine is not a failure.
    """
    return settings(
        max_examples=at_most(number),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


class Tally:
    """Counts of what a property test has checked, for the summary of the run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        self.counts.update(counts)

    def __str__(self) -> str:
        return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in self.counts.items())


TALLIES: dict[str, Tally] = {}


def tally(name: str) -> Tally:
    return TALLIES.setdefault(name, Tally())


def utc(text: str) -> datetime:
    """``utc("2025-01-01T00:15")``"""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def window(start: str, end: str, resolution: int = 900) -> Window:
    return Window.covering(utc(start), utc(end), resolution)


def grid(of: Window) -> list[int]:
    """Return every interval end in a window, by testing each second."""
    step = of.resolution
    return [k for k in range(seconds(of.start) + 1, seconds(of.end) + 1) if k % step == 0] if step else []


@lru_cache(maxsize=65_536)
def shown(instant: int, zone: str = "+00:00") -> str:
    return f"{at(instant):%Y-%m-%dT%H:%M:%S}{zone}"


def row(end: int, resolution: int = 900, value: Any = 1.5, zone: str = "+00:00") -> dict[str, Any]:
    return {
        "start_datetime": shown(end - resolution + 1, zone),
        "end_datetime": shown(end, zone),
        "kw_total_avg": value,
    }


def answer(streams: Mapping[str, Sequence[Any]], site_id: str = "site", **more: Any) -> dict[str, Any]:
    entries = [{"stream_type": name, "streams": rows} for name, rows in streams.items()]
    return {"id": site_id, "name": "A site", "stream_types": entries, **more}


def encoded(payload: Any, **options: Any) -> bytes:
    return json.dumps(payload, **options).encode()


def stream(ends: Iterable[int], values: Iterable[float | None]) -> pa.RecordBatch:
    """Return rows as the decoder returns them."""
    return pa.RecordBatch.from_arrays(
        [pa.array([at(end) for end in ends], pa.timestamp("us", "UTC")), pa.array(values, pa.float64())],
        schema=STREAM_SCHEMA,
    )


def ends_of(batch: pa.RecordBatch) -> list[int]:
    return [seconds(instant) for instant in batch.column("interval_end").to_pylist()]


def rows_of(batch: pa.RecordBatch) -> list[tuple[int, float | None]]:
    return list(zip(ends_of(batch), batch.column("kw_total_avg").to_pylist(), strict=True))


def trail(simulator: Simulator) -> list[str]:
    """Return the requests since the last call with their status: ``["400 streams", "200 site"]``."""
    requests = list(simulator.requests)
    simulator.reset_requests()
    return [f"{r.status} {'streams' if r.path.endswith('/streams') else 'site'}" for r in requests]


def record(simulator: Simulator, site_id: str, **changed: str | None) -> dict[str, Any]:
    """Return a site's record; a type that is changed to None is removed."""
    starts = {name: shown(start, "Z") for name, start in simulator.fleet.site(site_id).stream_start_times.items()}
    starts |= {name: start for name, start in changed.items() if start}
    return {"site_id": site_id, "stream_start_times": {n: s for n, s in starts.items() if changed.get(n, s)}}


def truth(simulator: Simulator, site_id: str, stream_type: str, of: Window) -> list[tuple[int, float | None]]:
    """Return the rows of a window that the server shows."""
    now = simulator.now or datetime.now(UTC)
    rows = simulator.fleet.shown(site_id, stream_type, of.resolution, of.first_end, of.last_end, now)
    pairs = zip(rows.ends.tolist(), rows.values.tolist(), rows.nulls.tolist(), strict=True)
    return [(end, None if is_null else value) for end, value, is_null in pairs]
