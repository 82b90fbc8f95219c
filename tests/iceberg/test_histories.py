"""Random histories of landed objects and loads, compared with a model: a dict by key, whose newest value wins."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from tests.support import IS_FULL
from tests.warehouse.helpers import Bucket, at

from .helpers import Target

pytestmark = pytest.mark.s3

SITES = ("site-a", "site-b", "site-c", "site-d")
TYPES = ("MONITOR", "CONVERTER")
HOURS = 30  # so that objects lie in two days


class Lake(Bucket):
    """A bucket whose objects are landed again as ``if_exists="merge"`` does it: no row goes away."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.held: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.receipts = []

    def land_some(self):
        """Land a new object, or an object again with the same values or with others; sometimes read before others."""
        draw = self.draw
        name = draw.choice("abcdef")
        start, end, sites, types = self.held.get(name, [None] * 4)
        if start is None:
            start = draw.randrange(HOURS - 2)
            end = start + draw.choice([1, 2, HOURS - start])
            sites, types = draw.sample(SITES, draw.randint(1, 3)), draw.sample(TYPES, draw.randint(1, 2))
        # Few values, so that they often come back.
        values = {
            (site, one): [draw.choice([0.0, 1.0, None]) for _ in range(end - start)] for site in sites for one in types
        }
        if name in self.held and draw.random() < 0.5:
            values = self.values[name]
            if draw.random() < 0.5:
                stream = draw.choice(sorted(values))
                values = {**values, stream: [draw.choice([0.0, 1.0, None]), *values[stream][1:]]}
        self.held[name] = start, end, sites, types
        self.values[name] = values
        self.age += timedelta(seconds=draw.choice([1, 1, 1, 60]))
        text = [f"{1 + hour // 24:02}T{hour % 24:02}:00" for hour in (start, end)]
        self.receipts.append(self.land(name, values, text[0], text[1], resolution=3600))

    def rows_of(self, uri):
        """Return the value by key of an object as it is now."""
        name = uri.rpartition("/")[2]
        start, _, _, _ = self.held[name]
        return {
            (site, one, 3600, at("01T00:00") + timedelta(hours=start + number + 1)): value
            for (site, one), values in self.values[name].items()
            for number, value in enumerate(values)
        }


class Model:
    """The rows that the table must have, and what each load must report."""

    def __init__(self, lake):
        self.lake = lake
        self.rows = {}

    def load(self, receipts):
        """Load objects as they are in the lake, and return the counts, and whether this needs a commit."""
        counts = dict.fromkeys(("rows", "inserted", "changed", "unchanged", "outdated"), 0)
        is_moved = False
        listed: dict[str, Any] = {}
        for receipt in receipts:
            uri = receipt["objects"][0]["uri"]
            listed.pop(uri, None)
            listed[uri] = receipt
        for uri in listed:
            read_at = self.lake.versions[uri].read_at
            for key, value in self.lake.rows_of(uri).items():
                counts["rows"] += 1
                held = self.rows.get(key)
                is_newer = held is None or (
                    (read_at, uri) > held[1:]
                    # The object of the held row may have been read again since.
                    and (read_at, uri) >= (self.lake.versions[held[2]].read_at, held[2])
                )
                if held is None:
                    counts["inserted"] += 1
                elif held[0] == value:
                    counts["unchanged"] += 1
                    is_moved = is_moved or (is_newer and held[2] != uri)
                elif is_newer:
                    counts["changed"] += 1
                else:
                    counts["outdated"] += 1
                if is_newer:
                    self.rows[key] = value, read_at, uri
        return counts, is_moved or counts["inserted"] + counts["changed"] > 0

    def values(self):
        return {key: value for key, (value, *_) in self.rows.items()}


@pytest.mark.parametrize("seed", range(12 if IS_FULL else 2))
def test_the_table_has_each_key_once_with_the_value_that_was_read_last(seed, catalog):
    draw = random.Random(seed)
    lake = Lake(draw)
    target, model = Target(bucket=lake), Model(lake)
    history: dict[int, Any] = {}
    for _ in range(draw.randint(4, 14)):
        for _ in range(draw.randint(1, 3)):
            lake.land_some()
        # Old receipts too, several at once, in any order.
        receipts = [draw.choice(lake.receipts) for _ in range(draw.choice([1, 1, 2, 5]))]
        before = target.snapshots() if history else []
        expected, is_commit = model.load(receipts)
        counts = target.load(*receipts)
        if len(receipts) > 1:
            # An object that the table has already is counted before the others, which may change its rows.
            for of in (counts, expected):
                of["unchanged"] += of.pop("outdated")
        assert {name: counts[name] for name in expected} == expected
        assert counts["snapshot_id"] == target.snapshots()[-1]
        assert len(target.snapshots()) == len(before) + is_commit
        assert (counts["added_files"] > 0) == is_commit
        found = target.rows()
        assert {key: value for key, (value, *_) in found.items()} == model.values()
        assert {key: uri for key, (_, _, uri) in found.items()} == {key: uri for key, (_, _, uri) in model.rows.items()}
        history.setdefault(counts["snapshot_id"], found)
        again = target.load(*receipts)
        assert (again["added_files"], again["snapshot_id"]) == (0, counts["snapshot_id"])
        assert (again["rows"], again["inserted"], again["changed"]) == (counts["rows"], 0, 0)

    # Old snapshots are still there.
    assert {snapshot_id: target.rows(snapshot_id) for snapshot_id in history} == history

    # Once each object is loaded as it is in the lake, the table has what the lake has: of each key the newest value.
    draw.shuffle(lake.receipts)
    for receipt in lake.receipts:
        target.load(receipt)
    expected = {}
    for _, uri in sorted((version.read_at, uri) for uri, version in lake.versions.items()):
        expected |= lake.rows_of(uri)
    assert target.values() == expected
