"""The page of completeness in every store: published whole, and with the content type that a browser needs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from airflow_provider_stem._stores.folder import FolderStore
from airflow_provider_stem.completeness.publishing import publish_page
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.spool import ScratchFile


@pytest.fixture
def warehouse(tmp_path, monkeypatch):
    """A warehouse with one day of one site."""
    file = str(tmp_path / "warehouse.duckdb")
    monkeypatch.setenv("AIRFLOW_CONN_STEM_WAREHOUSE", json.dumps({"conn_type": "duckdb", "host": file}))
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    with duckdb.connect(file) as made:
        made.execute("CREATE SCHEMA stem")
        made.execute(
            "CREATE TABLE stem.completeness AS SELECT 'site-00001' AS site_id, 'MONITOR' AS stream_type, "
            f"900 AS resolution, DATE '{yesterday}' AS day, 96 AS expected, 90 AS received, 0 AS late, "
            "'missing' AS status"
        )
        made.execute("CREATE TABLE stem.sites AS SELECT 'site-00001' AS site_id, 'One' AS name, NULL AS valid_to")


def test_the_page_is_published_and_replaced(warehouse, place):
    place.write("pages/completeness.html", b"of yesterday")
    published = publish_page(f"{place.path}pages/", days=3)
    [(name, page)] = place.objects().items()
    assert published == {
        "uri": place.path + name, "bytes": len(page), "sites": 1, "streams": 1, "expected": 96, "received": 90,
        "missing": 6, "late": 0,
    }  # fmt: skip
    assert name == "pages/completeness.html"
    assert page.startswith(b"<!DOCTYPE html>")
    assert b"One (site-00001)" in page
    assert page.endswith(b"</html>")
    assert place.content_type(name).startswith("text/html")  # the emulator of Google drops the charset


def test_a_page_whose_reading_began_later_is_kept(warehouse, tmp_path):
    store, newer = FolderStore(), b"<!DOCTYPE html>newer"
    key = f"{tmp_path}/pages/completeness.html".removeprefix("/")
    with ScratchFile() as file:
        file.write(newer)
        store.put(key, file, datetime.now(UTC) + timedelta(minutes=5), None)
    publish_page(f"file://{tmp_path}/pages/", days=3)
    assert (tmp_path / "pages" / "completeness.html").read_bytes() == newer


@pytest.mark.parametrize("days", [0, 3661, "3", 10**12, True])
def test_a_number_of_days_that_is_no_period_is_an_error(days, tmp_path):
    with pytest.raises(StemConfigError, match="days must be an integer from 1 to 3,660"):
        publish_page(f"file://{tmp_path}/", days=days)
    assert list(tmp_path.iterdir()) == []
