"""Pytest fixtures ``stem_simulator`` and ``stem_simulator_factory``, registered by the distribution.

The simulator is imported only when a test uses one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from airflow_provider_stem.simulator import Simulator


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "stem_simulator(**settings): settings of the simulator of the fixture stem_simulator"
    )


@pytest.fixture
def stem_simulator_factory() -> Iterator[Callable[..., Simulator]]:
    """Return a function that starts a simulator, ``factory(**settings)``. All are stopped after the test."""
    from airflow_provider_stem.simulator import Settings, Simulator

    with ExitStack() as running:

        def start(**settings: Any) -> Simulator:
            return running.enter_context(Simulator(Settings(**settings)))

        yield start


@pytest.fixture
def stem_simulator(request: pytest.FixtureRequest, stem_simulator_factory: Callable[..., Simulator]) -> Simulator:
    """Return a running simulator with the settings of ``@pytest.mark.stem_simulator(...)``, if any."""
    marker = request.node.get_closest_marker("stem_simulator")
    return stem_simulator_factory(**(marker.kwargs if marker else {}))
