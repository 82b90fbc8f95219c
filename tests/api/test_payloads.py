from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_stem._text import one_line
from airflow_provider_stem.api.payloads import UnreadableResponseError, error_messages, read_object
from airflow_provider_stem.errors import StemDataError


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"{}", {}),
        (b' {"id": "a", "new field": [null]}\r\n', {"id": "a", "new field": [None]}),
        ('{"name": "Café ☀"}'.encode(), {"name": "Café ☀"}),
        (b'{"sites": [], "errors": []}', {"sites": [], "errors": []}),
        (b'{"sites": [], "errors": null}', {"sites": [], "errors": None}),
    ],
)
def test_an_object_is_returned_unchanged(body: bytes, payload: object) -> None:
    assert read_object(body) == payload


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \r\n",
        b"<html>Sign in</html>",
        b'{"sites": [{"id": "a"}',
        b'{"name": "caf\xe9"}',
        b"\x00\xff",
        b"[" * 200_000,
    ],
)
def test_a_body_that_is_not_json_is_retryable(body: bytes) -> None:
    with pytest.raises(UnreadableResponseError) as raised:
        read_object(body)
    assert isinstance(raised.value, StemDataError)
    assert "Sign in" not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b'{"id": "a", "id": "b"}',
        b'{"sites": [{"id": "a", "id": "a"}]}',
        b'{"errors": [{"message": "Kaputt.", "code": 500}]}',
        b'{"errors": [{"code": 500}]}',
        b'{"sites": [], "errors": [{"message": "Kaputt."}]}',
    ],
)
def test_other_json_is_not_retryable(body: bytes) -> None:
    with pytest.raises(StemDataError) as raised:
        read_object(body)
    assert not isinstance(raised.value, UnreadableResponseError)
    assert re.search(r"[^.]\. Try again later, or report it to Stem if it persists$", str(raised.value))


def test_every_message_of_an_error_with_status_200_is_reported() -> None:
    with pytest.raises(StemDataError, match=r"First\.; Second\."):
        read_object(b'{"errors": [{"message": "First."}, {"message": "Second."}]}')


@pytest.mark.parametrize(
    ("payload", "messages"),
    [
        ({"errors": [{"message": "a", "code": 400}, {"message": "b"}]}, ["a", "b"]),
        ({"errors": [{"code": 400}, "text", None, {"message": 3}, {"message": "b"}]}, ["b"]),
        ({"errors": {"message": "a"}}, []),
        ({"errors": None}, []),
        ({}, []),
        ([], []),
        (None, []),
        ("text", []),
    ],
)
def test_messages_are_read_from_any_payload(payload: object, messages: list[str]) -> None:
    assert error_messages(payload) == messages


@given(st.text())
def test_one_line_is_printable_and_short(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 500
    assert one_line(line) == line


@pytest.mark.parametrize("text", ["a\nb", "a\r\n b", "a\x1b b", "a\u2028b", "a\u202eb", "a\x9bb", "a\x00b", "a\t \tb"])
def test_control_characters_become_a_space(text: str) -> None:
    assert one_line(text) == "a b"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_other_json_raises_only_data_errors(value: object) -> None:
    with pytest.raises(StemDataError):
        read_object(json.dumps(value).encode())


@given(st.binary())
def test_any_bytes_raise_only_data_errors(body: bytes) -> None:
    with contextlib.suppress(StemDataError):
        assert isinstance(read_object(body), dict)
