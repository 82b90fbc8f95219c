from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_stem.api import paging
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.paging import Pager
from airflow_provider_stem.errors import StemDataError, StemNotFoundError

from .conftest import Connect, Factory, RawServer, config_for, refusal, reply

Start = Callable[..., RawServer]
TOTALS = ["items", "pages", "string", "missing"]
PAST_ENDS = ["empty", "not_found", "repeat", "null"]


def ids(items: Iterator[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def page(*entries: object, **fields: object) -> dict[str, Any]:
    return {"clients": [{"id": entry} if isinstance(entry, str) else entry for entry in entries], **fields}


@pytest.mark.parametrize(
    ("total_as", "past_end", "max_per_page"), list(itertools.product(TOTALS, PAST_ENDS, [500, 3])), ids=str
)
def test_a_listing_is_complete_whatever_the_server_s_habits(
    stem_simulator_factory: Factory, connect: Connect, total_as: str, past_end: str, max_per_page: int
) -> None:
    simulator = stem_simulator_factory(
        clients=1, sites=7, total_as=total_as, past_end=past_end, max_per_page=max_per_page
    )
    expected = [simulator.fleet.site_id(index) for index in range(7)]
    client_id = simulator.fleet.clients[0].id
    for page_size in (1, 2, 3, 6, 7, 8, 100):
        simulator.reset_requests()
        assert ids(connect(simulator, page_size=page_size).list_sites(client_id)) == expected
        pages = -(-7 // min(page_size, max_per_page))
        assert [request.query["page"] for request in simulator.requests] == [[str(n + 1)] for n in range(pages + 1)]


@pytest.mark.parametrize("past_end", PAST_ENDS)
def test_an_empty_listing_ends(stem_simulator_factory: Factory, connect: Connect, past_end: str) -> None:
    simulator = stem_simulator_factory(clients=1, sites=0, past_end=past_end)
    assert list(connect(simulator).list_sites(simulator.fleet.clients[0].id)) == []
    assert len(simulator.requests) == 1


@dataclass
class Listing:
    """A server's clients and its habits of listing them."""

    items: int = 0
    cap: int = 500
    overlap: int = 0
    total_as: str = "items"
    past_end: str = "empty"

    def answer(self, connection: socket.socket, head: bytes) -> None:
        query = parse_qs(urlsplit(head.split(b" ")[1].decode()).query)
        number, size = int(query["page"][0]), min(int(query["per_page"][0]), self.cap)
        pages = max(1, -(-self.items // size))
        if number > pages and self.past_end == "not_found":
            connection.sendall(refusal("No such page.", 404))
            return
        if number > pages and self.past_end == "repeat":
            number = pages
        elif number > pages and self.past_end == "first":
            number = 1
        begin = max(0, (number - 1) * size - (self.overlap if number > 1 else 0))
        found = [{"id": f"c{index}"} for index in range(begin, min(number * size, self.items))]
        totals: dict[str, Any] = {"items": self.items, "pages": pages, "string": str(self.items), "wrong": 1}
        payload = {"clients": None if number > pages and self.past_end == "null" else found, "page": number}
        if self.total_as in totals:
            payload["total"] = totals[self.total_as]
        connection.sendall(reply(payload))


@pytest.fixture(scope="module")
def listing_server() -> Iterator[tuple[Listing, RawServer]]:
    listing = Listing()
    with RawServer(listing.answer) as server:
        yield listing, server


@settings(deadline=None, max_examples=150)
@given(
    items=st.integers(0, 30),
    page_size=st.integers(1, 35),
    cap=st.integers(1, 35),
    overlap=st.integers(0, 5),
    total_as=st.sampled_from([*TOTALS, "wrong"]),
    past_end=st.sampled_from([*PAST_ENDS, "first"]),
)
@example(items=30, page_size=100, cap=1, overlap=0, total_as="wrong", past_end="repeat")
def test_every_client_comes_once_and_in_order(
    listing_server: tuple[Listing, RawServer],
    items: int,
    page_size: int,
    cap: int,
    overlap: int,
    total_as: str,
    past_end: str,
) -> None:
    listing, server = listing_server
    vars(listing).update(items=items, cap=cap, overlap=overlap, total_as=total_as, past_end=past_end)
    with StemClient(config_for(server.url, page_size=page_size)) as client:
        assert ids(client.list_clients()) == [f"c{index}" for index in range(items)]
        assert client.requests_sent <= -(-items // min(page_size, cap)) + 1


def test_ids_that_come_again_on_a_later_page_are_given_once(raw_server: Start, connect: Connect) -> None:
    server = raw_server(
        *(reply(payload) for payload in (page("a", "b"), page("b", "c", "c"), page("a"), page("never")))
    )
    assert ids(connect(server).list_clients()) == ["a", "b", "c"]
    assert len(server.heads) == 3


def test_a_null_page_ends_the_listing(raw_server: Start, connect: Connect) -> None:
    server = raw_server(reply(page("a")), reply({"clients": None, "total": 5}), reply(page("never")))
    assert ids(connect(server).list_clients()) == ["a"]


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"sites": []},
        {"clients": {}},
        {"clients": "a"},
        {"clients": {"a": {"id": "a"}}},
        {"clients": 0},
        {"clients": False},
        page({}),
        page({"name": "a"}),
        page({"id": None}),
        page({"id": ""}),
        page({"id": 7}),
        page(["a"]),
        page(None),
        page("a", {}),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_page_that_the_guide_does_not_describe(
    raw_server: Start, connect: Connect, payload: dict[str, Any], number: int
) -> None:
    server = raw_server(*[reply(page("first"))] * (number - 1), reply(payload))
    with pytest.raises(StemDataError, match=f"page {number}"):
        list(connect(server).list_clients())
    assert len(server.heads) == number


@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_refused_page_is_no_end(raw_server: Start, connect: Connect, status: int) -> None:
    server = raw_server(reply(page("a")), refusal("No.", status))
    with pytest.raises(Exception, match=f"HTTP {status}"):
        list(connect(server).list_clients())


def test_a_404_on_the_first_page_means_what_it_says(raw_server: Start, connect: Connect) -> None:
    with pytest.raises(StemNotFoundError, match="No such client"):
        list(connect(raw_server(refusal("No such client.", 404))).list_sites("nobody"))


def test_a_failed_page_alone_is_asked_for_again(stem_simulator_factory: Factory, connect: Connect) -> None:
    simulator = stem_simulator_factory(clients=9, sites=0)
    simulator.fail(503, path="[?&]page=2")
    client = connect(simulator, page_size=3)
    assert len(list(client.list_clients())) == 9
    assert [request.query["page"][0] for request in simulator.requests] == ["1", "2", "2", "3", "4"]
    assert client.requests_sent == 5


def endless(connection: socket.socket, head: bytes) -> None:
    number = parse_qs(urlsplit(head.split(b" ")[1].decode()).query)["page"][0]
    connection.sendall(reply(page(f"c{number}", total=1)))


def test_a_listing_without_end_is_given_up(
    raw_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "_MAX_PAGES", 10)
    server = raw_server(endless)
    with pytest.raises(StemDataError, match="does not end"):
        list(connect(server).list_clients())
    assert len(server.heads) == 10


def test_a_listing_that_ends_at_the_limit_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_MAX_PAGES", 3)
    pager = Pager("clients", 1)
    assert [ids(iter(pager.take(payload))) for payload in (page("a"), page("b"), page())] == [["a"], ["b"], []]
    assert pager.done


def test_the_limit_leaves_room_for_the_largest_fleet() -> None:
    assert paging._MAX_PAGES >= 10_000


def test_the_query_of_each_page() -> None:
    pager = Pager("sites", 50, "Plant & Co")
    assert pager.params() == {"per_page": 50, "name": "Plant & Co", "page": 1}
    pager.take({"sites": [{"id": "a"}]})
    assert pager.params() == {"per_page": 50, "name": "Plant & Co", "page": 2}
    assert Pager("sites", 50).params() == {"per_page": 50, "page": 1}


def test_items_arrive_as_they_were_sent() -> None:
    item = {"id": "a", "name": None, "new": {"deep": [1, 2.5, "x"]}}
    assert Pager("sites", 50).take({"sites": [item]}) == [item]
