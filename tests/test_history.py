"""A few random histories of tasks that write to one lake; ``make test-campaigns`` runs many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from tests.campaigns.history import SITES, check_histories
from tests.support import IS_FULL

pytestmark = pytest.mark.s3


def test_every_row_of_the_lake_is_explained_by_the_history(lake: Any, tmp_path: Path) -> None:
    with Simulator(Settings(sites=SITES), keep_requests=False) as simulator:
        counts, violations = check_histories(range(8 if IS_FULL else 2), simulator, lake, tmp_path)
    assert not violations, "\n\n".join(violations)
    assert counts["rows checked at the end"] > 0
