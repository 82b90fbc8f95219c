from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_stem.api import pace
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import StemConfigError, StemError, StemServerError, StemTransportError
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.simulator import Settings, Simulator
from tests.support import instant, run_context
from tests.waiting import HOUR, MODES, RUN, Arrivals, Clock, Waiting, asked

ALL_TYPES = ("CONVERTER", "INTERVAL_REVENUE", "MONITOR")
NEVER = instant("2100-01-01T00:00Z")


def never_whole(row):
    """Withhold one interval in the middle of the window, so that the site record need not be read."""
    return NEVER if row.endswith("00:45") else None


@pytest.fixture(scope="module")
def server():
    with Simulator(Settings(sites=7)) as running:
        yield running


@pytest.fixture
def sim(server, monkeypatch):
    """A simulator without recorded requests, as a connection whose requests have one attempt."""
    server.clear_faults()
    server.rewrite = None
    server.reset_requests()
    connect(server, monkeypatch)
    return server


def connect(sim, monkeypatch, **extra):
    connection = {**json.loads(sim.connection), "extra": {"max_attempts": 1, **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(connection))


@pytest.fixture
def clock(sim, monkeypatch):
    return Clock(monkeypatch, "2025-07-01T02:00Z", sim)


@pytest.fixture(params=MODES)
def wait(request, clock, monkeypatch):
    """``wait(**arguments)``: run a sensor to its end, in each mode."""
    return Waiting(request.param, clock, monkeypatch)


def report(expected, missing=0, sites=1, incomplete_sites=None, window=HOUR, resolution=900):
    start, end = (bound.replace("Z", ":00Z") for bound in window)
    return {
        "window": {"start": start, "end": end, "resolution": resolution},
        "sites": sites,
        "expected": expected,
        "missing": missing,
        "incomplete_sites": bool(missing) if incomplete_sites is None else incomplete_sites,
    }


def record(sim, site_id, **changed):
    starts = {t: f"{_instant(s):%Y-%m-%dT%H:%M:%SZ}" for t, s in sim.fleet.site(site_id).stream_start_times.items()}
    starts |= changed
    return {"site_id": site_id, "stream_start_times": {t: s for t, s in starts.items() if s}}


def _instant(seconds):
    return instant("1970-01-01T00:00Z") + timedelta(seconds=int(seconds))


# --- available and missing intervals ----------------------------------------------------------------------------------


def test_the_sensor_ends_at_once_if_everything_is_available(wait, sim, clock):
    sites = ["site-00001", {"site_id": "site-00002"}, record(sim, "site-00003")]
    assert wait(sites=sites, stream_types=ALL_TYPES) == report(4 * 8, sites=3)
    assert wait.executions == 1
    assert clock.sleeps == []
    # The third site lacks a type, as its record shows.
    assert asked(sim) == [
        ("site-00001", "CONVERTER,INTERVAL_REVENUE,MONITOR", "00:00", "01:00"),
        ("site-00002", "CONVERTER,INTERVAL_REVENUE,MONITOR", "00:00", "01:00"),
        ("site-00003", "CONVERTER,MONITOR", "00:00", "01:00"),
    ]


def test_only_missing_intervals_are_requested_again(wait, sim):
    late = {
        "site-00002/MONITOR/00:30": instant("2025-07-01T02:15Z"),
        "site-00002/MONITOR/01:00": instant("2025-07-01T02:25Z"),
        "site-00002/CONVERTER/00:45": instant("2025-07-01T02:05Z"),
        "site-00003/CONVERTER/00:15": instant("2025-07-01T02:25Z"),
    }
    arrivals = Arrivals(sim, late.get)
    sites = [record(sim, f"site-0000{number}") for number in (1, 2, 3)]
    assert wait(sites=sites, stream_types=["MONITOR", "CONVERTER"]) == report(4 * 6, sites=3)
    assert arrivals.pokes == ["02:00:00", "02:10:00", "02:20:00", "02:30:00"]
    everything = [(f"site-0000{number}", "CONVERTER,MONITOR", "00:00", "01:00") for number in (1, 2, 3)]
    again = [
        [("site-00002", "CONVERTER,MONITOR", "00:15", "01:00"), ("site-00003", "CONVERTER", "00:00", "01:00")],
        [("site-00002", "MONITOR", "00:15", "01:00"), ("site-00003", "CONVERTER", "00:00", "01:00")],
        [("site-00002", "MONITOR", "00:45", "01:00"), ("site-00003", "CONVERTER", "00:00", "01:00")],
    ]
    if wait.mode == "reschedule":
        # No progress is kept between the executions.
        again = [everything] * 3
    assert asked(sim) == sorted(sum(again, everything))
    assert wait.executions == (4 if wait.mode.startswith("reschedule") else 1)


def test_a_site_record_is_read_once_if_intervals_are_missing(wait, sim):
    late = {"site-00003/MONITOR/00:15": instant("2025-07-01T02:15Z")}
    Arrivals(sim, late.get)
    assert wait(sites="site-00003", stream_types=["MONITOR", "INTERVAL_REVENUE"]) == report(4)
    first = [
        ("site-00003", "INTERVAL_REVENUE,MONITOR", "00:00", "01:00"),
        ("site-00003",),
        ("site-00003", "MONITOR", "00:00", "01:00"),
    ]
    again = [("site-00003", "MONITOR", "00:00", "01:00")]
    assert asked(sim) == sorted(first * 3 if wait.mode == "reschedule" else [*first, *again, *again])


def test_a_site_without_any_of_the_types_counts_as_complete(wait, sim):
    assert wait(sites=["site-00003"], stream_types=["INTERVAL_REVENUE"]) == report(0)
    assert wait(sites=[record(sim, "site-00003")], stream_types=["INTERVAL_REVENUE"]) == report(0)


@pytest.mark.parametrize("resolution", [1800, 3600])
def test_another_resolution(wait, sim, resolution):
    late = {"site-00001/MONITOR/01:00": instant("2025-07-01T02:05Z")}
    arrivals = Arrivals(sim, late.get)
    assert wait(resolution=resolution) == report(3600 // resolution, resolution=resolution)
    assert arrivals.pokes == ["02:00:00", "02:10:00"]


@pytest.mark.parametrize("form", ["id", "record"])
def test_a_stream_is_expected_from_its_start_on(wait, sim, form):
    begins = {"MONITOR": "2025-07-01T00:30:01Z", "CONVERTER": "2025-07-02T00:00:01Z"}

    class Begun(Arrivals):
        def __call__(self, request, payload):
            payload = super().__call__(request, payload)
            return payload if request.path.endswith("/streams") else {**payload, "stream_start_times": begins}

    def late(row):
        _, stream_type, end = row.split("/")
        if stream_type == "CONVERTER" or end <= "00:30":
            return NEVER
        return instant("2025-07-01T02:05Z") if end == "01:00" else None

    Begun(sim, late)
    sites = "site-00001" if form == "id" else {"site_id": "site-00001", "stream_start_times": begins}
    assert wait(sites=sites, stream_types=["MONITOR", "CONVERTER"]) == report(2)


# --- min_completeness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "there", "share"),
    [(25, 7, 0.28), (25, 7, 0.2800000001), (25, 25, 1.0), (25, 24, 0.96), (25, 24, 1.0), (50, 29, 0.58), (25, 1, 1)],
)
def test_min_completeness_is_exact(wait, sim, of, there, share):
    start = instant("2025-07-01T00:00Z")
    window = (start.isoformat(), (start + timedelta(minutes=15 * of)).isoformat())
    wait.clock.set(instant("2025-07-02T00:00Z"))
    ends = [start + timedelta(minutes=15 * (number + 1)) for number in range(of)]
    here = {f"site-00001/MONITOR/{end:%H:%M}" for end in ends[:there]}
    Arrivals(sim, lambda row: None if row in here else NEVER)
    arguments = {"start": window[0], "end": window[1], "min_completeness": share}
    if there / of >= share:
        done = wait(**arguments)
        assert (done["expected"], done["missing"]) == (of, of - there)
        assert len(asked(sim)) == 1
    else:
        with pytest.raises(AirflowSensorTimeout):
            wait(**arguments)


def test_min_completeness_applies_to_all_sites_together(wait, sim):
    Arrivals(sim, lambda row: NEVER if row.startswith("site-00002") else None)
    sites = ["site-00001", "site-00002", "site-00003", "site-00004"]
    assert wait(sites=sites, min_completeness=0.75) == report(16, 4, sites=4)


# --- the first request ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settle", [None, timedelta(minutes=45)])
def test_there_is_no_request_before_the_window_has_ended_and_settled(wait, sim, settle):
    wait.clock.sims = ()
    sim.now = instant("2025-07-01T12:00Z")  # the server always has everything
    seen = []
    Arrivals(sim, lambda _: seen.append(wait.clock.now))
    window = ("2025-07-01T02:00Z", "2025-07-01T03:00Z")
    assert wait(wait.context(*window), settle=settle, poke_interval=420) == report(4, window=window)
    [moment] = set(seen)
    begun = instant(window[1]) + (settle or timedelta())
    # The trigger sends the request at that moment, the other modes with the next poke.
    assert begun <= moment <= begun + timedelta(seconds=0 if wait.mode == "deferred" else 420)
    assert len(asked(sim)) == 1


def test_a_window_that_ends_now_is_requested_now(wait, sim):
    wait.clock.set(instant("2025-07-01T03:00Z"))
    assert wait(wait.context("2025-07-01T02:00Z", "2025-07-01T03:00Z"))["missing"] == 0
    assert len(asked(sim)) == 1
    assert wait.clock.sleeps == []


def test_a_server_whose_clock_is_behind_and_that_rejects_the_future(wait, stem_simulator_factory, monkeypatch):
    sim = stem_simulator_factory(future="refuse", settle=300.0)
    connect(sim, monkeypatch)
    wait.clock.sims = (sim,)
    wait.clock.set(instant("2025-07-01T03:00Z"))
    arrivals = Arrivals(sim)
    assert wait(wait.context("2025-07-01T02:00Z", "2025-07-01T03:00Z"), poke_interval=120)["missing"] == 0
    assert arrivals.pokes[-1] == "03:06:00"


# --- poke_interval and timeout ----------------------------------------------------------------------------------------


def test_the_poke_interval_is_the_time_between_two_pokes(wait, sim):
    # Half of the window is enough, and arrives.
    arrivals = Arrivals(sim, lambda row: instant("2025-07-01T03:00Z") if row[-5:] < "00:45" else NEVER)
    assert wait(poke_interval=timedelta(minutes=17), min_completeness=0.5) == report(4, 2)
    assert arrivals.pokes == ["02:00:00", "02:17:00", "02:34:00", "02:51:00", "03:08:00"]


def test_a_time_out_is_the_same_in_each_mode(wait, sim):
    Arrivals(sim, never_whole)
    with pytest.raises(AirflowSensorTimeout) as error:
        wait()
    assert type(error.value) is AirflowSensorTimeout
    # The last poke is the one after which the time has passed; a trigger pokes once more at that moment.
    ended = wait.clock.now - instant("2025-07-01T02:00Z") - timedelta(seconds=RUN)
    assert timedelta() <= ended <= timedelta(seconds=600)
    assert str(error.value) == (
        f"Not available within {RUN} s: 3 of 4 intervals received, 1 of 1 sites incomplete; missing: 1 MONITOR; "
        "first MONITOR of site site-00001 for the interval that ends at 2025-07-01T00:45:00Z."
    )
    assert not ended or wait.mode != "deferred"


@pytest.fixture
def waits(sim, monkeypatch):
    """The waits for a pace of a thousand seconds, which take no time."""
    waits: list[float] = []
    monkeypatch.setattr(Transport, "_wait_until_closed", lambda _, seconds: waits.append(seconds))
    monkeypatch.setattr(pace, "_paces", WeakValueDictionary())  # without that of another test
    connect(sim, monkeypatch, requests_per_second=0.001)
    return waits


@pytest.mark.parametrize("flag", [None, "soft_fail", "never_fail"])
def test_no_wait_for_the_pace_exceeds_the_time_out(wait, sim, waits, flag):
    sites = [f"site-0000{number}" for number in range(1, 8)]
    expected = AirflowSkipException if flag else AirflowSensorTimeout
    says = (
        "Not available within 2500 s: 8 of 28 intervals received, 5 of 7 sites incomplete; "
        "not requested yet: 5 sites; requests_per_second of the connection allows no more"
    )
    with pytest.raises(expected, match=says):
        wait(sites=sites, timeout=2500, max_workers=1, **({flag: True} if flag else {}))
    assert waits
    assert max(waits) <= 2500
    assert len(asked(sim)) == 2
    assert wait.payloads == []  # in each mode, the worker ends it


@pytest.mark.parametrize("share", [0.3, 0.31])
def test_a_share_of_all_sites_is_enough_without_turns_for_the_others(wait, sim, waits, share):
    sites = [
        *(f"site-0000{number}" for number in range(1, 7)),
        record(sim, "site-00007", MONITOR="2025-07-01T00:30:01Z"),
    ]
    arguments = {"sites": sites, "timeout": 2500, "max_workers": 1, "min_completeness": share}
    if share == 0.3:
        assert wait(**arguments) == report(26, 18, sites=7, incomplete_sites=5)
    else:
        with pytest.raises(AirflowSensorTimeout, match="8 of 26 intervals received"):
            wait(**arguments)


def test_turns_that_are_in_time_are_used(wait, sim, waits):
    assert wait(sites=["site-00001", "site-00002"], timeout=2500)["missing"] == 0
    assert max(waits) <= 2500


def test_there_is_one_poke_with_a_pace_even_if_the_timeout_is_zero(wait, sim, monkeypatch):
    connect(sim, monkeypatch, requests_per_second=1000)
    assert wait(timeout=0)["missing"] == 0


@pytest.mark.parametrize("soft_fail", [False, True])
def test_there_is_no_other_poke_if_the_first_takes_longer_than_the_timeout(wait, sim, soft_fail):
    def answer_late(_, payload):
        wait.clock.set(wait.clock.now + timedelta(seconds=20))
        payload["stream_types"][0]["streams"] = payload["stream_types"][0]["streams"][:4]  # with one of the padding
        return payload

    sim.rewrite = answer_late
    with pytest.raises(
        AirflowSkipException if soft_fail else AirflowSensorTimeout, match="Not available within 10 s: 3 "
    ):
        wait(timeout=10, soft_fail=soft_fail)
    assert len(asked(sim)) == 1


def test_a_window_that_never_ends_times_out_too(wait, sim):
    with pytest.raises(AirflowSensorTimeout) as error:
        wait(wait.context("2025-07-01T00:00Z", "2025-07-05T00:00Z"), sites=["site-00001", "site-00002"])
    assert asked(sim) == []
    assert "2 of 2 sites incomplete; not requested yet: 2 sites" in str(error.value)


@pytest.mark.parametrize("flag", ["soft_fail", "never_fail"])
def test_a_time_out_skips_with_soft_fail_and_never_fail(wait, sim, flag):
    Arrivals(sim, never_whole)
    with pytest.raises(AirflowSkipException) as error:
        wait(**{flag: True})
    assert "missing: 1 MONITOR" in str(error.value)
    assert wait.clock.now >= instant("2025-07-01T02:00Z") + timedelta(seconds=RUN)


def test_deferred_pauses_grow_up_to_max_wait(sim, clock, monkeypatch):
    arrivals = Arrivals(sim, lambda _: instant("2025-07-01T02:50Z"))
    wait = Waiting("deferred", clock, monkeypatch)
    wait(poke_interval=60, exponential_backoff=True, max_wait=timedelta(minutes=20))
    assert arrivals.pokes == ["02:00:00", "02:01:00", "02:03:00", "02:07:00", "02:15:00", "02:31:00", "02:51:00"]


def test_pauses_that_grow_without_a_limit_end_with_the_time_out(wait, sim):
    Arrivals(sim, never_whole)
    with pytest.raises(AirflowSensorTimeout):
        wait(poke_interval=60, exponential_backoff=True)
    assert len(asked(sim)) < 25


@pytest.mark.parametrize("timeout", [0, timedelta(0)])
def test_there_is_one_poke_even_if_the_timeout_is_zero(wait, sim, timeout):
    assert wait(timeout=timeout) == report(4)


# --- Airflow's own time limit of a trigger ----------------------------------------------------------------------------

MARKERS = [
    {"error": "Trigger timeout"},  # 3.x
    {"error": "Trigger/execution timeout"},  # 2.11
]
try:
    from airflow.models.trigger import TriggerFailureReason
except ImportError:
    pass
else:
    MARKERS.append({"error": TriggerFailureReason.TRIGGER_TIMEOUT})


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize(
    ("flags", "outcome"),
    [
        ({}, AirflowSensorTimeout),
        ({"soft_fail": True}, AirflowSkipException),
        ({"never_fail": True}, AirflowSkipException),
    ],
)
def test_airflows_own_limit_of_the_trigger_is_a_time_out_as_well(marker, flags, outcome):
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, **flags)
    with pytest.raises(outcome) as error:
        sensor.resume_execution("__fail__", marker, run_context(*HOUR))
    assert type(error.value) is outcome


@pytest.mark.parametrize("flags", [{}, {"soft_fail": True}])
@pytest.mark.parametrize("marker", [{"error": "Trigger failure", "traceback": ["line 1"]}, {}, None])
def test_a_trigger_failure_in_airflow_is_not_a_time_out(marker, flags):
    sensor = StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, **flags)
    # A retry can help, and nothing was late.
    with pytest.raises(StemError, match="The trigger failed: .* See the triggerer.s log"):
        sensor.resume_execution("__fail__", marker, run_context(*HOUR))


def test_airflows_time_limit_is_later_than_the_sensors(sim, clock):
    Arrivals(sim, never_whole)
    with pytest.raises(TaskDeferred) as deferred:
        StemStreamsSensor(task_id="wait", sites="site-00001", deferrable=True, timeout=RUN).execute(run_context(*HOUR))
    deadline = instant(deferred.value.trigger.deadline)
    assert deadline == clock.now + timedelta(seconds=RUN)
    assert clock.now + deferred.value.timeout > deadline


# --- errors -----------------------------------------------------------------------------------------------------------

FINAL = {
    401: "Check the API key (Password) of connection 'stem_default'",
    403: "grant the key of connection 'stem_default' this permission",
    404: "Check the id, and the Host of connection 'stem_default'",
}
FLAGS = [{}, {"soft_fail": True}, {"silent_fail": True}, {"never_fail": True}]


def flag_names(flags):
    return next(iter(flags), "no flag") if isinstance(flags, dict) else None


@pytest.mark.parametrize("flags", FLAGS, ids=flag_names)
@pytest.mark.parametrize("before", [0, 2], ids=["first poke", "later poke"])
@pytest.mark.parametrize("status", FINAL)
def test_final_errors_fail_without_retries_and_without_a_soft_skip(wait, sim, status, before, flags):
    Arrivals(sim, never_whole)
    sim.fail(status, times=None, after=before, path="/streams")
    with pytest.raises(AirflowSkipException if "never_fail" in flags else AirflowFailException) as error:
        wait(**flags)
    assert FINAL[status] in str(error.value) or "never_fail" in str(error.value)
    assert len(asked(sim)) == before + 1
    assert [payload["status"] for payload in wait.payloads] == ["error"] * (wait.mode == "deferred" and before > 0)


@pytest.mark.parametrize("flags", [{}, {"soft_fail": True}], ids=flag_names)
@pytest.mark.parametrize("before", [0, 2], ids=["first poke", "later poke"])
@pytest.mark.parametrize(("kind", "expected"), [("reset", StemTransportError), (503, StemServerError)])
def test_retryable_errors_are_raised_for_airflow_to_retry(wait, sim, kind, expected, before, flags):
    Arrivals(sim, never_whole)
    sim.fail(kind, times=None, after=before)
    with pytest.raises(StemError) as error:
        wait(**flags)
    assert type(error.value) is expected
    if kind == 503:
        assert error.value.args[:2] == (503, "The request failed with status 503.")
    assert len(asked(sim)) == before + 1


def test_retryable_errors_skip_with_never_fail(wait, sim):
    sim.fail(503, times=None)
    with pytest.raises(AirflowSkipException):
        wait(never_fail=True)


@pytest.mark.parametrize("before", [0, 1], ids=["first poke", "later poke"])
def test_retryable_errors_are_logged_and_ignored_with_silent_fail(wait, sim, before, capsys, caplog):
    Arrivals(sim, {"site-00001/MONITOR/00:45": instant("2025-07-01T02:05Z")}.get)
    sim.fail(503, times=2, after=before)
    assert wait(silent_fail=True) == report(4)
    assert [request.status for request in sim.requests] == [200] * before + [503, 503, 200]
    assert wait.clock.now - instant("2025-07-01T02:00Z") == timedelta(seconds=600 * (before + 2))
    assert "HTTP 503" in capsys.readouterr().out + caplog.text


def test_intervals_found_before_an_error_are_not_requested_again(wait, sim):
    sites = ["site-00001", "site-00002", "site-00003"]
    sim.fail(503, path="site-00003")
    assert wait(sites=sites, silent_fail=True, max_workers=1) == report(12, sites=3)
    requests = [site for site, *_ in asked(sim)]
    assert requests.count("site-00003") == 2
    again = 2 if wait.mode == "reschedule" else 1
    assert requests.count("site-00001") == again


def wrong_connection(monkeypatch, **changed):
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({"conn_type": "stem", **changed}))


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no connection": (
        lambda m: m.delenv("AIRFLOW_CONN_STEM_DEFAULT"),
        {},
        r"stem_default.*Create this connection, or correct the connection id",
    ),
    "no key": (wrong_connection, {}, "Password"),
    "plain http": (lambda m: wrong_connection(m, host="http://stem.example", password="k"), {}, "https"),
    "unknown extra": (lambda m: wrong_connection(m, password="k", extra={"patience": 1}), {}, "patience"),
    "wrong extra": (
        lambda m: wrong_connection(m, password="k", extra={"timeout": "soon"}),
        {},
        "'timeout' of the connection must be .*, got 'soon'",
    ),
    "no sites": (None, {"sites": []}, "sites is empty. Use at least one"),
    "a number": (None, {"sites": 17}, "Invalid sites 17. Use a site id"),
    "a wrong record": (None, {"sites": [{"name": "x"}]}, "with a 'site_id'"),
    "no such start": (
        None,
        {"sites": {"site_id": "a", "stream_start_times": {"MONITOR": "soon"}}},
        "sites contains an invalid record",
    ),
    "a naive end": (None, {"end": "2025-07-01T01:00"}, "Invalid end .2025-07-01.*no UTC offset"),
    "no time": (None, {"start": "soon"}, "Invalid start 'soon'. Use an ISO 8601 time"),
    "backwards": (None, {"start": HOUR[1], "end": HOUR[0]}, "is not after start"),
    "zero width": (None, {"context": (HOUR[0], HOUR[0])}, "CronDataIntervalTimetable.*default_interval"),
}


@pytest.mark.parametrize("flags", FLAGS, ids=flag_names)
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_argument_fails_without_retries_or_requests_and_with_the_remedy(wait, sim, monkeypatch, mistake, flags):
    make, arguments, remedy = WRONG[mistake]
    if make:
        make(monkeypatch)
    arguments = dict(arguments)
    context = wait.context(*arguments.pop("context", HOUR))
    with pytest.raises(AirflowSkipException if "never_fail" in flags else AirflowFailException) as error:
        wait(context, rendered=arguments, **flags)
    error.match("never_fail" if "never_fail" in flags else remedy)
    assert sim.requests == []
    assert wait.clock.sleeps == []
    assert wait.executions == 1


@pytest.mark.parametrize("flags", FLAGS, ids=flag_names)
def test_a_connection_that_is_deleted_while_the_sensor_waits(wait, sim, monkeypatch, flags):
    def going(row):
        monkeypatch.delenv("AIRFLOW_CONN_STEM_DEFAULT", raising=False)
        return NEVER

    Arrivals(sim, going)
    with pytest.raises(AirflowSkipException if "never_fail" in flags else AirflowFailException) as error:
        wait(**flags)
    error.match("never_fail" if "never_fail" in flags else "Create this connection, or correct the connection id")
    assert wait.clock.now == instant("2025-07-01T02:10Z")


@pytest.mark.parametrize("flags", FLAGS, ids=flag_names)
def test_a_window_without_an_interval_skips(wait, sim, flags):
    with pytest.raises(AirflowSkipException, match="No interval of 900 s ends within"):
        wait(wait.context("2025-07-01T00:01Z", "2025-07-01T00:14Z"), **flags)
    assert sim.requests == []


def test_soft_and_never_fail_exclude_each_other():
    with pytest.raises(Exception, match="mutually exclusive"):
        StemStreamsSensor(task_id="wait", sites="s", soft_fail=True, never_fail=True)


# --- the event of the trigger -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        "complete",
        {"status": "complete"},
        {"status": "complete", "report": None},
        {"status": "error", "error": "SystemExit", "args": []},
        {"status": "error", "error": "StemApiError", "args": [503]},
        {"status": "error", "error": "StemError"},
        {"status": "success"},
    ],
)
@pytest.mark.parametrize("flags", [{}, {"soft_fail": True}], ids=flag_names)
def test_an_unknown_event_is_an_error(event, flags):
    sensor = StemStreamsSensor(task_id="wait", sites="s", deferrable=True, **flags)
    with pytest.raises(StemError, match="Unknown event of the trigger: .* Install the same version in all components"):
        sensor.resume_execution("execute_complete", {"event": event}, run_context(*HOUR))


# --- windows ----------------------------------------------------------------------------------------------------------


def test_the_window_is_the_operators(wait, sim):
    run = SimpleNamespace(run_after=instant("2025-07-01T01:07Z"))
    context = {**wait.context(), "dag_run": run, "data_interval_start": None, "data_interval_end": None}
    assert wait(context, default_interval=timedelta(hours=1)) == report(4)
    assert wait(context, start="2025-07-01T02:00+02:00", end=instant("2025-07-01T01:14Z")) == report(4)


# --- progress between executions --------------------------------------------------------------------------------------


def test_the_progress_is_small_and_json(sim, clock, monkeypatch):
    Arrivals(sim, lambda row: NEVER if row.startswith("site-00007/MONITOR") else None)
    wait = Waiting("reschedule with a store", clock, monkeypatch)
    with pytest.raises(AirflowSensorTimeout):
        wait(sites=[record(sim, site) for site in sim.fleet.site_ids], timeout=700)
    [kept] = [json.loads(value) for value in wait.store.values()]
    assert list(kept["lags"]) == ["site-00007"]
    assert kept["unseen"] == []
    assert kept["expected"] == 28


def test_progress_of_other_arguments_is_ignored(sim, clock, monkeypatch):
    Arrivals(sim, never_whole)
    wait = Waiting("reschedule with a store", clock, monkeypatch)
    with pytest.raises(AirflowSensorTimeout):
        wait(timeout=0)
    asked(sim)
    sim.rewrite = None
    for changed in ({"sites": "site-00002"}, {"stream_types": ["CONVERTER"]}, {"end": "2025-07-01T00:45Z"}):
        wait(**changed)
        [(_, _, start, end)] = asked(sim)
        assert (start, end) == ("00:00", changed.get("end", HOUR[1])[11:16])


def test_the_progress_is_deleted_at_the_end_so_that_a_cleared_task_starts_again(sim, clock, monkeypatch):
    Arrivals(sim, lambda _: instant("2025-07-01T02:05Z"))
    wait = Waiting("reschedule with a store", clock, monkeypatch)
    assert wait() == report(4)
    assert wait.executions > 1
    assert wait.store == {}
    asked(sim)
    assert wait() == report(4)
    assert len(asked(sim)) == 1


def test_the_progress_is_kept_while_a_site_fails_although_the_others_are_enough(sim, clock, monkeypatch):
    sim.fail(500, times=None, path="site-00003")
    wait = Waiting("reschedule with a store", clock, monkeypatch)
    with pytest.raises(AirflowSensorTimeout):
        wait(sites=["site-00001", "site-00002", "site-00003"], min_completeness=0.5, silent_fail=True, timeout=700)
    assert wait.executions > 2
    [kept] = [json.loads(value) for value in wait.store.values()]
    assert kept["unseen"] == ["site-00003"]
    assert sum("site-00001" in one for one in asked(sim)) == 1


def test_an_older_airflow_logs_what_deferring_saves(sim, clock, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    Arrivals(sim, lambda _: instant("2025-07-01T02:05Z"))
    Waiting("reschedule", clock, monkeypatch)()
    logged = capsys.readouterr().out + caplog.text
    assert "deferrable=True to request only what is missing" in logged


def test_a_deferred_sensor_keeps_nothing_in_the_store(sim, clock, monkeypatch):
    wait = Waiting("deferred", clock, monkeypatch)
    Arrivals(sim, lambda _: instant("2025-07-01T02:05Z"))
    assert wait(wait.context(task_state_store=wait.store)) == report(4)
    assert wait.store == {}


# --- arguments, when the DAG is parsed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resolution": 60}, "Invalid resolution 60"),
        ({"stream_types": ["VOLTAGE"]}, "VOLTAGE"),
        ({"stream_types": []}, "stream_types"),
        ({"min_completeness": 0}, "min_completeness must be a number > 0 and <= 1, .*got 0"),
        ({"min_completeness": 98}, "min_completeness must .*where 0.5 is 50 %, got 98"),
        ({"min_completeness": float("nan")}, "min_completeness must .*got nan"),
        ({"settle": 3600}, "settle must be a timedelta .*got 3600"),
        ({"settle": timedelta(hours=-1)}, "settle"),
        ({"default_interval": timedelta()}, "default_interval"),
        ({"max_workers": 0}, "max_workers must be an integer >= 1, got 0"),
    ],
)
def test_a_wrong_argument_shows_when_the_dag_is_parsed(wrong, says):
    with pytest.raises(StemConfigError, match=says):
        StemStreamsSensor(task_id="wait", sites="s", **wrong)
    with pytest.raises(StemConfigError, match=says):
        StemStreamsSensor.partial(task_id="wait", **wrong)


def test_templates_are_rendered():
    with DAG("dag", schedule=None):
        sensor = StemStreamsSensor(
            task_id="wait",
            sites=["{{ run_id }}"],
            start="{{ ds }}T00:00Z",
            end="{{ ds }}T01:00Z",
            batch="{{ run_id }}",
            stem_conn_id="{{ run_id }}",
        )
    sensor.render_template_fields({"run_id": "site-00009", "ds": "2025-07-01"})
    assert (sensor.sites, sensor.start, sensor.end) == (["site-00009"], *HOUR)
    assert sensor.batch_name == sensor.stem_conn_id == "site-00009"
