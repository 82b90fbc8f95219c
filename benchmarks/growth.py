"""
Cost of the operator by number of sites and length of the window: wall and CPU seconds, memory, requests, objects.

Prints a table; ``--chart`` draws it::

    python -m benchmarks.growth

The simulator runs on the same machine, so compare CPU seconds, which are of the operator alone, rather than wall
seconds.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from airflow_provider_stem.simulator import Settings, Simulator
from benchmarks.contenders.work import Work
from benchmarks.side_by_side import OWN, measured
from tests.servers import progress
from tests.servers.s3 import S3Server

END = "2026-01-01T00:00:00Z"
SPANS = {
    "1 day": ("2025-12-31T00:00:00Z", 96),
    "1 month": ("2025-12-01T00:00:00Z", 31 * 96),
    "1 year": ("2025-01-01T00:00:00Z", 365 * 96),
    "10 years": ("2016-01-01T00:00:00Z", 3653 * 96),
}
SITES = (1, 10, 100, 1000)

Row = dict[str, Any]


def grow(most_rows: int) -> list[Row]:
    """Measure every size up to a number of rows."""
    settings = Settings(sites=max(SITES), cache_mb=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3, Simulator(settings) as sim:
        client: Any = s3.client()
        client.create_bucket(Bucket="bench")
        # Streams begin at different times. Those that cover ten years come first, so that small sizes have no gaps.
        known = [sim.fleet.site(f"site-{number:05}") for number in range(1, max(SITES) + 1)]
        ids = [site.id for site in sorted(known, key=lambda site: site.stream_start_times["MONITOR"])]
        for span, (start, intervals) in SPANS.items():
            for sites in SITES:
                if sites * intervals > most_rows:
                    continue
                work = Work(
                    sites=ids[:sites],
                    stream_types=["MONITOR"],
                    start=start,
                    end=END,
                    bucket="bench",
                    prefix=f"{sites}/{span}",
                    api_url=sim.url,
                    api_key=settings.api_key,
                    s3_url=s3.url,
                    s3_access_key=s3.access_key,
                    s3_secret_key=s3.secret_key,
                )
                progress(f"{span}, {sites:,} sites")
                sim.reset_requests()
                taken = measured(OWN, work)
                listed = client.list_objects_v2(Bucket="bench", Prefix=f"{work.prefix}/")["Contents"]
                body = client.get_object(Bucket="bench", Key=listed[0]["Key"])["Body"].read()
                rows.append(
                    {
                        "span": span,
                        "sites": sites,
                        "rows": pq.read_metadata(io.BytesIO(body)).num_rows,
                        "requests": len(sim.requests),
                        "objects": len(listed),
                        "bytes": len(body),
                        **taken,
                    }
                )
                print(_line(rows[-1]), flush=True)
    return rows


def _line(row: Row) -> str:
    return (
        f"{row['span']:9} {row['sites']:6,} {row['rows']:12,} {row['seconds']:8.2f} {row['cpu_seconds']:8.2f} "
        f"{row['growth_mb']:10.0f} {row['requests']:9,} {row['objects']:8} {row['bytes'] / row['rows']:6.2f}"
    )


def draw(rows: list[Row], file: Path) -> None:
    """Draw seconds and memory over rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "growth"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for span in SPANS:
        of = [row for row in rows if row["span"] == span]
        left.plot([row["rows"] for row in of], [row["cpu_seconds"] for row in of], "o-", label=span)
        right.plot([row["rows"] for row in of], [row["growth_mb"] for row in of], "o-", label=span)
    left.set(xscale="log", yscale="log", xlabel="rows", ylabel="CPU seconds")
    right.set(xscale="log", xlabel="rows", ylabel="MB over the process before")
    right.set_ylim(bottom=0)
    left.legend(title="each point: 1, 10, 100, 1,000 sites", frameon=False, fontsize="small", title_fontsize="small")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most-rows", type=int, default=40_000_000, help="skip larger sizes")
    parser.add_argument("--chart", type=Path, help="where to draw the results, as SVG")
    options = parser.parse_args()
    print(
        f"{'':9} {'sites':>6} {'rows':>12} {'seconds':>8} {'CPU s':>8} {'growth MB':>10} {'requests':>9} "
        f"{'objects':>8} {'B/row':>6}"
    )
    rows = grow(options.most_rows)
    if options.chart:
        draw(rows, options.chart)


if __name__ == "__main__":
    main()
