"""Common parts of the fuzzers: coverage of this package's Python code, seeds, and a time limit for each input."""

from __future__ import annotations

import copy
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

_SLOW = 2.0  # seconds; a valid response of this length takes a few milliseconds
_LONG_MESSAGE = 2000


def run(check: Callable[[bytes], None], seeds: Sequence[bytes], tokens: Sequence[str], corpus: str) -> None:
    """
    Call ``check`` with inputs until the time on the command line has passed, or it raises.

    :param seeds: valid responses, the first inputs.
    :param tokens: strings from which inputs are built.
    :param corpus: folder for the seeds and for inputs that reach new code.
    """
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number:03}").write_bytes(seed)
    words = folder.with_suffix(".dict")
    escaped = ["".join(f"\\x{byte:02x}" for byte in token.encode()) for token in tokens]
    words.write_text("".join(f'"{text}"\n' for text in escaped))

    def timed(body: bytes) -> None:
        began = time.process_time()
        check(body)
        if time.process_time() - began > _SLOW:
            raise TimeoutError(f"{len(body):,} bytes took longer than {_SLOW} s")

    def mutated(body: bytes, limit: int, seed: int) -> bytes:
        # Mutated bytes are rarely valid JSON, so most inputs would fail in its parser.
        choice = random.Random(seed)
        changed = _changed(body, tokens, choice) if choice.random() < 0.7 else None
        return changed if changed is not None and len(changed) <= limit else bytes(atheris.Mutate(body, limit))

    options = [f"-dict={words}", "-max_len=8192", "-mutate_depth=2", "-rss_limit_mb=2048", "-timeout=10"]
    options.append(f"-artifact_prefix={folder.parent}/")
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(folder)], timed, custom_mutator=mutated)
    atheris.Fuzz()


def _changed(body: bytes, tokens: Sequence[str], choice: random.Random) -> bytes | None:
    """Change some values of a JSON text; return ``None`` if it is not JSON."""
    raw: list[str] = []
    try:
        payload = json.loads(body, object_pairs_hook=lambda pairs: _Pairs(map(list, pairs)))
    except (ValueError, RecursionError):
        return None
    for _ in range(choice.choice((1, 1, 1, 2, 4))):
        payload = _edited(payload, tokens, choice, raw)
    try:
        text = _written(payload, choice.choice((",", ",", ", ", "\n,\t")), choice.choice((":", ": ", " :\r")))
    except RecursionError:
        return None
    for number, token in enumerate(raw):
        text = text.replace(f'"@{number}@"', token)
    return text.encode(choice.choice(("utf-8",) * 30 + ("utf-8-sig", "utf-16", "utf-32")), "surrogatepass")


class _Pairs(list[Any]):
    """A JSON object, in which keys can repeat."""


def _written(value: Any, comma: str, colon: str) -> str:
    if isinstance(value, _Pairs):
        return "{" + comma.join(f"{json.dumps(k)}{colon}{_written(v, comma, colon)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + comma.join(_written(one, comma, colon) for one in value) + "]"
    return json.dumps(value)


def _edited(payload: Any, tokens: Sequence[str], choice: random.Random, raw: list[str]) -> Any:
    places: list[tuple[Any, int]] = []
    values: list[Any] = [payload]
    for value in values:
        if isinstance(value, _Pairs):
            places += [(pair, 1) for pair in value] + [(pair, -2) for pair in value] + [(value, -1)]
            values += [one for _, one in value]
        elif isinstance(value, list):
            places += [(value, index) for index in range(len(value))] + [(value, -1)]
            values += value
        if len(values) > 10_000:
            break
    if not places:
        return payload
    place, index = choice.choice(places)
    if index == -1:  # a whole list or object: add, remove or move a member
        if place and choice.random() < 0.7:
            member = place[choice.randrange(len(place))]
            if choice.random() < 0.5:
                place.insert(choice.randrange(len(place) + 1), list(member) if isinstance(place, _Pairs) else member)
            else:
                place.remove(member)
        else:
            new = copy.deepcopy(choice.choice(values[-20:]))  # a copy, since a list could otherwise contain itself
            place.append([choice.choice(("id", "errors", "new", "")), new] if isinstance(place, _Pairs) else new)
        return payload
    old = place[index]  # the key of a pair is its last but one element
    if index == -2:  # a key
        others = [pair[0] for pair, at in places if at == -2]
        place[0] = choice.choice((choice.choice(others), _spliced(old, tokens, choice)))
        return payload
    how = choice.random()
    if isinstance(old, str) and how < 0.5:
        place[index] = _spliced(old, tokens, choice)
    elif how < 0.8:
        raw.append(choice.choice((*tokens, *_NUMBERS)))
        place[index] = f"@{len(raw) - 1}@"
    else:
        other = choice.choice(values)
        place[index] = other if not isinstance(other, list) else None
    return payload


def _spliced(text: str, tokens: Sequence[str], choice: random.Random) -> str:
    how = choice.random()
    if how < 0.4:  # change a digit or a part of a time
        spots = [found.start() for found in re.finditer("[0-9]", text)]
        if spots:
            spot = choice.choice(spots)
            return text[:spot] + choice.choice("0123456789") + text[spot + 1 :]
    begin = choice.randrange(len(text) + 1)
    token = choice.choice(tokens).strip('"')
    return text[:begin] + token + text[begin + choice.choice((0, 0, len(token), 1, 6)) :]


_NUMBERS = (
    "1",
    "-1.5",
    "0.1",
    "1e5",
    "12345678901234567890.5",
    "9" * 400,
    "9" * 4301,
    '"1.5"',
    "[1]",
    "{}",
    "[]",
    '""',
)


def check_message(error: Exception, *, one_line: bool) -> None:
    """
    Raise if the message of an error is too long or has line breaks.

    :param one_line: whether no caller cleans the message.
    """
    text = str(error)
    if len(text) > _LONG_MESSAGE or (one_line and not text.isprintable()):
        raise AssertionError(f"{type(error).__name__} of {len(text):,} characters: {text[:200]!r}")


TOKENS = (
    *('"', "\\", "{", "}", "[", "]", ",", ":", "\\u0000", "\\ud800", "\\u202e", "\x1b[31m", "\ufeff", "\n", " ", "\t"),
    *("null", "true", "false", "NaN", "-Infinity", "-0", "-0.0", "1e999", "-1e-999", "1E+22", "0e0", "01", "+1", ".5"),
    *("123456789012345678901234567890", "1.7976931348623157e308", "5e-324", "[[[[[[[[", "]]]]]]]]", '{"":{"":', "0x1"),
    *(
        '"errors"',
        '"message"',
        '"code"',
        '"id"',
        '"name"',
        '"total"',
        '"page"',
        '"link"',
        '"..',
        '"%2e%2e"',
        "{{ 7*7 }}",
    ),
)
