"""
Report yesterday's restatements every day: by how much they changed the energy of each site, as one HTML page in S3.

Reads the view ``stem.daily_restatements`` with the connection ``stem_warehouse``, of DuckDB or PostgreSQL, and writes
the page with ``aws_default``. ``stem_warehouse`` or ``stem_to_warehouse`` load the warehouse. The param ``day`` repeats
the report of another day.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, BaseHook, Param, task
from airflow.timetables.interval import CronDataIntervalTimetable

# Times as text: DuckDB returns times with a zone only if pytz is installed.
COLUMNS = {
    "site": "site_id",
    "stream type": "stream_type",
    "resolution (s)": "resolution",
    "day": "day",
    "net kWh": "net_kwh",
    "gross kWh": "gross_kwh",
    "changes": "changes",
    "first change (UTC)": "CAST(date_trunc('second', first_change AT TIME ZONE 'UTC') AS VARCHAR)",
    "last change (UTC)": "CAST(date_trunc('second', last_change AT TIME ZONE 'UTC') AS VARCHAR)",
    "DAG": "dag_id",
    "run": "run_id",
}
# Ids of sites come from the API, so every value is escaped, and the page can neither run scripts nor load anything.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Restatements of Stem telemetry, {{ day }}</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ccc; padding: 2px 8px; text-align: left; white-space: nowrap }
.number { font-variant-numeric: tabular-nums; text-align: right }
text { unicode-bidi: isolate }
.gross { fill: #b9cfe6 } .net { fill: #0b5cad } line { stroke: #222 }
</style>
</head>
<body>
<h1>Restatements of Stem telemetry</h1>
<p><strong>{{ day }}</strong> in the time zone of each site.
{% if not rows %}No value was restated.</p>
{% else %}{{ "{:,}".format(changes) }} changes of values, {{ "{:,}".format(sites) }} sites.</p>
<h2>Streams with the most restated energy</h2>
<p>Dark: net, the change of the sum, in kWh. Light: gross, with each change counted as positive.</p>
<svg width="960" height="{{ 24 * bars|length }}" role="img" aria-label="Net and gross kWh of these streams">
{% for stream, net, gross in bars %}
<g transform="translate(0 {{ 24 * loop.index0 }})">
<text x="430" y="17" text-anchor="end">{{ stream }}</text>
<rect class="gross" x="{{ 650 - (net < 0) * gross * scale }}" y="3" width="{{ gross * scale }}" height="18"/>
<rect class="net" x="{{ 650 - (net < 0) * -net * scale }}" y="7" width="{{ net|abs * scale }}" height="10"/>
<line x1="650" x2="650" y2="24"/>
<text x="860" y="17">{{ "{:+,.2f}".format(net) }}</text>
</g>
{% endfor %}
</svg>
<h2>By site, stream type, day and run</h2>
{% if rows|length < total %}
<p>The first {{ "{:,}".format(rows|length) }} of {{ "{:,}".format(total) }} rows. All are in the view
<code>stem.daily_restatements</code>.</p>
{% endif %}
<table>
<tr>{% for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for text, kind in row %}<td class="{{ kind }}"><bdi>{{ text }}</bdi></td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
</body>
</html>
"""


def as_cell(value: Any) -> tuple[str, str]:
    """Return the text of a value for the page, and its class."""
    if isinstance(value, (int, float)):
        return f"{round(value, 6):,}", "number"
    text = "" if value is None else str(value)
    # Spelled out, since characters such as line breaks and those that change the direction of writing are not visible.
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text), "text"


with DAG(
    dag_id="stem_restatements",
    description="Yesterday's restatements of Stem's telemetry by site, in kWh, as a page",
    # At noon UTC the day before is over in every time zone.
    schedule=CronDataIntervalTimetable("0 12 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={
        "bucket": "stem-telemetry",
        "prefix": "stem/restatements",
        "day": Param(None, type=["null", "string"], format="date"),
        "rows": 10_000,
        "bars": 20,
    },
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task
    def publish_page(**context: Any) -> dict[str, Any]:
        """Read what loads restated on a day, by default the day before the run, and replace the page of that day."""
        from collections import Counter

        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from jinja2 import Environment

        from airflow_provider_stem.intervals import wall_time_of_run

        params = context["params"]
        start, _ = wall_time_of_run(context, default_interval=timedelta(days=1))
        day = date.fromisoformat(params["day"]) if params["day"] else start.date()
        warehouse: Any = BaseHook.get_hook("stem_warehouse")
        rows = warehouse.get_records(
            f"SELECT {', '.join(COLUMNS.values())} FROM stem.daily_restatements "  # noqa: S608 - no foreign values
            f"WHERE changed_day = DATE '{day}' ORDER BY gross_kwh DESC, site_id, stream_type, resolution, day, run_id"
        )
        net: Counter[tuple[Any, ...]] = Counter()
        gross: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            net[tuple(row[:3])] += row[4]
            gross[tuple(row[:3])] += row[5]
        summary = {"day": str(day), "sites": len({row[0] for row in rows}), "changes": sum(row[6] for row in rows)}
        page = Environment(autoescape=True).from_string(PAGE)
        body = page.render(
            **summary,
            columns=COLUMNS,
            rows=[[as_cell(value) for value in row] for row in rows[: params["rows"]]],
            total=len(rows),
            bars=[
                (f"{as_cell(site_id)[0]:.30} {stream_type} {resolution} s", net[site_id, stream_type, resolution], kwh)
                for (site_id, stream_type, resolution), kwh in gross.most_common(params["bars"])
            ],
            scale=200 / (max(gross.values(), default=0) or 1),
        ).encode()
        key = f"{params['prefix']}/{day}.html"
        s3 = S3Hook(extra_args={"ContentType": "text/html; charset=utf-8"})
        s3.load_bytes(body, key, params["bucket"], replace=True)
        return {"uri": f"s3://{params['bucket']}/{key}", "bytes": len(body), **summary}

    publish_page()
