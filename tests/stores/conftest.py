from __future__ import annotations

import pytest

from tests.stores.places import FolderPlace, S3Place


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path, monkeypatch):
    """An empty place of each kind. Its connection is the default one of its scheme."""
    if request.param == "folder":
        return FolderPlace(tmp_path / "lake")
    return S3Place(request.getfixturevalue("lake"))
