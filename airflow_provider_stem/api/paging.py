"""One listing, page by page; for the client."""

from __future__ import annotations

from typing import Any

from airflow_provider_stem.errors import StemDataError

# Beyond this a server is handing out new ids without end, not listing sites.
_MAX_PAGES = 100_000
_MAX_ITEMS = 1_000_000


class Pager:
    """
    Walks a listing: ask with :meth:`params`, hand the answer to :meth:`take`, until :attr:`done`.

    Only an empty page, or one without a new id, ends it: ``total`` can be read as items or as pages (the
    guide's example shows 1 of either), and a page can be shorter than ``per_page`` because the server caps it.

    :param collection: the key that holds the items, ``clients`` or ``sites``.
    :param page_size: ``per_page`` (guide: "Obtaining clients", "Obtaining sites").
    :param name: substring that the API filters names by.
    """

    def __init__(self, collection: str, page_size: int, name: str | None = None) -> None:
        self._collection = collection
        self._fixed: dict[str, str | int] = {"per_page": page_size}
        if name is not None:
            self._fixed["name"] = name
        self._seen: set[str] = set()
        self.page = 1
        self.done = False

    def params(self) -> dict[str, str | int]:
        """Give the query of the next page."""
        return {**self._fixed, "page": self.page}

    def take(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Give the items of an answer that were not seen before.

        :raises StemDataError: the answer has no such collection, an item has no id, or there is no end to it.
        """
        if self._collection not in payload:
            raise StemDataError(f"page {self.page} has no {self._collection!r}")
        items = payload[self._collection]
        items = [] if items is None else items
        if not isinstance(items, list):
            raise StemDataError(f"{self._collection!r} of page {self.page} is not a list")
        new = []
        for item in items:
            identifier = item.get("id") if isinstance(item, dict) else None
            if not isinstance(identifier, str) or not identifier:
                raise StemDataError(f"an entry of {self._collection!r} on page {self.page} has no string id")
            if identifier not in self._seen:
                self._seen.add(identifier)
                new.append(item)
        if len(self._seen) > _MAX_ITEMS:
            raise StemDataError(f"the listing of {self._collection!r} does not end after {_MAX_ITEMS:,} entries")
        self.done = not new
        self.page += 1
        if self.page > _MAX_PAGES and not self.done:
            raise StemDataError(f"the listing of {self._collection!r} does not end after {_MAX_PAGES:,} pages")
        return new
