"""Loads in several processes at once, and loads that are killed at random moments."""

from __future__ import annotations

import random
import signal

import pytest

from tests.servers.catalogs import CATALOGS
from tests.support import IS_FULL, full_depth_only

from .helpers import Target, race

pytestmark = pytest.mark.s3

DAY = "01T00:00", "02T00:00"
SOME = CATALOGS[:3] if IS_FULL else ("sqlite",)  # moto's stand-in for Glue does not compare versions


def land(target, name, value, sites):
    return target.bucket.land(name, {(site, "MONITOR"): [value] * 8 for site in sites}, *DAY)


@pytest.mark.parametrize("catalog", SOME, indirect=True)
@pytest.mark.parametrize("processes", [6] if IS_FULL else [2])
def test_the_same_new_table_from_several_processes(processes, catalog, tmp_path):
    """Each creates it, and commits its first snapshot: one inserts the rows, the others have nothing to do."""
    target = Target()
    receipt = land(target, "x", 1.0, ["a", "b"])
    counts = race(*(target.start(tmp_path, receipt) for _ in range(processes)))
    assert sorted(one["inserted"] for one in counts) == [0] * (processes - 1) + [16]
    assert len(target.snapshots()) == 1
    assert len(target.rows()) == 16


@full_depth_only
@pytest.mark.parametrize("catalog", CATALOGS[:3], indirect=True)
def test_several_processes_load_revisions_and_other_batches_at_the_same_time(catalog, tmp_path):
    """No row is lost, none is there twice, and of each key the value that was read last is there."""
    target = Target()
    loads, expected = [], {}
    for number in range(3):
        target.load(land(target, f"batch-{number}", 0.0, [f"site-{number}"]))
        # Two processes load revisions of one batch, which lie under two keys; others load batches of their own.
        for name, value in [("early", 1.0), ("late", 2.0)]:
            loads.append(target.start(tmp_path, land(target, f"{name}-{number}", value, [f"site-{number}"])))
        expected[f"site-{number}"] = 2.0
    race(*loads)
    found: dict[str, list[float]] = {}
    for (site, *_), value in target.values().items():
        found.setdefault(site, []).append(value)
    assert found == {site: [value] * 8 for site, value in expected.items()}


@full_depth_only
def test_a_load_that_is_killed_at_a_random_moment_is_done_or_not_and_can_be_repeated(catalog, tmp_path):
    draw = random.Random(0)
    target = Target()
    sites = [f"site-{number}" for number in range(12)]

    def restate(value):
        return [land(target, site, value, [site]) for site in sites]

    target.load(*restate(-2.0))
    [whole] = race(target.start(tmp_path, *restate(-1.0), last_call=10**9))
    before = -1.0
    for value in map(float, range(8)):
        receipts = restate(value)
        # More than half of the calls are made before the commit, so moments near the end are drawn as often.
        last_call = draw.choice([draw.randrange(whole["calls"]), whole["calls"] - draw.randrange(whole["calls"] // 5)])
        process = target.start(tmp_path, *receipts, last_call=last_call)
        process.communicate("go\n")
        assert process.returncode in (0, -signal.SIGKILL)
        assert set(target.values().values()) in ({before}, {value})
        target.load(*receipts)
        assert set(target.values().values()) == {value}
        before = value
    for snapshot_id in target.snapshots():
        values = target.values(snapshot_id)
        assert len(values) == 96
        assert len(set(values.values())) == 1
