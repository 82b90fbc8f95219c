"""The API: a FastAPI application with five endpoints."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException
from starlette.types import Scope

from airflow_provider_stem.simulator.cache import BodyCache
from airflow_provider_stem.simulator.encoding import encode_rows
from airflow_provider_stem.simulator.middleware import BASE_PATH, Middleware, Traffic, error_body
from airflow_provider_stem.simulator.model import Client, Fleet, Site, View
from airflow_provider_stem.simulator.parameters import (
    ApiError,
    EndDatetime,
    Name,
    Page,
    PerPage,
    Resolution,
    StartDatetime,
    StreamTypes,
    only,
)
from airflow_provider_stem.simulator.ranges import MAX_RANGE, select
from airflow_provider_stem.simulator.schemas import (
    ClientList,
    ClientModel,
    ErrorPayload,
    SiteList,
    SiteModel,
    SiteStreams,
)
from airflow_provider_stem.simulator.stream_types import STREAM_TYPES

_T = TypeVar("_T")
_LARGE = 20_000  # rows; larger responses are encoded in a thread

_DESCRIPTION = f"""\
A simulator of Stem's Developer Data API: synthetic, reproducible telemetry of battery-storage sites.

* Every call is a **GET** under `/api/v1` with the header `Authorization: APIKEY <key>`.
* An interval of resolution R seconds covers `(k - R, k]`, where `k` is a multiple of R since 1970 in UTC.
  Its row has `start_datetime` = k - R + 1 s and `end_datetime` = k.
* A range is at least one resolution and at most 365 days.
* `kw_total_avg` is the mean power in kW. {", ".join(f"{name} is {one.meaning}" for name, one in STREAM_TYPES.items())}.
* Every response other than 200 has the body `{{"errors": [{{"message", "code"}}]}}`.
"""
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A parameter is missing, unknown or malformed, or the request cannot be served."},
    401: {"description": "The key is missing or invalid."},
    403: {"description": "The key has no permission for this client or site."},
    404: {"description": "There is no such client, site or path."},
    405: {"description": "The method is not GET."},
    429: {"description": "Too many requests. Retry-After is the time to wait."},
    500: {"description": "The API failed on a valid request."},
}
for _entry in _ERRORS.values():
    _entry["model"] = ErrorPayload


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI schema without FastAPI's status 422, which is a 400 in this API."""
        if not self.openapi_schema:
            schema = super().openapi()
            for path in schema["paths"].values():
                path["get"]["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
        return self.openapi_schema or {}


def create_app(
    fleet: Fleet,
    *,
    traffic: Traffic,
    clock: Callable[[], float],
    abort: Callable[[Scope], None],
) -> FastAPI:
    """Return the application.

    :param fleet: the clients and sites to serve, and the settings.
    :param traffic: records requests, and holds the planned faults.
    :param clock: returns the current time in seconds since 1970 in UTC.
    :param abort: closes the connection of a scope immediately, for the fault ``reset``.
    """
    app = _Api(
        title="Stem Developer Data API (simulated)",
        version="v1",
        description=_DESCRIPTION,
        # Its pages load their scripts from the internet.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        routes=_router().routes,
    )
    app.state.service = _Service(fleet, clock)
    app.add_middleware(Middleware, settings=fleet.settings, traffic=traffic, abort=abort)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


@cache
def _router() -> APIRouter:
    # One for all applications: FastAPI takes longer to build routes than a simulator takes to start.
    key = APIKeyHeader(name="Authorization", auto_error=False, description="`APIKEY <key>`")
    router = APIRouter(prefix=BASE_PATH, dependencies=[Security(key)], responses=_ERRORS)
    paging = ("name", "page", "per_page")

    @router.get("/clients", responses={200: {"model": ClientList}}, dependencies=[Depends(only(*paging))])
    async def list_clients(service: _Served, name: Name = "", page: Page = 1, per_page: PerPage = 100) -> Response:
        """List the clients that the key has permission for."""
        return _json(service.list_clients(name, page, per_page))

    @router.get("/clients/{client_id}", responses={200: {"model": ClientModel}}, dependencies=[Depends(only())])
    async def get_client(service: _Served, client_id: str) -> Response:
        """Read one client."""
        return _json(service.client_payload(service.client(client_id)))

    @router.get(
        "/clients/{client_id}/sites",
        responses={200: {"model": SiteList}},
        dependencies=[Depends(only(*paging))],
    )
    async def list_sites(
        service: _Served, client_id: str, name: Name = "", page: Page = 1, per_page: PerPage = 100
    ) -> Response:
        """List the sites of a client that the key has permission for."""
        return _json(service.list_sites(client_id, name, page, per_page))

    @router.get("/sites/{site_id}", responses={200: {"model": SiteModel}}, dependencies=[Depends(only())])
    async def get_site(service: _Served, site_id: str) -> Response:
        """Read one site."""
        return _json(service.site_payload(service.site(site_id)))

    @router.get(
        "/sites/{site_id}/streams",
        responses={200: {"model": SiteStreams}},
        dependencies=[Depends(only("start_datetime", "end_datetime", "resolution", "stream_type"))],
    )
    async def get_streams(
        service: _Served,
        site_id: str,
        start_datetime: StartDatetime,
        end_datetime: EndDatetime,
        resolution: Resolution = 900,
        stream_type: StreamTypes = ["MONITOR"],  # noqa: B006 - FastAPI copies defaults
    ) -> Response:
        """Read a site's streams over a range."""
        site = service.site(site_id)
        body = await service.streams(site, start_datetime, end_datetime, resolution, stream_type)
        return Response(body, media_type="application/json")

    return router


class _Service:
    """Content of the endpoints' responses. Raises :class:`ApiError` for invalid requests."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._settings = fleet.settings
        self._clock = clock
        self._cache = BodyCache(int(fleet.settings.cache_mb * 1_000_000))

    def client(self, client_id: str) -> Client:
        try:
            client = self._fleet.client(client_id)
        except KeyError:
            raise ApiError(404, f"The requested client - {client_id} could not be found.") from None
        if client_id in self._settings.forbidden:
            raise ApiError(403, f"You do not have permission to access the client - {client_id}.")
        return client

    def site(self, site_id: str) -> Site:
        try:
            site = self._fleet.site(site_id)
        except KeyError:
            raise ApiError(404, f"The requested site - {site_id} could not be found.") from None
        if not self._settings.forbidden.isdisjoint((site_id, site.client_id)):
            raise ApiError(403, f"You do not have permission to access the site - {site_id}.")
        return site

    def list_clients(self, name: str, page: int, per_page: int) -> dict[str, Any]:
        found = [
            client
            for client in self._fleet.clients
            if name in client.name and client.id not in self._settings.forbidden
        ]
        return self._page("clients", found, self.client_payload, page, per_page)

    def list_sites(self, client_id: str, name: str, page: int, per_page: int) -> dict[str, Any]:
        fleet, forbidden = self._fleet, self._settings.forbidden
        found: Sequence[int] = fleet.site_indices(self.client(client_id).id)
        if forbidden:
            found = [index for index in found if fleet.site_id(index) not in forbidden]
        if name:
            found = [index for index in found if name in fleet.site_name(index)]
        return self._page(
            "sites", found, lambda index: self.site_payload(fleet.site(fleet.site_id(index))), page, per_page
        )

    def _page(
        self, field: str, found: Sequence[_T], payload: Callable[[_T], Any], page: int, per_page: int
    ) -> dict[str, Any]:
        size = min(per_page, self._settings.max_per_page)
        pages = max(1, -(-len(found) // size))
        items: list[Any] | None
        if page > pages and self._settings.past_end == "not_found":
            raise ApiError(404, f"Page {page} could not be found.")
        if page > pages and self._settings.past_end == "repeat":
            page = pages
        items = [payload(item) for item in found[(page - 1) * size : page * size]]
        if page > pages and self._settings.past_end == "null":
            items = None
        totals = {"items": len(found), "pages": pages, "string": str(len(found))}
        total = {} if self._settings.total_as == "missing" else {"total": totals[self._settings.total_as]}
        numbers = {"number": page, "string": str(page)}
        number = {} if self._settings.page_as == "missing" else {"page": numbers[self._settings.page_as]}
        return {field: items, **total, **number}

    def client_payload(self, client: Client) -> dict[str, Any]:
        extra = {"industry": "unknown"} if self._settings.unknown_fields else {}
        return {
            "id": client.id,
            "name": client.name,
            "link": f"{BASE_PATH}/clients/{quote(client.id, safe='')}",
            **extra,
        }

    def site_payload(self, site: Site) -> dict[str, Any]:
        extra = {"utc_offset": site.building.utc_offset} if self._settings.unknown_fields else {}
        times = {
            name: f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%SZ}"
            for name, start in site.stream_start_times.items()
        }
        starts: dict[str, dict[str, Any]] = {
            "shown": {"stream_start_times": times},
            "null": {"stream_start_times": None},
            "missing": {},
        }
        return {
            "id": site.id,
            "name": site.name,
            "link": f"{BASE_PATH}/sites/{quote(site.id, safe='')}",
            **starts[self._settings.start_times],
            **extra,
        }

    async def streams(self, site: Site, start: int, end: int, resolution: int, stream_types: Sequence[str]) -> bytes:
        now = self._clock()
        self._check_range(start, end, resolution, now)
        missing = [name for name in stream_types if name not in site.stream_start_times]
        if missing:
            raise ApiError(
                400,
                *(f"The requested stream type - {name} is unavailable for the requested site." for name in missing),
            )
        first, last = select(start, end, resolution, reading=self._settings.reading, rounding=self._settings.rounding)
        current = self._fleet.view(resolution, now)
        last = min(last, current.last_end)
        # The view is clipped to the range, so that equal bodies have equal keys in the cache.
        view = View(last, max(min(current.final_end, last), first - resolution))
        key = (site.id, *stream_types, resolution, first, view)
        body = self._cache.get(key)
        if body is None:
            arguments = (site, stream_types, resolution, first, last, view)
            if (last - first) // resolution * len(stream_types) > _LARGE:
                body = await asyncio.to_thread(self._encode, *arguments)
            else:
                body = self._encode(*arguments)
            self._cache.put(key, body)
        return body

    def _check_range(self, start: int, end: int, resolution: int, now: float) -> None:
        if end - start < resolution:
            raise ApiError(
                400, f"end_datetime must be at least the resolution, {resolution} seconds, after start_datetime."
            )
        if end - start > MAX_RANGE:
            raise ApiError(400, "end_datetime must be at most 1 year (365 days) after start_datetime.")
        if end > now and self._settings.future == "refuse":
            raise ApiError(400, "end_datetime must not lie in the future.")

    def _encode(
        self, site: Site, stream_types: Sequence[str], resolution: int, first: int, last: int, view: View
    ) -> bytes:
        settings = self._settings
        rows_by_type = self._fleet.rows(site.id, stream_types, resolution, first, last, view)
        parts = [_text({"id": site.id, "name": site.name})[:-1], b',"stream_types":[']
        for number, (name, rows) in enumerate(rows_by_type.items()):
            parts += [b"," if number else b"", b'{"stream_type":"', name.encode(), b'","streams":[']
            parts += [
                encode_rows(
                    rows,
                    resolution,
                    zone=settings.row_zone,
                    descending=settings.row_order == "descending",
                    unknown_fields=settings.unknown_fields,
                ),
                b"]}",
            ]
        return b"".join([*parts, b"]}"])


async def _service_of(request: Request) -> _Service:
    return cast("_Service", request.app.state.service)


_Served = Annotated[_Service, Depends(_service_of)]


def _text(payload: Any) -> bytes:
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()


def _json(payload: Any) -> Response:
    return Response(_text(payload), media_type="application/json")


def _error(status: int, messages: Iterable[str] = (), headers: Any = None) -> Response:
    return Response(error_body(status, *messages), status, headers, "application/json")


async def _on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # nosec B101 # noqa: S101 - registered for this type
    return _error(error.status, error.messages)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # nosec B101 # noqa: S101 - registered for this type
    messages = []
    for item in error.errors():
        name = item["loc"][1]
        if item["type"] == "missing":
            messages.append(f"The parameter {name} is mandatory.")
        else:
            messages.append(f"The parameter {name} is invalid: {item['msg'].removeprefix('Value error, ')}.")
    return _error(400, messages)


async def _on_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # nosec B101 # noqa: S101 - registered for this type
    return _error(error.status_code, headers=error.headers)
