"""Random histories of tasks that write one lake; ``HISTORIES`` says how many, ``SEED`` where they begin."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_stem.simulator import Settings, Simulator
from tests.campaigns.forker import MUTATIONS
from tests.campaigns.history import SITES, check_histories
from tests.support import RUNS_KEY

pytestmark = [pytest.mark.s3, pytest.mark.timeout(0)]

HISTORIES = int(os.environ.get("HISTORIES", "100"))
SEED = int(os.environ.get("SEED", "0"))


def test_every_row_of_the_lake_is_explained_by_the_history(
    lake: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with Simulator(Settings(sites=SITES), keep_requests=False) as simulator:
        counts, violations = check_histories(range(SEED, SEED + HISTORIES), simulator, lake, tmp_path)
    request.config.stash[RUNS_KEY] += [f"histories: {number:,} {what}" for what, number in sorted(counts.items())]
    assert not violations, "\n\n".join(violations)
    assert counts["sequences, stepped"] + counts["sequences, free"] == HISTORIES


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_defect_is_found(mutation: str, lake: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    histories: list[str] = []
    begun = []

    def is_found() -> bool:
        """Whether an object was written against the rules; a wrong receipt alone is not what the defect causes."""
        return any(
            re.search(r"^task \d+, which began to read at \d+, writes ", text, re.MULTILINE) for text in histories
        )

    def seeds() -> Iterator[int]:
        for seed in range(200):
            if not is_found():
                begun.append(seed)
                yield seed

    with Simulator(Settings(sites=SITES), keep_requests=False) as simulator:
        check_histories(seeds(), simulator, lake, tmp_path, mutation=mutation, violations=histories)
    request.config.stash[RUNS_KEY].append(f"histories with a defect ({mutation}): found in {len(begun)} sequences")
    assert is_found()
