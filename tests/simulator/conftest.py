from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from airflow_provider_stem.simulator import Simulator
from tests.servers.processes import HUNG_AFTER

Get = Callable[..., requests.Response]


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def text(epoch: int) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%SZ}"


def ends(response: requests.Response, stream_type: str = "MONITOR") -> list[int]:
    return [instant(row["end_datetime"]) for row in streams(response)[stream_type]]


def values(response: requests.Response, stream_type: str = "MONITOR") -> dict[int, Any]:
    return {instant(row["end_datetime"]): row["kw_total_avg"] for row in streams(response)[stream_type]}


def streams(response: requests.Response) -> dict[str, list[dict[str, Any]]]:
    assert response.status_code == 200, response.text
    return {item["stream_type"]: item["streams"] for item in response.json()["stream_types"]}


def assert_error(response: requests.Response, status: int, pattern: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    payload = response.json()
    assert list(payload) == ["errors"]
    for error in payload["errors"]:
        assert list(error) == ["message", "code"]
        assert error["code"] == status
        assert error["message"]
    assert re.search(pattern, payload["errors"][0]["message"]), payload


@pytest.fixture
def get() -> Iterator[Get]:
    """Return ``get(simulator, path, **parameters)``, which sends a request with the simulator's key."""
    with requests.Session() as session:
        session.trust_env = False

        def call(
            simulator: Simulator, path: str, *, key: str | None = None, method: str = "GET", **parameters: Any
        ) -> requests.Response:
            return session.request(
                method,
                simulator.url + path,
                params=parameters,
                headers={"Authorization": f"APIKEY {key or simulator.settings.api_key}"},
                timeout=HUNG_AFTER,
                allow_redirects=False,
            )

        yield call
