from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.streams.sites import Site, read_sites, stream_starts

from .helpers import examples, seconds, utc

STARTS = {"CONVERTER": "2014-02-14T00:00:00Z", "MONITOR": "2011-03-01T16:15:01Z"}
RECORD = {"site_id": "b", "name": "B", "client_id": "c", "stream_start_times": STARTS}


class TestReadSites:
    @pytest.mark.parametrize(
        ("argument", "ids"),
        [
            ("a", ["a"]),
            (RECORD, ["b"]),
            (["c", "a", RECORD], ["a", "b", "c"]),
            (("a", "a"), ["a"]),
            ({"a", "b"}, ["a", "b"]),
            (iter(["b", "a"]), ["a", "b"]),
            ({"id": "as the API lists it", "stream_start_times": STARTS}, ["as the API lists it"]),
            (["10", "9", "é", "A"], ["10", "9", "A", "é"]),
            (["x/../y", "a,b", 'q"q', " padded "], [" padded ", "a,b", 'q"q', "x/../y"]),
        ],
    )
    def test_each_site_comes_once_and_sorted(self, argument: Any, ids: list[str]) -> None:
        assert [site.site_id for site in read_sites(argument)] == ids

    @pytest.mark.parametrize("argument", [["b", RECORD], [RECORD, "b"], [RECORD, "b", RECORD]])
    def test_a_record_is_preferred_to_an_id(self, argument: Any) -> None:
        (site,) = read_sites(argument)
        assert site.stream_starts == {"CONVERTER": utc("2014-02-14"), "MONITOR": utc("2011-03-01T16:15:01")}

    @pytest.mark.parametrize("record", [{"site_id": "b"}, {"site_id": "b", "stream_start_times": None}, "b"])
    def test_without_start_times_the_streams_are_unknown(self, record: Any) -> None:
        assert read_sites(record) == [Site("b")]

    def test_a_record_has_its_name_and_client(self) -> None:
        (site,) = read_sites([RECORD, {"id": "b"}])
        assert (site.name, site.client_id) == ("B", "c")

    @pytest.mark.parametrize("field", ["name", "client_id"])
    @pytest.mark.parametrize("wrong", [5, [], {}, b"x"])
    def test_a_name_or_client_that_is_no_string_is_left_out(self, field: str, wrong: Any) -> None:
        (site,) = read_sites({**RECORD, field: wrong})
        assert getattr(site, field) is None
        assert site.stream_starts is not None

    @pytest.mark.parametrize("argument", [[], (), set(), iter([])])
    def test_no_site_at_all_is_an_error(self, argument: Any) -> None:
        with pytest.raises(StemConfigError, match="sites is empty. Use at least one"):
            read_sites(argument)

    @pytest.mark.parametrize("argument", [None, 5, 1.5, True, object()])
    def test_an_argument_that_is_not_a_collection_is_an_error(self, argument: Any) -> None:
        with pytest.raises(StemConfigError, match="Invalid sites .*Use a site id, a site record, or a list of either"):
            read_sites(argument)

    @pytest.mark.parametrize("entry", [None, 5, b"a", [], ["a"], {}, {"name": "a"}, {"site_id": 5}, {"site_id": None}])
    def test_an_entry_that_is_not_a_site_is_an_error_that_shows_it(self, entry: Any) -> None:
        with pytest.raises(StemConfigError, match="sites contains .*Use site ids, or records"):
            read_sites(["a", entry])

    @pytest.mark.parametrize("site_id", ["", " ", ".", "..", "\t", " .. "])
    @pytest.mark.parametrize("form", [lambda site_id: site_id, lambda site_id: {"site_id": site_id}])
    def test_an_invalid_id_is_an_error(self, site_id: str, form: Any) -> None:
        with pytest.raises(StemConfigError, match="invalid site id"):
            read_sites([form(site_id)])

    @pytest.mark.parametrize("times", ["soon", ["MONITOR"], {"MONITOR": "soon"}, {"MONITOR": 5}])
    def test_a_record_with_invalid_start_times_is_a_config_error(self, times: Any) -> None:
        with pytest.raises(StemConfigError, match="invalid record: site b: stream_start_times"):
            read_sites({"site_id": "b", "stream_start_times": times})

    @examples(100)
    @given(ids=st.lists(st.text(min_size=1).filter(lambda s: s.strip() not in {"", ".", ".."}), min_size=1))
    def test_any_ids_are_unchanged(self, ids: list[str]) -> None:
        assert [site.site_id for site in read_sites(ids)] == sorted(set(ids))


class TestStreamStarts:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2011-03-01T16:15:01Z", datetime(2011, 3, 1, 16, 15, 1, tzinfo=UTC)),
            ("2011-03-01T16:15:01+00:00", datetime(2011, 3, 1, 16, 15, 1, tzinfo=UTC)),
            ("2011-03-01T09:15:01-07:00", datetime(2011, 3, 1, 16, 15, 1, tzinfo=UTC)),
            ("2011-03-01T16:15:01", datetime(2011, 3, 1, 16, 15, 1, tzinfo=UTC)),  # all the API's times are UTC
            ("2011-03-01", datetime(2011, 3, 1, tzinfo=UTC)),
            (None, None),
        ],
    )
    def test_times_are_utc(self, text: Any, expected: datetime | None) -> None:
        assert stream_starts({"stream_start_times": {"MONITOR": text}}, "site") == {"MONITOR": expected}

    @pytest.mark.parametrize("text", ["", "soon", 5, True, [], {}, "2011-02-30T00:00:00Z", "0001-01-01T00:00:00+14:00"])
    def test_an_invalid_time_is_an_error_that_names_site_and_type(self, text: Any) -> None:
        with pytest.raises(StemDataError, match=r"site north: stream_start_times of MONITOR is .*not an ISO 8601 time"):
            stream_starts({"stream_start_times": {"MONITOR": text}}, "north")

    @pytest.mark.parametrize("times", ["soon", 5, ["MONITOR"], True])
    def test_start_times_that_are_not_an_object_are_an_error(self, times: Any) -> None:
        with pytest.raises(StemDataError, match="site north: stream_start_times is not an object"):
            stream_starts({"stream_start_times": times}, "north")

    @pytest.mark.parametrize("payload", [{}, {"stream_start_times": None}])
    def test_a_site_without_start_times_is_not_an_error(self, payload: Any) -> None:
        assert stream_starts(payload, "north") is None


class TestSite:
    def test_a_site_lacks_the_types_that_its_record_does_not_list(self) -> None:
        (site,) = read_sites(RECORD)
        assert [site.lacks(name) for name in ("MONITOR", "CONVERTER", "INTERVAL_REVENUE")] == [False, False, True]
        assert not Site("b").lacks("MONITOR")
        assert Site("b", {}).lacks("MONITOR")

    def test_the_first_interval_is_known_if_the_start_is(self) -> None:
        (site,) = read_sites({"site_id": "b", "stream_start_times": {**STARTS, "INTERVAL_REVENUE": None}})
        assert site.expected_from("MONITOR", 900) == seconds(utc("2011-03-01T16:30"))
        assert site.expected_from("CONVERTER", 900) == seconds(utc("2014-02-14T00:15"))
        assert site.expected_from("INTERVAL_REVENUE", 900) is None
        assert not site.lacks("INTERVAL_REVENUE")
        assert Site("b").expected_from("MONITOR", 900) is None
