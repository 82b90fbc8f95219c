"""
Publish the completeness of the last days every morning, as one HTML page in S3.

Reads the view ``stem.completeness`` with the connection ``stem_warehouse``, of DuckDB or PostgreSQL, and writes the
page with ``aws_default``. The page is self-contained: open it in a browser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG, BaseHook, task
from airflow.timetables.interval import CronDataIntervalTimetable

with DAG(
    dag_id="stem_completeness",
    description="Completeness of Stem's telemetry, sites by days, as a page",
    schedule=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={"bucket": "stem-telemetry", "key": "stem/completeness.html", "days": 90},
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=5)},
    tags=["stem", "energy"],
) as dag:

    @task
    def publish_page(**context: Any) -> dict[str, Any]:
        """Read the last complete UTC days, and replace the page."""
        from concurrent.futures import ThreadPoolExecutor
        from contextlib import closing
        from datetime import UTC, datetime, timedelta
        from tempfile import TemporaryFile

        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        from airflow_provider_stem.completeness import COLUMNS, CONTENT_TYPE, write_page

        params = context["params"]
        warehouse: Any = BaseHook.get_hook("stem_warehouse")
        made = datetime.now(UTC)
        first, last = (made.date() - timedelta(days=back) for back in (params["days"], 1))

        def rows() -> Iterator[Any]:
            # PostgreSQL sends the rows of a cursor with a name while they are read. DuckDB holds the result of a query
            # in memory, so each is of ten days.
            step, name = (params["days"], ["page"]) if warehouse.conn_type == "postgres" else (10, [])
            with closing(warehouse.get_conn()) as connection, ThreadPoolExecutor(1) as ahead:
                for start in range(params["days"], 0, -step):
                    since, until = (made.date() - timedelta(days=back) for back in (start, max(start - step + 1, 1)))
                    cursor = connection.cursor(*name)
                    cursor.execute(
                        f"SELECT {', '.join(COLUMNS)} FROM stem.completeness "  # noqa: S608 - no foreign values
                        f"WHERE day BETWEEN DATE '{since}' AND DATE '{until}'"
                    )
                    # The database computes the next rows while these are drawn.
                    following = ahead.submit(cursor.fetchmany, 10_000)
                    while batch := following.result():
                        following = ahead.submit(cursor.fetchmany, 10_000)
                        yield from batch

        names = dict(warehouse.get_records("SELECT site_id, name FROM stem.sites WHERE valid_to IS NULL"))
        with TemporaryFile() as page:
            summary = write_page(rows(), page, first_day=first, last_day=last, made=made, names=names)
            size = page.tell()
            page.seek(0)
            s3 = S3Hook(extra_args={"ContentType": CONTENT_TYPE})
            s3.load_file_obj(page, params["key"], params["bucket"], replace=True)
        return {"uri": f"s3://{params['bucket']}/{params['key']}", "bytes": size, **summary.as_json()}

    publish_page()
