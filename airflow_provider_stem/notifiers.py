"""Notifier that sends how complete recent telemetry is, through any other of Airflow's notifiers."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseNotifier

from airflow_provider_stem._arguments import (
    check_connection_id,
    check_count,
    check_share,
    check_string,
    checked,
    is_known,
)
from airflow_provider_stem._text import missing_connection, one_line
from airflow_provider_stem.completeness import share_of
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.warehouse.connections import session_factory
from airflow_provider_stem.warehouse.session import check_schema
from airflow_provider_stem.warehouse.sql import SCHEMA

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["StemCompletenessNotifier"]

# Names are those of the current versions of the sites. A site may be in the view without a record.
_BY_SITE = f"""
SELECT counted.site_id, sites.name, counted.expected, counted.received, counted.late, counted.days
FROM (
    SELECT site_id, sum(expected) AS expected, sum(received) AS received, sum(late) AS late,
        count(DISTINCT day) AS days
    FROM {SCHEMA}.completeness
    WHERE day BETWEEN ? AND ?
    GROUP BY site_id
) AS counted
LEFT JOIN {SCHEMA}.sites AS sites ON sites.site_id = counted.site_id AND sites.valid_to IS NULL
"""  # noqa: S608  # nosec B608

_MAX_DAYS = 36_500
_LOCK_TIMEOUT = 60.0
_PLACEHOLDERS = re.compile(r"\{(subject|text|html)\}")
_TEMPLATED: dict[str, Callable[[str, Any], object]] = {
    "page": check_string,
    "sql_conn_id": check_connection_id,
    "schema": check_schema,
}


class _Site(NamedTuple):
    """Numbers of intervals of one site, of all streams, and the number of days that were loaded."""

    site_id: str
    name: str | None
    expected: int
    received: int
    late: int
    days: int

    @property
    def missing(self) -> int:
        return self.expected - self.received


class StemCompletenessNotifier(BaseNotifier):
    """
    Send how complete the telemetry of the last days is, through another notifier.

    The text has the missing share, the sites with the most missing intervals, and the address of the page. It is read
    from the view ``completeness`` of :class:`~airflow_provider_stem.warehouse.operators.StemObjectsToSqlOperator`. Use
    it as a callback of a DAG or task, or of a deadline (Airflow 3.2 or later).

    :param notifier: class of the notifier that sends the text, or its path, such as
        ``"airflow.providers.slack.notifications.slack.SlackNotifier"``. A deadline needs the path.
    :param arguments: its arguments. In each string, ``{subject}``, ``{text}`` and ``{html}``, the text as HTML, are
        replaced.
    :param days: number of UTC days before the end of the run's data interval; without one, before today.
    :param min_missing: share of the expected intervals, above 0 and up to 1; if less is missing, and each day was
        loaded, nothing is sent. Default: send in any case.
    :param worst: how many sites to list, 1 or more.
    :param page: address of the page of completeness; default: none.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres``.
    :param schema: schema of the tables and views.
    :raises StemConfigError: an argument is wrong, or the notifier cannot be imported.
    """

    template_fields: Sequence[str] = ("arguments", "page", "sql_conn_id", "schema")

    @checked
    def __init__(
        self,
        *,
        notifier: str | type[BaseNotifier],
        arguments: Mapping[str, Any],
        days: int = 1,
        min_missing: float | None = None,
        worst: int = 10,
        page: str | None = None,
        sql_conn_id: str = "stem_warehouse",
        schema: str = "stem",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.notifier = notifier
        self.arguments = arguments
        self.days = days
        self.min_missing = min_missing
        self.worst = worst
        self.page = page
        self.sql_conn_id = sql_conn_id
        self.schema = schema

    def check(self, *, days: object, worst: object, min_missing: object, **arguments: Any) -> None:
        """
        Validate ``days``, ``worst``, ``min_missing`` and the other arguments when the DAG is parsed.

        Arguments that are templates are validated after rendering.

        :raises StemConfigError: an argument is wrong.
        """
        check_count("days", days, _MAX_DAYS)
        check_count("worst", worst)
        if min_missing is not None:
            check_share("min_missing", min_missing)
        for name, check in _TEMPLATED.items():
            if is_known(arguments[name]):
                check(name, arguments[name])
        if not isinstance(arguments["arguments"], Mapping):
            raise StemConfigError(
                f"arguments must be a dict of the notifier's arguments, got {arguments['arguments']!r}."
            )
        notifier = self._class(arguments["notifier"])
        try:
            inspect.signature(notifier).bind(**arguments["arguments"])
        except TypeError as exc:
            raise StemConfigError(
                f"Invalid arguments: {notifier.__name__} does not accept them ({exc}). Use those of its documentation."
            ) from None
        same = {name: f"{{{name}}}" for name in ("subject", "text", "html")}
        unfilled = _filled(arguments["arguments"], same)
        is_constant = unfilled == _filled(arguments["arguments"], dict.fromkeys(same, ""))
        if is_constant and "{{" not in str(unfilled):  # a template may render one
            raise StemConfigError(
                "arguments contains no placeholder, so nothing of the text would be sent. Use {subject}, {text} or "
                "{html} in at least one of them."
            )

    def notify(self, context: Context) -> None:
        """
        Read the completeness, and send it.

        :param context: context of the run; its data interval sets the days.
        :raises StemConfigError: ``sql_conn_id``, ``schema`` or ``page`` is wrong after rendering, or the view cannot be
            read.
        :raises StemTransportError: the database cannot be reached, or a load has its DuckDB file open for a minute.
        """
        for name, check in _TEMPLATED.items():
            check(name, getattr(self, name))
        last = self._last_day(context)
        first = last - timedelta(days=self.days - 1)
        sites = self._read(first, last)
        expected, missing = sum(site.expected for site in sites), sum(site.missing for site in sites)
        late = sum(site.late for site in sites)
        # The view has every site on each day that was loaded.
        unloaded = self.days - max((site.days for site in sites), default=0)
        if self.min_missing is not None and expected and not unloaded and missing / expected < self.min_missing:
            self.log.info("Not sent, since %s is missing", share_of(missing, expected))
            return
        subject = f"Stem telemetry of {first if first == last else f'{first} to {last}'} (UTC): "
        if expected:
            subject += (
                f"{share_of(missing, expected)} of {expected:,} intervals missing, {late:,} late, at "
                f"{sum(site.missing > 0 for site in sites):,} of {len(sites):,} sites"
            )
            subject += f"; {unloaded:,} of these days not loaded" if unloaded else ""
        else:
            subject += "no interval is expected. Check that these days and the sites were loaded"
        text = "\n".join([subject, *self._lines(sites)])
        parts = {"subject": subject, "text": text, "html": f"<pre>{html.escape(text)}</pre>"}
        # Not by calling it, which would render the text as a template: it contains names from the API.
        self._class(self.notifier)(**{name: _filled(value, parts) for name, value in self.arguments.items()}).notify(
            context
        )

    def _read(self, first: date, last: date) -> list[_Site]:
        try:
            # For reading only, so that a wrong path does not create a DuckDB file.
            with session_factory(self.sql_conn_id, self.schema, _LOCK_TIMEOUT, read_only=True)() as session:
                return [_Site(*row[:2], *map(int, row[2:])) for row in session.execute(_BY_SITE, first, last)]
        except AirflowNotFoundException as exc:
            raise StemConfigError(missing_connection(exc)) from None
        except StemConfigError as exc:
            raise StemConfigError(
                f"The view {self.schema}.completeness cannot be read with connection {self.sql_conn_id!r}. Create it "
                f"with StemObjectsToSqlOperator, or correct sql_conn_id or schema. ({exc})"
            ) from exc

    @staticmethod
    def _class(notifier: Any) -> Any:
        found = notifier
        if isinstance(notifier, str):
            module, _, name = notifier.rpartition(".")
            try:
                found = getattr(import_module(module), name)
            except (ImportError, AttributeError, TypeError, ValueError) as exc:
                raise StemConfigError(
                    f"Invalid notifier {notifier!r}: it cannot be imported ({one_line(str(exc))}). Use the path of a "
                    "class, and install its provider."
                ) from None
        if not (inspect.isclass(found) and issubclass(found, BaseNotifier)):
            raise StemConfigError(f"Invalid notifier {notifier!r}: it is not a subclass of BaseNotifier.")
        return found

    def _last_day(self, context: Context) -> date:
        end: Any = context.get("data_interval_end")
        run: Any = context.get("dag_run")
        if end is None and isinstance(run, Mapping):  # a deadline has the run as JSON
            end = run.get("data_interval_end") and datetime.fromisoformat(run["data_interval_end"])
        return (end or datetime.now(UTC)).astimezone(UTC).date() - timedelta(days=1)

    def _lines(self, sites: Sequence[_Site]) -> list[str]:
        worst = sorted((site for site in sites if site.missing), key=lambda site: (-site.missing, site.site_id))
        lines = [
            f"{one_line(f'{site.site_id} {site.name or str()}')}: {site.missing:,} of {site.expected:,} missing"
            for site in worst[: self.worst]
        ]
        if len(worst) > self.worst:
            lines.append(f"and {len(worst) - self.worst:,} more")
        return [*lines, self.page] if self.page else lines


def _filled(value: Any, parts: Mapping[str, str]) -> Any:
    """Return an argument with the placeholders in its strings replaced."""
    if isinstance(value, str):
        # In one pass, so that a site's name cannot contain another placeholder.
        return _PLACEHOLDERS.sub(lambda found: parts[found[1]], value)
    if isinstance(value, Mapping):
        return {name: _filled(one, parts) for name, one in value.items()}
    return [_filled(one, parts) for one in value] if isinstance(value, list | tuple) else value
