"""Client for the endpoints of the Stem API; used by the hook and the extraction."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from airflow_provider_stem._text import invalid_response, one_line
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.paging import InconsistentListingError, Pager
from airflow_provider_stem.api.payloads import Body, read_object
from airflow_provider_stem.api.transport import Transport
from airflow_provider_stem.errors import (
    StemConfigError,
    StemNotFoundError,
    StemRequestError,
    StemUnavailableError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_RESTARTS = 3


class StemClient:
    """
    Read clients, sites and streams (guide: "Supported End Points").

    Thread-safe. Every method that sends requests raises the errors of :mod:`airflow_provider_stem.errors`.

    :param config: base URL, API key and limits.
    :param sleep: called with the seconds to wait between attempts and for the pace; for tests.
    """

    def __init__(self, config: ClientConfig, sleep: Callable[[float], None] | None = None) -> None:
        self._config = config
        self._transport = Transport(config, sleep)

    @property
    def base_url(self) -> str:
        """The base URL of the API, with a trailing slash."""
        return self._config.base_url

    @property
    def columnar_decoding(self) -> bool:
        """Whether long responses may be decoded in columns."""
        return self._config.columnar_decoding

    @property
    def requests_sent(self) -> int:
        """The number of requests sent so far, including retries."""
        return self._transport.requests_sent

    def redact(self, text: str) -> str:
        """
        Replace the API key in a string with ``***``, however it is encoded there.

        Apply it to everything from the API that goes to a log, a receipt or another system.

        :param text: any string.
        :return: the string without the key.
        """
        return self._config.api_key.redact(text)

    def limit_turns(self, seconds: float) -> None:
        """
        Limit the wait for the connection's pace: a request whose turn is later raises ``NoTurnError``.

        :param seconds: from now.
        """
        self._transport.limit_turns(seconds)

    def close(self) -> None:
        """Interrupt waits and close all connections. Later requests raise `StemTransportError`."""
        self._transport.close()

    def __enter__(self) -> StemClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def list_clients(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over the clients that the key has access to, as the API returned them.

        :param name: list only clients whose name contains this string (guide: "Obtaining clients").
        :raises StemConfigError: ``name`` is not a string.
        :raises StemDataError: the listing is incomplete, see :class:`~airflow_provider_stem.api.paging.Pager`.
        """
        yield from self._listing("clients", "clients", name)

    def get_client(self, client_id: str) -> dict[str, Any]:
        """
        Return one client, as the API returned it.

        :param client_id: an ``id`` from :meth:`list_clients`.
        :raises StemConfigError: ``client_id`` cannot be an id.
        :raises StemNotFoundError: there is no such client.
        :raises StemDataError: the response is for another id.
        """
        return self._transport.get(f"clients/{_segment('client_id', client_id)}", {}, _record_of(client_id))

    def list_sites(self, client_id: str | None = None, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over the sites of one client, or of all clients, as the API returned them. Each site comes once.

        :param client_id: an ``id`` from :meth:`list_clients`; ``None`` lists the sites of all clients.
        :param name: list only sites whose name contains this string (guide: "Obtaining sites").
        :raises StemConfigError: ``client_id`` cannot be an id, or ``name`` is not a string.
        :raises StemDataError: a listing is incomplete, see :class:`~airflow_provider_stem.api.paging.Pager`.
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
        Return one site, as the API returned it.

        :param site_id: an ``id`` from :meth:`list_sites`.
        :raises StemConfigError: ``site_id`` cannot be an id.
        :raises StemNotFoundError: there is no such site.
        :raises StemDataError: the response is for another id.
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
        Request the streams of one time range and return the parsed response (guide: "Reading stream Data").

        :param site_id: an ``id`` from :meth:`list_sites`.
        :param start: ``start_datetime``, UTC, on the grid of ``resolution``.
        :param end: ``end_datetime``, UTC, on the grid of ``resolution``.
        :param stream_types: the types to request, see :data:`~airflow_provider_stem.streams.stream_types.STREAM_TYPES`.
        :param resolution: seconds: 900, 1800 or 3600.
        :param parse: parses the response body, see :class:`~airflow_provider_stem.streams.decoding.StreamsDecoder`.
        :return: what ``parse`` returned.
        :raises StemConfigError: ``site_id`` cannot be an id.
        :raises StemUnavailableError: the site has no stream of one of the types, so the API returned none of them.
        """
        params: dict[str, str | int] = {
            # Not strftime: it does not pad years on every platform.
            "start_datetime": start.replace(tzinfo=None).isoformat(timespec="seconds") + "Z",
            "end_datetime": end.replace(tzinfo=None).isoformat(timespec="seconds") + "Z",
            "resolution": resolution,
            "stream_type": ",".join(stream_types),
        }
        try:
            return self._transport.get(f"sites/{_segment('site_id', site_id)}/streams", params, parse)
        except StemRequestError as exc:
            # Only the text shows it: "The requested stream type - X is unavailable for the requested site." (guide)
            if exc.status == HTTPStatus.BAD_REQUEST and "unavailable" in exc.message.lower():
                named = [name for name in stream_types if re.search(rf"\b{re.escape(name)}\b", exc.message)]
                raise StemUnavailableError(
                    exc.status, exc.message, exc.request_url_without_secrets, None, named
                ) from None
            raise

    def _listing(self, path: str, collection: str, name: str | None) -> list[dict[str, Any]]:
        """
        Return all items of a listing. If the pages are inconsistent, request all of them again.

        :raises StemDataError: the pages are still inconsistent after :data:`_RESTARTS` restarts.
        """
        _check_name(name)
        for restart in range(_RESTARTS + 1):
            pager = Pager(collection, self._config.page_size, name, final=restart == _RESTARTS)
            try:
                while not pager.done:
                    self._read_page(path, pager)
            except InconsistentListingError as exc:
                inconsistency = exc
                log.warning("Attempt %s of %s to list %s: %s", restart + 1, _RESTARTS + 1, collection, exc)
            else:
                return pager.items
        raise inconsistency

    def _read_page(self, path: str, pager: Pager) -> None:
        try:
            self._transport.get(path, pager.params(), lambda body: pager.add_page(read_object(body)))
        except StemNotFoundError as exc:
            # Past the first page, a 404 may mean the end of the listing.
            if pager.page == 1:
                raise
            url = exc.request_url_without_secrets
        else:
            return
        pager.add_not_found(url)


def _record_of(identifier: str) -> Callable[[Body], dict[str, Any]]:
    def parse(body: Body) -> dict[str, Any]:
        record = read_object(body)
        if record.get("id") != identifier:
            raise invalid_response(
                f"The response is for id {one_line(repr(record.get('id')))} instead of {one_line(repr(identifier))}"
            )
        return record

    return parse


def _check_name(name: object) -> None:
    if not (name is None or isinstance(name, str)):
        raise StemConfigError(f"name must be a string, got {name!r}. Use a part of the name, or None.")


def _segment(argument: str, identifier: object) -> str:
    """Return an id percent-encoded as one path segment, so that none of its characters can change the path."""
    if not isinstance(identifier, str) or identifier in {"", ".", ".."}:
        raise StemConfigError(f"Invalid {argument} {one_line(repr(identifier))}. Use an id that the API lists.")
    try:
        return quote(identifier, safe="")
    except UnicodeEncodeError:
        raise StemConfigError(
            f"Invalid {argument} {one_line(repr(identifier))}: not valid Unicode. Use an id that the API lists."
        ) from None
