"""Decode any bytes as a page of clients or sites, or as one of them. The result is valid, or a ``StemDataError``."""

from __future__ import annotations

import json
import logging

import atheris

from fuzz.harness import TOKENS, check_message, run

with atheris.instrument_imports(include=["airflow_provider_stem", "json"]):
    from airflow_provider_stem.api.client import _segment
    from airflow_provider_stem.api.paging import Pager
    from airflow_provider_stem.api.payloads import read_object
    from airflow_provider_stem.errors import StemConfigError, StemDataError
    from airflow_provider_stem.streams.sites import Site, read_sites, stream_starts

_SITE = {
    "id": "site-00001",
    "name": "Oakland Distribution Center",
    "link": "/api/v1/sites/site-00001",
    "stream_start_times": {"CONVERTER": "2014-02-14T00:00:00Z", "MONITOR": "2011-03-01T16:15:01Z"},
}
_CLIENT = {"id": "acme-foods", "name": "Acme Foods", "link": "/api/v1/clients/acme-foods"}
_PAGES = [
    _SITE,
    _CLIENT,
    {"sites": [_SITE, {**_SITE, "id": "b"}], "total": 2, "page": 1},
    {"clients": [_CLIENT], "total": "1", "page": 1},
    {"sites": None, "clients": [], "total": None},
    {"errors": [{"message": "No.", "code": 400}]},
]
_SEEDS = [json.dumps(page).encode() for page in _PAGES] + [json.dumps(_SITE).encode("utf-16")]
_WORDS = (
    *(
        '"sites"',
        '"clients"',
        '"stream_start_times"',
        '"MONITOR"',
        '"CONVERTER"',
        '"site_id"',
        '"2011-03-01"',
        "-W01-1",
    ),
    *("0000-", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "T23:59:60Z", "T24:00", "2011-03-01T16:15:01"),
)


def _check_site(payload: object, site_id: str) -> None:
    if not isinstance(payload, dict):
        return
    try:
        starts = stream_starts(payload, site_id)
    except StemDataError as error:
        check_message(error, one_line=True)
        return
    for resolution in (900, 1800, 3600):
        for stream_type in starts or ():
            first = Site(site_id, starts).expected_from(stream_type, resolution)
            assert first is None or first % resolution == 0


def _check_listing(payload: dict[str, object], collection: str) -> None:
    pager = Pager(collection, 100)
    try:
        pager.add_page(payload)
    except StemDataError as error:
        check_message(error, one_line=True)
        return
    items = pager.items
    assert len({item["id"] for item in items}) == len(items)
    assert pager.done == (not items)
    for item in items:
        _check_site(item, item["id"])
        try:
            segment = _segment("site_id", item["id"])
        except StemConfigError as error:
            check_message(error, one_line=True)
        else:
            assert segment.isascii()
            assert not {"/", "?", "#", "\\", " "} & set(segment)
            assert segment not in {"", ".", ".."}
        try:
            (site,) = read_sites({"site_id": item["id"], "stream_start_times": item.get("stream_start_times")})
        except StemConfigError as error:
            check_message(error, one_line=True)
        else:
            assert site.site_id == item["id"]


def check(body: bytes) -> None:
    """Decode one body as the response of each endpoint."""
    try:
        payload = read_object(body)
    except StemDataError as error:
        check_message(error, one_line=False)
        return
    _check_site(payload, "site")
    for collection in ("clients", "sites"):
        _check_listing(payload, collection)
    try:
        read_sites(payload)
    except StemConfigError as error:
        check_message(error, one_line=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    run(check, _SEEDS, (*TOKENS, *_WORDS), ".fuzz/listings")
