"""A simulator of Stem's Developer Data API, for demos, benchmarks and tests.

It needs the extra ``simulator``. Importing this package is cheap: the server is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_stem.simulator.server import Simulator
    from airflow_provider_stem.simulator.settings import Settings

__all__ = ["Settings", "Simulator"]


def __getattr__(name: str) -> Any:
    """Import :class:`Settings` and :class:`Simulator` on first use.

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
                f"The simulator needs {error.name}. Run: pip install 'airflow-provider-stem[simulator]'"
            ) from error
        return Simulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
