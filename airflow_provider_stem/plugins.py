"""Airflow's plugin: pages of completeness in its UI. Airflow imports it in every process, so it is small."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

_Message = MutableMapping[str, Any]


async def _pages(
    scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    # Only the API server calls it, and only it needs FastAPI.
    from airflow_provider_stem.completeness.app import pages

    await pages()(scope, receive, send)


class StemPlugin(AirflowPlugin):
    """Pages of completeness: an entry under Browse, and a tab of each DAG and of its runs. Airflow 3.1 or later."""

    name = "stem"
    # Airflow before 3.1 has no such views.
    if hasattr(AirflowPlugin, "external_views"):
        fastapi_apps = [{"name": "Stem", "app": _pages, "url_prefix": "/stem"}]
        # Relative, since Airflow may be served below a path.
        external_views = [
            {
                "name": "Stem completeness",
                "href": "stem/completeness",
                "destination": "nav",
                "category": "browse",
                "url_route": "stem-completeness",
            },
            {"name": "Stem", "href": "stem/dags/{DAG_ID}", "destination": "dag", "url_route": "stem-dag"},
            {
                "name": "Stem",
                "href": "stem/dags/{DAG_ID}/runs/{RUN_ID}",
                "destination": "dag_run",
                "url_route": "stem-run",
            },
        ]
