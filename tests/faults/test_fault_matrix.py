"""Every fault at every stage of a load, once and for good: exact rows, or the right error and what was there."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import format_datetime
from itertools import count
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_provider_stem.api import transport
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import (
    StemDataError,
    StemRateLimitError,
    StemRequestError,
    StemServerError,
    StemTransportError,
)
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.streams import windows
from airflow_provider_stem.streams.records import Receipt
from tests.faults import proxy
from tests.faults.proxy import Fault, FaultyProxy, altered, answer
from tests.servers.processes import HUNG_AFTER
from tests.support import IS_FULL, Lake, expected_rows, landed_rows, run_context, time_out_soon, without_rows

TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
DAYS = ("2025-07-01T00:00Z", "2025-07-04T00:00Z")

EARLIER = without_rows()
NOW = datetime(2025, 7, 10, 12, tzinfo=UTC)
"""The worker's time, which stands still: a date of the server means the same number of seconds all the time."""


def throttled(after: str | None) -> Fault:
    return answer(429, b'{"errors": [{"message": "slow down"}]}', {"Retry-After": after} if after else {})


def broken(status: int) -> Fault:
    return answer(status, b"<html>upstream is not well</html>")


def cut_json(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    half = body[: len(body) // 2]
    return re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(half), head), half


def too_long(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % (len(body) + 10), head), body


def too_short(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % (len(body) - 10), head), body


def other_type(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return re.sub(rb"(?i)content-type: [^\r]+", b"Content-Type: text/html", head), body


# How a request goes wrong, and what comes of it where that does not pass.
PASSING: dict[str, tuple[Fault, type[Exception]]] = {
    "reset at once": (proxy.reset, StemTransportError),
    "reset in the body": (proxy.reset_within, StemTransportError),
    "timeout": (proxy.hang, StemTransportError),
    "slow drip": (proxy.drip, StemTransportError),
    "429, seconds": (throttled("7"), StemRateLimitError),
    "429, date": (throttled(format_datetime(NOW + timedelta(minutes=4), usegmt=True)), StemRateLimitError),
    "429": (throttled(None), StemRateLimitError),
    **{str(status): (broken(status), StemServerError) for status in (500, 502, 503, 504)},
    "an HTML page with 200": (answer(200, b"<html>Please sign in</html>"), StemDataError),
    "cut-off JSON": (altered(cut_json), StemDataError),
    "a length too long": (altered(too_long), StemTransportError),
    "a length too short": (altered(too_short), StemDataError),
    "an empty body": (answer(200), StemDataError),
}
# These say something that asking again would not change.
FINAL: dict[str, tuple[Fault, type[Exception]]] = {
    "an error under 200": (answer(200, b'{"errors": [{"message": "no", "code": 9}]}'), StemDataError),
    "a redirect": (answer(302, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), StemRequestError),
}
STAGES = {
    "clients, page 1": r"/clients\?.*\bpage=1\b",
    "clients, page n": r"/clients\?.*\bpage=2\b",
    "sites, page 1": r"/clients/[^/]+/sites\?.*\bpage=1\b",
    "sites, page n": r"/clients/[^/]+/sites\?.*\bpage=2\b",
    "site": r"/sites/[^/?]+$",
    "streams, first chunk": r"/streams\?.*start_datetime=2025-06-30T",
    "streams, n-th chunk": r"/streams\?.*start_datetime=2025-07-0[12]T",
}


@pytest.fixture(scope="module")
def load(s3_server: Any) -> Iterator[Any]:
    """A load from the list of clients to the object, through proxies, and what it gives when nothing goes wrong."""
    with ExitStack() as running:
        patched = running.enter_context(pytest.MonkeyPatch.context())
        sim = running.enter_context(Simulator(Settings(sites=6)))
        api = running.enter_context(FaultyProxy(sim.url))
        s3 = running.enter_context(FaultyProxy(s3_server.url))
        # A day and a half a request, so that three days take several.
        patched.setattr(windows, "MAX_RANGE", timedelta(days=1, hours=12))
        waits: list[float] = []
        patched.setattr(Transport, "_wait_until_closed", lambda _, seconds: waits.append(seconds))
        patched.setattr(transport, "datetime", Stopped)
        patched.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))  # between attempts
        connection = {"conn_type": "stem", "host": api.url, "password": sim.settings.api_key}
        aws = json.loads(s3_server.connection)
        aws["extra"]["endpoint_url"] = s3.url
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        lake = Lake(s3_server)
        patched.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
        client = S3Hook().get_conn()  # making one takes longer than a load
        patched.setattr(S3Hook, "get_conn", lambda _: client)
        limits = {"timeout": HUNG_AFTER, "max_attempts": 2, "page_size": 1}
        patched.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({**connection, "extra": limits}))
        shared = SimpleNamespace(undisturbed=[])
        proxies = {urlsplit(one.url).port: one for one in (api, s3)}
        time_out_soon(
            patched,
            lambda port, method, target: port in proxies and shared.never_ends(method, target),
            lambda port: len(proxies[port].targets),
        )

        def run(**arguments: Any) -> Receipt:
            records = StemSiteListOperator(task_id="list").execute(run_context())
            task = StemStreamsToS3Operator(
                task_id="land",
                sites=[record["site_id"] for record in records],
                stream_types=TYPES,
                s3_bucket=lake.bucket,
                s3_key="streams.{extension}",
                max_workers=1,
                **arguments,
            )
            return task.execute(run_context(*DAYS))

        def exact() -> bool:
            rows = expected_rows(sim, sim.fleet.site_ids, TYPES, 900, *DAYS)
            return landed_rows(lake.table()) == rows and len(rows) > 3000

        shared.__dict__.update(run=run, exact=exact, lake=lake, api=api, s3=s3, waits=waits)
        yield shared


class Stopped(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return NOW.astimezone(tz)


SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
OF_S3: dict[str, Fault] = {
    "SlowDown": answer(503, SLOW_DOWN, {"Content-Type": "application/xml"}),
    "InternalError": answer(500, INTERNAL, {"Content-Type": "application/xml"}),
    "502": broken(502),
    "504": broken(504),
    "reset at once": proxy.reset,
    "reset after it is stored": proxy.reset_behind,
    "timeout": proxy.hang,
}


# Only the client's own timeout ends these.
ENDLESS = ("timeout", "slow drip")


@pytest.fixture
def fresh(load: Any) -> Any:
    """The load, with an object of an earlier run where its own belongs; what is undisturbed is known."""
    load.never_ends = lambda _method, _target: False
    if not load.undisturbed:
        load.api.behave()
        load.run()
        assert load.exact()
        load.undisturbed = load.api.targets
        for stage, pattern in STAGES.items():
            assert any(re.search(pattern, target) for target in load.undisturbed), stage
    load.lake.client.put_object(Bucket=load.lake.bucket, Key="streams.parquet", Body=EARLIER)
    load.api.behave()
    load.s3.behave()
    load.waits.clear()
    return load


Chosen = Callable[[str, str], bool]
"""Whether a request, by method and target, goes wrong."""


def at(stage: str, *, once: bool) -> Chosen:
    """Choose all requests of a stage, or the first alone."""
    return chosen(lambda _, target: bool(re.search(STAGES[stage], target)), once=once)


def of_s3(stage: str, *, once: bool) -> Chosen:
    """Choose all requests of a stage of S3, or the first alone."""
    return chosen(lambda method, target: s3_stage(method, target) == stage, once=once)


def chosen(fits: Chosen, *, once: bool) -> Chosen:
    hits = count()
    return lambda method, target: fits(method, target) and (next(hits) == 0 or not once)


def disturb(load: Any, proxy: FaultyProxy, fault: str, act: Fault, which: Callable[[], Chosen]) -> None:
    """Make chosen requests go wrong; those that only the client's timeout ends get a short one."""
    wrong = which()
    proxy.go_wrong(act, lambda exchange: wrong(exchange.method, exchange.target))
    if fault in ENDLESS:
        load.never_ends = which()


def crossed(faults: Iterable[str], stages: Iterable[str]) -> list[tuple[str, str]]:
    """Return each fault with each stage at full depth, otherwise with every third: all stages share one transport."""
    return [
        (fault, stage)
        for number, fault in enumerate(faults)
        for place, stage in enumerate(stages)
        if IS_FULL or (number + place) % 3 == 0
    ]


@pytest.mark.parametrize(("fault", "stage"), crossed(PASSING, STAGES))
def test_a_fault_of_the_api_that_passes_costs_one_request(fresh: Any, fault: str, stage: str) -> None:
    disturb(fresh, fresh.api, fault, PASSING[fault][0], lambda: at(stage, once=True))
    fresh.run()
    assert fresh.exact()
    assert len(fresh.api.targets) == len(fresh.undisturbed) + 1
    (wait,) = fresh.waits
    assert wait >= {"429, seconds": 7, "429, date": 240}.get(fault, 0)


@pytest.mark.parametrize(("fault", "stage"), crossed([*PASSING, *FINAL], STAGES))
def test_a_fault_of_the_api_that_stays_leaves_what_was_there(fresh: Any, fault: str, stage: str) -> None:
    act, error = {**PASSING, **FINAL}[fault]
    disturb(fresh, fresh.api, fault, act, lambda: at(stage, once=False))
    with pytest.raises(error) as raised:
        fresh.run()
    assert type(raised.value) is error or fault not in FINAL
    attempts = [target for target in fresh.api.targets if re.search(STAGES[stage], target)]
    assert len(attempts) == (1 if fault in FINAL else 2)
    assert len(set(attempts)) == 1
    assert fresh.lake.objects() == {"streams.parquet": EARLIER}
    assert s3_stages(fresh) in ([], OF_A_RUN[:-2])


@pytest.mark.parametrize("stage", STAGES)
def test_json_is_read_whatever_the_server_calls_it(fresh: Any, stage: str) -> None:
    disturb(fresh, fresh.api, "", altered(other_type), lambda: at(stage, once=False))
    fresh.run()
    assert fresh.exact()
    assert fresh.api.targets == fresh.undisturbed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("once", [True, False], ids=["passing", "lasting"])
def test_nobody_listens(fresh: Any, monkeypatch: pytest.MonkeyPatch, stage: str, once: bool) -> None:
    """The proxy takes a connection for each request, so that connections can be counted in place of requests."""
    place = next(n for n, target in enumerate(fresh.undisturbed) if re.search(STAGES[stage], target))
    connect = urllib3.util.connection.create_connection
    port = urlsplit(fresh.api.url).port
    connections: list[int] = []

    def refused(address: tuple[str, int], *arguments: Any, **options: Any) -> Any:
        if address[1] == port:
            connections.append(len(connections))
            if len(connections) - 1 == place or (len(connections) - 1 > place and not once):
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return connect(address, *arguments, **options)

    monkeypatch.setattr("urllib3.util.connection.create_connection", refused)
    if once:
        fresh.run()
        assert fresh.exact()
        assert fresh.api.targets == fresh.undisturbed
        assert len(connections) == len(fresh.undisturbed) + 1
    else:
        with pytest.raises(StemTransportError, match="Connection refused"):
            fresh.run()
        assert len(connections) == place + 2
        assert fresh.lake.objects() == {"streams.parquet": EARLIER}


# What a run asks S3, in order. The probe is a PUT that creates it, two on conditions that fail, and a DELETE.
OF_A_RUN = ["HEAD bucket", "PUT probe", "PUT probe", "PUT probe", "DELETE probe", "HEAD", "GET", "PUT"]


def s3_stage(method: str, target: str) -> str:
    name = target.partition("?")[0].rpartition("/")[2]
    kinds = {"streams.parquet": "", "lake": " bucket"}
    return method + (" probe" if name.startswith(".stem-probe") else kinds.get(name.partition("-")[0], " of the API"))


def s3_stages(fresh: Any) -> list[str]:
    return [s3_stage(*target.split()) for target in fresh.s3.targets]


@pytest.mark.parametrize(("fault", "stage"), crossed(OF_S3, dict.fromkeys(OF_A_RUN)))
def test_a_fault_of_s3_that_passes_costs_one_request(fresh: Any, fault: str, stage: str) -> None:
    disturb(fresh, fresh.s3, fault, OF_S3[fault], lambda: of_s3(stage, once=True))
    fresh.run()
    assert fresh.exact()
    assert list(fresh.lake.objects()) == ["streams.parquet"]
    if (fault, stage) == ("reset after it is stored", "PUT probe"):
        # The repeated request is the one whose condition fails.
        assert s3_stages(fresh) == OF_A_RUN
    elif (fault, stage) == ("reset after it is stored", "PUT"):
        assert s3_stages(fresh) == [*OF_A_RUN, "PUT", "GET"]
    else:
        place = OF_A_RUN.index(stage)
        assert s3_stages(fresh) == [*OF_A_RUN[:place], stage, *OF_A_RUN[place:]]
    assert fresh.api.targets == fresh.undisturbed
    assert fresh.lake.uploads() == []


@pytest.mark.parametrize("fault", OF_S3)
def test_a_put_that_fails_for_good_says_so_and_leaves_a_whole_object(fresh: Any, fault: str) -> None:
    disturb(fresh, fresh.s3, fault, OF_S3[fault], lambda: of_s3("PUT", once=False))
    with pytest.raises(StemTransportError, match=rf"s3://{fresh.lake.bucket}/streams.parquet\]"):
        fresh.run()
    if fault == "reset after it is stored":
        assert fresh.exact()
    else:
        assert fresh.lake.objects() == {"streams.parquet": EARLIER}
    assert fresh.lake.uploads() == []
    # The retry of the task.
    fresh.s3.behave()
    fresh.never_ends = lambda _method, _target: False
    fresh.run()
    assert fresh.exact()


@pytest.mark.parametrize("stage", ["HEAD bucket", "PUT probe", "HEAD"])
@pytest.mark.parametrize("fault", ["reset at once", "timeout"])
def test_an_s3_that_cannot_be_reached_is_reported_before_the_api_is_asked(fresh: Any, fault: str, stage: str) -> None:
    disturb(fresh, fresh.s3, fault, OF_S3[fault], lambda: of_s3(stage, once=False))
    with pytest.raises(StemTransportError, match="S3 cannot be used through connection 'aws_default'"):
        fresh.run()
    assert not [target for target in fresh.api.targets if "/streams" in target]
    assert fresh.lake.objects() == {"streams.parquet": EARLIER}


def test_a_put_whose_answer_is_lost_is_not_taken_for_another_run_s(fresh: Any) -> None:
    fresh.lake.client.delete_object(Bucket=fresh.lake.bucket, Key="streams.parquet")
    disturb(fresh, fresh.s3, "", proxy.reset_behind, lambda: of_s3("PUT", once=True))
    fresh.run(if_exists="fail")
    assert fresh.exact()
