"""Drawings of a site's day as SVG. For the app."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_provider_stem.completeness.source import Curve, Restatement

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 160, 96, 940, 10, 32

_LINE = 22
"""Height of a line of text on a phone; page.css sets it."""


@dataclass(frozen=True, slots=True)
class Chart:
    """
    Shapes of a chart, in its own coordinates. The template draws them.

    :param path: steps of the values, one for each interval; a gap where there is no value.
    :param gaps: of each run of missing intervals: numbers of the first one and of the one after the last, left edge and
        width.
    :param old: centres of the values that loads have replaced.
    :param ticks: values of the vertical axis with their unit, and their heights.
    """

    path: str
    gaps: tuple[tuple[int, int, float, float], ...]
    old: tuple[tuple[float, float], ...]
    ticks: tuple[tuple[str, float], ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _HEIGHT - _BOTTOM


def chart(curve: Curve, restated: Iterable[Restatement]) -> Chart:
    """
    Return the chart of a stream's day.

    :param curve: the values.
    :param restated: changed values of all streams of that day.
    """
    counts = curve.counts
    old = {
        one.number: one.old_kw
        for one in restated
        if (one.stream_type, one.resolution) == (counts.stream_type, counts.resolution) and one.old_kw is not None
    }
    last = 86_400 // counts.resolution
    known = [kw for kw in (*curve.values.values(), *old.values()) if kw is not None]
    low, high = min(0.0, *known, 0.0), max(0.0, *known, 0.0)
    span = high - low or 1.0

    def x(number: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * number / last, 1)

    def y(kw: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (kw - low) / span, 1)

    steps, before = [], None
    for number, kw in sorted(curve.values.items()):
        if kw is None:
            before = None
            continue
        steps.append(f"{'L' if before == number - 1 else 'M'}{x(number)} {y(kw)}H{x(number + 1)}")
        before = number
    return Chart(
        path="".join(steps),
        gaps=tuple((first, after, x(first), round(x(after) - x(first), 1)) for first, after in _runs(curve.missing)),
        old=tuple((x(number + 0.5), y(kw)) for number, kw in sorted(old.items())),
        # A label next to that of 0 would cover it. The template has a table of exact values.
        ticks=tuple(
            (f"{kw:,.0f} kW" if 100 <= abs(kw) < 1e7 else f"{kw:.3g} kW", y(kw))
            for kw in sorted({low, 0.0, high})
            if kw == 0 or abs(y(kw) - y(0)) > _LINE
        ),
    )


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Iterate over runs of successive numbers: the first, and the one after the last."""
    begin = end = None
    for number in numbers:
        if begin is not None and number != end:
            yield begin, end  # type: ignore[misc]
            begin = None
        begin = number if begin is None else begin
        end = number + 1
    if begin is not None:
        yield begin, end  # type: ignore[misc]
