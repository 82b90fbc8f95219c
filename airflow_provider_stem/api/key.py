"""The API key, and its redaction from strings; used by the configuration and the transport."""

from __future__ import annotations

import html
import re
from typing import NoReturn

# Line breaks, escapes or invisible characters inside the key. Cleaning a string for a log would remove them.
_GAP = "[^!-~]*"


class ApiKey:
    """
    A developer token (guide: "Authentication Token") that does not appear in ``repr``, copies or pickles.

    :param key: the token, one line of visible ASCII.
    """

    __slots__ = ("_key", "_written")

    def __init__(self, key: str) -> None:
        self._key = key
        self._written = re.compile(_GAP.join(map(_forms, key)), re.IGNORECASE)

    @classmethod
    def of(cls, key: ApiKey | str) -> ApiKey:
        """Return the key as an :class:`ApiKey`."""
        return cls(key) if isinstance(key, str) else key

    def reveal(self) -> str:
        """Return the key in plain text; use it only for the request header."""
        return self._key

    def redact(self, text: str) -> str:
        """
        Replace the key in a string with ``***``, however its characters are encoded.

        They may be plain, percent-encoded, or escaped for JSON, Python or HTML, in upper or lower case.
        """
        return self._written.sub("***", text)

    def __repr__(self) -> str:
        return "ApiKey('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiKey) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: object) -> ApiKey:
        return self

    def __copy__(self) -> ApiKey:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("The API key cannot be pickled. Pass the id of the Airflow connection instead.")


def _forms(character: str) -> str:
    """Return a regular expression that matches every encoding of a character; used with ``re.IGNORECASE``."""
    code = ord(character)
    forms = [
        rf"\\*{re.escape(character)}" if not character.isalnum() else character,
        rf"%(?:25){{0,2}}{code:02x}",
        rf"\\+(?:u00|x){code:02x}",
        rf"&#(?:0{{0,6}}{code}|x0{{0,6}}{code:x});",
    ]
    if character == "\\":
        forms[0] = r"\\+"
    if (named := html.escape(character)) != character:
        forms.append(re.escape(named))
    return f"(?:{'|'.join(forms)})"
