from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from airflow_provider_stem.api import paging
from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.paging import Pager
from airflow_provider_stem.errors import StemDataError, StemNotFoundError
from airflow_provider_stem.simulator import Simulator
from tests.support import at_most

from .conftest import KEY, Connect, Factory, RawServer, config_for, refusal, reply

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
def test_a_listing_is_complete_in_every_variant_of_the_server(
    stem_simulator_factory: Factory, connect: Connect, total_as: str, past_end: str, max_per_page: int
) -> None:
    page_as = {"empty": "number", "not_found": "string", "repeat": "number", "null": "missing"}[past_end]
    simulator = stem_simulator_factory(
        clients=1, sites=7, total_as=total_as, past_end=past_end, max_per_page=max_per_page, page_as=page_as
    )
    expected = [simulator.fleet.site_id(index) for index in range(7)]
    client_id = simulator.fleet.clients[0].id
    # Only the next page distinguishes a repeat past the end from a page that replaced another one.
    more = 2 if (total_as, past_end) == ("missing", "repeat") else 1
    for page_size in (1, 2, 3, 6, 8, 100):
        simulator.reset_requests()
        assert ids(connect(simulator, page_size=page_size).list_sites(client_id)) == expected
        pages = -(-7 // min(page_size, max_per_page))
        assert [request.query["page"] for request in simulator.requests] == [[str(n + 1)] for n in range(pages + more)]


@pytest.mark.parametrize("total_as", TOTALS)
@pytest.mark.parametrize("past_end", PAST_ENDS)
def test_an_empty_listing_ends(stem_simulator_factory: Factory, connect: Connect, past_end: str, total_as: str) -> None:
    simulator = stem_simulator_factory(clients=1, sites=0, past_end=past_end, total_as=total_as)
    assert list(connect(simulator).list_sites(simulator.fleet.clients[0].id)) == []
    # A total of 1 may mean one empty page or one missing item, so the listing is repeated.
    assert len(simulator.requests) == (4 if total_as == "pages" else 1)


Pages = Callable[[int, int], tuple[list[str], object] | None]
"""Return the ids and the total of a page, given its number and how often it was listed; None is a 404."""
FLEET = [f"s{number:03}" for number in range(350)]


def hundred(number: int, fleet: list[str] = FLEET) -> list[str]:
    return fleet[(number - 1) * 100 : number * 100]


class Listed:
    """A server that lists sites or clients, 100 a page; ``null`` sends ``null`` instead of ``[]``."""

    def __init__(self, pages: Pages, *, echo: Callable[[int], object] | None = None, null: bool = False) -> None:
        self._pages = pages
        self._echo = echo
        self._null = null
        self.asked: list[int] = []

    def __call__(self, connection: socket.socket, head: bytes) -> None:
        path, _, query = head.split(b" ")[1].decode().partition("?")
        number = int(parse_qs(query)["page"][0])
        self.asked.append(number)
        answer = self._pages(number, self.asked.count(1))
        if answer is None:
            connection.sendall(refusal("No such page.", 404))
            return
        found, total = answer
        payload: dict[str, Any] = {path.rpartition("/")[2]: [{"id": one} for one in found]}
        if self._null and not found:
            payload = dict.fromkeys(payload)
        if total is not None:
            payload["total"] = total
        if self._echo is not None:
            payload["page"] = self._echo(number)
        connection.sendall(reply(payload))


def with_page(number: int, instead: list[str] | None, total: object) -> Pages:
    """Return pages of the fleet with one page replaced; None is a 404."""

    def pages(page: int, _: int) -> tuple[list[str], object] | None:
        if page == number:
            return None if instead is None else (instead, total)
        return hundred(page), total

    return pages


LISTINGS: dict[str, Callable[[StemClient], Iterator[dict[str, Any]]]] = {
    "clients": StemClient.list_clients,
    "sites of a client": lambda client: client.list_sites("someone"),
}
listings = pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)


SHORT: dict[str, tuple[int, list[str] | None]] = {
    "2 for 3": (3, hundred(2)),
    "1 for 2": (2, hundred(1)),
    "2 empty": (2, []),
    "3 empty": (3, []),
    "4 empty": (4, []),
    "1 empty": (1, []),
    "3 a 404": (3, None),
    "4 a 404": (4, None),
    "2 cut": (2, hundred(2)[:50]),
    "3 for 4": (4, hundred(3)),
    "3 for 2": (2, hundred(3)),
}
COUNT_OF_ITEMS_ALONE_SHOWS = ["2 cut", "3 for 2"]


@pytest.mark.parametrize(
    ("kind", "total"),
    [(kind, total) for kind in SHORT for total in (350, "4") if kind not in COUNT_OF_ITEMS_ALONE_SHOWS or total == 350],
)
@pytest.mark.parametrize(
    ("listing", "null", "echo"),
    [("clients", False, None), ("clients", True, str), ("sites of a client", False, int)],
    ids=["clients", "with nulls and pages as strings", "sites of a client"],
)
def test_an_incomplete_listing_is_listed_again_and_then_an_error(
    raw_server: Start,
    connect: Connect,
    kind: str,
    total: object,
    listing: str,
    null: bool,
    echo: Callable[[int], object] | None,
) -> None:
    wrong = with_page(*SHORT[kind], total)
    server = Listed(wrong, echo=echo, null=null)
    with pytest.raises(StemDataError, match=r"total is \d+.*\. Try again later.* \[GET "):
        list(LISTINGS[listing](connect(raw_server(server))))
    assert server.asked.count(1) == 4

    def passing(page: int, time: int) -> tuple[list[str], object] | None:
        return wrong(page, time) if time < 4 else (hundred(page), total)

    server = Listed(passing, echo=echo, null=null)
    assert ids(LISTINGS[listing](connect(raw_server(server)))) == FLEET
    assert server.asked[-5:] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["total", "page"])
@pytest.mark.parametrize("wrong", ["many", "", True, [350], {}, 3.5, float("nan"), "3 50"], ids=repr)
def test_a_count_that_is_not_a_number_is_an_error(name: str, wrong: object) -> None:
    with pytest.raises(StemDataError, match=f"{name} on page 1 of 'clients' is .*, not a number"):
        Pager("clients", 100).add_page(page("a", **{name: wrong}))


@listings
@pytest.mark.parametrize("total", [350, "350", 4, None], ids=repr)
@pytest.mark.parametrize("echo", [None, lambda _: 1], ids=["no page", "page"])
def test_the_first_page_for_every_page_is_an_error(
    raw_server: Start,
    connect: Connect,
    listing: Callable[[StemClient], Iterator[dict[str, Any]]],
    total: object,
    echo: Callable[[int], object] | None,
) -> None:
    server = Listed(lambda _page, _time: (hundred(1), total), echo=echo)
    with pytest.raises(StemDataError, match="repeats"):
        list(listing(connect(raw_server(server))))
    assert server.asked.count(1) == 4


@listings
@pytest.mark.parametrize("echo", [lambda number: 2 if number == 3 else number, lambda number: f"{number + 1}"])
@pytest.mark.parametrize("total", [350, 4, None], ids=repr)
def test_a_page_with_another_number_is_an_error(
    raw_server: Start,
    connect: Connect,
    listing: Callable[[StemClient], Iterator[dict[str, Any]]],
    echo: Callable[[int], object],
    total: object,
) -> None:
    server = Listed(lambda number, _: (hundred(number), total), echo=echo)
    with pytest.raises(StemDataError, match=r"The response for page \d of '\w+' is page \d"):
        list(listing(connect(raw_server(server))))
    assert server.asked.count(1) == 4


@pytest.mark.parametrize("echo", [None, lambda number: 2 if number == 3 else number], ids=["no page", "page"])
def test_without_a_total_a_replaced_page_is_detected_on_the_next_page(
    raw_server: Start, connect: Connect, echo: Callable[[int], object] | None
) -> None:
    server = Listed(with_page(3, hundred(2), None), echo=echo)
    with pytest.raises(StemDataError, match="Page 4 has new clients"):
        list(connect(raw_server(server)).list_clients())
    assert server.asked == [1, 2, 3, 4] * 4


@listings
@pytest.mark.parametrize(("gone", "kind"), [(0, int), (50, str), (99, int)])
def test_a_site_that_is_removed_during_paging_does_not_hide_another(
    raw_server: Start,
    connect: Connect,
    listing: Callable[[StemClient], Iterator[dict[str, Any]]],
    gone: int,
    kind: Callable[[int], object],
) -> None:
    left = [one for one in FLEET if one != FLEET[gone]]

    def pages(number: int, time: int) -> tuple[list[str], object]:
        fleet = FLEET if (time, number) == (1, 1) else left
        return hundred(number, fleet), kind(len(fleet))

    server = Listed(pages)
    assert ids(listing(connect(raw_server(server)))) == left
    assert server.asked == [1, 2, 1, 2, 3, 4, 5]


@listings
@pytest.mark.parametrize(
    ("total", "ending"),
    [(None, None), (4, []), (350, hundred(4)), ("4", None), (None, []), ("350", hundred(1))],
    ids=repr,
)
def test_a_whole_listing_is_read_once(
    raw_server: Start,
    connect: Connect,
    listing: Callable[[StemClient], Iterator[dict[str, Any]]],
    total: object,
    ending: list[str] | None,
) -> None:
    server = Listed(with_page(5, ending, total))
    assert ids(listing(connect(raw_server(server)))) == FLEET
    assert server.asked == [1, 2, 3, 4, 5]


def test_an_incomplete_listing_of_one_of_all_clients_is_an_error(stem_simulator: Simulator, connect: Connect) -> None:
    second = stem_simulator.fleet.clients[1].id

    def short(request: Any, payload: Any) -> Any:
        return {**payload, "sites": []} if request.path.endswith(f"/{second}/sites") else payload

    stem_simulator.rewrite = short
    with pytest.raises(StemDataError, match=f"Page 1 is empty, but total is 10 .*/clients/{second}/sites"):
        list(connect(stem_simulator).list_sites())
    assert [r.path for r in stem_simulator.requests].count(f"/api/v1/clients/{second}/sites") == 4


def test_no_message_of_a_listing_contains_the_key(raw_server: Start, connect: Connect, caplog: Any) -> None:
    server = raw_server(reply({"clients": {"id": KEY}, "errors": []}), reply(page(KEY, {"name": KEY})))
    client = connect(server)
    for _ in range(2):
        with pytest.raises(StemDataError) as raised:
            list(client.list_clients())
        assert KEY not in f"{raised.value} {caplog.text}"


@dataclass
class Listing:
    """A server's clients, how it lists them, and which fault occurs how often."""

    items: int = 0
    cap: int = 500
    total_as: str = "items"
    past_end: str = "empty"
    page_as: str = "missing"
    fault: str = "none"
    at: int = 1
    times: int = 0

    def answer(self, connection: socket.socket, head: bytes) -> None:
        query = parse_qs(urlsplit(head.split(b" ")[1].decode()).query)
        asked, size = int(query["page"][0]), min(int(query["per_page"][0]), self.cap)
        pages = max(1, -(-self.items // size))
        number, past_end, fault = asked, "empty", "none"
        if asked == self.at and self.times:
            self.times -= 1
            fault = self.fault
        if asked > pages:
            past_end, fault = self.past_end, "none"
            number = pages if past_end == "repeat" else asked
        number = {"cached": max(1, number - 1), "first": 1, "next": number + 1}.get(fault, number)
        if "not_found" in (past_end, fault) and asked > 1:
            connection.sendall(refusal("No such page.", 404))
            return
        found = [{"id": f"c{index}"} for index in range((number - 1) * size, min(number * size, self.items))]
        if fault == "empty":
            found = []
        payload: dict[str, Any] = {"clients": found or (None if "null" in (past_end, fault) else [])}
        if fault == "null":
            payload["clients"] = None
        totals: dict[str, Any] = {"items": self.items, "pages": pages, "string": str(self.items)}
        if self.total_as in totals:
            payload["total"] = totals[self.total_as]
        if self.page_as != "missing":
            payload["page"] = number if self.page_as == "number" else str(number)
        connection.sendall(reply(payload))


@pytest.fixture(scope="module")
def listing_server() -> Iterator[tuple[Listing, RawServer]]:
    listing = Listing()
    with RawServer(listing.answer) as server:
        yield listing, server


@settings(deadline=None, max_examples=at_most(600))
@given(
    items=st.integers(0, 30),
    page_size=st.integers(1, 35),
    cap=st.integers(1, 35),
    total_as=st.sampled_from(TOTALS),
    past_end=st.sampled_from(PAST_ENDS),
    page_as=st.sampled_from(["number", "string", "missing"]),
    fault=st.sampled_from(["none", "cached", "first", "next", "empty", "null", "not_found"]),
    at=st.integers(1, 8),
    times=st.sampled_from([0, 1, 2, 3, 4, 100]),
)
@example(30, 100, 1, "pages", "repeat", "missing", "none", 1, 0)
def test_a_listing_is_exactly_the_fleet_or_an_error(
    listing_server: tuple[Listing, RawServer],
    items: int,
    page_size: int,
    cap: int,
    total_as: str,
    past_end: str,
    page_as: str,
    fault: str,
    at: int,
    times: int,
) -> None:
    listing, server = listing_server
    size = min(page_size, cap)
    pages = max(1, -(-items // size))
    listed = size * (at - 1)  # before the fault
    # Faults that no client can detect: without a total the end is the end, the number of pages may equal the number
    # of items, and a total of 1 may mean one empty page.
    assume(fault == "none" or at > 1 or (pages if total_as == "pages" else items) != 1)
    assume(fault == "none" or total_as != "missing")
    assume(fault == "none" or total_as != "pages" or pages != listed)
    assume(fault != "next" or total_as != "pages" or page_as != "missing")
    vars(listing).update(
        items=items, cap=cap, total_as=total_as, past_end=past_end, page_as=page_as, fault=fault, at=at, times=times
    )
    before = server.connections
    with StemClient(config_for(server.url, page_size=page_size)) as client:
        try:
            found = ids(client.list_clients())
        except StemDataError:
            is_full = total_as == "missing" and past_end == "repeat" and pages == 1 and items >= page_size
            assert is_full or (fault != "none" and at <= pages and times >= 4)
        else:
            assert found == [f"c{index}" for index in range(items)]
        assert client.requests_sent <= 4 * (pages + 2)
    assert server.connections == before + 1


def test_ids_that_come_again_on_a_later_page_are_given_once(raw_server: Start, connect: Connect) -> None:
    server = raw_server(*(reply(payload) for payload in (page("a", "b"), page("b", "c", "c"), page(), page("never"))))
    assert ids(connect(server).list_clients()) == ["a", "b", "c"]
    assert len(server.heads) == 3


def test_a_null_page_ends_the_listing(raw_server: Start, connect: Connect) -> None:
    server = raw_server(reply(page("a")), reply({"clients": None, "total": 1}), reply(page("never")))
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
    with pytest.raises(StemDataError, match=f"[Pp]age {number}"):
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
    for payload in (page("a"), page("b"), page()):
        pager.add_page(payload)
    assert pager.done
    assert ids(iter(pager.items)) == ["a", "b"]


def test_the_limit_leaves_room_for_the_largest_fleet() -> None:
    assert paging._MAX_PAGES >= 10_000


def test_the_query_of_each_page() -> None:
    pager = Pager("sites", 50, "Plant & Co")
    assert pager.params() == {"per_page": 50, "name": "Plant & Co", "page": 1}
    pager.add_page({"sites": [{"id": "a"}]})
    assert pager.params() == {"per_page": 50, "name": "Plant & Co", "page": 2}
    assert Pager("sites", 50).params() == {"per_page": 50, "page": 1}


def test_items_arrive_as_they_were_sent() -> None:
    item = {"id": "a", "name": None, "new": {"deep": [1, 2.5, "x"]}}
    pager = Pager("sites", 50)
    pager.add_page({"sites": [item]})
    assert pager.items == [item]


# --- one page at a time, without a server ---------------------------------------------------------------------------


def pager_after(*payloads: dict[str, Any], page_size: int = 2, final: bool = True) -> Pager:
    pager = Pager("clients", page_size, final=final)
    assert pager.done is False
    for payload in payloads:
        pager.add_page(payload)
    return pager


AGAIN = ". Try again later, or report it to Stem if it persists"


@pytest.mark.parametrize(
    ("payloads", "message"),
    [
        ([page("a", total=3), page(total=3)], f"Page 2 is empty, but total is 3 after 1 clients on 1 pages{AGAIN}"),
        (
            [page("a", "b", total=3), page("b", total=3)],
            f"Page 2 repeats earlier ones, but total is 3 after 2 clients on 1 pages{AGAIN}",
        ),
        (
            [page("a", total="1" * 30), page()],
            f"Page 2 is empty, but total is {'1' * 20} after 1 clients on 1 pages{AGAIN}",
        ),
        (
            [page("a", total=7), page("b", total=8)],
            f"The total of 'clients' changes from 7 to 8 at page 2{AGAIN}",
        ),
        ([page("a"), page("a"), page("b")], f"Page 3 has new clients after a page that repeats others{AGAIN}"),
        ([page("a", page=3)], f"The response for page 1 of 'clients' is page 3{AGAIN}"),
        (
            [page("a", "b"), page("a"), page("b")],
            (
                "Page 2 of 'clients' repeats page 1, which is full, and there is no total, so more items may follow. "
                "Set another page_size in the connection's Extra"
            ),
        ),
        ([page("a", total=f"{'x' * 80}")], f"total on page 1 of 'clients' is '{'x' * 59}, not a number{AGAIN}"),
    ],
)
def test_the_message_of_an_inconsistent_listing(payloads: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(StemDataError) as raised:
        pager_after(*payloads)
    assert str(raised.value) == message


def test_the_message_of_a_page_that_is_not_found() -> None:
    with pytest.raises(StemDataError) as raised:
        pager_after(page("a", total=2)).add_not_found("https://stem.test/clients?page=2")
    assert str(raised.value) == (
        f"Page 2 is not found, but total is 2 after 1 clients on 1 pages{AGAIN} [GET https://stem.test/clients?page=2]"
    )


@pytest.mark.parametrize(
    ("payloads", "done"),
    [
        ([page("a"), page("a")], [False, False]),
        ([page("a"), page("a"), page("a")], [False, False, True]),
        ([page("a", total=1), page("a", total=1)], [False, True]),
        ([page("a", "b"), page()], [False, True]),
        ([page("a", total=1.0, page=1.0), page(total=1)], [False, True]),
        ([page("a", "b", "c"), page("d"), page("a"), page("a")], [False, False, False, True]),
    ],
)
def test_a_repeated_page_ends_the_listing_at_once_if_there_is_a_total_else_the_second_time(
    payloads: list[dict[str, Any]], done: list[bool]
) -> None:
    pager = pager_after()
    for payload, expected in zip(payloads, done, strict=True):
        pager.add_page(payload)
        assert pager.done is expected


def test_an_empty_listing_with_a_total_of_1_is_one_empty_page_only_in_the_last_attempt() -> None:
    pager = Pager("clients", 2)
    pager.add_page(page(total=1))
    assert pager.done is True
    with pytest.raises(StemDataError, match="Page 1 is empty, but total is 1 after 0 clients on 0 pages"):
        pager_after(page(total=1), final=False)


def test_a_listing_with_more_items_than_the_limit_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_MAX_ITEMS", 1_002)
    pager = pager_after(page(*map(str, range(1_002))))
    with pytest.raises(StemDataError) as raised:
        pager.add_page(page("one more"))
    assert str(raised.value) == f"The listing of 'clients' does not end after 1,002 entries{AGAIN}"
