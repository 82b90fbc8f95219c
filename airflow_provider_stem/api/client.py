"""The Stem API's endpoints as methods; for the hook and for the extraction."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.paging import InconsistentListingError, Pager
from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import (
    StemConfigError,
    StemDataError,
    StemNotFoundError,
    StemRequestError,
    StemUnavailableError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_RESTARTS = 3


class StemClient:
    """
    Reads clients, sites and streams (guide: "Supported End Points").

    Can be shared between threads. Errors are those of :mod:`airflow_provider_stem.errors`.

    :param config: address, key and limits.
    :param sleep: waits between attempts, for tests.
    """

    def __init__(self, config: ClientConfig, sleep: Callable[[float], None] | None = None) -> None:
        self._config = config
        self._transport = Transport(config, sleep)

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return self._config.base_url

    @property
    def requests_sent(self) -> int:
        """How many requests went out so far, retries included."""
        return self._transport.requests_sent

    def redact(self, text: str) -> str:
        """
        Replace the API key in a text by ``***``, in whichever way it is written there.

        For every text that holds something of the API's and goes to a log, a receipt or another system.
        """
        return self._config.api_key.redact(text)

    def close(self) -> None:
        """Stop waiting and close all connections."""
        self._transport.close()

    def __enter__(self) -> StemClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def list_clients(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over all clients that the key may see, as the API sent them.

        :raises StemDataError: the listing is not whole, see :class:`~airflow_provider_stem.api.paging.Pager`.
        """
        yield from self._listing("clients", "clients", name)

    def get_client(self, client_id: str) -> dict[str, Any]:
        """
        Return one client, as the API sent it.

        :raises StemDataError: the answer is for another id.
        """
        return self._transport.get(f"clients/{_segment('client_id', client_id)}", {}, _record_of(client_id))

    def list_sites(self, client_id: str | None = None, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over all sites of a client, or of every client, each once, as the API sent them.

        :raises StemDataError: a listing is not whole, see :class:`~airflow_provider_stem.api.paging.Pager`.
        """
        _check_name(name)
        if client_id is not None:
            yield from self._listing(f"clients/{_segment('client_id', client_id)}/sites", "sites", name)
            return
        seen: set[str] = set()
        for client in self.list_clients():
            for site in self.list_sites(client["id"], name):
                if site["id"] not in seen:
                    seen.add(site["id"])
                    yield site

    def get_site(self, site_id: str) -> dict[str, Any]:
        """
        Return one site, as the API sent it.

        :raises StemDataError: the answer is for another id.
        """
        return self._transport.get(f"sites/{_segment('site_id', site_id)}", {}, _record_of(site_id))

    def get_streams(
        self,
        site_id: str,
        start: datetime,
        end: datetime,
        stream_types: Sequence[str],
        resolution: int,
        parse: Callable[[Body], T],
    ) -> T:
        """
        Ask for the streams of one range and parse the answer.

        :param start: ``start_datetime``, UTC, on the grid of ``resolution``.
        :param end: ``end_datetime``, UTC, on the grid of ``resolution``.
        :param resolution: seconds: 900, 1800 or 3600.
        :param parse: reads the body; see :mod:`airflow_provider_stem.streams.tables`.
        :raises StemUnavailableError: the site lacks one of the types; the API then delivers none of them.
        """
        params: dict[str, str | int] = {
            # Not by strftime, which does not pad years everywhere.
            "start_datetime": start.replace(tzinfo=None).isoformat(timespec="seconds") + "Z",
            "end_datetime": end.replace(tzinfo=None).isoformat(timespec="seconds") + "Z",
            "resolution": resolution,
            "stream_type": ",".join(stream_types),
        }
        try:
            return self._transport.get(f"sites/{_segment('site_id', site_id)}/streams", params, parse)
        except StemRequestError as exc:
            # The guide's one hint is the text: "The requested stream type - X is unavailable for the requested site."
            if exc.status == HTTPStatus.BAD_REQUEST and "unavailable" in exc.message.lower():
                named = [t for t in stream_types if re.search(rf"\b{re.escape(t)}\b", exc.message)]
                raise StemUnavailableError(
                    exc.status, exc.message, exc.request_url_without_secrets, None, named
                ) from None
            raise

    def _listing(self, path: str, collection: str, name: str | None) -> list[dict[str, Any]]:
        """
        Return a listing, whole: pages that do not fit together are all asked for again.

        :raises StemDataError: they still do not after :data:`_RESTARTS` further times.
        """
        _check_name(name)
        for restart in range(_RESTARTS + 1):
            pager = Pager(collection, self._config.page_size, name, final=restart == _RESTARTS)
            try:
                while not pager.done:
                    self._turn_page(path, pager)
            except InconsistentListingError as exc:
                inconsistency = exc
                log.warning("Attempt %s of %s to list %s: %s", restart + 1, _RESTARTS + 1, collection, exc)
            else:
                return pager.items
        raise inconsistency

    def _turn_page(self, path: str, pager: Pager) -> None:
        try:
            self._transport.get(path, pager.params(), lambda body: pager.take(read_object(body)))
        except StemNotFoundError as exc:
            # On the first page it means what it says.
            if pager.page == 1:
                raise
            url = exc.request_url_without_secrets
        else:
            return
        pager.take_not_found(url)


def _record_of(identifier: str) -> Callable[[Body], dict[str, Any]]:
    def parse(body: Body) -> dict[str, Any]:
        record = read_object(body)
        if record.get("id") != identifier:
            raise StemDataError(
                f"the answer is for id {one_line(repr(record.get('id')))}, asked for was {one_line(repr(identifier))}. "
                "Try again later, or report it to Stem if it stays so"
            )
        return record

    return parse


def _check_name(name: object) -> None:
    if not (name is None or isinstance(name, str)):
        raise StemConfigError(f"name is {name!r}: give a part of a name as text, or leave it out.")


def _segment(argument: str, identifier: object) -> str:
    """Quote an opaque id whole, so that no character of it can lead to another path."""
    if not isinstance(identifier, str) or identifier in {"", ".", ".."}:
        raise StemConfigError(f"{argument} is {one_line(repr(identifier))}: give the identifier that the API lists.")
    try:
        return quote(identifier, safe="")
    except UnicodeEncodeError:
        raise StemConfigError(
            f"{argument} is {one_line(repr(identifier))}, which is not valid Unicode: give the identifier that the API "
            "lists."
        ) from None
