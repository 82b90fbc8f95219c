"""Stores that cannot be used as they are: the message says why."""

from __future__ import annotations

import pytest

from airflow_provider_stem._stores import open_store
from airflow_provider_stem.errors import StemConfigError
from tests.servers.emulators import GcsServer
from tests.stores.conftest import HAS_EMULATORS
from tests.stores.places import GcsPlace


@pytest.mark.skipif(HAS_EMULATORS, reason="the providers are installed")
@pytest.mark.parametrize(("scheme", "extra"), [("gs", "google"), ("abfs", "azure")])
def test_a_provider_that_is_missing_is_named(scheme, extra):
    with pytest.raises(StemConfigError, match=rf"pip install 'airflow-provider-stem\[{extra}\]'"):
        open_store(scheme, "lake", "unused").head("x")


@pytest.mark.skipif(not HAS_EMULATORS, reason="make test-stores runs it")
def test_the_emulator_that_ignores_conditions_is_found_out(tmp_path, monkeypatch, caplog):
    with GcsServer(tmp_path, strict=False) as server:
        place = GcsPlace(server, "lake")
        for variable, value in place.env.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(StemConfigError, match="does not honour ifGenerationMatch=0"):
            place.store().check(place.key(".probe"), may_be_unconditional=False)
        place.store().check(place.key(".probe"), may_be_unconditional=True)
        assert "does not honour ifGenerationMatch=0" in caplog.text
        assert place.objects() == {}
