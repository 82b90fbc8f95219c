from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_stem.simulator import Simulator
from tests.servers.processes import HUNG_AFTER
from tests.support import until

from .conftest import Get, assert_error, ends, streams

Factory = Callable[..., Simulator]
DAY: dict[str, Any] = {"start_datetime": "2024-05-01T00:00:00Z", "end_datetime": "2024-05-02T00:00:00Z"}
STREAMS = "sites/site-00001/streams"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 418, 429, 500, 502, 503, 504])
def test_a_status_is_returned_once(stem_simulator: Simulator, get: Get, status: int) -> None:
    stem_simulator.fail(status)
    assert_error(get(stem_simulator, "clients"), status)
    assert get(stem_simulator, "clients").status_code == 200
    assert [request.status for request in stem_simulator.requests] == [status, 200]


def test_status_204_has_no_body(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail(204)
    response = get(stem_simulator, "clients")
    assert (response.status_code, response.content) == (204, b"")
    assert get(stem_simulator, "clients").status_code == 200


def test_times_and_after_select_requests(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail(503, times=2, after=1)
    assert [get(stem_simulator, "clients").status_code for _ in range(5)] == [200, 503, 503, 200, 200]
    stem_simulator.fail(500, times=None)
    assert [get(stem_simulator, "clients").status_code for _ in range(3)] == [500] * 3
    stem_simulator.clear_faults()
    assert get(stem_simulator, "clients").status_code == 200


def test_faults_are_queued(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail(503)
    stem_simulator.fail(429)
    assert [get(stem_simulator, "clients").status_code for _ in range(3)] == [503, 429, 200]


@pytest.mark.parametrize("path", ["site-00002", r"sites/site-0000[2-9]$", "page=2", "per_page=7&page=2"])
def test_a_path_is_a_substring_or_a_pattern(stem_simulator: Simulator, get: Get, path: str) -> None:
    stem_simulator.fail(503, path=path)
    assert get(stem_simulator, "sites/site-00001").status_code == 200
    assert get(stem_simulator, "clients", per_page=7, page=1).status_code == 200
    hit = [
        get(stem_simulator, "sites/site-00002").status_code,
        get(stem_simulator, "clients", per_page=7, page=2).status_code,
    ]
    assert sorted(hit) == [200, 503]


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [
        (7, "7"),
        (0.5, "0.5"),
        ("soon", "soon"),
        (datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), "Wed, 02 Jan 2030 03:04:05 GMT"),
        (None, None),
    ],
)
def test_retry_after_is_a_number_a_string_or_a_date(
    stem_simulator: Simulator, get: Get, retry_after: Any, header: str | None
) -> None:
    stem_simulator.fail(429, retry_after=retry_after)
    assert get(stem_simulator, "clients").headers.get("Retry-After") == header


@pytest.mark.parametrize("kind", ["nonsense", "", 99, 600, 12345])
def test_unknown_kinds_are_rejected(stem_simulator: Simulator, kind: str | int) -> None:
    with pytest.raises(ValueError, match="Unknown fault .*Use a status code from 200 to 599, or one of"):
        stem_simulator.fail(kind)


def test_counts_are_validated(stem_simulator: Simulator) -> None:
    for bad in ({"times": 0}, {"after": -1}):
        with pytest.raises(ValueError, match="times >= 1"):
            stem_simulator.fail(503, **bad)  # type: ignore[arg-type]


def test_hang_ends_when_the_client_disconnects(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("hang")
    address = urlsplit(stem_simulator.url)
    with socket.create_connection((str(address.hostname), address.port or 0)) as client:
        client.sendall(b"GET /api/v1/clients HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: stem_simulator._traffic.concurrency == 1)
    until(lambda: stem_simulator._traffic.concurrency == 0)
    assert stem_simulator.requests[0].status is None
    assert get(stem_simulator, "clients").status_code == 200


def test_a_server_stops_despite_hanging_requests(stem_simulator_factory: Factory) -> None:
    simulator = stem_simulator_factory()
    simulator.fail("hang", times=None)
    failures: list[Exception] = []

    def ask() -> None:
        try:
            requests.get(f"{simulator.url}clients", timeout=HUNG_AFTER)
        except requests.ConnectionError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: simulator.peak_concurrency == 3)
    simulator.stop()
    for thread in threads:
        thread.join()
    assert len(failures) == 3


def test_html_has_status_200(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("html")
    response = get(stem_simulator, "clients")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.text.startswith("<!doctype html>")


def test_cut_json_is_incomplete(stem_simulator: Simulator, get: Get) -> None:
    whole = get(stem_simulator, STREAMS, **DAY)
    stem_simulator.fail("cut_json")
    cut = get(stem_simulator, STREAMS, **DAY)
    assert cut.status_code == 200
    assert cut.content == whole.content[: len(whole.content) // 2]
    assert int(cut.headers["Content-Length"]) == len(cut.content)
    with pytest.raises(ValueError, match=r"JSON|Expecting|Unterminated"):
        cut.json()


def test_cut_body_closes_the_connection(stem_simulator: Simulator, get: Get) -> None:
    whole = get(stem_simulator, STREAMS, **DAY)
    stem_simulator.fail("cut_body")
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get(stem_simulator, STREAMS, **DAY)
    assert get(stem_simulator, STREAMS, **DAY).content == whole.content


def test_reset_breaks_the_connection(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("reset")
    with pytest.raises(requests.ConnectionError, match="reset"):
        get(stem_simulator, "clients")
    assert stem_simulator.requests[0].status is None
    assert get(stem_simulator, "clients").status_code == 200


def test_empty_has_no_body(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("empty")
    response = get(stem_simulator, "clients")
    assert (response.status_code, response.content) == (200, b"")


def test_error_200_has_the_error_payload(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("error_200")
    response = get(stem_simulator, "clients")
    assert response.status_code == 200
    assert [list(error) for error in response.json()["errors"]] == [["message", "code"]]


def test_redirect_has_a_location(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.fail("redirect")
    response = get(stem_simulator, "clients", page=1)
    assert response.status_code == 302
    assert response.headers["Location"] == "https://elsewhere.invalid/api/v1/clients?page=1"
    stem_simulator.fail("redirect", location="http://127.0.0.1:1/")
    assert get(stem_simulator, "clients").headers["Location"] == "http://127.0.0.1:1/"


def test_random_faults_are_reproducible(stem_simulator_factory: Factory, get: Get) -> None:
    def statuses(seed: int) -> list[int]:
        simulator = stem_simulator_factory(faults=("503:0.3", "429:0.2"), seed=seed)
        return [get(simulator, "clients").status_code for _ in range(60)]

    first = statuses(3)
    assert first == statuses(3) != statuses(4)
    assert set(first) == {200, 429, 503}
    assert 5 < first.count(503) < 35


@pytest.mark.stem_simulator(faults=("500:1",))
def test_the_documentation_never_fails(stem_simulator: Simulator, get: Get) -> None:
    assert requests.get(stem_simulator.url.replace("/api/v1/", "/openapi.json"), timeout=HUNG_AFTER).status_code == 200
    assert_error(get(stem_simulator, "clients"), 500)


def test_requests_are_recorded(stem_simulator: Simulator, get: Get) -> None:
    get(stem_simulator, STREAMS, **DAY, stream_type=["MONITOR", "CONVERTER"])
    get(stem_simulator, "clients", key="wrong", name="")
    get(stem_simulator, "sites/white%20house", method="POST")
    first, second, third = stem_simulator.requests
    assert (first.method, first.path, first.status, first.authorized) == ("GET", f"/api/v1/{STREAMS}", 200, True)
    assert first.query == {
        "start_datetime": [DAY["start_datetime"]],
        "end_datetime": [DAY["end_datetime"]],
        "stream_type": ["MONITOR", "CONVERTER"],
    }
    assert (second.query, second.status, second.authorized) == ({"name": [""]}, 401, False)
    assert (third.method, third.path, third.status) == ("POST", "/api/v1/sites/white house", 405)
    assert third.target == "/api/v1/sites/white%20house"
    assert "python-requests" in first.headers["user-agent"]
    assert not any("demo-key" in str(value) for value in (first, second, third))
    stem_simulator.reset_requests()
    assert (stem_simulator.requests, stem_simulator.peak_concurrency) == ([], 0)


def test_peak_concurrency_is_recorded(stem_simulator: Simulator, get: Get) -> None:
    for _ in range(3):
        get(stem_simulator, "clients")
    assert stem_simulator.peak_concurrency == 1
    stem_simulator.fail("hang", times=5)

    def ask() -> None:
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{stem_simulator.url}clients", timeout=HUNG_AFTER)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: stem_simulator.peak_concurrency == 5)
    stem_simulator.stop()
    for thread in threads:
        thread.join()
    assert stem_simulator.peak_concurrency == 5


def test_rows_can_be_rewritten(stem_simulator: Simulator, get: Get) -> None:
    seen: list[str] = []

    def rewrite(request: Any, payload: Any) -> Any:
        seen.append(request.target)
        rows = payload["stream_types"][0]["streams"]
        rows[3]["kw_total_avg"] = math.nan
        rows.append(dict(rows[0]))
        return payload

    stem_simulator.rewrite = rewrite
    response = get(stem_simulator, STREAMS, **DAY)
    assert '"kw_total_avg":NaN' in response.text
    rows = streams(response)["MONITOR"]
    assert math.isnan(rows[3]["kw_total_avg"])
    assert (len(rows), rows[-1]) == (97, rows[0])
    assert seen == [stem_simulator.requests[0].target]
    stem_simulator.rewrite = None
    assert len(ends(get(stem_simulator, STREAMS, **DAY))) == 96


@pytest.mark.parametrize("raw", ['{"clients": [', b"\xff\xfe"])
def test_a_rewrite_can_return_a_raw_body(stem_simulator: Simulator, get: Get, raw: str | bytes) -> None:
    stem_simulator.rewrite = lambda _request, _payload: raw
    response = get(stem_simulator, "clients")
    assert (response.status_code, response.content) == (200, raw.encode() if isinstance(raw, str) else raw)


def test_errors_can_be_rewritten(stem_simulator: Simulator, get: Get) -> None:
    stem_simulator.rewrite = lambda _request, payload: {"was": payload}
    response = get(stem_simulator, "sites/nowhere")
    assert response.status_code == 404
    assert response.json()["was"]["errors"][0]["code"] == 404


def test_the_connection_is_one_of_airflow(stem_simulator: Simulator) -> None:
    assert json.loads(stem_simulator.connection) == {
        "conn_type": "stem",
        "host": stem_simulator.url,
        "password": "demo-key",
    }
    assert stem_simulator.url.startswith("http://127.0.0.1:")
    assert stem_simulator.url.endswith("/api/v1/")
