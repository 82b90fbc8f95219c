"""Tasks that are mapped over sites or batches of them: checked when the DAG is parsed, named where they are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

from airflow_provider_stem.arguments import check_arguments
from airflow_provider_stem.text import one_line

if TYPE_CHECKING:
    from typing import Self

    from airflow.sdk.definitions.mappedoperator import OperatorPartial

_MAX_NAME = 250  # the column that Airflow keeps it in; databases refuse a longer one, and with it the task


class CheckedWhenParsed:
    """For classes whose wrong arguments show when the DAG is parsed, mapped or not."""

    _may_be_none: tuple[str, ...] = ()
    _is_one_of_many = False

    def __new__(cls, *_: Any, **kwargs: Any) -> Self:
        """Remember whether Airflow makes the task in a worker, out of a mapped one."""
        made = super().__new__(cls)
        # The base class takes this word out before any constructor could see it.
        object.__setattr__(made, "_is_one_of_many", bool(kwargs.get("_airflow_from_mapped")))
        return made

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Begin a mapped task."""
        cls._check(kwargs)
        begun: OperatorPartial = super().partial(**kwargs)  # type: ignore[misc]
        return begun

    def check(self, **given: Any) -> None:
        """
        Check the constructor's arguments.

        Values that were mapped over are left to ``execute``, where a wrong one ends the task without retries.
        """
        rendered: tuple[str, ...] = self.template_fields if self._is_one_of_many else ()  # type: ignore[attr-defined]
        self._check({name: value for name, value in given.items() if name not in rendered})

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        check_arguments(**{n: value for n, value in given.items() if value is not None or n not in cls._may_be_none})


class MappedOverSites(CheckedWhenParsed):
    """For classes with ``sites`` and ``batch``."""

    sites: Any
    batch: str | None

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Begin a mapped task; it is named after its sites."""
        return super().partial(**{"map_index_template": "{{ task.batch_name }}", **kwargs})

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
