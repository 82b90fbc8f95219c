from __future__ import annotations

import copy
import dataclasses
import html
import json
import pickle
import re
import string
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem.api.client import StemClient
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.api.key import ApiKey

KEY = "s3nT/Key+9=@:'\"\\&<zQ"
VISIBLE = string.ascii_letters + string.digits + string.punctuation
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": quote,
    "quoted whole": lambda key: quote(key, safe=""),
    "quoted in small letters": lambda key: quote(key, safe="").lower(),
    "quoted twice": lambda key: quote(quote(key, safe=""), safe=""),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON with escaped slashes": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)),
    "JSON code points": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "repr": repr,
    "repr of JSON": lambda key: repr(json.dumps(key)),
    "bytes": lambda key: repr(key.encode()),
    "HTML": html.escape,
    "HTML code points": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "small letters": str.lower,
}


def client(key: str = KEY) -> StemClient:
    return StemClient(ClientConfig(ApiKey(key)))


@pytest.mark.parametrize("form", FORMS)
def test_the_key_is_redacted_in_every_encoding(form: str) -> None:
    left = client().redact(f"before {FORMS[form](KEY)} after")
    assert re.fullmatch(r"""before [b\\"']*\*\*\*[\\"']* after""", left)


@given(key=st.text(VISIBLE, min_size=4), form=st.sampled_from(sorted(FORMS)))
def test_any_key_is_redacted_in_every_encoding(key: str, form: str) -> None:
    assert "***" in client(key).redact(f"x {FORMS[form](key)} y")


@pytest.mark.parametrize("text", ["", "s3nT/Key", "no key here: *** [GET /x]", KEY[:-1]])
def test_other_strings_are_unchanged(text: str) -> None:
    assert client().redact(text) == text


@pytest.mark.parametrize("dump", [pickle.dumps, lambda config: pickle.dumps(config, 0), lambda c: vars(c.api_key)])
def test_a_config_cannot_be_pickled(dump: object) -> None:
    with pytest.raises(TypeError):
        dump(ClientConfig(ApiKey(KEY)))  # type: ignore[operator]


@pytest.mark.parametrize("given_key", [KEY, ApiKey(KEY)], ids=["string", "key"])
def test_no_view_of_a_config_shows_the_key(given_key: ApiKey) -> None:
    config = ClientConfig(given_key)
    copies = [config, copy.copy(config), copy.deepcopy(config), dataclasses.replace(config, timeout=1)]
    views = [view(one) for one in copies for view in (repr, str, dataclasses.asdict, dataclasses.astuple)]
    assert "s3nT" not in repr(views)
    assert all(one.api_key.reveal() == KEY for one in copies)
    assert copies[1] == copies[2] == config
    assert hash(copies[2]) == hash(config)
    assert copy.copy(config.api_key) is config.api_key
