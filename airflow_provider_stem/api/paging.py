"""Paging through one listing; used by the client."""

from __future__ import annotations

from typing import Any

from airflow_provider_stem._text import invalid_response, one_line
from airflow_provider_stem.errors import StemDataError

# A listing beyond these limits is an endless stream of new ids, not a list of sites.
_MAX_PAGES = 100_000
_MAX_ITEMS = 1_000_000


class InconsistentListingError(StemDataError):
    """The pages of a listing are inconsistent. Listing again may help."""


class Pager:
    """
    Collect the items of a listing: request :meth:`params`, pass the response to :meth:`add_page`, until :attr:`done`.

    A page that is empty, is not found or has no new id ends the listing. ``total`` does not end it, since it may count
    items or pages (the guide's example shows 1 of each). A page may be shorter than ``per_page`` because the server
    limits it. If the response has a ``total``, the number of items or pages must equal it.

    :param collection: the key of the items in the response, ``clients`` or ``sites``.
    :param page_size: ``per_page`` (guide: "Obtaining clients", "Obtaining sites").
    :param name: substring to filter names by; the API applies it.
    :param final: whether this is the last attempt. Then an empty listing whose ``total`` is 1 counts as one empty page;
        before, the one item may be missing.
    """

    def __init__(self, collection: str, page_size: int, name: str | None = None, *, final: bool = True) -> None:
        self._collection = collection
        self._page_size = page_size
        self._fixed: dict[str, str | int] = {"per_page": page_size}
        if name is not None:
            self._fixed["name"] = name
        self._final = final
        self._items: dict[str, dict[str, Any]] = {}
        self._pages = 0
        self._total: int | None = None
        self._repeats = 0
        self.page = 1
        self.done = False

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items so far: each id once, in the order of the pages."""
        return list(self._items.values())

    def params(self) -> dict[str, str | int]:
        """Return the query parameters of the next page."""
        return {**self._fixed, "page": self.page}

    def add_page(self, payload: dict[str, Any]) -> None:
        """
        Add the items of the next page.

        :param payload: the response, a JSON object.
        :raises InconsistentListingError: it is inconsistent with earlier pages.
        :raises StemDataError: the collection is missing, an item has no id, or the listing does not end.
        """
        page, found = self.page, self._items_of(payload)
        self._compare_total(self._count(payload, "total"))
        new = {identifier: item for identifier, item in found.items() if identifier not in self._items}
        if not new:
            self._end_with(f"Page {page} {'repeats earlier ones' if found else 'is empty'}", repeats=bool(found))
        elif self._repeats:
            raise _inconsistent(f"Page {page} has new {self._collection} after a page that repeats others")
        elif (echo := self._count(payload, "page")) not in (None, page):
            raise _inconsistent(f"The response for page {page} of {self._collection!r} is page {echo}")
        self._items |= new
        self._pages += bool(new)
        if len(self._items) > _MAX_ITEMS:
            raise invalid_response(f"The listing of {self._collection!r} does not end after {_MAX_ITEMS:,} entries")
        self.page += 1
        if self.page > _MAX_PAGES and not self.done:
            raise invalid_response(f"The listing of {self._collection!r} does not end after {_MAX_PAGES:,} pages")

    def add_not_found(self, url: str) -> None:
        """
        End the listing after a 404: some servers return it past the last page.

        :param url: the URL of the request, for the message.
        :raises InconsistentListingError: ``total`` says that there are more items.
        """
        try:
            self._end_with(f"Page {self.page} is not found", repeats=False)
        except InconsistentListingError as exc:
            message = f"{exc} [GET {url}]"
        else:
            return
        raise InconsistentListingError(message)

    def _count(self, payload: dict[str, Any], name: str) -> int | None:
        """Return a number of the response, which may be a string; ``None`` if it is missing."""
        value = payload.get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value.strip()[:20])
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise invalid_response(
            f"{name} on page {self.page} of {self._collection!r} is {one_line(repr(value))[:60]}, not a number"
        )

    def _items_of(self, payload: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if self._collection not in payload:
            raise invalid_response(f"Page {self.page} has no {self._collection!r}")
        items = payload[self._collection]
        if not isinstance(items, list | None):
            raise invalid_response(f"{self._collection!r} of page {self.page} is not a list")
        found: dict[str, dict[str, Any]] = {}
        for item in items or []:
            identifier = item.get("id") if isinstance(item, dict) else None
            if not isinstance(identifier, str) or not identifier:
                raise invalid_response(f"An entry of {self._collection!r} on page {self.page} has no string id")
            found.setdefault(identifier, item)
        return found

    def _compare_total(self, total: int | None) -> None:
        if None not in (total, self._total) and total != self._total:
            raise _inconsistent(
                f"The total of {self._collection!r} changes from {self._total} to {total} at page {self.page}"
            )
        self._total = self._total if total is None else total

    def _end_with(self, ending: str, *, repeats: bool) -> None:
        pages = self._pages or int(self._final)  # an empty listing counts as one page in the last attempt
        if self._total not in (None, len(self._items), pages):
            raise _inconsistent(
                f"{ending}, but total is {self._total} after {len(self._items):,} {self._collection} on "
                f"{self._pages:,} pages"
            )
        self._repeats += repeats
        # Without a total, a repeated page may replace another one, so only the second repeated page ends the listing.
        self.done = not repeats or self._total is not None or self._repeats > 1
        if self.done and self._repeats and self._total is None and self._pages == 1 and self._first_page_is_full():
            raise InconsistentListingError(
                f"Page 2 of {self._collection!r} repeats page 1, which is full, and there is no total, so more items "
                "may follow. Set another page_size in the connection's Extra"
            )

    def _first_page_is_full(self) -> bool:
        # A server that ignores "page" returns a full first page.
        return len(self._items) >= self._page_size


def _inconsistent(what: str) -> StemDataError:
    return invalid_response(what, InconsistentListingError)
