"""The pages in Airflow, as a read-only web application behind Airflow's login and permissions. For the plugin."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from airflow.configuration import conf
from airflow.utils.session import create_session
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_provider_stem import __version__
from airflow_provider_stem.completeness import runs, source
from airflow_provider_stem.completeness.charts import chart
from airflow_provider_stem.completeness.page import content_policy, label_of, render, write_heat_map
from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.warehouse.connections import session_factory
from airflow_provider_stem.warehouse.session import Session, check_schema

try:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
    from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
except ImportError:
    raise ImportError("The pages of completeness in Airflow's UI need Airflow 3.1 or later.") from None

log = logging.getLogger(__name__)

_LOCK_TIMEOUT = 10.0
_DEFAULT_DAYS = 90
_MAX_DAYS = 366
_MAX_PAGES = 8
_MAX_LANDED = 20
_RUNS = 20
_ROWS = 500
_MAX_OFFSET = 10**9
_RETRY_AFTER = "10"

# Days around these can still be computed.
_FIRST, _LAST = date(1000, 1, 1), date(9999, 1, 1)


def _parse_day(value: str) -> date | None:
    """Return a day, or ``None`` for an emptied field. Pydantic would accept a number of seconds too."""
    day = date.fromisoformat(value) if value else None
    if day and not _FIRST <= day <= _LAST:
        raise ValueError(value)
    return day


_Day = Annotated[date | None, BeforeValidator(_parse_day)]


@cache
def pages() -> ASGIApp:
    """Return the application. Each of its responses has the content security policy."""
    app = FastAPI(title="Stem", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    # FastAPI's own types of handlers are too narrow.
    app.add_exception_handler(HTTPException, _on_http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _on_invalid_request)  # type: ignore[arg-type]
    app.add_exception_handler(StemTransportError, _on_busy)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _on_error)
    app.include_router(_of_warehouse)
    app.include_router(_of_dag)
    headers = {
        "content-security-policy": content_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }

    async def secured(scope: Scope, receive: Receive, send: Send) -> None:
        async def add_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [*message.get("headers", ())]
                own += [(name.encode(), value.encode()) for name, value in headers.items()]
                if b"cache-control" not in {name.lower() for name, _ in own}:
                    own.append((b"cache-control", b"no-store"))
                message["headers"] = own
            await send(message)

        await app(scope, receive, add_headers)

    return secured


_of_warehouse = APIRouter(dependencies=[Depends(requires_access_view(AccessView.WEBSITE))])
# The receipts are XComs.
_of_dag = APIRouter(dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))])


@_of_warehouse.get("/")
@_of_warehouse.get("/completeness/")
def start(request: Request) -> Response:
    """Redirect an address that was cut off to the heat map."""
    return RedirectResponse(f"{_root(request)}/completeness")


@_of_warehouse.get("/completeness")
def completeness(request: Request, first_day: _Day = None, last_day: _Day = None) -> Response:
    """Return the heat map of all sites. The script reads the filters in the address."""
    first, last = _period(first_day, last_day)
    if not _conn_id():
        return _page(request, "setup")
    etag, body = _heat_maps.get(first, last, _root(request))
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match", "").removeprefix("W/") == etag:
        return Response(status_code=int(HTTPStatus.NOT_MODIFIED), headers=headers)
    return Response(body, media_type="text/html", headers=headers)


# Ids are in the query: in a path, one with a line break would reach no page.
@_of_warehouse.get("/completeness/day")
def site_day(
    request: Request, user: GetUserDep, site_id: str, day: Annotated[date, BeforeValidator(_parse_day)]
) -> Response:
    """Return the curves of a site's UTC day, what is missing, what was restated, and what landed it."""
    with _warehouse() as session:
        curves = source.read_curves(session, site_id, day)
        name, client_id, time_zone = source.read_site(session, site_id)
        restated = source.read_restatements(session, site_id, day)
        loads = source.read_loads(session, site_id, day)
    _check_known(curves, name, client_id)
    resolutions = {curve.counts.resolution for curve in curves}
    loads = [load for load in loads if load.resolution is None or load.resolution in resolutions]
    named = {dag_id for dag_id in (*(one.dag_id for one in loads), *(one.dag_id for one in restated)) if dag_id}
    readable = get_auth_manager().filter_authorized_dag_ids(dag_ids=named, user=user) if named else set()
    landed = []
    with create_session() as database:
        for load in loads[:_MAX_LANDED]:
            is_readable = load.dag_id in readable and load.run_id
            task = runs.landing_task(database, load.uri, load.dag_id, load.run_id) if is_readable else None  # type: ignore[arg-type]
            if task is not None and task.dag_id not in readable:
                may_read = get_auth_manager().filter_authorized_dag_ids(dag_ids={task.dag_id}, user=user)
                task = task if may_read else None
            landed.append((load, task))
    return _page(
        request,
        "day",
        label=label_of(site_id, name),
        site_id=site_id,
        time_zone=time_zone,
        day=day,
        before=day - timedelta(days=1),
        after=day + timedelta(days=1),
        curves=[(curve, chart(curve, restated)) for curve in curves],
        restated=restated,
        landed=landed,
        left_out=len(loads) - len(landed),
        readable=readable,
    )


@_of_warehouse.get("/completeness/site")
def site(request: Request, site_id: str, first_day: _Day = None, last_day: _Day = None) -> Response:
    """Return the record of a site, and the counts of each of its days."""
    first, last = _period(first_day, last_day)
    with _warehouse() as session:
        days = source.read_stream_days(session, site_id, first, last)
        name, client_id, time_zone = source.read_site(session, site_id)
    _check_known(days, name, client_id)
    return _page(
        request,
        "site",
        label=label_of(site_id, name),
        site_id=site_id,
        client_id=client_id,
        time_zone=time_zone,
        first_day=first,
        last_day=last,
        days=days,
        expected=sum(one.expected for one in days),
        missing=sum(one.missing for one in days),
        late=sum(one.late for one in days),
    )


def _check_known(loaded: Sequence[object], name: str | None, client_id: str | None) -> None:
    """Raise an error if the warehouse has neither data nor a record of a site."""
    if not loaded and name is None and client_id is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "The warehouse has no data of this site.")


@_of_warehouse.get("/restatements")
def restatements(
    request: Request,
    first_day: _Day = None,
    last_day: _Day = None,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
) -> Response:
    """Return the days of streams whose values loads have changed, page by page."""
    first, last = _period(first_day, last_day)
    with _warehouse() as session:
        changes = source.read_changes(session, first, last, _ROWS + 1, offset)
    return _page(
        request,
        "restatements",
        first_day=first,
        last_day=last,
        changes=changes[:_ROWS],
        offset=offset,
        rows=_ROWS,
        has_more=len(changes) > _ROWS,
    )


@_of_dag.get("/dags/{dag_id}")
def dag(request: Request, dag_id: str) -> Response:
    """Return what the latest runs of a DAG landed."""
    with create_session() as database:
        run_ids = runs.latest_runs(database, dag_id, _RUNS)
        landed = list(runs.landings(database, dag_id, run_ids))
    return _landings(request, dag_id, None, landed)


@_of_dag.get("/dags/{dag_id}/runs/{run_id:path}")
def dag_run(request: Request, dag_id: str, run_id: str) -> Response:
    """Return what a run landed."""
    with create_session() as database:
        landed = list(runs.landings(database, dag_id, [run_id]))
    return _landings(request, dag_id, run_id, landed)


def _landings(request: Request, dag_id: str, run_id: str | None, landed: list[runs.Landing]) -> Response:
    totals: dict[tuple[Any, ...], dict[str, int]] = {}
    for one in sorted(landed, key=lambda one: (one.start, one.end), reverse=True):
        window = one.task.run_id, one.start, one.end, one.resolution
        sums = totals.setdefault(window, dict.fromkeys(one.counts, 0) | {"tasks": 0})
        for name, number in one.counts.items():
            sums[name] += number
        sums["tasks"] += 1
    last = max((one.end for one in landed), default=None)
    # The heat map shows a limited number of days: the latest ones.
    first = last and max(min(one.start for one in landed), last - timedelta(days=_MAX_DAYS - 1))
    return _page(
        request,
        "landings",
        dag_id=dag_id,
        run_id=run_id,
        totals=totals,
        tasks=landed if run_id else [],
        runs=_RUNS,
        # An interval belongs to the day in which it begins, so the end of a window is not one of its days.
        first_day=first and first.date(),
        last_day=last and (last - timedelta(microseconds=1)).date(),
        has_warehouse=bool(_conn_id()),
    )


class _HeatMaps:
    """
    The pages with the heat map that were made last, until the warehouse changes.

    One request at a time makes a page, so that many requests do not read the warehouse many times.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: OrderedDict[tuple[date, date, str], tuple[str, bytes]] = OrderedDict()

    def get(self, first: date, last: date, root: str) -> tuple[str, bytes]:
        """Return the ETag of a page, and the page. While a load has a DuckDB file open, it may be an earlier page."""
        key = first, last, root
        try:
            return self._current(key)
        except StemTransportError:
            if key not in self._pages:
                raise
            return self._pages[key]

    def _current(self, key: tuple[date, date, str]) -> tuple[str, bytes]:
        with _warehouse() as session:
            version = f"{__version__} {content_policy()} {source.read_version(session)} {key}"
            etag = f'"{hashlib.sha256(version.encode()).hexdigest()[:32]}"'
            known = self._pages.get(key)
            if known is not None and known[0] == etag:
                return known
            if not self._lock.acquire(timeout=_LOCK_TIMEOUT):
                raise StemTransportError("Another request has read the warehouse for a long time.")
            try:
                known = self._pages.pop(key, None)
                if known is not None and known[0] == etag:  # another request has made it in the meantime
                    self._pages[key] = known
                    return known
                page = self._pages[key] = etag, _heat_map(session, *key)
                while len(self._pages) > _MAX_PAGES:
                    self._pages.popitem(last=False)
                return page
            finally:
                self._lock.release()


_heat_maps = _HeatMaps()


def _heat_map(session: Session, first: date, last: date, root: str) -> bytes:
    made = datetime.now(UTC)
    cells = source.read_cells(session, first, last)
    file = io.BytesIO()
    write_heat_map(cells, file, names=source.read_names(session), made=made, root=root)
    return file.getvalue()


def _conn_id() -> str:
    return str(conf.get("stem", "completeness_conn_id", fallback=""))


@contextmanager
def _warehouse() -> Iterator[Session]:
    conn_id = _conn_id()
    if not conn_id:
        raise HTTPException(HTTPStatus.NOT_FOUND, "No warehouse is set. Set completeness_conn_id in section [stem].")
    schema = conf.get("stem", "completeness_schema", fallback="stem")
    check_schema("completeness_schema", schema)
    with session_factory(conn_id, schema, _LOCK_TIMEOUT, read_only=True)() as session:
        yield session


def _period(first: date | None, last: date | None) -> tuple[date, date]:
    """
    Return the period of a page: the days before today, unless a request has others.

    :raises HTTPException: the period is empty or too long.
    """
    last = last or (first + timedelta(days=_DEFAULT_DAYS - 1) if first else _today() - timedelta(days=1))
    first = first or last - timedelta(days=_DEFAULT_DAYS - 1)
    number = (last - first).days + 1
    if number < 1:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f"last_day {last} is before first_day {first}. Use a later last_day."
        )
    if number > _MAX_DAYS:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"The period has {number:,} days. Use 1 to {_MAX_DAYS} days.")
    return first, last


def _today() -> date:
    return datetime.now(UTC).date()


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _page(request: Request, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    root = _root(request)
    airflow = root.removesuffix("/stem")
    body = render(template, root=root, airflow=airflow, path=_path, query=urlencode, **values)
    return HTMLResponse(body, int(status))


def _path(*parts: object) -> str:
    """Return parts of a path, each quoted whole."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def _message(request: Request, status: int, text: str, **headers: str) -> Response:
    response = _page(
        request,
        "message",
        status=status,
        title=HTTPStatus(status).phrase,
        text=text,
        login=f"{_root(request).removesuffix('/stem')}/api/v2/auth/login?{urlencode({'next': str(request.url)})}"
        if status == HTTPStatus.UNAUTHORIZED
        else "",
    )
    response.headers.update(headers)
    return response


def _on_http_error(request: Request, error: HTTPException) -> Response:
    return _message(request, error.status_code, str(error.detail), **(error.headers or {}))


def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    names = sorted({str(one["loc"][-1]) for one in error.errors()})
    expected = f"a number from 0 to {_MAX_OFFSET:,}" if names == ["offset"] else "days such as 2025-07-01"
    return _message(request, HTTPStatus.BAD_REQUEST, f"Invalid {', '.join(names)}. Use {expected}.")


def _on_busy(request: Request, error: StemTransportError) -> Response:
    log.warning("A page of completeness could not be read: %s", error)
    text = "A load is writing the warehouse, or it does not answer. Try again in a moment."
    return _message(request, HTTPStatus.SERVICE_UNAVAILABLE, text, **{"retry-after": _RETRY_AFTER})


def _on_error(request: Request, error: Exception) -> Response:
    # The text of a database's error can contain addresses and names of users. The log has it.
    log.error("A page of completeness failed", exc_info=error)
    is_wrong = isinstance(error, StemConfigError)
    text = "The warehouse cannot be read." if is_wrong else "The page failed."
    return _message(request, HTTPStatus.INTERNAL_SERVER_ERROR, f"{text} See the log of Airflow's API server.")
