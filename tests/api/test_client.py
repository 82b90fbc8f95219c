from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.errors import (
    StemAuthError,
    StemConfigError,
    StemDataError,
    StemNotFoundError,
    StemRequestError,
    StemUnavailableError,
)
from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.simulator.model import Fleet

from .conftest import Connect, Factory, RawServer, config_for, refusal, reply

Start = Callable[..., RawServer]
DAY = (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC))
SITE = "site-00001"
CLIENT = Fleet(Settings()).clients[0].id


def as_sent(body: Body) -> bytes:
    return bytes(body)


def paths(simulator: Simulator) -> list[str]:
    return [request.path for request in simulator.requests]


def test_clients_are_listed_with_the_parameters_of_the_guide(stem_simulator: Simulator, connect: Connect) -> None:
    expected = [client.id for client in stem_simulator.fleet.clients]
    assert [client["id"] for client in connect(stem_simulator, page_size=50).list_clients()] == expected
    first = stem_simulator.requests[0]
    assert (first.method, first.path, first.authorized) == ("GET", "/api/v1/clients", True)
    assert first.query == {"page": ["1"], "per_page": ["50"]}


@pytest.mark.parametrize("name", ["Plant", "Plant & Co/50%", "Café ☀", "a+b=c", ""])
def test_names_are_filtered_by_the_server(stem_simulator: Simulator, connect: Connect, name: str) -> None:
    client = connect(stem_simulator)
    list(client.list_clients(name))
    list(client.list_sites(CLIENT, name))
    assert {request.query["name"][0] for request in stem_simulator.requests} == {name}


def test_clients_and_sites_are_returned_as_the_api_sent_them(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(unknown_fields=True)
    client = connect(simulator)
    found = next(client.list_clients())
    assert client.get_client(found["id"]) == found
    assert "industry" in found
    site = next(client.list_sites(found["id"]))
    assert client.get_site(site["id"]) == site
    assert {"id", "name", "link", "stream_start_times", "utc_offset"} == set(site)
    assert [request.query for request in simulator.requests if "page" not in request.query] == [{}, {}]
    assert paths(simulator)[2] == f"/api/v1/clients/{found['id']}"
    assert paths(simulator)[-1] == f"/api/v1/sites/{site['id']}"


def test_streams_are_requested_as_the_guide_says(stem_simulator: Simulator, connect: Connect) -> None:
    site = next(
        s for s in connect(stem_simulator).list_sites() if {"MONITOR", "CONVERTER"} <= set(s["stream_start_times"])
    )
    stem_simulator.reset_requests()
    body = connect(stem_simulator).get_streams(site["id"], *DAY, ["MONITOR", "CONVERTER"], 1800, as_sent)
    assert [item["stream_type"] for item in read_object(body)["stream_types"]] == ["MONITOR", "CONVERTER"]
    (request,) = stem_simulator.requests
    assert request.path == f"/api/v1/sites/{site['id']}/streams"
    assert request.query == {
        "start_datetime": ["2024-05-01T00:00:00Z"],
        "end_datetime": ["2024-05-02T00:00:00Z"],
        "resolution": ["1800"],
        "stream_type": ["MONITOR,CONVERTER"],
    }


def test_a_base_url_may_have_a_path(raw_server: Start, connect: Connect) -> None:
    server = raw_server(reply({"id": "a"}))
    server.url = f"http://{server.address}/gateway/stem"
    client = connect(server)
    assert client.base_url == f"http://{server.address}/gateway/stem/"
    client.get_site("a")
    assert server.targets == ["/gateway/stem/sites/a"]


CALLS: list[Callable[[StemClient, str], Any]] = [
    StemClient.get_client,
    StemClient.get_site,
    lambda client, identifier: list(client.list_sites(identifier)),
    lambda client, identifier: client.get_streams(identifier, *DAY, ["MONITOR"], 900, as_sent),
]
CALL_IDS = ["get_client", "get_site", "list_sites", "get_streams"]


@pytest.mark.parametrize("call", CALLS, ids=CALL_IDS)
@pytest.mark.parametrize(
    ("identifier", "segment"),
    [
        ("white_house", "white_house"),
        ("a-b.c~d", "a-b.c~d"),
        ("a/b", "a%2Fb"),
        ("../clients", "..%2Fclients"),
        ("/", "%2F"),
        ("%2F", "%252F"),
        ("%2e%2e", "%252e%252e"),
        ("100%", "100%25"),
        ("...", "..."),
        ("a b", "a%20b"),
        ("a+b", "a%2Bb"),
        ("a?b=c&d#e", "a%3Fb%3Dc%26d%23e"),
        ("a\r\nX-Header: 1", "a%0D%0AX-Header%3A%201"),
        ("a\\b;c", "a%5Cb%3Bc"),
        ("Zürich ☀", "Z%C3%BCrich%20%E2%98%80"),
        ("http://evil.example/", "http%3A%2F%2Fevil.example%2F"),
    ],
)
def test_an_id_is_one_path_segment_whatever_its_characters(
    stem_simulator: Simulator, connect: Connect, call: Callable[[StemClient, str], Any], identifier: str, segment: str
) -> None:
    with pytest.raises(StemNotFoundError):
        call(connect(stem_simulator), identifier)
    (request,) = stem_simulator.requests
    assert segment in request.target.partition("?")[0].split("/")
    assert request.path.startswith(("/api/v1/clients/", "/api/v1/sites/"))


@pytest.mark.parametrize("call", CALLS, ids=CALL_IDS)
@pytest.mark.parametrize("identifier", ["", ".", "..", 7, b"a", "a\ud800"], ids=repr)
def test_an_invalid_id_is_rejected_before_any_request(
    stem_simulator: Simulator, connect: Connect, call: Callable[[StemClient, Any], Any], identifier: object
) -> None:
    client = connect(stem_simulator)
    with pytest.raises(StemConfigError, match="Invalid .*_id "):
        call(client, identifier)
    assert (client.requests_sent, stem_simulator.requests) == (0, [])


@pytest.fixture(scope="module")
def echo() -> Iterator[RawServer]:
    """A server that has a site for every last path segment."""

    def answer(connection: socket.socket, head: bytes) -> None:
        segment = head.split(b" ")[1].decode().rpartition("/")[2]
        connection.sendall(reply({"id": unquote(segment), "segment": segment}))

    with RawServer(answer) as server:
        yield server


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text not in {".", ".."}))
def test_any_id_reaches_the_server_unchanged(echo: RawServer, identifier: str) -> None:
    with StemClient(config_for(echo.url)) as client:
        assert unquote(client.get_site(identifier)["segment"]) == identifier


def test_sites_of_all_clients(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(clients=3, sites=10)
    sites = [site["id"] for site in connect(simulator, page_size=2).list_sites()]
    assert sorted(sites) == sorted(simulator.fleet.site_id(index) for index in range(10))
    assert len(set(sites)) == 10


def test_a_site_of_two_clients_is_listed_once(raw_server: Start, connect: Connect) -> None:
    listings = {
        "/api/v1/clients": {"clients": [{"id": "a"}, {"id": "b"}]},
        "/api/v1/clients/a/sites": {"sites": [{"id": "own"}, {"id": "shared", "seen_by": "a"}]},
        "/api/v1/clients/b/sites": {"sites": [{"id": "shared", "seen_by": "b"}, {"id": "other"}]},
    }

    def answer(connection: socket.socket, head: bytes) -> None:
        path, _, query = head.split(b" ")[1].decode().partition("?")
        connection.sendall(reply(listings[path] if query.endswith("page=1") else {path.rpartition("/")[2]: []}))

    sites = list(connect(raw_server(answer)).list_sites())
    assert sites == [{"id": "own"}, {"id": "shared", "seen_by": "a"}, {"id": "other"}]


def test_the_name_filters_sites_and_not_their_clients(stem_simulator: Simulator, connect: Connect) -> None:
    list(connect(stem_simulator).list_sites(name="no such"))
    for request in stem_simulator.requests:
        assert request.query.get("name") == (["no such"] if request.path.endswith("/sites") else None)
    assert len(stem_simulator.requests) == 2 + 2


def test_sites_of_a_client_are_requested_lazily(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(clients=6, sites=60)
    sites = connect(simulator, page_size=50).list_sites()
    assert simulator.requests == []
    first = [next(sites) for _ in range(10)]
    of_clients = ["/api/v1/clients"] * 2 + [f"/api/v1/clients/{simulator.fleet.clients[0].id}/sites"] * 2
    assert paths(simulator) == of_clients
    next(sites)
    assert len(first) == 10
    assert len(simulator.requests) == len(of_clients) + 2


@pytest.mark.parametrize(
    ("call", "path"), [(StemClient.get_site, "sites/a"), (StemClient.get_client, "clients/a")], ids=["site", "client"]
)
@pytest.mark.parametrize("answer", [{"id": "b"}, {"id": "A"}, {"id": "a "}, {"id": 7}, {"id": None}, {}], ids=str)
def test_a_record_of_another_id_is_an_error(
    raw_server: Start, connect: Connect, call: Callable[..., Any], path: str, answer: dict[str, Any]
) -> None:
    server = raw_server(reply({**answer, "stream_start_times": {}}))
    message = re.escape(f"The response is for id {answer.get('id')!r} instead of 'a'. Try again later")
    with pytest.raises(StemDataError, match=rf"{message}.* \[GET .*/{path}\]"):
        call(connect(server), "a")
    assert len(server.heads) == 1


def test_a_client_without_sites_does_not_end_the_listing(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(clients=5, sites=2)
    assert len(list(connect(simulator).list_sites())) == 2


def test_no_clients_no_sites(stem_simulator_factory: Factory, connect: Connect) -> None:
    assert list(connect(stem_simulator_factory(clients=0, sites=0)).list_sites()) == []


def test_a_forbidden_client_is_an_auth_error(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(forbidden=frozenset({CLIENT}))
    with pytest.raises(StemAuthError, match="permission") as raised:
        list(connect(simulator).list_sites(CLIENT))
    assert raised.value.status == 403


def test_a_type_that_the_site_lacks_is_named(stem_simulator: Simulator, connect: Connect) -> None:
    client = connect(stem_simulator)
    site = next(s for s in client.list_sites() if "INTERVAL_REVENUE" not in s["stream_start_times"])
    with pytest.raises(StemUnavailableError) as raised:
        client.get_streams(site["id"], *DAY, ["MONITOR", "INTERVAL_REVENUE"], 900, as_sent)
    assert raised.value.stream_types == ("INTERVAL_REVENUE",)
    assert raised.value.status == 400
    assert raised.value.message == "The requested stream type - INTERVAL_REVENUE is unavailable for the requested site."
    assert f"/sites/{site['id']}/streams?" in raised.value.request_url_without_secrets


ALL_TYPES = ["MONITOR", "CONVERTER", "INTERVAL_REVENUE"]
UNAVAILABLE = "The requested stream type - {} is unavailable for the requested site."


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([UNAVAILABLE.format("MONITOR")], ("MONITOR",)),
        ([UNAVAILABLE.format("CONVERTER"), UNAVAILABLE.format("INTERVAL_REVENUE")], ("CONVERTER", "INTERVAL_REVENUE")),
        (["The requested stream types - MONITOR, CONVERTER are Unavailable."], ("MONITOR", "CONVERTER")),
        ([UNAVAILABLE.format("SUBMONITOR")], ()),
        (["A stream is unavailable."], ()),
    ],
)
def test_which_types_a_message_names(
    raw_server: Start, connect: Connect, messages: list[str], named: tuple[str, ...]
) -> None:
    server = raw_server(reply({"errors": [{"message": text, "code": 400} for text in messages]}, 400))
    with pytest.raises(StemUnavailableError) as raised:
        connect(server).get_streams(SITE, *DAY, ALL_TYPES, 900, as_sent)
    assert raised.value.stream_types == named
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "start_datetime is malformed: MONITOR.", StemRequestError),
        (404, UNAVAILABLE.format("MONITOR"), StemNotFoundError),
        (403, UNAVAILABLE.format("MONITOR"), StemAuthError),
        (422, UNAVAILABLE.format("MONITOR"), StemRequestError),
    ],
)
def test_other_errors_are_not_taken_for_an_unavailable_type(
    raw_server: Start, connect: Connect, status: int, message: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        connect(raw_server(refusal(message, status))).get_streams(SITE, *DAY, ALL_TYPES, 900, as_sent)
    assert type(raised.value) is error


@pytest.mark.parametrize("call", [StemClient.get_client, StemClient.get_site], ids=["get_client", "get_site"])
@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"', b'{"errors": [{"message": "No."}]}', b'{"errors": [{}]}'])
def test_a_response_that_is_not_a_resource(
    raw_server: Start, connect: Connect, call: Callable[[StemClient, str], Any], body: bytes
) -> None:
    server = raw_server(reply(body))
    with pytest.raises(StemDataError):
        call(connect(server), SITE)
    assert len(server.heads) == 1


def test_an_error_of_the_parser_is_not_retried(stem_simulator: Simulator, connect: Connect) -> None:
    def refuse(body: Body) -> None:
        raise StemDataError("row 3 is off the grid")

    with pytest.raises(StemDataError, match=r"row 3 is off the grid \[GET http://.*/streams\?"):
        connect(stem_simulator).get_streams(SITE, *DAY, ["MONITOR"], 900, refuse)
    assert len(stem_simulator.requests) == 1


def test_a_closed_client_sends_no_request(stem_simulator: Simulator, connect: Connect) -> None:
    with connect(stem_simulator) as client:
        client.get_client(CLIENT)
    with pytest.raises(Exception, match="closed"):
        client.get_client(CLIENT)
    assert (client.requests_sent, len(stem_simulator.requests)) == (1, 1)
    client.close()
