"""A stand-in for Stem's Developer Data API, for demos, benchmarks and tests.

It needs the extra ``simulator``. Importing this package is cheap: the server is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_stem.simulator.server import Simulator
    from airflow_provider_stem.simulator.settings import Settings

__all__ = ["Settings", "Simulator"]


def __getattr__(name: str) -> Any:
    """Load :class:`Settings` and :class:`Simulator` when they are asked for.

    :raises ImportError: the extra ``simulator`` is not installed.
    """
    if name == "Settings":
        from airflow_provider_stem.simulator.settings import Settings

        return Settings
    if name == "Simulator":
        try:
            from airflow_provider_stem.simulator.server import Simulator
        except ModuleNotFoundError as error:
            raise ImportError(
                f"The simulator needs {error.name}: pip install 'airflow-provider-stem[simulator]'"
            ) from error
        return Simulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
