"""HTML of the pages. Foreign text is escaped, and a policy allows only the package's own style and scripts."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_stem._text import number_of
from airflow_provider_stem.completeness.cells import Cells, Site, Summary, escaped
from airflow_provider_stem.errors import StemConfigError

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = files(__package__).joinpath("templates")
_SCRIPTS = ("airflow", "heat_map")
_WORST = 20
_DATA = "\0"
"""Where the data goes. No value contains it, since text that is not printable is escaped."""


def render(template: str, *, root: str | None, policy: str = "", **values: Any) -> str:
    """
    Return a page.

    :param template: name of the template, without suffix.
    :param root: path of the plugin's pages in Airflow; ``None`` in a page that stands alone.
    :param policy: content security policy for the page itself; without one, its response has a header.
    :param values: of the template.
    """
    return _environment().get_template(f"{template}.html").render(root=root, policy=policy, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        finalize=lambda value: escaped(value) if type(value) is str and value != _DATA else value,
        loader=FunctionLoader(_text),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    # Own files, which need no escaping, and whose hashes the policy contains.
    environment.globals.update(
        style=Markup(_text("page.css")),  # noqa: S704  # nosec B704
        scripts={name: Markup(_text(f"{name}.js")) for name in _SCRIPTS},  # noqa: S704  # nosec B704
    )
    environment.filters["count"] = number_of
    environment.filters["share"] = share_of
    return environment


@cache
def _text(name: str) -> str:
    return _TEMPLATES.joinpath(name).read_text("utf-8")


@cache
def content_policy() -> str:
    """Return the content security policy of the pages in Airflow: own style and scripts, nothing else, no requests."""
    scripts = " ".join(_digest(f"{name}.js") for name in _SCRIPTS)
    return f"{_policy(scripts)}; frame-ancestors 'self'; form-action 'self'; base-uri 'none'"


def _policy(scripts: str) -> str:
    return f"default-src 'none'; img-src data:; style-src {_digest('page.css')}; script-src {scripts}"


def _digest(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_text(name).encode()).digest()).decode()}'"


def write_heat_map(
    cells: Cells, file: IO[bytes], *, names: Mapping[str, str | None], made: datetime, root: str | None
) -> Summary:
    """
    Write the page with the heat map, and return its totals. The same cells and times result in the same bytes.

    :param cells: all cells.
    :param file: binary file that the page is written to.
    :param names: names of sites by id.
    :param made: when the rows were read, with a time zone.
    :param root: path of the plugin's pages in Airflow; ``None`` for a page that stands alone.
    :raises StemConfigError: ``made`` has no time zone.
    """
    if getattr(made, "tzinfo", None) is None:
        raise StemConfigError(f"made must be a datetime with a time zone, got {made!r}.")
    sites = cells.sites()
    summary = cells.summary(sites)
    share = f"{share_of(summary.missing, summary.expected)} of {summary.expected:,} expected intervals are missing"
    html = render(
        "heat_map",
        root=root,
        policy=_policy(_digest("heat_map.js")) if root is None else "",
        first_day=str(cells.first_day),
        last_day=str(cells.last_day),
        made=f"{made.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        totals=f"{number_of(summary.sites, 'site')}, {number_of(summary.streams, 'stream')}. {share}, "
        f"{summary.late:,} came late.",
        worst=[_row(site, names) for site in sites[:_WORST]],
        data=_DATA,
    )
    before, after = html.encode().split(_DATA.encode())
    file.write(before)
    _write_packed(file, cells.packed(sites, names))
    file.write(after)
    return summary


def _row(site: Site, names: Mapping[str, str | None]) -> dict[str, Any]:
    numbers = (site.expected, site.received, site.missing)
    return {
        "label": label_of(site.site_id, names.get(site.site_id)),
        "numbers": [
            *(f"{number:,}" for number in numbers),
            share_of(site.missing, site.expected),
            f"{site.late:,}",
            f"{site.days_with_missing:,}",
        ],
    }


def label_of(site_id: str, name: str | None) -> str:
    """
    Return how a page names a site: its name, if it has one, and its id.

    :param site_id: its id.
    :param name: its name.
    """
    return f"{name} ({site_id})" if name else site_id


def share_of(part: int, whole: int) -> str:
    """
    Return a percentage that is rounded to 0 or 100 only if it is exactly that.

    :param part: a number of intervals.
    :param whole: a number of intervals, not below ``part``.
    """
    if not whole:
        return "0 %"
    rounded = f"{100 * part / whole:.2f}"
    if rounded == "0.00" and part:
        return "under 0.01 %"
    return "over 99.99 %" if rounded == "100.00" and part < whole else f"{rounded.rstrip('0').rstrip('.')} %"


def _write_packed(file: IO[bytes], data: Iterable[bytes | bytearray]) -> None:
    packer = zlib.compressobj(9)
    pending = b""
    for piece in data:
        pending += packer.compress(piece)
        whole = len(pending) // 3 * 3  # base64 encodes groups of three bytes
        file.write(base64.b64encode(pending[:whole]))
        pending = pending[whole:]
    file.write(base64.b64encode(pending + packer.flush()))
