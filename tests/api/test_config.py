from __future__ import annotations

import dataclasses
import json
import string
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.errors import StemConfigError

DEFAULT = "https://app.stem.com/api/v1/"
VISIBLE = string.ascii_letters + string.digits + string.punctuation


def read(
    host: str | None = None,
    schema: str | None = None,
    port: int | None = None,
    password: str | None = "some-key",
    extra: str | None = None,
) -> ClientConfig:
    return ClientConfig.from_connection(host=host, schema=schema, port=port, password=password, extra=extra)


def read_or_message(*fields: Any, **named: Any) -> ClientConfig | str:
    try:
        return read(*fields, **named)
    except StemConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("host", "schema", "port", "url"),
    [
        (None, None, None, DEFAULT),
        ("", "", None, DEFAULT),
        ("  ", "https", None, DEFAULT),
        ("app.stem.com", None, None, DEFAULT),
        (" app.stem.com ", " HTTPS ", None, DEFAULT),
        ("App.Stem.COM", None, None, DEFAULT),
        ("app.stem.com/", None, None, DEFAULT),
        ("app.stem.com/api/v1", None, None, DEFAULT),
        ("app.stem.com/api/v1/", None, None, DEFAULT),
        ("https://app.stem.com", None, None, DEFAULT),
        ("https://app.stem.com", "https", None, DEFAULT),
        ("https://app.stem.com/", None, None, DEFAULT),
        ("https://app.stem.com/api/v1", None, None, DEFAULT),
        ("https://app.stem.com/api/v1///", None, None, DEFAULT),
        ("HTTPS://App.Stem.com/Base/V2", None, None, "https://app.stem.com/Base/V2/"),
        ("gateway.example/stem", None, None, "https://gateway.example/stem/"),
        ("gateway.example:8443", None, None, "https://gateway.example:8443/api/v1/"),
        ("gateway.example:8443/stem", None, None, "https://gateway.example:8443/stem/"),
        ("gateway.example", None, 8443, "https://gateway.example:8443/api/v1/"),
        ("gateway.example:", None, 8443, "https://gateway.example:8443/api/v1/"),
        ("gateway.example:8443", None, 8443, "https://gateway.example:8443/api/v1/"),
        ("https://gateway.example/stem", "https", 8443, "https://gateway.example:8443/stem/"),
        ("gateway.example", None, 65535, "https://gateway.example:65535/api/v1/"),
        ("10.0.0.5", None, None, "https://10.0.0.5/api/v1/"),
        ("2001:db8::1", None, None, "https://[2001:db8::1]/api/v1/"),
        ("2001:db8::1", "https", 8443, "https://[2001:db8::1]:8443/api/v1/"),
        ("[2001:db8::1]:8443", None, None, "https://[2001:db8::1]:8443/api/v1/"),
        ("https://[2001:db8::1]:8443/stem/", None, None, "https://[2001:db8::1]:8443/stem/"),
        ("localhost", None, None, "https://localhost/api/v1/"),
        ("localhost", "http", None, "http://localhost/api/v1/"),
        ("LocalHost", "HTTP", 8000, "http://localhost:8000/api/v1/"),
        ("http://localhost:8000", None, None, "http://localhost:8000/api/v1/"),
        ("127.0.0.1", "http", 1, "http://127.0.0.1:1/api/v1/"),
        ("http://127.8.9.10/stem", None, None, "http://127.8.9.10/stem/"),
        ("::1", "http", 8000, "http://[::1]:8000/api/v1/"),
        ("http://[::1]:8000/", None, None, "http://[::1]:8000/api/v1/"),
        ("bücher.example", None, None, "https://bücher.example/api/v1/"),
        ("my_gateway-1.example", None, None, "https://my_gateway-1.example/api/v1/"),
    ],
)
def test_every_form_of_the_address(host: str | None, schema: str | None, port: int | None, url: str) -> None:
    config = read(host, schema, port)
    assert config.base_url == url
    assert read(config.base_url) == config


@pytest.mark.parametrize(
    ("host", "schema", "port", "named"),
    [
        ("app.stem.com", "http", None, "https"),
        ("http://app.stem.com", None, None, "https"),
        ("http://10.0.0.5", None, None, "https"),
        ("http://0.0.0.0", None, None, "https"),
        ("http://127.1", None, None, "https"),
        ("http://localhost.example.com", None, None, "https"),
        ("http://127.0.0.1.example.com", None, None, "https"),
        ("http://[2001:db8::1]", None, None, "https"),
        ("app.stem.com", "ftp", None, "Schema 'ftp'"),
        ("app.stem.com", "api/v1", None, "Schema 'api/v1'"),
        ("ftp://app.stem.com", None, None, "Host"),
        ("app.stem.com", None, 0, "Port 0"),
        ("app.stem.com", None, -1, "Port -1"),
        ("app.stem.com", None, 65536, "Port 65536"),
        ("app.stem.com:0", None, None, "Host"),
        ("app.stem.com:65536", None, None, "Host"),
        ("app.stem.com:https", None, None, "Host"),
        ("https://app.stem.com:443:444", None, None, "Host"),
        ("https://", None, None, "Host"),
        ("https:///api/v1", None, None, "Host"),
        ("/api/v1", None, None, "Host"),
        (":8443", None, None, "Host"),
        ("[::1", None, None, "Host"),
        ("http://::1", None, None, "Host"),
        ("app.stem.com?x=1", None, None, "Host"),
        ("https://app.stem.com/api/v1/?x=1", None, None, "Host"),
        ("https://app.stem.com/#top", None, None, "Host"),
        ("app stem com", None, None, "Host"),
        ("app.stem.com\r\nX-Header: 1", None, None, "Host"),
        ("app.stem.com\x00", None, None, "Host"),
        ("app.stem.com\\@evil.example", None, None, "Host"),
        ("app.stem.com\\evil", None, None, "Host"),
        ("app..stem.com", None, None, "Host"),
        (".", None, None, "Host"),
        ("a" * 64 + ".example", None, None, "Host"),
        ("<host>", None, None, "Host"),
        ("https://app.stem.com", "http", None, "Schema"),
        ("http://localhost", "https", None, "Schema"),
        ("app.stem.com:8443", None, 443, "Port 443"),
        (None, "http", None, "Host"),
        (None, None, 8443, "Host"),
    ],
)
def test_an_invalid_address_is_rejected(host: str | None, schema: str | None, port: int | None, named: str) -> None:
    with pytest.raises(StemConfigError) as raised:
        read(host, schema, port)
    assert named in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "host",
    [
        "https://user:s3cr3t@app.stem.com",
        "https://s3cr3t@app.stem.com/api/v1",
        ":s3cr3t@app.stem.com",
        "app.stem.com?api_key=s3cr3t",
        "https://app.stem.com/?s3cr3t",
        "https://app.stem.com/#s3cr3t",
    ],
)
def test_a_credential_in_the_host_is_not_shown(host: str) -> None:
    with pytest.raises(StemConfigError, match="Host") as raised:
        read(host, password="s3cr3t")
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize("key", ["abc", "a/b+c=", "==", "user@host:8080", "a:b", "%2F%", VISIBLE, "'\"\\"])
def test_a_key_is_kept_unchanged(key: str) -> None:
    assert read(password=key).api_key.reveal() == key


@pytest.mark.parametrize("key", ["the-key\n", "  the-key", "\tthe-key \r\n"])
def test_white_space_around_a_key_is_removed(key: str) -> None:
    assert read(password=key).api_key.reveal() == "the-key"


@pytest.mark.parametrize("key", [None, "", "  ", "\n"])
def test_no_key(key: str | None) -> None:
    with pytest.raises(StemConfigError, match="Password"):
        read(password=key)


@pytest.mark.parametrize("middle", [" ", "\n", "\r\nX-Header: 1\r\n", "\t", "\x00", "\x7f", "é", "\u200b", "\ud800"])
def test_a_key_that_cannot_be_in_a_header_is_rejected_and_not_shown(middle: str) -> None:
    with pytest.raises(StemConfigError, match="Password") as raised:
        read(password=f"left{middle}right")
    assert "left" not in str(raised.value)
    assert "right" not in str(raised.value)


def test_the_repr_hides_the_key() -> None:
    assert "some-key" not in repr(read())
    assert "some-key" not in str(read())


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().base_url = "https://evil.example/"  # type: ignore[misc]


@pytest.mark.parametrize("extra", [None, "", "  ", "{}", '{"timeout": null, "verify": null}', '{"timeout": ""}'])
def test_the_defaults(extra: str | None) -> None:
    config = read(extra=extra)
    assert (config.timeout, config.max_attempts, config.page_size, config.verify) == (60.0, 5, 100, True)
    assert config.requests_per_second is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("timeout", 30, 30.0),
        ("timeout", 0.5, 0.5),
        ("timeout", "30", 30.0),
        ("timeout", " 2.5 ", 2.5),
        ("max_attempts", 1, 1),
        ("max_attempts", "7", 7),
        ("max_attempts", 3.0, 3),
        ("max_attempts", "3.0", 3),
        ("page_size", 500, 500),
        ("page_size", "1", 1),
        ("requests_per_second", 4, 4.0),
        ("requests_per_second", " 0.5 ", 0.5),
        ("requests_per_second", 0.001, 0.001),
        ("requests_per_second", "1000", 1000.0),
        ("verify", True, True),
        ("verify", False, False),
        ("verify", "true", True),
        ("verify", "True", True),
        ("verify", "false", False),
        ("verify", " FALSE ", False),
        ("verify", "0", False),
        ("verify", "1", True),
        ("verify", "no", False),
        ("verify", "yes", True),
        ("verify", str(Path(__file__)), str(Path(__file__))),
        ("verify", str(Path(__file__).parent), str(Path(__file__).parent)),
    ],
)
def test_an_option_may_be_json_or_a_string(name: str, value: object, expected: object) -> None:
    read_value = getattr(read(extra=json.dumps({name: value})), name)
    assert read_value == expected
    assert type(read_value) is type(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("timeout", "max_attempts", "page_size", "requests_per_second") for value in (
            "0", "-1", "true", "false", "NaN", "Infinity", "-Infinity", '"nan"', '"inf"', '"-1"', '"0"', '"soon"',
            '"30 s"', "[]", "{}", "[30]", "1e400", "1" + "0" * 400, '"' + "9" * 400 + '"',
        )),
        ("timeout", "1e300"),
        ("requests_per_second", "0.0009"),
        ("requests_per_second", "1000.1"),
        ("max_attempts", "1.5"),
        ("max_attempts", '"2.5"'),
        ("page_size", "0.5"),
        ("verify", "0"),
        ("verify", "1"),
        ("verify", "2.5"),
        ("verify", "[]"),
        ("verify", "{}"),
        ("verify", '"maybe"'),
        ("verify", '"/no/such/bundle.pem"'),
        ("verify", '"/no/\\u0000/bundle.pem"'),
        ("verify", json.dumps("-----BEGIN CERTIFICATE-----\n" + "MIIB" * 500)),
        ("verify", json.dumps("/a" * 4000)),
    ],
)  # fmt: skip
def test_an_invalid_option_is_named(name: str, value: str) -> None:
    with pytest.raises(StemConfigError, match=f"'{name}'"):
        read(extra=f'{{"{name}": {value}}}')


@pytest.mark.parametrize(
    "extra", ["{", "no", "[]", '"text"', "3", "null", "true", '{"timeout": 3,}', "[" * 100_000, '{"a": ' * 100_000]
)
def test_an_extra_that_is_not_a_json_object(extra: str) -> None:
    with pytest.raises(StemConfigError, match="Extra"):
        read(extra=extra)


def test_unknown_keys_are_all_named_and_their_values_are_not() -> None:
    with pytest.raises(StemConfigError) as raised:
        read(extra='{"timout": "s3cr3t", "timeout": 30, "Verify": false}')
    assert "['Verify', 'timout']" in str(raised.value)
    assert "s3cr3t" not in str(raised.value)
    assert all(name in str(raised.value) for name in OPTIONS)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = (
    st.lists(labels, min_size=1, max_size=3).map(".".join)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda address: f"[{address}]")
)
paths = st.lists(st.from_regex(r"[A-Za-z0-9_~-]{1,8}", fullmatch=True), max_size=3).map(
    lambda parts: "".join(f"/{part}" for part in parts)
)


@given(
    name=names,
    path=paths,
    slashes=st.sampled_from(["", "/"]),
    port=st.none() | st.integers(1, 65535),
    full=st.booleans(),
    inside=st.booleans(),
)
def test_any_valid_address_becomes_a_base_url_that_reads_as_itself(
    name: str, path: str, slashes: str, port: int | None, full: bool, inside: bool
) -> None:
    host = f"{name}:{port}" if port and inside else name
    config = read(f"{'https://' if full else ''}{host}{path}{slashes}", "", None if inside else port)
    url = urlsplit(config.base_url)
    assert (url.scheme, url.port, url.path) == ("https", port, f"{path or '/api/v1'}/")
    assert url.hostname == name.strip("[]")
    assert read(config.base_url) == config


keys = st.text(VISIBLE).map("k3y%".__add__)
fields = st.none() | st.text(max_size=30)


@given(key=keys, host=fields, schema=fields, port=st.none() | st.integers(), extra=fields)
@example(key="s3cr3t", host="https://s3cr3t@app.stem.com", schema=None, port=None, extra=None)
@example(key="s3cr3t", host=None, schema="s", port=None, extra='{"verify": "no-file"}')
def test_every_error_is_a_config_error_without_the_key(
    key: str, host: str | None, schema: str | None, port: int | None, extra: str | None
) -> None:
    result = read_or_message(host, schema, port, key, extra)
    assert key not in (result if isinstance(result, str) else repr(result))
    assert isinstance(result, str) or result.base_url.endswith("/")


@given(key=st.text().map("k3y%".__add__))
def test_a_key_is_kept_whole_or_rejected_without_being_shown(key: str) -> None:
    result = read_or_message(password=key)
    if isinstance(result, str):
        assert key.strip() not in result
    else:
        assert result.api_key.reveal() == key.strip()


OPTIONS = ("timeout", "max_attempts", "page_size", "verify", "requests_per_second")
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*OPTIONS, "other"]), json_values))
def test_any_extra_gives_valid_options_or_a_config_error(options: dict[str, Any]) -> None:
    config = read_or_message(extra=json.dumps(options))
    if isinstance(config, str):
        return
    assert 0 < config.timeout < float("inf")
    assert config.max_attempts >= 1
    assert config.page_size >= 1
    assert isinstance(config.verify, (bool, str))
    assert config.requests_per_second is None or 0.001 <= config.requests_per_second <= 1000


@pytest.mark.parametrize("field", ["host", "schema", "extra"])
def test_a_key_that_was_pasted_into_another_field_is_not_shown(field):
    key = "aKey/With+Signs="
    fields: dict[str, Any] = {"host": "app.stem.com", "schema": "", "port": None, "password": key, "extra": None}
    fields[field] = json.dumps({"verify": key}) if field == "extra" else f"ftp://{key}"
    with pytest.raises(StemConfigError) as caught:
        ClientConfig.from_connection(**fields)
    assert key not in str(caught.value)
    assert "***" in str(caught.value)
