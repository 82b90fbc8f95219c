"""Mapped tasks over sites or batches: validated when the DAG is parsed, and named after their sites in the UI."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_stem._arguments import check_arguments, check_templated
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.sites import ListAsText, site_id_of

if TYPE_CHECKING:
    from typing import Self

    import jinja2
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

# Native rendering parses the result as a Python literal: the name "17" would become an int and fail the task.
_NAME_TEMPLATE = "{{ '%r' | format(task.batch_name) if task.dag.render_template_as_native_obj else task.batch_name }}"
_MAX_NAME = 250  # length of Airflow's column; a longer name would fail the task


_NEEDS_BATCHES = (
    "StemSiteListOperator without batches lists site records. Set batches in it, or map with .expand(sites=...) "
    "instead of .expand_kwargs(...)."
)
_NEEDS_RECORDS = (
    "StemSiteListOperator(batches=...) lists batches. Map with .expand_kwargs(...) instead of .expand(sites=...), or "
    "leave batches out."
)


class _CheckedPartial:
    """Mixin for the result of ``partial``: reject a listing of the wrong kind when the DAG is parsed."""

    __slots__ = ()
    _expand_called: bool

    def expand(self, **mapped: Any) -> Any:
        if _is_listing(mapped.get("sites"), in_batches=True):
            self._reject(_NEEDS_RECORDS)
        return super().expand(**mapped)  # type: ignore[misc]

    def expand_kwargs(self, kwargs: Any, **more: Any) -> Any:
        if _is_listing(kwargs, in_batches=False):
            self._reject(_NEEDS_BATCHES)
        return super().expand_kwargs(kwargs, **more)  # type: ignore[misc]

    def _reject(self, message: str) -> None:
        # Without this, Airflow also warns that the task was never mapped.
        self._expand_called = True  # type: ignore[misc]
        raise StemConfigError(message)


def _is_listing(value: Any, *, in_batches: bool) -> bool:
    """Return whether a value is the output of a site listing, in batches or not. A ``.map`` of one is neither."""
    operator = getattr(value, "operator", None)
    if not isinstance(operator, CheckedWhenParsed) or getattr(value, "key", None) != "return_value":
        return False
    return hasattr(operator, "batches") and (operator.batches is not None) == in_batches


@cache
def _checked(partial: Any) -> Any:
    return type(partial.__name__, (_CheckedPartial, partial), {"__slots__": ()})


class CheckedWhenParsed:
    """Mixin that validates the arguments of an operator when the DAG is parsed, mapped or not."""

    _may_be_none: tuple[str, ...] = ()
    _passed: frozenset[str] = frozenset()
    """Names of the arguments that Airflow passed to a mapped task's instance: from ``partial`` and mapped ones."""

    def __new__(cls, *_: Any, **kwargs: Any) -> Self:
        """Store the names of a mapped task's arguments, before Airflow adds those in ``default_args``."""
        self = super().__new__(cls)
        if kwargs.get("_airflow_from_mapped"):
            vars(self)["_passed"] = frozenset(kwargs)  # Airflow's __setattr__ needs what the constructor sets
        return self

    @property
    def _is_mapped_instance(self) -> bool:
        """Whether Airflow created the task in a worker, from a mapped task."""
        return bool(getattr(self, "_BaseOperator__from_mapped", False))

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial operator, for ``expand`` or ``expand_kwargs``."""
        cls._check(kwargs)
        partial: OperatorPartial = super().partial(**kwargs)  # type: ignore[misc]
        return partial

    def check(self, **arguments: Any) -> None:
        """
        Validate the constructor's arguments.

        Mapped values are left to ``execute``, where a wrong one fails the task without retries.
        """
        rendered: tuple[str, ...] = self.template_fields if self._is_mapped_instance else ()  # type: ignore[attr-defined]
        self._check({name: value for name, value in arguments.items() if name not in rendered})

    def _check_rendered(self) -> None:
        """Validate the arguments that may be templates, after they are rendered; ``sites`` is parsed by the caller."""
        fields: Sequence[str] = self.template_fields  # type: ignore[attr-defined]
        check_templated(**{name: getattr(self, name) for name in fields if name != "sites"})

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        """
        Render templates that are written in the DAG file, but not values that come from XCom.

        Every version of Airflow calls this method on a mapped task's instance, and skips only strings that ``expand``
        reads from an XCom. In the lists and dicts of ``expand_kwargs`` it would render text from the API.
        """
        if parent is self and self._is_mapped_instance:
            template_fields = [name for name in template_fields if self._is_from_dag_file(name, context)]
            seen_oids = set()  # Airflow leaves an XComArg in a dict of expand_kwargs unresolved.
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)  # type: ignore[misc]

    def _is_from_dag_file(self, name: str, context: Context) -> bool:
        """Return whether the value of a mapped task's field is written in the DAG file."""
        if not {name, "default_args"} & self._passed:
            return True  # from default_args of the DAG or of a task group, or the constructor's default
        mapped: Any = context["dag"].get_task(self.task_id)  # type: ignore[attr-defined]
        # The name is not enough: without strict, expand_kwargs replaces arguments of partial.
        if name in mapped.partial_kwargs and mapped.partial_kwargs[name] is getattr(self, name):
            return True
        source = mapped.expand_input.value
        if isinstance(source, Mapping):  # from expand
            return isinstance(source.get(name), (Mapping, Sequence))
        # From expand_kwargs: an XComArg is neither a sequence nor a mapping.
        entry = source[context["ti"].map_index or 0] if isinstance(source, Sequence) else None
        return isinstance(entry, Mapping) and name in entry

    @classmethod
    def _check(cls, arguments: Mapping[str, Any]) -> None:
        values = {name: value for name, value in arguments.items() if value is not None or name not in cls._may_be_none}
        check_arguments(cls, **values)


class MappedOverSites(CheckedWhenParsed):
    """Mixin for operators with ``sites`` and ``batch``."""

    sites: Any
    batch: str | None

    def __new__(cls, *_: Any, **kwargs: Any) -> Self:
        """Raise an error with a remedy if a task is mapped over entries without ``sites``."""
        if kwargs.get("_airflow_from_mapped") and "sites" not in kwargs | _default_args(kwargs):
            # Airflow's error would be a TypeError without cause or remedy, in every task and every attempt.
            raise AirflowFailException(_NEEDS_BATCHES)
        return super().__new__(cls, **kwargs)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial operator whose tasks are named after their sites, for ``expand`` or ``expand_kwargs``."""
        partial = super().partial(**{"map_index_template": _NAME_TEMPLATE, **kwargs})
        partial.__class__ = _checked(type(partial))  # type: ignore[arg-type]
        return partial

    def _do_render_template_fields(self, parent: Any, *rest: Any, **named: Any) -> None:
        """Mark ``sites`` if a template rendered to the string of a list. Otherwise it would be requested as an id."""
        before = self.sites
        super()._do_render_template_fields(parent, *rest, **named)
        if parent is self and isinstance(before, str) and before != self.sites and _is_string_of_list(self.sites):
            self.sites = ListAsText(self.sites)

    @property
    def batch_name(self) -> str:
        """The task's name in the UI: the batch, else the site, else the number of sites."""
        name = one_line(self._full_name())
        return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"

    def _full_name(self) -> str:
        if self.batch is not None:
            return str(self.batch)
        if isinstance(self.sites, str):
            return self.sites
        if isinstance(self.sites, Mapping):
            return str(site_id_of(self.sites))
        # Airflow renders the name even if the task fails because ``sites`` is invalid.
        return f"{len(self.sites)} sites" if isinstance(self.sites, Sized) else repr(self.sites)


def _default_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that Airflow adds to the arguments of a mapped task's instance."""
    defaults: dict[str, Any] = {}
    for owner in ("dag", "task_group"):
        defaults |= getattr(arguments.get(owner), "default_args", None) or {}
    return defaults | (arguments.get("default_args") or {})


def _is_string_of_list(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith(("[", "{", "(")):
        return False
    try:
        return not isinstance(ast.literal_eval(value), (str, int))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value.startswith(("[{", "['"))
