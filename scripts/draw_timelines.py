"""
Draw the timelines of docs/concepts as SVG, with the package's own rules: windows, stream starts and merges.

A test checks that the files in docs/images/timelines are up to date. Write them again with::

    python scripts/draw_timelines.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from airflow_provider_stem.streams.merging import Merge
from airflow_provider_stem.streams.tables import INSTANT, STREAM_SCHEMA, landing_batch
from airflow_provider_stem.streams.windows import Window, first_expected_end, from_epoch

FOLDER = Path(__file__).parent.parent / "docs" / "images" / "timelines"

WIDTH = 760
LEFT = 150  # of the time axis; labels of the lanes are to its left
RIGHT = 730
QUARTER = timedelta(minutes=15)
# The background changes with the other colours, so the picture is readable on any page.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px }
.dim { fill: #59636e }
.strong { font-weight: 600 }
.on { fill: #ffffff }
.page { fill: #ffffff; stroke: #d1d9e0 }
.dash { stroke: #818b98; stroke-width: 1; stroke-dasharray: 3 3; fill: none }
.a { fill: #0969da; stroke: #ffffff } .b { fill: #8250df; stroke: #ffffff } .c { fill: #9a6700; stroke: #ffffff }
.good { fill: #1a7f37; stroke: #ffffff } .bad { fill: #cf222e; stroke: #ffffff }
.none { fill: #eff2f5; stroke: #818b98 } .span { fill: #ddf4ff; stroke: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .dim { fill: #9198a1 } .on { fill: #ffffff }
.page { fill: #0d1117; stroke: #3d444d }
.a { fill: #1f6feb; stroke: #0d1117 } .b { fill: #8957e5; stroke: #0d1117 } .c { fill: #9e6a03; stroke: #0d1117 }
.good { fill: #238636; stroke: #0d1117 } .bad { fill: #da3633; stroke: #0d1117 }
.none { fill: #212830; stroke: #9198a1 } .span { fill: #121d2f; stroke: #4493f8 }
}
"""


class Picture:
    """
    A picture that grows downwards.

    :param title: what it shows, for screen readers.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self.y = 30.0
        """The vertical position of the next lane."""
        self.ticks: list[tuple[float, float]] = []
        """Upper ends of the lines of the time axis."""
        self._bottom: float | None = None

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Write a line of text."""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, text: str = "") -> None:
        """Draw a box with a text in its middle."""
        self._parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>')
        if text:
            colour = "small" if kind in {"none", "span"} else "small on"
            self.text(x + width / 2, y + height / 2 + 4, text, colour, "middle")

    def label(self, text: str, note: str = "") -> None:
        """Write the name of the lane, with a note below it."""
        self.text(14, self.y + 17, text, "strong")
        if note:
            self.text(14, self.y + 32, note, "small dim")

    def caption(self, text: str) -> None:
        """Write a line across the whole width."""
        self._bottom = self._bottom or self.y
        self.text(14, self.y + 12, text, "dim")
        self.y += 22

    def svg(self) -> str:
        """Return the picture."""
        height, bottom = self.y + 8, self._bottom or self.y
        lines = [f'<path d="M{x:g} {y:g}V{bottom:g}" class="dash"/>' for x, y in self.ticks]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{STYLE}</style>",
                f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="6" class="page"/>',
                *lines,
                *self._parts,
                "</svg>\n",
            ]
        )


class Axis:
    """
    A time axis.

    :param start: first instant.
    :param end: last instant.
    :param step: distance of its ticks.
    :param format_: of the labels.
    """

    def __init__(self, start: datetime, end: datetime, step: timedelta = QUARTER, format_: str = "%H:%M") -> None:
        self._start, self._end, self._step, self._format = start, end, step, format_

    def x(self, instant: datetime) -> float:
        """Return the horizontal position of an instant."""
        return LEFT + (RIGHT - LEFT) * ((instant - self._start) / (self._end - self._start))

    def draw(self, picture: Picture) -> None:
        """Draw the ticks. Their lines end above the first caption."""
        instant = self._start
        while instant <= self._end:
            x = self.x(instant)
            picture.text(x, picture.y, f"{instant:{self._format}}", "small dim", "middle")
            picture.ticks.append((x, picture.y + 6))
            instant += self._step
        picture.y += 16

    def span(self, picture: Picture, start: datetime, end: datetime, kind: str, text: str = "") -> None:
        """Draw a box from one instant to another."""
        picture.box(self.x(start) + 1, picture.y, self.x(end) - self.x(start) - 2, 26, kind, text)

    def intervals(self, picture: Picture, window: Window, kind: str, texts: Iterable[str] = ()) -> None:
        """Draw the intervals of a window."""
        named = iter(texts)
        for end in ends_of(window):
            self.span(picture, end - window.step, end, kind, next(named, f"{end:%H:%M}"))


def at(text: str) -> datetime:
    """Return an instant of 1 July 2025, UTC."""
    return datetime.fromisoformat(f"2025-07-01T{text}+00:00")


def ends_of(window: Window) -> list[datetime]:
    """Return the ends of a window's intervals."""
    return [from_epoch(k) for k in range(window.first_end, window.last_end + 1, window.resolution)]


def window_grid() -> Picture:
    """Draw a window of wall time, and the intervals that it covers."""
    picture = Picture("The window 00:20 to 01:05 covers the intervals that end at 00:30, 00:45 and 01:00.")
    axis = Axis(at("00:00"), at("01:15"))
    axis.draw(picture)
    start, end = at("00:20"), at("01:05")
    window = Window.covering(start, end, 900)
    picture.label("wall time", "start to end")
    axis.span(picture, start, end, "span", f"{start:%H:%M} to {end:%H:%M}")
    picture.y += 44
    picture.label("window", "both rounded down")
    axis.span(picture, window.start, window.end, "span", f"{window.start:%H:%M} to {window.end:%H:%M}")
    picture.y += 44
    picture.label("intervals", "named by their end")
    axis.intervals(picture, Window(at("00:00"), window.start, 900), "none")
    axis.intervals(picture, window, "a")
    axis.intervals(picture, Window(window.end, at("01:15"), 900), "none")
    picture.y += 44
    picture.label("API shows", "start_datetime")
    axis.intervals(picture, window, "none", [f"{end - QUARTER:%H:%M}:01" for end in ends_of(window)])
    picture.y += 44
    picture.caption("Blue intervals are read. The one that ends at 01:15 is not over at 01:05: the next run reads it.")
    return picture


def window_tiling() -> Picture:
    """Draw consecutive runs whose bounds are not on the grid."""
    picture = Picture("Consecutive runs read each interval exactly once.")
    axis = Axis(at("00:00"), at("02:00"))
    axis.draw(picture)
    bounds = [at("00:00"), at("00:20"), at("00:50"), at("01:40"), at("02:00")]
    kinds = ["a", "b", "c", "good"]
    picture.label("wall time", "of four runs")
    for number, (start, end) in enumerate(pairwise(bounds)):
        axis.span(picture, start, end, kinds[number], f"run {number + 1}")
    picture.y += 46
    picture.label("intervals", "read by each run")
    for number, (start, end) in enumerate(pairwise(bounds)):
        axis.intervals(picture, Window.covering(start, end, 900), kinds[number])
    picture.y += 46
    picture.caption("Both ends of a window are rounded down, so the end of one run is the start of the next.")
    picture.caption("No interval is read twice, none is left out, and none is read before it is over.")
    return picture


def window_padding() -> Picture:
    """Draw what the API returns for a padded request, under both readings of its guide."""
    picture = Picture("A padded request returns at least the window, whichever way the API reads the range.")
    axis = Axis(at("00:00"), at("02:00"))
    axis.draw(picture)
    window = Window.covering(at("00:30"), at("01:30"), 900)
    padded = window.padded()
    picture.label("window", "wanted")
    axis.intervals(picture, window, "a")
    picture.y += 44
    picture.label("request", "one more each side")
    axis.span(picture, padded.start, padded.end, "span", f"{padded.start:%H:%M} to {padded.end:%H:%M}")
    picture.y += 44
    picture.label("reading A", "by interval begin")
    axis.intervals(picture, padded, "b")
    picture.y += 44
    picture.label("reading B", "by shown times")
    axis.intervals(picture, Window(padded.start - QUARTER, padded.end - QUARTER, 900), "c")
    picture.y += 44
    picture.label("landed", "the window exactly")
    axis.intervals(picture, window, "a")
    picture.y += 44
    picture.caption("Rows outside the window are dropped, so both readings land the same rows.")
    return picture


def completeness() -> Picture:
    """Draw expected, received and missing intervals of a stream that began within the window."""
    picture = Picture("Expected, received and missing intervals of one stream.")
    axis = Axis(at("16:00"), at("18:00"))
    axis.draw(picture)
    window = Window.covering(at("16:00"), at("18:00"), 900)
    first = from_epoch(first_expected_end(at("16:15:01"), 900))
    states = {at("17:00"): ("bad", "missing"), at("17:30"): ("good", "null"), at("18:00"): ("none", "not over")}
    picture.label("MONITOR", "since 16:15:01")
    for end in ends_of(window):
        if end < first:
            axis.span(picture, end - QUARTER, end, "none", "before")
        else:
            axis.span(picture, end - QUARTER, end, *states.get(end, ("good", "received")))
    picture.y += 40
    expected = [end for end in ends_of(window) if end >= first]
    picture.label("expected", f"{len(expected)} intervals")
    axis.span(picture, expected[0] - QUARTER, expected[-1], "span", "since the stream began")
    picture.y += 46
    picture.caption(
        f"expected {len(expected)}, received {len(expected) - 2}, missing 2. A null value counts as received."
    )
    picture.caption("An interval that is not over when it is requested counts as missing, and is never landed.")
    return picture


def lookback() -> Picture:
    """Draw the objects that daily runs write with a look-back of three days."""
    picture = Picture("Daily runs with a look-back of three days rewrite whole days under the same keys.")
    day = timedelta(days=1)
    first = datetime(2025, 7, 1, tzinfo=UTC)
    axis = Axis(first, first + 6 * day, day, "%d July")
    axis.draw(picture)
    for number in range(3, 6):
        end = first + (number + 1) * day
        window = Window.covering(end - day, end, 900).with_lookback(3 * day, "day")
        picture.label(f"run of {end - day:%d July}")
        for period in window.periods("day"):
            is_own = period.end == end
            axis.span(picture, period.start, period.end, "a" if is_own else "b", "new" if is_own else "merged")
        picture.y += 40
    picture.label("objects", "one key a day")
    for number in range(6):
        start = first + number * day
        axis.span(picture, start, start + day, "none", f"date={start:%m-%d}")
    picture.y += 46
    picture.caption("A value that arrives up to three days late, or is restated, replaces the one in the object.")
    return picture


def merge() -> Picture:
    """Draw the merge of an object's rows with the rows that were read."""
    picture = Picture("A merge keeps the rows of both sides; of two values, the one that was read later.")
    axis = Axis(at("00:00"), at("01:30"))
    axis.draw(picture)
    held = {at("00:15"): 10.0, at("00:30"): 11.0, at("00:45"): 12.0, at("01:00"): 13.0}
    read = {at("00:15"): 10.0, at("00:30"): 99.0, at("01:00"): None, at("01:15"): 14.0, at("01:30"): 15.0}

    def batch(rows: dict[datetime, float | None]) -> pa.RecordBatch:
        columns = [pa.array(rows, INSTANT), pa.array(rows.values(), pa.float64())]
        return landing_batch("site", "MONITOR", 900, pa.RecordBatch.from_arrays(columns, schema=STREAM_SCHEMA))

    counts = Merge()
    union = pa.Table.from_batches(list(counts.merged([batch(dict(held))], [batch(read)]))).to_pylist()
    merged = {row["interval_end"].astimezone(UTC): row["kw_total_avg"] for row in union}
    for name, note, rows in (
        ("object held", "", held),
        ("read", "by this run", read),
        ("object becomes", "", merged),
    ):
        picture.label(name, note)
        for end, value in rows.items():
            kind = "a" if rows is held else "b" if rows is read else "b" if end in read else "a"
            axis.span(picture, end - QUARTER, end, kind, "null" if value is None else f"{value:g}")
        picture.y += 40
    picture.caption(
        f"inserted {counts.inserted}, changed {counts.changed}, unchanged {counts.unchanged}, kept {counts.kept}. "
        "kept: the API did not send the row this time."
    )
    return picture


def nothing_goes_back() -> Picture:
    """Draw an attempt that is paused while a later one writes the object."""
    picture = Picture("An attempt that began to read earlier never overwrites one that began later.")
    axis = Axis(at("02:00"), at("02:15"), timedelta(minutes=3))
    axis.draw(picture)

    def minute(number: float) -> datetime:
        return at("02:00") + timedelta(minutes=number)

    picture.label("attempt A", "reads from 02:00")
    axis.span(picture, minute(0), minute(3), "a", "reads")
    axis.span(picture, minute(3), minute(9), "none", "suspended")
    axis.span(picture, minute(9), minute(10), "bad")
    picture.text(axis.x(minute(9.5)), picture.y + 40, "object changed", "small", "middle")
    axis.span(picture, minute(10), minute(13), "a", "reads again")
    axis.span(picture, minute(13), minute(14), "good", "PUT")
    picture.y += 50
    picture.label("attempt B", "reads from 02:04")
    axis.span(picture, minute(4), minute(7), "b", "reads")
    axis.span(picture, minute(7), minute(8), "good", "PUT")
    picture.y += 46
    picture.label("object", "its read-at")
    axis.span(picture, minute(0), minute(8), "none", "earlier version")
    axis.span(picture, minute(8), minute(14), "b", "read-at 02:04")
    axis.span(picture, minute(14), minute(15), "a", "02:10")
    picture.y += 46
    picture.caption("Each PUT has the condition that the object is still the version that was seen.")
    return picture


def waiting() -> Picture:
    """Draw the pokes of a sensor."""
    picture = Picture("The sensor sends its first request when the window has ended and settle has passed.")
    axis = Axis(at("00:00"), at("03:00"), timedelta(minutes=30))
    axis.draw(picture)
    picture.label("the run")
    axis.span(picture, at("00:00"), at("01:00"), "span", "window")
    axis.span(picture, at("01:00"), at("01:30"), "c", "settle")
    for number in range(3):
        begin = at("01:30") + number * timedelta(minutes=30)
        axis.span(picture, begin, begin + timedelta(minutes=9), "good" if number == 2 else "a", "poke")
    picture.y += 42
    picture.text(axis.x(at("01:30")), picture.y + 8, "every site", "small dim")
    picture.text(axis.x(at("02:00")), picture.y + 8, "what is missing", "small dim")
    picture.text(axis.x(at("02:30")), picture.y + 8, "complete", "small dim")
    picture.y += 20
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "window-grid": window_grid,
    "window-tiling": window_tiling,
    "window-padding": window_padding,
    "completeness": completeness,
    "lookback": lookback,
    "merge": merge,
    "nothing-goes-back": nothing_goes_back,
    "waiting": waiting,
}


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), "utf-8")
        print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
