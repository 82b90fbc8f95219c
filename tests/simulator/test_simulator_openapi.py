from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_stem.simulator import Simulator
from tests.servers.processes import HUNG_AFTER

from .conftest import Get

STREAMS = "/api/v1/sites/{site_id}/streams"


@pytest.fixture
def parameters(stem_simulator: Simulator) -> dict[str, Any]:
    """Return the documented schemas of the parameters of lists and streams."""
    described = requests.get(stem_simulator.url.replace("/api/v1/", "/openapi.json"), timeout=HUNG_AFTER).json()
    return {
        **{p["name"]: p["schema"] for p in described["paths"]["/api/v1/clients"]["get"]["parameters"]},
        **{p["name"]: p["schema"] for p in described["paths"][STREAMS]["get"]["parameters"]},
    }


def test_the_documented_example_is_valid(stem_simulator: Simulator, get: Get, parameters: dict[str, Any]) -> None:
    example = {name: parameters[name]["examples"][0] for name in ("start_datetime", "end_datetime")}
    assert get(stem_simulator, "sites/site-00001/streams", **example).status_code == 200


@pytest.mark.parametrize("name", ["page", "per_page"])
def test_numbers_are_accepted_up_to_the_documented_maximum(
    stem_simulator: Simulator, get: Get, parameters: dict[str, Any], name: str
) -> None:
    limit = parameters[name]["maximum"]
    assert get(stem_simulator, "clients", **{name: limit}).status_code == 200
    assert get(stem_simulator, "clients", **{name: limit + 1}).status_code == 400


def test_at_least_one_stream_type_is_documented_as_required(
    stem_simulator: Simulator, get: Get, parameters: dict[str, Any]
) -> None:
    assert parameters["stream_type"]["minItems"] == 1
    assert parameters["stream_type"]["items"]["pattern"].startswith("^(MONITOR|")
