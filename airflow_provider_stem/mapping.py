"""Tasks that are mapped over sites or batches of them: checked when the DAG is parsed, named where they are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

from airflow_provider_stem.arguments import check_arguments
from airflow_provider_stem.text import one_line

if TYPE_CHECKING:
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

_MAX_NAME = 250  # the column that Airflow keeps it in; databases refuse a longer one, and with it the task


class MappedOverSites:
    """For classes with ``sites`` and ``batch``."""

    sites: Any
    batch: str | None

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Begin a mapped task; a wrong argument shows when the DAG is parsed, as it does without mapping."""
        check_arguments(**kwargs)
        kwargs.setdefault("map_index_template", "{{ task.batch_name }}")
        begun: OperatorPartial = super().partial(**kwargs)  # type: ignore[misc]
        return begun

    @property
    def batch_name(self) -> str:
        """Name this task's sites: the batch, else the site, else how many there are."""
        name = one_line(self._full_name())
        return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"

    def _full_name(self) -> str:
        if self.batch is not None:
            return str(self.batch)
        if isinstance(self.sites, str):
            return self.sites
        if isinstance(self.sites, Mapping):
            return str(self.sites.get("site_id", self.sites.get("id")))
        # A name is asked for also where the task fails since its sites are none.
        return f"{len(self.sites)} sites" if isinstance(self.sites, Sized) else repr(self.sites)
