"""Configuration of the client, read from the fields of an Airflow connection; used by the hook."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from airflow_provider_stem.api.key import ApiKey
from airflow_provider_stem.errors import StemConfigError

DEFAULT_BASE_URL = "https://app.stem.com/api/v1/"
_DEFAULT_PATH = "/api/v1/"
_MAX_SECONDS = 86_400
_MAX_PAGE_SIZE = 100_000
MIN_RATE, MAX_RATE = 0.001, 1_000
"""Limits of ``requests_per_second``."""
_HOST_NAME = re.compile(r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """
    Base URL, API key and limits of a client.

    :param api_key: the developer token (guide: "Authentication Token").
    :param base_url: URL with a trailing slash: https, or http on a loopback address.
    :param timeout: seconds for one request, from its start to the last byte of its response.
    :param max_attempts: maximum number of times that one request is sent, 1 or more.
    :param page_size: ``per_page`` of the listings, 1 or more (guide: "Obtaining clients", "Obtaining sites").
    :param verify: whether to verify TLS certificates, or the path of a CA bundle to verify them with.
    :param requests_per_second: limit of the requests that one process sends with the key, see
        :class:`~airflow_provider_stem.api.pace.Pace`; ``None`` means no limit.
    :param columnar_decoding: whether :class:`~airflow_provider_stem.streams.decoding.StreamsDecoder` may decode in
        columns.
    """

    api_key: ApiKey
    base_url: str = DEFAULT_BASE_URL
    timeout: float = 60.0
    max_attempts: int = 5
    page_size: int = 100
    verify: bool | str = True
    requests_per_second: float | None = None
    columnar_decoding: bool = True

    def __post_init__(self) -> None:
        # A plain string would appear in every pickle, copy and repr.
        object.__setattr__(self, "api_key", ApiKey.of(self.api_key))

    @classmethod
    def from_connection(
        cls,
        *,
        host: str | None,
        schema: str | None,
        port: int | None,
        password: str | None,
        extra: str | None,
        defaults: Mapping[str, str] | None = None,
        columnar_decoding: bool = True,
    ) -> ClientConfig:
        """
        Return the configuration that a connection's fields describe.

        :param host: host, ``host:port`` or base URL; the default is :data:`DEFAULT_BASE_URL`.
        :param schema: ``https`` or ``http``; the default is ``https``.
        :param port: 1 to 65535; the default is the schema's port.
        :param password: the API key. White space around it is removed.
        :param extra: JSON object with any of ``timeout``, ``max_attempts``, ``page_size``, ``verify`` and
            ``requests_per_second``.
        :param defaults: values of the same options from Airflow's configuration; ``extra`` overrides them.
        :param columnar_decoding: see the field.
        :raises StemConfigError: a field is invalid. The message names the field, its value (never the key) and the
            remedy.
        """
        api_key = _api_key(password)
        try:
            base_url = _base_url((host or "").strip(), (schema or "").strip(), port)
            options = _read(defaults or {}, "[stem] {} of Airflow's configuration") | _extra(extra)
            return cls(api_key=api_key, base_url=base_url, columnar_decoding=columnar_decoding, **options)
        except StemConfigError as exc:
            message = str(exc)
        # A user may have pasted the key into another field too, whose value the message quotes.
        raise StemConfigError(api_key.redact(message))


def _api_key(password: str | None) -> ApiKey:
    key = (password or "").strip()
    if not key:
        raise StemConfigError("The connection has no Password. Enter the Stem API key there.")
    # An HTTP header holds one line of visible ASCII. The error of http.client would quote the key.
    if not set(key) <= set(string.ascii_letters + string.digits + string.punctuation):
        raise StemConfigError(
            "The connection's Password contains a space, a line break or a non-ASCII character, "
            "which no Stem API key does. Paste the key again."
        )
    return ApiKey(key)


def _base_url(host: str, schema: str, port: int | None) -> str:
    if schema.lower() not in {"", "http", "https"}:
        raise StemConfigError(
            f"Schema {schema!r} of the connection is neither 'http' nor 'https'. Clear it, or set one of them."
        )
    schema = schema.lower()
    if port is not None and not 1 <= port <= 65535:
        raise StemConfigError(f"Port {port} of the connection is not in 1..65535. Leave it empty for the default.")
    if not host:
        if port is not None or schema == "http":
            raise StemConfigError(
                "The connection has a Port or Schema but no Host. Enter the Host, or clear them to use "
                f"{DEFAULT_BASE_URL}"
            )
        return DEFAULT_BASE_URL

    url = _split_host(host, schema or "https")
    name = str(url.hostname)
    if schema and schema != url.scheme:
        raise StemConfigError(
            f"Host {host!r} and Schema {schema!r} of the connection contradict each other. Clear the Schema."
        )
    if url.port and port and url.port != port:
        raise StemConfigError(f"Host {host!r} and Port {port} of the connection contradict each other. Clear the Port.")
    if url.scheme == "http" and not _is_loopback(name):
        raise StemConfigError(
            f"Plain http to {name!r} would send the API key unencrypted. Use https "
            "(http is allowed for loopback addresses only)."
        )
    netloc = f"[{name}]" if ":" in name else name
    port = url.port or port
    if port:
        netloc = f"{netloc}:{port}"
    path = _DEFAULT_PATH if url.path in {"", "/"} else url.path.rstrip("/") + "/"
    return f"{url.scheme}://{netloc}{path}"


def _split_host(host: str, default_schema: str) -> SplitResult:
    """Return the parts of a host, ``host:port`` or URL, with a valid host name and port."""
    is_plain = all(char.isprintable() and not char.isspace() and char not in "@?#" for char in host)
    if not is_plain:
        raise StemConfigError(
            "Host of the connection contains a user, a query, a fragment or a space. Enter only the host or the base "
            "URL, such as 'app.stem.com', and the API key as Password."
        )
    is_bare_ipv6 = host.count(":") > 1 and "[" not in host and "/" not in host
    text = f"[{host}]" if is_bare_ipv6 else host
    if "://" not in text:
        text = f"{default_schema}://{text}"
    try:
        url = urlsplit(text)
        is_valid = url.scheme in {"http", "https"} and _is_host(url.hostname or "") and url.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise StemConfigError(
            f"Host {host!r} of the connection is not a host, host:port or http(s) URL. Enter one such as "
            f"{DEFAULT_BASE_URL}"
        )
    return url


def _is_host(name: str) -> bool:
    """Return whether a name is an IP address or dot-separated labels; URL parsers accept more than that."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _HOST_NAME.fullmatch(name) is not None
    return True


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _extra(extra: str | None) -> dict[str, Any]:
    try:
        options = json.loads(extra) if extra and extra.strip() else {}
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise StemConfigError('Extra of the connection is not a JSON object. Enter one such as {"timeout": 60}.')
    # The Test button of Airflow 2's form sends each option twice, once under its form field's name.
    options = {name.removeprefix("extra__stem__"): value for name, value in options.items()}
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise StemConfigError(f"Extra of the connection has unknown keys {unknown}. Use only {sorted(_OPTIONS)}.")
    return _read(options, "Extra {!r} of the connection")


def _read(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    read = {name: _OPTIONS[name](value) for name, value in options.items() if value is not None and value != ""}
    for name, value in read.items():
        if value is None:
            raise StemConfigError(f"{place.format(name)} must be {_EXPECTED[name]}, got {options[name]!r}.")
    return read


def _seconds(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0 < number <= _MAX_SECONDS else None


def _count(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def _page_size(value: object) -> int | None:
    size = _count(value)
    return size if size is not None and size <= _MAX_PAGE_SIZE else None


def _rate(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and MIN_RATE <= number <= MAX_RATE else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _verify(value: object) -> bool | str | None:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    if value.strip().lower() in {"true", "1", "yes"}:
        return True
    if value.strip().lower() in {"false", "0", "no"}:
        return False
    try:
        return value if Path(value).exists() else None
    except (OSError, ValueError):
        return None


# Each parser returns None for an invalid value.
_OPTIONS: dict[str, Callable[[object], Any]] = {
    "timeout": _seconds,
    "max_attempts": _count,
    "page_size": _page_size,
    "verify": _verify,
    "requests_per_second": _rate,
}
_EXPECTED = {
    "timeout": f"a number of seconds above 0 and up to {_MAX_SECONDS:,}",
    "max_attempts": "an integer >= 1",
    "page_size": f"an integer from 1 to {_MAX_PAGE_SIZE:,}",
    "verify": "true, false or the path of an existing CA bundle",
    "requests_per_second": f"a number from {MIN_RATE} to {MAX_RATE:,}",
}
