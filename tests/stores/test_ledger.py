"""The ledger in every store: what tasks landed there is recorded once, whoever writes at the same time."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.ledger import Ledger
from tests.stores.conftest import KINDS
from tests.stores.places import FolderPlace
from tests.stores.test_guarantees import landing
from tests.support import run_context
from tests.test_ledger import CUT, LOOKBACK, TYPES, at, listing, receipt_of, starts


def test_the_ledger_has_an_object_for_each_batch(place, stem):
    batches = listing(("0", starts(MONITOR="2025-03-02")), ("1", starts(MONITOR=CUT)))
    ledger = Ledger(f"{place.path}stem/ledger", TYPES)
    receipt = landing(
        place,
        path=f"{place.path}a_b/{{start}}_{{batch}}.{{extension}}",
        batch="001-of-002",
        start=f"{CUT}T00:00Z",
        end=f"{at(5)}T00:00Z",
    ).execute(run_context())
    landed = place.objects().keys()
    ledger.enter(batches, [receipt])
    [entered] = place.objects().keys() - landed
    before = place.objects()[entered]
    assert entered == "stem/ledger/001-of-002.json"
    spans = {"MONITOR": [["2025-03-02", "2025-03-06"]]}
    assert json.loads(before) == {"0": {"absent": {}, "streams": spans, "tries": 0}}
    ledger.enter(batches, [receipt])
    assert place.objects().keys() == {*landed, entered}
    assert place.objects()[entered] == before
    [piece] = ledger.missing(batches, CUT, LOOKBACK)
    assert (piece["batch"], piece["start"], piece["end"]) == (
        "002-of-002", "2025-03-01T00:00:00Z", "2025-03-03T00:00:00Z",
    )  # fmt: skip


def test_an_object_that_another_program_changed_is_damaged(tmp_path):
    place, batches = FolderPlace(tmp_path), listing(("0", None))
    ledger = Ledger(place.path, TYPES)
    ledger.enter(batches, [receipt_of("001-of-002", CUT, at(1))])
    path = tmp_path / "001-of-002.json"
    path.write_text(path.read_text().replace("2025-03-02", "2025-03-09"))
    with pytest.raises(StemConfigError, match=f"is damaged. Delete it.*{path}"):
        ledger.missing(batches, CUT, LOOKBACK)
    path.unlink()
    ledger.enter(batches, [receipt_of("001-of-002", CUT, at(1))])


def test_a_folder_that_does_not_exist_is_an_error_and_is_not_created(tmp_path):
    ledger = Ledger(f"file://{tmp_path}/lake", TYPES)
    with pytest.raises(StemConfigError, match="does not exist. Create it, mount its file system"):
        ledger.missing(listing(("0", None)), CUT, LOOKBACK)
    assert not list(tmp_path.iterdir())
    (tmp_path / "lake").mkdir()
    assert ledger.missing(listing(("0", None)), CUT, LOOKBACK) == []


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_simultaneous_writers_are_all_recorded(place):
    batches = listing(*((str(2 * number), starts(MONITOR=CUT)) for number in range(8)))
    all_have_read = threading.Barrier(8)

    def enter(number):
        ledger = Ledger(place.path, TYPES)
        store: Any = ledger._store
        put = store.put

        def put_together(*arguments):
            all_have_read.wait()
            store.put = put
            put(*arguments)

        store.put = put_together
        site = [batches[0]["sites"][number]]
        ledger.enter([{**batches[0], "sites": site}], [receipt_of("001-of-002", at(number), at(number + 1))])

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [content] = place.objects().values()
    assert {site: entry["streams"]["MONITOR"] for site, entry in json.loads(content).items()} == {
        str(2 * number): [[f"{at(number)}", f"{at(number + 1)}"]] for number in range(8)
    }


def test_a_store_that_ignores_conditions_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("airflow_provider_stem._stores.folder._honours_locks", lambda _: False)
    place = FolderPlace(tmp_path)
    arguments = listing(("0", {"MONITOR": None})), [receipt_of("001-of-002", CUT, at(1))]
    with pytest.raises(StemConfigError, match="does not honour locks.*allow_unconditional_writes"):
        Ledger(place.path, TYPES).enter(*arguments)
    assert place.objects() == {}
    monkeypatch.setenv("AIRFLOW__STEM__ALLOW_UNCONDITIONAL_WRITES", "True")
    Ledger(place.path, TYPES).enter(*arguments)
    assert len(place.objects()) == 1
