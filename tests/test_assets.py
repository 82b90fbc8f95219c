from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_stem.assets import landed_objects
from tests.support import instant


def landed(name, rows=1):
    return {"uri": f"s3://lake/{name}", "rows": rows, "bytes": 9, "start": "2025-07-01T00:00:00Z", "end": "…"}


def event(at, *objects):
    return SimpleNamespace(timestamp=instant(f"2025-07-02T0{at}:00Z"), extra={"objects": list(objects)})


@pytest.mark.parametrize("key", ["triggering_asset_events", "triggering_dataset_events"])
def test_objects_are_listed_once_as_the_last_event_tells(key):
    events = {
        "one asset": [event(3, landed("b", 3)), event(1, landed("a", 1), landed("b", 1))],
        "another": [event(2, landed("b", 2)), SimpleNamespace(timestamp=instant("2025-07-02T00:00Z"), extra=None)],
    }
    assert landed_objects({key: events}) == [landed("a", 1), landed("b", 3)]


def test_a_run_that_no_event_triggered_has_none():
    assert landed_objects({}) == []
    assert landed_objects({"triggering_asset_events": {"asset": [SimpleNamespace(extra={"other": 1})]}}) == []
