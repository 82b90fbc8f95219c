from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from airflow_provider_stem.errors import StemApiError, StemError, StemServerError
from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.simulator.model import Site
from airflow_provider_stem.streams.arrivals import _OUTAGE, Arrivals, Snapshot
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.source import StreamsSource

from .conftest import Connect
from .helpers import utc

NOON = utc("2025-07-01T12:00")
HOUR = timedelta(hours=1)
SITES = ("site-00001", "site-00002")
Factory = Callable[..., Simulator]
Poll = Callable[..., Snapshot]


class Server:
    """A simulator with hidden and changed values, and the arrivals that are read from it."""

    def __init__(self, simulator: Simulator, connect: Connect, clock: Callable[[datetime], None]) -> None:
        self.simulator = simulator
        self.hidden: set[str] = set()
        self.changed: dict[str, float | None] = {}
        self._source = StreamsSource(connect(simulator, max_attempts=1))
        self._clock = clock
        simulator.rewrite = self._rewrite

    def arrivals(
        self, sites: Any = ("site-00001", "site-00002"), types: Any = ("MONITOR",), **options: Any
    ) -> Arrivals:
        options = {"settle": timedelta(), "lookback": 4 * HOUR, "reread_every": None, **options}
        return Arrivals(read_sites(sites), types, 900, 3600, **options)

    def poll(self, arrivals: Arrivals, now: datetime = NOON) -> Snapshot:
        """Read what a poll has to read, and return what has arrived."""
        self.simulator.now = now
        self._clock(now)
        for site_id, first in arrivals.begin_poll(now).items():
            arrivals.poll_site(self._source, site_id, first)
        return arrivals.snapshot()

    def asked(self) -> list[str]:
        """Return the sites whose streams were requested since the last call, each with the first interval's end."""
        requests = [one for one in self.simulator.requests if one.path.endswith("/streams")]
        self.simulator.reset_requests()
        return sorted(
            f"{one.path.split('/')[-2]} {datetime.fromisoformat(one.query['start_datetime'][0]) + HOUR / 2:%H:%M}"
            for one in requests
        )

    def _rewrite(self, request: Any, payload: Any) -> Any:
        for entry in payload.get("stream_types", ()) if request.path.endswith("/streams") else ():
            key = f"{payload['id']}/{entry['stream_type']}/"
            rows = {key + row["end_datetime"][11:16]: row for row in entry["streams"]}
            for name, value in self.changed.items():
                if name in rows:
                    rows[name]["kw_total_avg"] = value
            entry["streams"] = [row for name, row in rows.items() if name not in self.hidden]
        return payload


@pytest.fixture
def server(stem_simulator_factory: Factory, connect: Connect, clock: Callable[[datetime], None]) -> Server:
    return Server(stem_simulator_factory(sites=4), connect, clock)


def received(snapshot: Snapshot) -> list[tuple[int, int]]:
    return [(one.received, one.expected) for _, one in sorted(snapshot.windows.items())]


def digests(snapshot: Snapshot) -> list[str]:
    return [one.digest for _, one in sorted(snapshot.windows.items())]


def test_only_sites_with_incomplete_windows_are_requested_again_from_the_first_one(server: Server) -> None:
    arrivals = server.arrivals()
    server.hidden = {"site-00002/MONITOR/09:30", "site-00002/MONITOR/11:15"}
    assert received(server.poll(arrivals)) == [(8, 8), (7, 8), (8, 8), (7, 8)]
    assert server.asked() == ["site-00001 08:15", "site-00002 08:15"]
    server.hidden = {"site-00002/MONITOR/11:15"}
    assert received(server.poll(arrivals)) == [(8, 8), (8, 8), (8, 8), (7, 8)]
    assert server.asked() == ["site-00002 09:15"]
    server.hidden = set()
    complete = server.poll(arrivals)
    assert received(complete) == [(8, 8)] * 4
    assert server.asked() == ["site-00002 11:15"]
    assert server.poll(arrivals) == complete
    assert server.asked() == []
    assert server.poll(arrivals, NOON + HOUR).oldest == complete.oldest + 1
    assert server.asked() == ["site-00001 12:15", "site-00002 12:15"]


def test_a_window_is_not_requested_before_it_has_settled(server: Server) -> None:
    arrivals = server.arrivals(settle=timedelta(minutes=10))
    assert len(server.poll(arrivals, NOON + timedelta(minutes=9)).windows) == 3
    assert len(server.poll(arrivals, NOON + timedelta(minutes=10)).windows) == 4


def test_the_digest_follows_the_values_not_the_way_they_were_read(server: Server) -> None:
    arrivals = server.arrivals()
    server.hidden = {"site-00002/MONITOR/09:30"}
    before = digests(server.poll(arrivals))
    server.hidden = set()
    step_by_step = digests(server.poll(arrivals))
    assert [old == new for old, new in zip(before, step_by_step, strict=True)] == [True, False, True, True]
    assert digests(server.poll(server.arrivals())) == step_by_step
    server.changed = {"site-00001/MONITOR/10:15": None}
    with_null = server.poll(server.arrivals())
    assert received(with_null) == [(8, 8)] * 4
    server.changed = {"site-00001/MONITOR/10:15": 0.0}
    with_zero = server.poll(server.arrivals())
    assert len({digests(with_null)[2], digests(with_zero)[2], step_by_step[2]}) == 3
    for other in (with_null, with_zero):
        assert digests(other)[:2] == step_by_step[:2]
        assert digests(other)[3] == step_by_step[3]


def test_values_of_two_sites_that_are_exchanged_change_the_digest(server: Server) -> None:
    server.changed = {"site-00001/MONITOR/10:15": 1.0, "site-00002/MONITOR/10:15": 2.0}
    before = digests(server.poll(server.arrivals()))
    server.changed = {"site-00001/MONITOR/10:15": 2.0, "site-00002/MONITOR/10:15": 1.0}
    assert digests(server.poll(server.arrivals()))[2] != before[2]


def test_complete_windows_are_read_again_at_their_own_rate(server: Server) -> None:
    arrivals = server.arrivals(reread_every=timedelta(minutes=30))
    before = server.poll(arrivals)
    server.asked()
    server.changed = {"site-00001/MONITOR/09:15": 7.0}
    assert digests(server.poll(arrivals, NOON + timedelta(minutes=29))) == digests(before)
    assert server.asked() == []
    after = server.poll(arrivals, NOON + timedelta(minutes=30))
    assert [old == new for old, new in zip(digests(before), digests(after), strict=True)] == [True, False, True, True]
    assert server.asked() == ["site-00001 08:15", "site-00002 08:15"]
    assert server.poll(arrivals, NOON + timedelta(minutes=31)).windows == after.windows
    assert server.asked() == []


@pytest.mark.parametrize("kind", [400, 403, 404, 500, "html", "cut_body", "reset", "redirect"])
def test_a_site_that_cannot_be_read_counts_as_missing_and_does_not_stop_the_others(
    server: Server, kind: int | str
) -> None:
    arrivals = server.arrivals()
    server.poll(arrivals)
    server.simulator.fail(kind, times=None, path="site-00001")
    # What was read before stays known. Site 2 lacks a value, so site 1 alone does not decide.
    server.hidden = {"site-00002/MONITOR/13:00"}
    snapshot = server.poll(arrivals, NOON + HOUR)
    assert received(snapshot) == [(8, 8), (8, 8), (8, 8), (3, 8)]
    assert not snapshot.windows[snapshot.newest].is_complete(0.5)
    server.simulator.clear_faults()
    server.hidden = set()
    assert received(server.poll(arrivals, NOON + HOUR * 1.1)) == [(8, 8)] * 4


def test_a_site_that_was_never_read_counts_as_missing_with_all_types(server: Server) -> None:
    arrivals = server.arrivals(["site-00002", "unknown"], ["MONITOR", "CONVERTER"])
    assert received(server.poll(arrivals)) == [(8, 16)] * 4


def test_a_site_that_fails_each_time_is_read_less_and_less_often_and_last(server: Server) -> None:
    arrivals = server.arrivals()
    server.simulator.fail(500, times=None, path="site-00001")
    at = [minute for minute in range(90) if "site-00001" in _begun(server, arrivals, minute)]
    assert at[:6] == [0, 1, 2, 3, 4, 5]
    assert [later - sooner for sooner, later in zip(at[-3:], at[-2:], strict=False)] == [15, 15]
    assert list(arrivals.begin_poll(NOON + 3 * HOUR)) == ["site-00002", "site-00001"]
    # Also when the clock is set back.
    assert "site-00001" in arrivals.begin_poll(NOON - HOUR)
    server.simulator.clear_faults()
    assert received(server.poll(arrivals, NOON + 4 * HOUR)) == [(8, 8)] * 4


def _begun(server: Server, arrivals: Arrivals, minute: int) -> set[str]:
    server.simulator.reset_requests()
    server.poll(arrivals, NOON + timedelta(minutes=minute))
    return {request.path.split("/")[-2] for request in server.simulator.requests if "/streams" in request.path}


@pytest.mark.parametrize("is_read_first", [False, True])
def test_changes_are_found_although_another_site_cannot_be_read(server: Server, is_read_first: bool) -> None:
    arrivals = server.arrivals(reread_every=HOUR / 2)
    if is_read_first:
        server.poll(arrivals, NOON - HOUR / 2)
    server.simulator.fail(404, times=None, path="site-00002")
    before = digests(server.poll(arrivals))
    server.changed = {"site-00001/MONITOR/09:15": 7.0}
    after = digests(server.poll(arrivals, NOON + HOUR / 2))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_site_that_cannot_be_read_is_logged_once_until_the_error_changes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    arrivals = server.arrivals()

    def logged(hour: int) -> list[str]:
        caplog.clear()
        server.poll(arrivals, NOON + hour * HOUR)
        return [record.getMessage() for record in caplog.records if "counts as missing" in record.getMessage()]

    server.simulator.fail(404, times=None, path="site-00002")
    (first,) = logged(0)
    assert first.startswith("Site site-00002 counts as missing: ")
    assert logged(1) == logged(2) == []
    server.simulator.clear_faults()
    server.simulator.fail(403, times=None, path="site-00002")
    assert ["403" in message for message in logged(3)] == [True]
    assert logged(4) == []
    server.simulator.clear_faults()
    assert logged(5) == []
    server.simulator.fail(403, times=None, path="site-00002")
    assert len(logged(6)) == 1


@pytest.mark.parametrize("kind", [404, 500, "html", "reset"])
def test_a_poll_that_could_read_no_site_fails_and_changes_nothing(
    server: Server, kind: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    arrivals = server.arrivals()
    before = server.poll(arrivals)
    server.simulator.fail(kind, times=None)
    for minute in (0, 1, 2):
        with pytest.raises(StemError):
            server.poll(arrivals, NOON + HOUR + timedelta(minutes=minute))
    server.simulator.clear_faults()
    after = server.poll(arrivals, NOON + HOUR + timedelta(minutes=3))
    assert digests(after)[:3] == digests(before)[1:]
    assert received(after) == [(8, 8)] * 4
    assert "counts as missing" not in caplog.text


@pytest.mark.parametrize("status", [401, 429])
def test_an_error_of_the_connection_fails_the_poll_although_other_sites_were_read(server: Server, status: int) -> None:
    arrivals = server.arrivals()
    server.simulator.fail(status, times=None, path="site-00002")
    for _ in range(2):
        with pytest.raises(StemApiError):
            server.poll(arrivals)


def test_the_only_site_to_read_fails_one_poll_when_it_begins_to_fail(server: Server) -> None:
    arrivals = server.arrivals()
    server.hidden = {"site-00002/MONITOR/11:15"}
    server.poll(arrivals)
    server.simulator.fail(500, times=None, path="site-00002")
    with pytest.raises(StemServerError):
        server.poll(arrivals)
    assert received(server.poll(arrivals, NOON + timedelta(minutes=1))) == [(8, 8)] * 3 + [(7, 8)]


def test_a_poll_ends_early_while_the_api_is_down_and_the_next_one_begins_with_other_sites(server: Server) -> None:
    broken = [f"broken-{number:02}" for number in range(_OUTAGE)]
    arrivals = server.arrivals([*broken, *SITES])
    server.simulator.fail(500, times=None, path="broken")
    with pytest.raises(StemServerError):
        server.poll(arrivals)
    assert len(server.asked()) == _OUTAGE
    assert received(server.poll(arrivals)) == [(8, 8 + 4 * _OUTAGE)] * 4
    assert server.asked()[-2:] == ["site-00001 08:15", "site-00002 08:15"]


def test_sites_that_are_unknown_do_not_delay_the_others(server: Server) -> None:
    unknown = [f"a-{number:02}" for number in range(2 * _OUTAGE)]
    arrivals = server.arrivals([*unknown, *SITES])
    assert received(server.poll(arrivals)) == [(8, 8 + 4 * len(unknown))] * 4


def test_a_site_without_streams_that_gets_one_is_read_from_its_start(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = server.simulator.fleet
    with monkeypatch.context() as without:
        without.setattr(fleet, "site", partial(_without_streams, fleet.site))
        arrivals = server.arrivals(["site-00001"], lookback=24 * HOUR)
        for hour in range(3):
            assert received(server.poll(arrivals, NOON + hour * HOUR)) == [(0, 0)] * 24
    assert received(server.poll(arrivals, NOON + 4 * HOUR)) == [(4, 4)] * 24


def _without_streams(site: Callable[[str], Site], site_id: str) -> Site:
    return replace(site(site_id), stream_start_times={})


def test_a_type_without_rows_in_a_window_does_not_change_its_digest(server: Server) -> None:
    server.hidden = {f"site-00001/CONVERTER/{NOON - 4 * HOUR + n * HOUR / 4:%H:%M}" for n in range(1, 13)}
    before, after = (
        server.poll(server.arrivals(["site-00001"], types)) for types in (["MONITOR"], ["MONITOR", "CONVERTER"])
    )
    assert digests(before)[:3] == digests(after)[:3]
    assert digests(before)[3] != digests(after)[3]


def test_streams_that_a_site_lacks_or_that_began_later_are_not_expected(server: Server) -> None:
    late = {"site_id": "site-00003", "stream_start_times": {"MONITOR": "2025-07-01T10:15:01Z"}}
    lacking = {"site_id": "site-00004", "stream_start_times": {}}
    arrivals = server.arrivals([late, lacking], ["MONITOR", "CONVERTER"])
    assert received(server.poll(arrivals)) == [(0, 0), (0, 0), (3, 3), (4, 4)]


def test_memory_is_bounded_by_the_look_back(server: Server) -> None:
    arrivals = server.arrivals()
    for hour in range(10):
        server.poll(arrivals, NOON + hour * HOUR)
    assert {len(site.windows) for site in arrivals._sites.values()} == {4}
