from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import requests

from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.simulator.cache import BodyCache
from tests.servers.processes import HUNG_AFTER

from .conftest import Get, assert_error, ends, instant, streams, text, values

Factory = Callable[..., Simulator]
DAY: dict[str, Any] = {"start_datetime": "2024-05-01T00:00:00Z", "end_datetime": "2024-05-02T00:00:00Z"}
STREAMS = "sites/site-00001/streams"


def test_clients_are_listed_and_read(stem_simulator: Simulator, get: Get) -> None:
    response = get(stem_simulator, "clients")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    payload = response.json()
    assert list(payload) == ["clients", "total", "page"]
    assert (payload["total"], payload["page"]) == (2, 1)
    assert [list(client) for client in payload["clients"]] == [["id", "name", "link"]] * 2
    first = payload["clients"][0]
    assert first["link"] == f"/api/v1/clients/{first['id']}"
    assert get(stem_simulator, f"clients/{first['id']}").json() == first


def test_sites_are_listed_and_read(stem_simulator: Simulator, get: Get) -> None:
    clients = [client["id"] for client in get(stem_simulator, "clients").json()["clients"]]
    pages = [get(stem_simulator, f"clients/{client}/sites").json() for client in clients]
    assert [list(page) for page in pages] == [["sites", "total", "page"]] * 2
    assert [(page["total"], page["page"]) for page in pages] == [(10, 1), (10, 1)]
    sites = [site for page in pages for site in page["sites"]]
    assert [site["id"] for site in sites] == stem_simulator.fleet.site_ids
    for site in sites:
        assert list(site) == ["id", "name", "link", "stream_start_times"]
        assert site["link"] == f"/api/v1/sites/{site['id']}"
        assert get(stem_simulator, f"sites/{site['id']}").json() == site
        for name, start in site["stream_start_times"].items():
            assert instant(start) == stem_simulator.fleet.site(site["id"]).stream_start_times[name]
            assert start == text(instant(start))


@pytest.mark.stem_simulator(clients=3, sites=29)
def test_pages_contain_each_entry_once(stem_simulator: Simulator, get: Get) -> None:
    client = stem_simulator.fleet.clients[1].id
    whole = get(stem_simulator, f"clients/{client}/sites").json()["sites"]
    pages = [get(stem_simulator, f"clients/{client}/sites", page=n, per_page=4).json() for n in (1, 2, 3, 4)]
    assert [len(page["sites"]) for page in pages] == [4, 4, 2, 0]
    assert [page["page"] for page in pages] == [1, 2, 3, 4]
    assert {page["total"] for page in pages} == {10}
    assert [site for page in pages for site in page["sites"]] == whole


@pytest.mark.stem_simulator(clients=5, sites=300)
def test_lists_can_be_filtered_by_name(stem_simulator: Simulator, get: Get) -> None:
    assert len(get(stem_simulator, "clients", name="s").json()["clients"]) == sum(
        "s" in client.name for client in stem_simulator.fleet.clients
    )
    assert get(stem_simulator, "clients", name="Nobody").json() == {"clients": [], "total": 0, "page": 1}
    client = stem_simulator.fleet.clients[0].id
    wanted = [site for n in range(60) if "Hotel" in (site := stem_simulator.fleet.site_name(n))]
    found = get(stem_simulator, f"clients/{client}/sites", name="Hotel", per_page=3).json()
    assert found["total"] == len(wanted) == 5
    assert [site["name"] for site in found["sites"]] == wanted[:3]


@pytest.mark.stem_simulator(clients=1, sites=130)
def test_the_default_page_size_is_100(stem_simulator: Simulator, get: Get) -> None:
    path = f"clients/{stem_simulator.fleet.clients[0].id}/sites"
    assert [len(get(stem_simulator, path, page=page).json()["sites"]) for page in (1, 2)] == [100, 30]


def test_streams_have_the_structure_of_the_guide(stem_simulator: Simulator, get: Get) -> None:
    response = get(stem_simulator, STREAMS, **DAY, stream_type="CONVERTER,MONITOR")
    assert response.headers["Content-Type"] == "application/json"
    payload = response.json()
    assert list(payload) == ["id", "name", "stream_types"]
    assert payload["id"] == "site-00001"
    assert payload["name"] == get(stem_simulator, "sites/site-00001").json()["name"]
    assert [list(item) for item in payload["stream_types"]] == [["stream_type", "streams"]] * 2
    assert [item["stream_type"] for item in payload["stream_types"]] == ["CONVERTER", "MONITOR"]
    rows = payload["stream_types"][1]["streams"]
    assert len(rows) == 96
    assert list(rows[0]) == ["start_datetime", "end_datetime", "kw_total_avg"]
    assert rows[0]["start_datetime"] == "2024-05-01T00:00:01+00:00"
    assert rows[0]["end_datetime"] == "2024-05-01T00:15:00+00:00"
    for row, following in pairwise(rows):
        assert instant(following["start_datetime"]) == instant(row["end_datetime"]) + 1
    numbers = re.findall(r'"kw_total_avg":(-?[0-9.]+)[,}]', response.text)
    assert len(numbers) == 192
    assert max(len(number.partition(".")[2]) for number in numbers) == 5


@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_streams_have_the_values_of_the_fleet(stem_simulator: Simulator, get: Get, resolution: int) -> None:
    requested = ["MONITOR", "CONVERTER", "INTERVAL_REVENUE"]
    response = get(stem_simulator, STREAMS, **DAY, resolution=resolution, stream_type=requested)
    assert list(streams(response)) == requested
    for name in requested:
        at, truth = stem_simulator.fleet.values(
            "site-00001", name, resolution, instant("2024-05-01T00:00:01Z"), instant("2024-05-02T00:00:00Z")
        )
        assert values(response, name) == dict(zip(at.tolist(), truth.tolist(), strict=True))
        for row in streams(response)[name]:
            assert instant(row["end_datetime"]) - instant(row["start_datetime"]) == resolution - 1


def test_a_year_spans_several_chunks_of_labels(stem_simulator: Simulator, get: Get) -> None:
    response = get(stem_simulator, STREAMS, start_datetime="2024-01-02T00:00:00Z", end_datetime="2025-01-01T00:00:00Z")
    at, truth = stem_simulator.fleet.values(
        "site-00001", "MONITOR", 900, instant("2024-01-02T00:15:00Z"), instant("2025-01-01T00:00:00Z")
    )
    assert len(at) == 35_040
    assert values(response) == dict(zip(at.tolist(), truth.tolist(), strict=True))


def test_defaults_are_monitor_at_900_seconds(stem_simulator: Simulator, get: Get) -> None:
    plain = get(stem_simulator, STREAMS, **DAY)
    assert plain.content == get(stem_simulator, STREAMS, **DAY, resolution=900, stream_type="MONITOR").content
    assert list(streams(plain)) == ["MONITOR"]


def test_stream_types_can_be_repeated_or_comma_separated(stem_simulator: Simulator, get: Get) -> None:
    bodies = {
        get(stem_simulator, STREAMS, **DAY, stream_type=requested).content
        for requested in (["MONITOR", "CONVERTER"], "MONITOR,CONVERTER", ["MONITOR,CONVERTER", "MONITOR"])
    }
    assert len(bodies) == 1


def test_the_url_in_the_guide_is_accepted(stem_simulator: Simulator) -> None:
    url = f"{stem_simulator.url}{STREAMS}?&start_datetime=2024-12-31T00:00:01Z&end_datetime=2025-01-01T00:00:01Z"
    response = requests.get(url, headers={"Authorization": "APIKEY demo-key"}, timeout=HUNG_AFTER)
    assert len(ends(response)) == 96


def test_a_stream_starts_at_its_start_time(stem_simulator: Simulator, get: Get) -> None:
    for site_id in stem_simulator.fleet.site_ids:
        for name, start in stem_simulator.fleet.site(site_id).stream_start_times.items():
            for resolution in (900, 3600):
                response = get(
                    stem_simulator,
                    f"sites/{site_id}/streams",
                    start_datetime=text(start // 3600 * 3600 - 7200),
                    end_datetime=text(start // 3600 * 3600 + 10_800),
                    resolution=resolution,
                    stream_type=name,
                )
                first = ends(response, name)[0]
                assert start <= first - resolution + 1 < start + resolution


def test_there_are_no_rows_before_the_start_or_after_now(stem_simulator: Simulator, get: Get) -> None:
    for year in (2009, 2190):
        response = get(
            stem_simulator,
            STREAMS,
            start_datetime=f"{year}-05-01T00:00:00Z",
            end_datetime=f"{year}-05-02T00:00:00Z",
        )
        assert streams(response) == {"MONITOR": []}


def test_values_do_not_depend_on_the_server_or_the_range(stem_simulator_factory: Factory, get: Get) -> None:
    first, second, other = (stem_simulator_factory(seed=seed) for seed in (7, 7, 8))
    requested = {**DAY, "stream_type": "MONITOR,CONVERTER"}
    assert get(first, STREAMS, **requested).content == get(second, STREAMS, **requested).content
    assert get(first, STREAMS, **requested).content != get(other, STREAMS, **requested).content
    day = values(get(first, STREAMS, **DAY))
    hours = values(get(second, STREAMS, start_datetime="2024-05-01T07:00:00Z", end_datetime="2024-05-01T09:30:00Z"))
    assert len(hours) == 10
    assert hours.items() <= day.items()


def test_cached_and_uncached_responses_are_equal(stem_simulator_factory: Factory, get: Get) -> None:
    cached, uncached = stem_simulator_factory(), stem_simulator_factory(cache_mb=0)
    bodies = {get(server, STREAMS, **DAY).content for server in (cached, cached, uncached, uncached)}
    assert len(bodies) == 1


def test_different_requests_have_different_cache_entries(stem_simulator: Simulator, get: Get) -> None:
    """The same first and last interval end, at each resolution and for each order of types."""
    bodies = {
        get(
            stem_simulator,
            STREAMS,
            start_datetime=text(instant("2024-05-01T04:00:00Z") - resolution),
            end_datetime="2024-05-01T08:00:00Z",
            resolution=resolution,
            stream_type=requested,
        ).content
        for resolution in (900, 1800, 3600)
        for requested in ("MONITOR", "CONVERTER", "MONITOR,CONVERTER", "CONVERTER,MONITOR")
    }
    assert len(bodies) == 12


def test_the_cache_evicts_the_least_recently_used() -> None:
    cache = BodyCache(10)
    cache.put("a", b"aaaa")
    cache.put("b", b"bbbb")
    assert cache.get("a") == b"aaaa"
    cache.put("c", b"cccc")
    assert [cache.get(key) for key in "abc"] == [b"aaaa", None, b"cccc"]
    cache.put("c", b"cccccc")
    assert [cache.get(key) for key in "ac"] == [b"aaaa", b"cccccc"]
    cache.put("d", b"d" * 11)
    assert [cache.get(key) for key in "acd"] == [b"aaaa", b"cccccc", None]


def test_hourly_values_are_means(stem_simulator: Simulator, get: Get) -> None:
    fine = values(get(stem_simulator, STREAMS, **DAY))
    coarse = values(get(stem_simulator, STREAMS, **DAY, resolution=3600))
    assert len(coarse) == 24
    for end, value in coarse.items():
        assert value == pytest.approx(np.mean([fine[end - 900 * n] for n in range(4)]), abs=1e-9)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "demo-key",
        "APIKEY",
        "APIKEY ",
        "APIKEY wrong",
        "Bearer demo-key",
        "APIKEY demo-key2",
        "apikey demo-key",
    ],
)
@pytest.mark.parametrize("path", ["clients", "clients/acme-foods/sites", STREAMS, "nowhere"])
def test_401_without_a_valid_key(stem_simulator: Simulator, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    with requests.Session() as session:
        session.trust_env = False
        assert_error(session.get(stem_simulator.url + path, headers=headers, timeout=HUNG_AFTER), 401, "api_key")
    assert [request.authorized for request in stem_simulator.requests] == [False]


@pytest.mark.stem_simulator(api_key="a/b+c=d@e:f g%20é")
def test_a_key_can_contain_any_character(stem_simulator: Simulator) -> None:
    key = stem_simulator.settings.api_key.encode()
    response = requests.get(
        f"{stem_simulator.url}clients", headers={"Authorization": b"APIKEY " + key}, timeout=HUNG_AFTER
    )
    assert response.status_code == 200


@pytest.mark.stem_simulator(forbidden=["site-00002", "harbor-properties"])
def test_403_without_permission(stem_simulator: Simulator, get: Get) -> None:
    clients = get(stem_simulator, "clients").json()
    assert ([client["id"] for client in clients["clients"]], clients["total"]) == (["acme-foods"], 1)
    sites = get(stem_simulator, "clients/acme-foods/sites").json()
    assert sites["total"] == len(sites["sites"]) == 9
    assert "site-00002" not in [site["id"] for site in sites["sites"]]
    for path in (
        "clients/harbor-properties",
        "clients/harbor-properties/sites",
        "sites/site-00002",
        "sites/site-00020",
    ):
        assert_error(get(stem_simulator, path), 403, "permission")
    assert_error(get(stem_simulator, "sites/site-00002/streams", **DAY), 403, "site-00002")
    assert get(stem_simulator, "sites/site-00001").status_code == 200


def test_forbidden_ids_must_exist(stem_simulator_factory: Factory) -> None:
    with pytest.raises(ValueError, match="site-00099"):
        stem_simulator_factory(forbidden=["site-00099"])


@pytest.mark.parametrize(
    "path",
    ["clients/nobody", "clients/nobody/sites", "sites/site-99999", "sites/..%2Fclients", "sites/", "clients/", "",
     "sites", "sites/site-00001/streams/", "sites/site-00001/other", "sites/white%20house"],
)  # fmt: skip
def test_404_for_what_does_not_exist(stem_simulator: Simulator, get: Get, path: str) -> None:
    assert_error(get(stem_simulator, path), 404, "could not be found")


def test_404_for_streams_of_an_unknown_site_and_outside_the_api(stem_simulator: Simulator, get: Get) -> None:
    assert_error(get(stem_simulator, "sites/white_house/streams", **DAY), 404, "white_house")
    assert_error(get(stem_simulator, "../v2/clients"), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "path", ["clients", "clients/acme-foods", "clients/acme-foods/sites", "sites/site-00001", STREAMS]
)
def test_405_for_other_methods(stem_simulator: Simulator, get: Get, method: str, path: str) -> None:
    response = get(stem_simulator, path, method=method)
    if method == "HEAD":
        assert (response.status_code, response.content) == (405, b"")
    else:
        assert_error(response, 405, "GET")
    assert response.headers["Allow"] == "GET"


BAD_LISTS = [
    ({"page": "0"}, "page"),
    ({"page": "-1"}, "page"),
    ({"page": "1.0"}, "page"),
    ({"page": " 1"}, "page"),
    ({"page": ""}, "page"),
    ({"page": "9" * 5000}, "page"),
    ({"page": "\u0661"}, "page"),
    ({"per_page": "0"}, "per_page"),
    ({"per_page": "many"}, "per_page"),
    ({"page": ["1", "2"]}, "page is given more than once"),
    ({"limit": "3"}, "Unknown parameter limit"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_LISTS)
@pytest.mark.parametrize("path", ["clients", "clients/acme-foods/sites"])
def test_400_for_invalid_parameters_of_lists(
    stem_simulator: Simulator, get: Get, path: str, parameters: dict[str, Any], message: str
) -> None:
    assert_error(get(stem_simulator, path, **parameters), 400, message)


BAD_STREAMS = [
    ({"start_datetime": None}, "start_datetime is mandatory"),
    ({"end_datetime": None}, "end_datetime is mandatory"),
    ({"resolution": "60"}, "resolution"),
    ({"resolution": "900.0"}, "resolution"),
    ({"resolution": ""}, "resolution"),
    ({"stream_type": "monitor"}, "stream_type.*'monitor'"),
    ({"stream_type": "MONITOR, CONVERTER"}, "stream_type.*' CONVERTER'"),
    ({"stream_type": "MONITOR,"}, "stream_type"),
    ({"stream_type": ""}, "stream_type"),
    ({"stream_type": ["MONITOR", "['CONVERTER']"]}, "stream_type"),
    ({"types": "MONITOR"}, "Unknown parameter types"),
    ({"start_datetime": ["2024-05-01T00:00:00Z", "2024-05-01T00:00:00Z"]}, "start_datetime"),
    *(
        ({name: bad}, name)
        for name in ("start_datetime", "end_datetime")
        for bad in (
            "", "now", "2024-05-01", "2024-05-01T00:00:00", "2024-05-01T00:00:00+00:00", "2024-05-01 00:00:00Z",
            "2024-05-01T00:00Z", "2024-05-01T00:00:00.000Z", "2024-05-01T00:00:00z", "2024-5-1T0:0:0Z",
            "2024-02-30T00:00:00Z", "2024-05-01T24:00:00Z", "2024-05-01T23:59:60Z", "0000-05-01T00:00:00Z",
            "1714521600", " 2024-05-01T00:00:00Z", "2024-05-01T00:00:00Z\n", "٢٠٢٤-05-01T00:00:00Z",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "message"), BAD_STREAMS)
def test_400_for_invalid_parameters_of_streams(
    stem_simulator: Simulator, get: Get, parameters: dict[str, Any], message: str
) -> None:
    assert_error(get(stem_simulator, STREAMS, **{**DAY, **parameters}), 400, message)


@pytest.mark.parametrize("path", ["clients/acme-foods", "sites/site-00001"])
def test_400_for_parameters_of_a_single_resource(stem_simulator: Simulator, get: Get, path: str) -> None:
    assert_error(get(stem_simulator, path, page=1), 400, "Unknown parameter page")


def test_400_for_a_type_that_the_site_lacks(stem_simulator: Simulator, get: Get) -> None:
    assert "INTERVAL_REVENUE" not in get(stem_simulator, "sites/site-00003").json()["stream_start_times"]
    for requested in ("INTERVAL_REVENUE", "MONITOR,INTERVAL_REVENUE"):
        response = get(stem_simulator, "sites/site-00003/streams", **DAY, stream_type=requested)
        assert response.status_code == 400
        assert response.json() == {
            "errors": [
                {
                    "message": "The requested stream type - INTERVAL_REVENUE is unavailable for the requested site.",
                    "code": 400,
                }
            ]
        }


@pytest.mark.parametrize(
    ("seconds", "resolution", "status"),
    [
        (900, 900, 200),
        (899, 900, 400),
        (1799, 1800, 400),
        (3600, 3600, 200),
        (900, 3600, 400),
        (0, 900, 400),
        (-900, 900, 400),
        (365 * 86_400, 900, 200),
        (365 * 86_400 + 1, 900, 400),
    ],
)
def test_a_range_has_a_minimum_and_a_maximum(
    stem_simulator: Simulator, get: Get, seconds: int, resolution: int, status: int
) -> None:
    start = instant("2023-05-01T00:00:00Z")
    response = get(
        stem_simulator,
        "sites/site-00003/streams",
        start_datetime=text(start),
        end_datetime=text(start + seconds),
        resolution=resolution,
    )
    if status == 200:
        assert len(ends(response)) == seconds // resolution
    else:
        assert_error(response, 400, "1 year" if seconds > 86_400 else f"resolution, {resolution} seconds")


def test_the_last_day_of_the_calendar_is_valid(stem_simulator: Simulator, get: Get) -> None:
    response = get(
        stem_simulator,
        STREAMS,
        start_datetime="9999-12-31T00:00:00Z",
        end_datetime="9999-12-31T23:59:59Z",
    )
    assert streams(response) == {"MONITOR": []}


def test_500_for_an_exception(stem_simulator: Simulator, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    def crash(request: object, payload: object) -> object:
        raise LookupError("on purpose")

    stem_simulator.rewrite = crash
    assert_error(get(stem_simulator, "clients"), 500)
    assert "on purpose" in caplog.text
    assert stem_simulator.requests[-1].status == 500
    stem_simulator.rewrite = None
    assert get(stem_simulator, "clients").status_code == 200


def test_openapi_describes_every_endpoint(stem_simulator: Simulator) -> None:
    root = stem_simulator.url.removesuffix("/api/v1/")
    schema = requests.get(f"{root}/openapi.json", timeout=HUNG_AFTER).json()
    parameters = {
        path: [parameter["name"] for parameter in item["get"].get("parameters", []) if parameter["in"] == "query"]
        for path, item in schema["paths"].items()
    }
    listing = ["name", "page", "per_page"]
    assert parameters == {
        "/api/v1/clients": listing,
        "/api/v1/clients/{client_id}": [],
        "/api/v1/clients/{client_id}/sites": listing,
        "/api/v1/sites/{site_id}": [],
        "/api/v1/sites/{site_id}/streams": ["start_datetime", "end_datetime", "resolution", "stream_type"],
    }
    for path in schema["paths"].values():
        assert set(path["get"]["responses"]) == {"200", "400", "401", "403", "404", "405", "429", "500"}
        for parameter in path["get"].get("parameters", []):
            assert parameter["in"] == "path" or parameter["description"]
        assert path["get"]["security"]
    streams_of = schema["paths"]["/api/v1/sites/{site_id}/streams"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter for parameter in streams_of}
    assert by_name["resolution"]["schema"]["enum"] == [900, 1800, 3600]
    assert by_name["resolution"]["schema"]["default"] == 900
    assert by_name["start_datetime"]["required"]
    assert by_name["stream_type"]["schema"]["default"] == ["MONITOR"]
    assert "365 days" in schema["info"]["description"]
    assert schema["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "Authorization"
    assert "HTTPValidationError" not in schema["components"]["schemas"]
