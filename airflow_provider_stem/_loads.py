"""What the operators that load landed objects share: checks of arguments, the objects of a run, and final errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, AirflowSkipException

from airflow_provider_stem._arguments import check_templated, is_known
from airflow_provider_stem._mapping import CheckedWhenParsed
from airflow_provider_stem._text import missing_connection
from airflow_provider_stem.assets import event_extras
from airflow_provider_stem.errors import StemConfigError, StemError
from airflow_provider_stem.failures import final_error, retryable_error
from airflow_provider_stem.streams.records import LandedObject, read_objects

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

Check = Callable[[str, Any], object]
"""Raises ``StemConfigError`` unless a value, the second argument, is valid for the argument of that name."""


def check_objects(argument: str, value: Any) -> None:  # noqa: ARG001 - a Check
    """Raise ``StemConfigError`` unless it is ``None``, or lists landed objects."""
    if value is not None:
        read_objects(value)


def check_store_conn_id(argument: str, value: Any) -> None:
    """Raise ``StemConfigError`` unless it is ``None`` or the id of a connection."""
    check_templated(**{argument: value})


class CheckedLoad(CheckedWhenParsed):
    """
    Mixin that validates arguments when the DAG is parsed, those that are templates after rendering.

    Not an operator itself, since Airflow 3.3 would drop the defaults of mapped operators.
    """

    template_fields: Sequence[str]
    _checks: ClassVar[Mapping[str, Check]]

    @classmethod
    def _check(cls, arguments: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name in cls._checks and (name not in cls.template_fields or is_known(value)):
                cls._checks[name](name, value)

    def _check_rendered(self) -> None:
        """Validate the arguments that may be templates, but for the records and objects, which their readers check."""
        for name in self.template_fields:
            if name not in ("objects", "sites"):
                self._checks[name](name, getattr(self, name))


def objects_of(argument: Any, context: Context) -> list[LandedObject]:
    """
    Return the objects to load, those read last at the end.

    :param argument: argument ``objects`` of the operator; ``None`` for those of the triggering asset events.
    :raises StemConfigError: the argument is invalid, or it is ``None`` and no event lists objects.
    :raises AirflowSkipException: no object was landed.
    """
    if argument is None:
        # Events are sorted by age, so the newest object with a key is loaded last.
        argument = [extra for extra in event_extras(context) if "objects" in extra]
        if not argument:
            raise StemConfigError(
                "objects is None, and no asset event with objects triggered this run. Pass what "
                "a landing operator returned, or schedule the DAG on its asset."
            )
    objects = read_objects(argument)
    if not objects:
        raise AirflowSkipException("No object was landed. There is nothing to load.")
    return objects


def run_id_of(context: Context) -> str | None:
    """Return the id of the run. A context that a test makes by hand may have it only in ``dag_run`` or ``ti``."""
    run_ids = (getattr(context.get(name), "run_id", None) for name in ("dag_run", "ti"))
    return context.get("run_id") or next((found for found in run_ids if isinstance(found, str)), None)


@contextmanager
def final_errors() -> Iterator[None]:
    """Fail the task without retries for errors that another attempt cannot fix."""
    try:
        yield
    except AirflowNotFoundException as exc:
        raise final_error(exc, missing_connection(exc)) from exc
    except StemConfigError as exc:
        raise final_error(exc, str(exc)) from exc
    except StemError as exc:
        raise retryable_error(exc) from None
