from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, tzinfo
from typing import Any

import pytest

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.simulator import Simulator
from airflow_provider_stem.streams import source
from tests.support import TALLIES_KEY

from .helpers import TALLIES

Connect = Callable[..., StemClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """``connect(simulator, **options)`` returns a client, closed after the test; only a ``patient`` one waits."""
    with ExitStack() as opened:

        def client(simulator: Simulator, *, patient: bool = False, **options: Any) -> StemClient:
            config = ClientConfig(ApiKey(simulator.settings.api_key), simulator.url, **options)
            return opened.enter_context(StemClient(config, sleep=None if patient else lambda _: None))

        yield client


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """``clock(instant)`` stops the clock of a source."""

    def stop(instant: datetime) -> None:
        class Stopped(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return instant.astimezone(tz)

        monkeypatch.setattr(source, "datetime", Stopped)

    return stop


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass the counts of the property tests to the process that prints the summary."""
    tallies = {name: str(tally) for name, tally in TALLIES.items()}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tallies"] = tallies
    else:
        session.config.stash.setdefault(TALLIES_KEY, {}).update(tallies)
