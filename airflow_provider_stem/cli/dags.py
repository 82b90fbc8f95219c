"""The landing tasks of a file of DAGs, and the windows of their runs; for the commands ``doctor`` and ``plan``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_provider_stem._arguments import is_known
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.intervals import wall_time_of_run
from airflow_provider_stem.operators import (
    StemSiteListOperator,
    StemStreamsToObjectStorageOperator,
    StemStreamsToS3Operator,
)
from airflow_provider_stem.streams.windows import Window

_DEFAULTS = {
    operator: {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(operator).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    for operator in (StemStreamsToS3Operator, StemStreamsToObjectStorageOperator)
}


@dataclass(frozen=True, slots=True)
class LandingTask:
    """
    A task that lands streams.

    :param dag: its DAG.
    :param arguments: of its operator, with the defaults. Required ones that the task is mapped over are ``None``.
    :param pool: name of its pool.
    :param listing: the task that lists its sites, or ``None``.
    """

    dag: Any
    task_id: str
    arguments: Mapping[str, Any]
    pool: str
    listing: StemSiteListOperator | None

    def __str__(self) -> str:
        return f"{self.dag.dag_id}.{self.task_id}"

    @property
    def set_by_runs(self) -> str | None:
        """The argument that is known in a run only, since it is a template or a task's result; ``None`` if none is."""
        return next(
            (name for name in ("start", "end") if not is_known(self.arguments[name])),
            None,
        )

    @property
    def schedule(self) -> str:
        """The schedule of its DAG, as Airflow shows it."""
        return str(_core_timetable(self.dag.timetable).summary)

    def windows(self, start: datetime, end: datetime) -> Iterator[Window]:
        """
        Iterate over the windows that the runs of the DAG's schedule read.

        :param start: aware; runs are due from here on.
        :param end: aware, exclusive.
        :raises StemConfigError: a run has no window, or one that does not fit the arguments; as the task raises it.
        """
        arguments = self.arguments
        for context in self._runs(start, end):
            wall_time = wall_time_of_run(
                context,
                start=arguments["start"],
                end=arguments["end"],
                default_interval=arguments["default_interval"],
            )
            window = Window.covering(*wall_time, arguments["resolution"])
            yield window.with_lookback(arguments["lookback"], arguments["partition"])

    def _runs(self, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
        """Iterate over what the context of a task has about each run."""
        import pendulum
        from airflow.timetables.base import TimeRestriction

        timetable = _core_timetable(self.dag.timetable)
        # Aware instants are compared by Airflow with pendulum's.
        restriction = TimeRestriction(pendulum.instance(start), pendulum.instance(end - timedelta.resolution), True)
        last = None
        while info := timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction):
            last = info.data_interval
            yield {
                "dag": self.dag,
                "data_interval_start": info.data_interval and info.data_interval.start,
                "data_interval_end": info.data_interval and info.data_interval.end,
                "dag_run": SimpleNamespace(
                    run_type="scheduled",
                    run_after=info.run_after,
                    partition_key=getattr(info, "partition_key", None),
                    partition_date=getattr(info, "partition_date", None),
                ),
            }
            if last is None:
                raise StemConfigError(
                    f"The runs of {self} cannot be computed from its schedule {type(self.dag.timetable).__name__}. Use "
                    "a DAG with CronDataIntervalTimetable."
                )


def landing_tasks(dag_file: str, dag_id: str | None = None) -> list[LandingTask]:
    """
    Return the tasks of a file that land streams; there may be none.

    :param dag_file: path of the file, which is imported.
    :param dag_id: only this DAG's tasks.
    :raises StemConfigError: the file cannot be imported.
    """
    if not Path(dag_file).is_file():
        raise StemConfigError(f"{dag_file!r} is not a file. Use the path of a file of DAGs.")
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before Airflow 3.2
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

    # Before Airflow 3.2 the examples are loaded too, if that is configured. In safe mode, files without certain words
    # are not imported.
    options: dict[str, Any] = {"include_examples": False, "safe_mode": False}
    known = inspect.signature(DagBag).parameters
    bag = DagBag(dag_file, **{name: value for name, value in options.items() if name in known})
    for problem in bag.import_errors.values():
        raise StemConfigError(
            f"{dag_file!r} cannot be imported. Correct it: {one_line(problem.strip().splitlines()[-1])}"
        )
    return [
        LandingTask(dag, task.task_id, _arguments(task, defaults), task.pool, _listing(task))
        for dag in bag.dags.values()
        if dag_id in (None, dag.dag_id)
        for task in dag.tasks
        for operator, defaults in _DEFAULTS.items()
        if issubclass(_class_of(task), operator)
    ]


def _class_of(task: Any) -> type:
    return task.operator_class if _is_mapped(task) else type(task)


def _is_mapped(task: Any) -> bool:
    return hasattr(task, "partial_kwargs")


def _arguments(task: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if _is_mapped(task):
        return {**defaults, **{name: value for name, value in task.partial_kwargs.items() if name in defaults}}
    return {name: getattr(task, name) for name in defaults}


def _listing(task: Any) -> StemSiteListOperator | None:
    return next((one for one in task.upstream_list if isinstance(one, StemSiteListOperator)), None)


def _core_timetable(timetable: Any) -> Any:
    """Return a timetable that computes runs. Those of Airflow's SDK (3.2 or later) only describe them."""
    try:
        from airflow.serialization.encoders import coerce_to_core_timetable
    except ImportError:
        return timetable
    return coerce_to_core_timetable(timetable)
