"""The results that ``demo.py`` shows: energy, a comparison with the simulator, and a plot of one day of a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from airflow_provider_stem.simulator.model import Fleet

RESOLUTION = 900
_DAY = 86_400
# As readable on a white page as on a black one: the picture is transparent.
_INK = "#747d8a"
_COLUMNS = ("site_id", "stream_type", "resolution", "interval_start", "interval_end", "kw_total_avg")

Key: TypeAlias = tuple[str, str, int]
"""Site, stream type and end of an interval in seconds since 1970."""
Row: TypeAlias = tuple[int, int, float | None]
"""Start of the interval, its length in seconds, and the mean power in kW."""
Curves: TypeAlias = dict[str, npt.NDArray[np.float64]]
"""One day of a site by stream type: the mean power of each interval in kW, NaN if it is missing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between landed and expected rows, as counts of rows."""

    expected: int
    landed: int
    missing: int
    doubled: int
    off: int
    stray: int

    @property
    def same(self) -> bool:
        """Whether exactly the expected rows landed, each once."""
        return not (self.missing or self.doubled or self.off or self.stray)


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of a stream type in kWh: imported or charged, and exported or discharged, both positive."""

    stream_type: str
    sites: int
    rows: int
    taken: float
    given: float


def read_objects(files: Sequence[Path]) -> pa.Table:
    """Read Parquet files into one table."""
    return pa.concat_tables([pq.read_table(file) for file in files])


def expected_rows(fleet: Fleet, day: date, now: datetime) -> dict[Key, Row]:
    """Return every row of a UTC day from the model of the simulator."""
    midnight = _seconds(day)
    rows: dict[Key, Row] = {}
    for site_id in fleet.site_ids:
        for stream_type in fleet.site(site_id).stream_start_times:
            shown = fleet.shown(site_id, stream_type, RESOLUTION, midnight + RESOLUTION, midnight + _DAY, now)
            for end, kw, null in zip(shown.ends.tolist(), shown.values.tolist(), shown.nulls.tolist(), strict=True):
                rows[site_id, stream_type, end] = (end - RESOLUTION, RESOLUTION, None if null else kw)
    return rows


def landed_rows(table: pa.Table) -> Iterator[tuple[Key, Row]]:
    """Iterate over the rows of a table in the landing schema."""
    seconds = pa.timestamp("s", "UTC")
    columns = [
        table[name].cast(seconds).cast(pa.int64()) if name.startswith("interval_") else table[name] for name in _COLUMNS
    ]
    for site_id, stream_type, resolution, start, end, kw in zip(*(c.to_pylist() for c in columns), strict=True):
        yield (site_id, stream_type, end), (start, resolution, kw)


def compare(expected: Mapping[Key, Row], table: pa.Table) -> Comparison:
    """Compare each landed row with the expected one. Interval and value must be equal to the last bit."""
    landed = list(landed_rows(table))
    times = Counter(key for key, _ in landed)
    return Comparison(
        expected=len(expected),
        landed=len(landed),
        missing=len(expected.keys() - times.keys()),
        doubled=len(landed) - len(times),
        off=sum(1 for key, row in landed if key in expected and expected[key] != row),
        stray=len(times.keys() - expected.keys()),
    )


def energy(table: pa.Table) -> list[Energy]:
    """Return the energy of each stream type: the sum of average kW times the length of the interval."""
    found = []
    for stream_type in sorted(pc.unique(table["stream_type"]).to_pylist()):
        rows = table.filter(pc.equal(table["stream_type"], stream_type))
        hours = rows["resolution"].to_numpy() / 3600
        kwh = np.nan_to_num(rows["kw_total_avg"].to_numpy() * hours)
        sites = len(pc.unique(rows["site_id"]))
        found.append(Energy(stream_type, sites, len(rows), float(kwh[kwh > 0].sum()), float(-kwh[kwh < 0].sum())))
    return found


def choose_site(table: pa.Table) -> str:
    """Return the site with the most streams, with export, and with the largest share of battery discharge."""
    streams: dict[str, set[str]] = {}
    imported: dict[str, float] = {}
    discharged: dict[str, float] = {}
    exporting: set[str] = set()
    for (site, stream_type, _), (_, _, kw) in landed_rows(table):
        streams.setdefault(site, set()).add(stream_type)
        power = kw or 0.0
        if stream_type == "MONITOR":
            imported[site] = imported.get(site, 0.0) + max(power, 0.0)
            exporting.update({site} if power < 0 else ())
        elif stream_type == "CONVERTER":
            discharged[site] = discharged.get(site, 0.0) + max(-power, 0.0)

    def worth(site: str) -> tuple[int, bool, float]:
        return len(streams[site]), site in exporting, discharged.get(site, 0.0) / (imported.get(site, 0.0) or 1.0)

    return max(sorted(streams), key=worth)


def curves(rows: Iterable[tuple[Key, Row]], site_id: str, day: date) -> Curves:
    """Return one day of a site as arrays."""
    midnight = _seconds(day)
    found: Curves = {}
    for (site, stream_type, _), (start, _, kw) in rows:
        if site != site_id:
            continue
        curve = found.setdefault(stream_type, np.full(_DAY // RESOLUTION, np.nan))
        if kw is not None:
            curve[(start - midnight) // RESOLUTION] = kw
    return found


def draw(day_curves: Curves, name: str, day: date, path: Path) -> None:
    """Plot one day of a site as a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Independent of the user's style and of a display.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 11.5, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK})
        mpl.rcParams.update({"xtick.color": _INK, "ytick.color": _INK})
        figure = Figure(figsize=(9.2, 5.4), dpi=170, layout="constrained")
        axes = figure.add_subplot()
        _draw_curves(axes, day_curves)
        _dress(axes, name, day, day_curves)
        figure.savefig(path, transparent=True)


def _draw_curves(axes: Axes, found: Curves) -> None:
    edges = np.linspace(0, 24, _DAY // RESOLUTION + 1)
    monitor, battery, revenue = (found.get(name) for name in ("MONITOR", "CONVERTER", "INTERVAL_REVENUE"))
    axes.axhline(0, color=_INK, linewidth=0.9, zorder=2)
    # In the order of the legend, which fills its columns from left to right.
    if monitor is not None:
        axes.stairs(monitor, edges, baseline=None, color="#60a5fa", linewidth=4.2, label="Site (MONITOR)", zorder=5)
    if revenue is not None:
        label = "Revenue meter (INTERVAL_REVENUE)"
        # Within half a percent of the site's own meter, so it is drawn as dashes on that line.
        axes.stairs(
            revenue, edges, baseline=None, color="#db2777", linewidth=1.5, linestyle=(0, (4, 3)), label=label, zorder=6
        )
    if battery is not None:
        label = "Battery (CONVERTER), charging"
        axes.stairs(np.maximum(battery, 0), edges, fill=True, color="#34d399", alpha=0.75, label=label, zorder=3)
        label = "Battery (CONVERTER), discharging"
        axes.stairs(np.minimum(battery, 0), edges, fill=True, color="#fb923c", alpha=0.85, label=label, zorder=3)
    if monitor is not None and battery is not None:
        label = "Without battery (MONITOR \N{MINUS SIGN} CONVERTER)"
        axes.stairs(monitor - battery, edges, baseline=None, color="#94a3b8", linewidth=1.2, label=label, zorder=4)


def _dress(axes: Axes, name: str, day: date, found: Curves) -> None:
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 3), [f"{hour:02d}:00" for hour in range(0, 25, 3)])
    axes.set_xticks(range(25), minor=True)
    axes.set_xlabel(f"{day.day} {day:%B %Y}, UTC")
    axes.set_ylabel("Mean power per quarter hour (kW)")
    axes.margins(y=0.06)
    axes.grid(axis="y", color=_INK, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(name, loc="left", fontsize=14.5, fontweight="bold", pad=26)
    axes.annotate(_in_words(found), (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=10.5)


def _in_words(found: Curves) -> str:
    words = []
    for stream_type, taken, given in (("MONITOR", "imported", "exported"), ("CONVERTER", "charged", "discharged")):
        if stream_type in found:
            kwh = np.nan_to_num(found[stream_type]) * (RESOLUTION / 3600)
            words += [f"{kwh[kwh > 0].sum():,.0f} kWh {taken}", f"{-kwh[kwh < 0].sum():,.0f} kWh {given}"]
    return ", ".join(words)


def _seconds(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
