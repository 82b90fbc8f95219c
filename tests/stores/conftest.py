from __future__ import annotations

import secrets
from importlib.util import find_spec

import pytest

from tests.servers.emulators import AzureServer, GcsServer
from tests.stores.places import AzurePlace, FolderPlace, GcsPlace, S3Place
from tests.support import full_depth_only

HAS_EMULATORS = find_spec("gcp_storage_emulator") is not None
"""Whether this is the environment of ``make test-stores``."""


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory):
    with GcsServer(tmp_path_factory.mktemp("gcs"), strict=True) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory):
    with AzureServer(tmp_path_factory.mktemp("azure")) as server:
        yield server


KINDS = ["folder", "s3", *(["gs", "abfs"] if HAS_EMULATORS else [])]


# Most of S3's tests are in tests/test_s3.py and tests/test_operators.py.
@pytest.fixture(params=KINDS if HAS_EMULATORS else ["folder", pytest.param("s3", marks=full_depth_only)])
def place(request, tmp_path, monkeypatch):
    """An empty place of each kind. Its connection is the default one of its scheme."""
    name = f"lake-{secrets.token_hex(6)}"
    if request.param == "folder":
        return FolderPlace(tmp_path / "lake")
    if request.param == "s3":
        return S3Place(request.getfixturevalue("lake"))
    if request.param == "gs":
        made: GcsPlace | AzurePlace = GcsPlace(request.getfixturevalue("gcs_server"), name)
    else:
        made = AzurePlace(request.getfixturevalue("azure_server"), name)
    for variable, value in made.env.items():
        monkeypatch.setenv(variable, value)
    if isinstance(made, AzurePlace):
        made.create()
    return made
