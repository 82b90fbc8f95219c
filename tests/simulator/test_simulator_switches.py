from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_stem.simulator import Settings, Simulator, middleware

from .conftest import Get, assert_error, ends, instant, streams, text, values

Factory = Callable[..., Simulator]
DAY: dict[str, Any] = {"start_datetime": "2024-05-01T00:00:00Z", "end_datetime": "2024-05-02T00:00:00Z"}
STREAMS = "sites/site-00001/streams"
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
SITES = "clients/acme-foods/sites"


def grid(first: str, last: str, resolution: int = 900) -> list[int]:
    return list(range(instant(f"2024-05-01T{first}Z"), instant(f"2024-05-01T{last}Z") + 1, resolution))


@pytest.mark.parametrize(("total_as", "expected"), [("items", 10), ("pages", 4), ("string", "10"), ("missing", None)])
def test_total_of_a_list(stem_simulator_factory: Factory, get: Get, total_as: str, expected: object) -> None:
    payload = get(stem_simulator_factory(total_as=total_as), SITES, per_page=3).json()
    assert payload.get("total") == expected
    assert ("total" in payload) == (expected is not None)
    assert len(payload["sites"]) == 3


@pytest.mark.parametrize(("page_as", "expected"), [("number", 2), ("string", "2"), ("missing", None)])
def test_page_of_a_list(stem_simulator_factory: Factory, get: Get, page_as: str, expected: object) -> None:
    payload = get(stem_simulator_factory(page_as=page_as), SITES, per_page=3, page=2).json()
    assert payload.get("page") == expected
    assert ("page" in payload) == (expected is not None)


@pytest.mark.parametrize("start_times", ["shown", "null", "missing"])
def test_start_times_of_a_site(stem_simulator_factory: Factory, get: Get, start_times: str) -> None:
    simulator = stem_simulator_factory(start_times=start_times)
    for site in (get(simulator, SITES).json()["sites"][0], get(simulator, "sites/site-00001").json()):
        assert ("stream_start_times" in site) == (start_times != "missing")
        assert bool(site.get("stream_start_times")) == (start_times == "shown")


@pytest.mark.stem_simulator(max_per_page=4)
def test_the_page_size_is_limited_without_an_error(stem_simulator: Simulator, get: Get) -> None:
    payload = get(stem_simulator, SITES, per_page=100).json()
    assert (len(payload["sites"]), payload["total"]) == (4, 10)
    last = get(stem_simulator, SITES, per_page=100, page=3).json()
    assert [site["id"] for site in last["sites"]] == ["site-00009", "site-00010"]


@pytest.mark.parametrize("past_end", ["empty", "not_found", "repeat", "null"])
def test_a_page_after_the_last_one(stem_simulator_factory: Factory, get: Get, past_end: str) -> None:
    simulator = stem_simulator_factory(past_end=past_end)
    last = get(simulator, SITES, per_page=4, page=3)
    assert len(last.json()["sites"]) == 2
    response = get(simulator, SITES, per_page=4, page=4)
    if past_end == "not_found":
        assert_error(response, 404, "Page 4")
    elif past_end == "repeat":
        assert response.content == last.content
    else:
        assert response.json() == {"sites": [] if past_end == "empty" else None, "total": 10, "page": 4}
    assert get(simulator, "clients", name="Nobody").json()["clients"] == []


@pytest.mark.stem_simulator(row_zone="Z", row_order="descending", gaps=0.1, null_values=0.1)
def test_suffix_and_order_of_rows(stem_simulator: Simulator, get: Get, stem_simulator_factory: Factory) -> None:
    plain = get(stem_simulator_factory(gaps=0.1, null_values=0.1), STREAMS, **DAY)
    other = get(stem_simulator, STREAMS, **DAY)
    assert streams(other)["MONITOR"][0]["end_datetime"].endswith("Z")
    expected = [
        {name: value.replace("+00:00", "Z") if isinstance(value, str) else value for name, value in row.items()}
        for row in streams(plain)["MONITOR"]
    ]
    assert streams(other)["MONITOR"] == expected[::-1]


@pytest.mark.stem_simulator(unknown_fields=True)
def test_unknown_fields_are_added(stem_simulator: Simulator, get: Get, stem_simulator_factory: Factory) -> None:
    plain = stem_simulator_factory()

    def extra(path: str, *keys: str | int, **parameters: Any) -> set[str]:
        pair = []
        for simulator in (stem_simulator, plain):
            item = get(simulator, path, **parameters).json()
            for key in keys:
                item = item[key]
            pair.append(item)
        with_more, without = pair
        assert without.items() <= with_more.items()
        return set(with_more) - set(without)

    assert len(extra("clients", "clients", 1)) == 1
    assert len(extra(SITES, "sites", 3)) == 1
    for row in (0, 50, 95):
        assert len(extra(STREAMS, "stream_types", 0, "streams", row, **DAY)) == 1


@pytest.mark.stem_simulator(future="refuse", now=NOON)
def test_a_range_in_the_future_can_be_rejected(stem_simulator: Simulator, get: Get) -> None:
    assert_error(get(stem_simulator, STREAMS, **DAY), 400, "future")
    allowed = get(stem_simulator, STREAMS, start_datetime=DAY["start_datetime"], end_datetime="2024-05-01T12:00:00Z")
    assert ends(allowed) == grid("00:15:00", "12:00:00")


@pytest.mark.stem_simulator(now=NOON + timedelta(minutes=14, seconds=59))
def test_only_intervals_that_have_ended_are_returned(stem_simulator: Simulator, get: Get) -> None:
    assert ends(get(stem_simulator, STREAMS, **DAY)) == grid("00:15:00", "12:00:00")
    stem_simulator.now = NOON + timedelta(minutes=15)
    assert ends(get(stem_simulator, STREAMS, **DAY)) == grid("00:15:00", "12:15:00")
    assert ends(get(stem_simulator, STREAMS, **DAY, resolution=3600)) == grid("01:00:00", "12:00:00", 3600)


def test_without_a_fixed_time_the_clock_is_used(stem_simulator: Simulator, get: Get) -> None:
    before = int(time.time())
    response = get(stem_simulator, STREAMS, start_datetime=text(before - 7200), end_datetime=text(before + 7200))
    assert ends(response)[-1] in (before // 900 * 900, int(time.time()) // 900 * 900)


@pytest.mark.stem_simulator(settle=1800, now=NOON)
def test_intervals_appear_after_settling(stem_simulator: Simulator, get: Get) -> None:
    assert ends(get(stem_simulator, STREAMS, **DAY))[-1] == instant("2024-05-01T11:30:00Z")
    assert ends(get(stem_simulator, STREAMS, **DAY, resolution=3600))[-1] == instant("2024-05-01T11:00:00Z")
    stem_simulator.now = NOON + timedelta(minutes=30)
    assert ends(get(stem_simulator, STREAMS, **DAY, resolution=3600))[-1] == instant("2024-05-01T12:00:00Z")


@pytest.mark.stem_simulator(restate=3600, now=NOON)
def test_provisional_values_are_restated(stem_simulator: Simulator, get: Get) -> None:
    _, truth = stem_simulator.fleet.values("site-00001", "MONITOR", 900, *grid("00:15:00", "12:00:00", 42_300))
    final = dict(zip(grid("00:15:00", "12:00:00"), truth.tolist(), strict=True))
    first = values(get(stem_simulator, STREAMS, **DAY))
    differing = [end for end in final if first[end] != final[end]]
    assert differing == grid("11:15:00", "12:00:00")
    hourly = values(get(stem_simulator, STREAMS, **DAY, resolution=3600))
    for end, value in hourly.items():
        assert value == pytest.approx(sum(first[end - 900 * n] for n in range(4)) / 4, abs=1e-9)
    stem_simulator.now = NOON + timedelta(minutes=30)
    second = values(get(stem_simulator, STREAMS, **DAY))
    assert [end for end in final if second[end] != final[end]] == grid("11:45:00", "12:00:00")
    stem_simulator.now = NOON + timedelta(minutes=60)
    third = values(get(stem_simulator, STREAMS, **DAY))
    assert {end: third[end] for end in final} == final


@pytest.mark.stem_simulator(partial_bin=True, now=NOON + timedelta(minutes=20))
def test_the_current_interval_is_provisional(stem_simulator: Simulator, get: Get) -> None:
    for resolution, running in ((900, "12:30:00"), (3600, "13:00:00")):
        visible = values(get(stem_simulator, STREAMS, **DAY, resolution=resolution))
        assert list(visible) == grid(f"{'00:15' if resolution == 900 else '01:00'}:00", running, resolution)
        end = max(visible)
        _, final = stem_simulator.fleet.values("site-00001", "MONITOR", resolution, 0 + end - resolution, end)
        assert visible[end] != final[1]
        assert visible[end - resolution] == final[0]
    stem_simulator.now = NOON + timedelta(minutes=30)
    assert max(values(get(stem_simulator, STREAMS, **DAY))) == instant("2024-05-01T12:30:00Z")


@pytest.mark.stem_simulator(partial_bin=True, settle=1800, now=NOON + timedelta(minutes=20))
def test_with_settling_the_partial_interval_follows_the_last_visible(stem_simulator: Simulator, get: Get) -> None:
    visible = values(get(stem_simulator, STREAMS, **DAY))
    assert list(visible) == grid("00:15:00", "12:00:00")
    _, final = stem_simulator.fleet.values("site-00001", "MONITOR", 900, *grid("11:45:00", "12:00:00"))
    assert visible[instant("2024-05-01T11:45:00Z")] == final[0]
    assert visible[instant("2024-05-01T12:00:00Z")] != final[1]


@pytest.mark.stem_simulator(restate=3600, now=NOON)
def test_cached_responses_are_restated_too(stem_simulator: Simulator, get: Get) -> None:
    morning = {**DAY, "end_datetime": "2024-05-01T12:00:00Z"}
    first = values(get(stem_simulator, STREAMS, **morning))
    stem_simulator.now = NOON + timedelta(hours=1)
    second = values(get(stem_simulator, STREAMS, **morning))
    assert [end for end in first if first[end] != second[end]] == grid("11:15:00", "12:00:00")


@pytest.mark.parametrize("stream_type", ["MONITOR", "CONVERTER"])
def test_gaps_and_nulls_have_the_given_share(stem_simulator_factory: Factory, get: Get, stream_type: str) -> None:
    simulator = stem_simulator_factory(gaps=0.2, null_values=0.1)
    month = {
        "start_datetime": "2024-05-01T00:00:00Z",
        "end_datetime": "2024-06-01T00:00:00Z",
        "stream_type": stream_type,
    }
    at, truth = simulator.fleet.values(
        "site-00001", stream_type, 900, instant("2024-05-01T00:15:00Z"), instant("2024-06-01T00:00:00Z")
    )
    fine = values(get(simulator, STREAMS, **month), stream_type)
    assert fine == values(get(stem_simulator_factory(gaps=0.2, null_values=0.1), STREAMS, **month), stream_type)
    missing = set(at.tolist()) - fine.keys()
    assert 0.15 < len(missing) / len(at) < 0.25
    nulls = {end for end, value in fine.items() if value is None}
    assert 0.07 < len(nulls) / len(fine) < 0.13
    final = dict(zip(at.tolist(), truth.tolist(), strict=True))
    assert {end: value for end, value in fine.items() if end not in nulls}.items() <= final.items()
    coarse = values(get(simulator, STREAMS, **month, resolution=1800), stream_type)
    pairs = {end: (end - 900, end) for end in at[1::2].tolist()}
    assert coarse.keys() == {end for end, pair in pairs.items() if missing.isdisjoint(pair)}
    assert {end for end, value in coarse.items() if value is None} == {
        end for end in coarse if not nulls.isdisjoint(pairs[end])
    }


@pytest.mark.stem_simulator(
    gaps=0.03, null_values=0.05, restate=7200, settle=900, partial_bin=True, now=NOON + timedelta(minutes=7)
)
@pytest.mark.parametrize("resolution", [900, 1800, 3600])
def test_the_fleet_returns_the_same_rows_as_the_api(stem_simulator: Simulator, get: Get, resolution: int) -> None:
    response = get(stem_simulator, STREAMS, **DAY, resolution=resolution)
    first, last = instant("2024-05-01T00:00:00Z") + resolution, instant("2024-05-02T00:00:00Z")
    now = stem_simulator.now
    assert now is not None
    rows = stem_simulator.fleet.shown("site-00001", "MONITOR", resolution, first, last, now)
    expected = [None if null else value for null, value in zip(rows.nulls, rows.values.tolist(), strict=True)]
    assert dict(zip(rows.ends.tolist(), expected, strict=True)) == values(response)
    assert len(expected) > 5
    assert any(expected)


def test_gaps_differ_between_streams(stem_simulator_factory: Factory, get: Get) -> None:
    response = get(stem_simulator_factory(gaps=0.5), STREAMS, **DAY, stream_type="MONITOR,CONVERTER")
    assert ends(response, "MONITOR") != ends(response, "CONVERTER")


@pytest.mark.parametrize("share", ["gaps", "null_values"])
def test_all_values_can_be_missing(stem_simulator_factory: Factory, get: Get, share: str) -> None:
    rows = streams(get(stem_simulator_factory(**{share: 1}), STREAMS, **DAY))["MONITOR"]
    assert [row["kw_total_avg"] for row in rows] == ([] if share == "gaps" else [None] * 96)


@pytest.mark.parametrize("retry_after", ["seconds", "date"])
def test_the_rate_limit_rejects_requests_and_recovers(
    stem_simulator_factory: Factory, get: Get, monkeypatch: pytest.MonkeyPatch, retry_after: str
) -> None:
    now = 1000.0
    monkeypatch.setattr(middleware, "time", SimpleNamespace(monotonic=lambda: now))
    simulator = stem_simulator_factory(rate_limit=4, retry_after=retry_after)
    began = datetime.now(UTC)
    responses = [get(simulator, "clients") for _ in range(12)]
    ended = datetime.now(UTC)
    assert [response.status_code for response in responses] == [200] * 4 + [429] * 8
    rejected = responses[-1]
    assert_error(rejected, 429, "Too many")
    if retry_after == "seconds":
        assert rejected.headers["Retry-After"] == "1"
    else:
        when = parsedate_to_datetime(rejected.headers["Retry-After"])
        # An HTTP date has whole seconds.
        assert began + timedelta(seconds=1) < when <= ended + timedelta(seconds=2)
    now += 1 / 4
    assert [get(simulator, "clients").status_code for _ in range(2)] == [200, 429]


@pytest.mark.stem_simulator(latency=0.15)
def test_latency_delays_responses(stem_simulator: Simulator, get: Get) -> None:
    begin = time.perf_counter()
    assert get(stem_simulator, "clients").status_code == 200
    assert time.perf_counter() - begin >= 0.15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reading": "C"}, "reading must be one of A, B, got 'C'"),
        ({"rounding": None}, "rounding"),
        ({"clients": -1}, "clients"),
        ({"sites": 2.5}, "sites"),
        ({"sites": True}, "sites"),
        ({"clients": 0}, "clients must be >= 1 if there are sites, got 0"),
        ({"gaps": 1.5}, "gaps"),
        ({"null_values": float("nan")}, "null_values"),
        ({"latency": "1"}, "latency"),
        ({"max_per_page": 0}, "max_per_page"),
        ({"api_key": ""}, "api_key"),
        ({"now": datetime(2024, 1, 1)}, "with an offset, such as"),  # noqa: DTZ001
        ({"now": "2024-01-01"}, "now"),
        ({"forbidden": "site-00001"}, "forbidden"),
        ({"faults": ("503",)}, "KIND:PROBABILITY"),
        ({"faults": ("503:2",)}, "probability from 0 to 1"),
        ({"faults": ("oops:0.1",)}, "Unknown fault"),
        ({"unknown_fields": "yes"}, "unknown_fields"),
    ],
)
def test_settings_are_validated(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_settings_accept_any_collection_of_ids() -> None:
    settings = Settings(forbidden=["site-00001"], faults=["503:0.1"])  # type: ignore[arg-type]
    assert (settings.forbidden, settings.faults) == (frozenset({"site-00001"}), ("503:0.1",))
    assert hash(settings) == hash(Settings(forbidden=frozenset({"site-00001"}), faults=("503:0.1",)))
