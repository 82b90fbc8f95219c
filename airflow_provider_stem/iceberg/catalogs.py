"""Airflow connections turned into a catalog of pyiceberg, and its errors into this package's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airflow.providers.common.compat.sdk import BaseHook, mask_secret

from airflow_provider_stem._disk import WorkerError
from airflow_provider_stem._text import one_line
from airflow_provider_stem.errors import StemConfigError, StemError, StemTransportError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection
    from pyiceberg.catalog import Catalog

__all__ = ["catalog_errors", "catalog_from"]

Properties = dict[str, Any]

_CREDENTIALS = re.compile("(s3|glue|client)[.](access-key-id|secret-access-key|session-token|profile-name|role-arn)")
"""pyiceberg's properties for credentials. If Extra has one of them, nothing of ``aws_conn_id`` is used."""
_SECRET = re.compile("secret|password|credential|access-key|token(?!-)", re.IGNORECASE)
_IN_A_URI = re.compile("://[^/@:]*:([^/@]+)@")
_REMOTE = re.compile(r"(?!file:)\w[\w+.-]+:")
_CREATED_MEANWHILE = re.compile("already exists|duplicate key", re.IGNORECASE)
_MAX_CREATIONS = 5
# Drivers of databases and Arrow have no class or code for these errors.
_WRONG = re.compile(
    r"authentication failed|no password supplied|role \S+ does not exist|database \S+ does not exist|"
    r"no such (database|user)|no pg_hba.conf entry|permission denied|access denied|read-?only|"
    r"does not support SSL|certificate (verify failed|for .* does not match|file .* does not exist)|"
    r"invalid (\w+ value|port number)|invalid value for parameter|unrecognized configuration parameter|"
    r"unsupported startup parameter|unable to open database file|file is not a database|"
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET)|"
    r"HTTP status (401|403)",
    re.IGNORECASE,
)
_FINAL_STATUSES = {*range(400, 500)} - {408, 409, 419, 425, 429}
_WRONG_CODES = {
    "AccessDeniedException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "UnrecognizedClientException",
}
"""Codes of Glue for what no retry cures."""


def catalog_from(catalog_conn_id: str, aws_conn_id: str | None) -> Catalog:
    """
    Return the catalog of a connection. A new SQL catalog is created.

    :param catalog_conn_id: connection of any type. Its Extra holds pyiceberg's properties, and ``catalog_name``, by
        default the connection's id. Host sets ``uri``, Login and Password for the credentials in it.
    :param aws_conn_id: connection of type ``aws`` for S3 and Glue, unless Extra has credentials for them; ``None`` for
        boto3's own credentials.
    :raises StemConfigError: pyiceberg is not installed, the connection is invalid, or the catalog rejects it.
    :raises StemTransportError: the catalog cannot be reached.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import BadRequestError, NoSuchPropertyException, NotInstalledError
    except ImportError as exc:
        raise StemConfigError(
            f"pyiceberg cannot be imported ({one_line(str(exc))}). Install airflow-provider-stem[iceberg]."
        ) from None
    name, properties = _properties(catalog_conn_id)
    is_local = properties["type"] == "sql" and not _REMOTE.match(properties["warehouse"])
    if not is_local and not any(map(_CREDENTIALS.fullmatch, properties)):
        properties = _from_aws(aws_conn_id, properties) | properties
    for secret in _secrets(properties):
        mask_secret(secret)
    wrong = (BadRequestError, FileNotFoundError, NoSuchPropertyException, NotImplementedError, ValueError)
    with catalog_errors(catalog_conn_id, properties):
        for attempt in range(_MAX_CREATIONS):
            try:
                return load_catalog(name, **properties)
            except (NotInstalledError, ImportError) as exc:
                raise _invalid(
                    catalog_conn_id,
                    f"{_redacted(exc.__cause__ or exc, properties)}. Install the driver that its uri names. A SQL "
                    "catalog also needs SQLAlchemy 2 (Airflow 3.1 or later).",
                ) from None
            except wrong as exc:
                raise _invalid(
                    catalog_conn_id, f"{_redacted(exc, properties)}. Correct the properties in its Extra."
                ) from None
            except Exception as exc:
                # Several tasks may create the tables of a new SQL catalog at the same time.
                if attempt == _MAX_CREATIONS - 1 or not _CREATED_MEANWHILE.search(str(exc)):
                    raise
    raise AssertionError("unreachable")


@contextmanager
def catalog_errors(catalog_conn_id: str, properties: Mapping[str, Any]) -> Iterator[None]:
    """
    Raise this package's errors for those of a catalog, and of the store of its tables.

    :param catalog_conn_id: connection that the messages name.
    :param properties: ``properties`` of the catalog. The messages do not contain its secrets.
    :raises StemConfigError: no retry can cure the error: wrong credentials, a missing permission, a wrong address, a
        lost file of a table.
    :raises StemTransportError: the catalog or the store cannot be reached, or failed.
    :raises OSError: the disk of the worker is full, or a limit of the worker is reached.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from pyiceberg.exceptions import RESTError
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StemError, WorkerError):
        raise
    except FileNotFoundError as exc:
        problem = _redacted(exc, properties).removeprefix("[Errno 2] ").partition(". Detail: ")[0]
        raise StemConfigError(
            "The store lacks a file that the table refers to, and a retry does not help. Restore it, or roll the table "
            f"back to an older snapshot [{problem}]"
        ) from None
    except (BotoCoreError, ClientError, OSError, RESTError, RequestException, SQLAlchemyError) as exc:
        text = _redacted(exc, properties)
        if _is_wrong(exc):
            raise _invalid(
                catalog_conn_id, f"{text}. Correct its address or credentials, or ask for the missing permission."
            ) from None
        raise StemTransportError(
            f"The catalog of connection {catalog_conn_id!r} failed: {text}. Try again later, or correct its address."
        ) from None


def _is_wrong(exc: Exception) -> bool:
    """Return whether an error remains however often a task is retried."""
    from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError
    from pyiceberg.exceptions import BadRequestError, ForbiddenError, OAuthError, UnauthorizedError
    from requests.exceptions import InvalidURL, MissingSchema, SSLError
    from sqlalchemy.exc import ArgumentError, ProgrammingError

    final = (
        *(NoCredentialsError, NoRegionError),
        *(BadRequestError, ForbiddenError, OAuthError, UnauthorizedError),
        *(InvalidURL, MissingSchema, SSLError),
        *(ArgumentError, ProgrammingError),
    )
    if isinstance(exc, ClientError):
        return exc.response.get("Error", {}).get("Code") in _WRONG_CODES
    # pyiceberg has no class for most statuses.
    status = getattr(getattr(exc.__cause__, "response", None), "status_code", None)
    return isinstance(exc, final) or status in _FINAL_STATUSES or bool(_WRONG.search(str(exc)))


def _properties(catalog_conn_id: str) -> tuple[str, Properties]:
    """Return the name and the properties of a connection's catalog, without those of ``aws_conn_id``."""
    connection = BaseHook.get_connection(catalog_conn_id)
    properties = _extra(connection)
    if uri := _address(connection):
        properties.setdefault("uri", uri)
    uri, warehouse = properties.get("uri", ""), properties.get("warehouse", "")
    if "type" not in properties:
        # The type of the Apache Iceberg provider's connection is for REST catalogs.
        is_rest = uri.startswith("http") or (uri and connection.conn_type == "iceberg")
        properties["type"] = "rest" if is_rest else "sql" if uri or warehouse else ""
    properties["type"] = str(properties["type"]).lower()
    complete = {"sql": _sql, "rest": _rest, "glue": _glue}.get(properties["type"])
    if complete is None:
        raise _invalid(
            catalog_conn_id,
            f"the type of its catalog is {properties['type'] or 'missing'!r}. Set 'type' in its Extra to 'sql', 'rest' "
            "or 'glue'.",
        )
    complete(connection, properties)
    return str(properties.pop("catalog_name", catalog_conn_id)), properties


def _extra(connection: Connection) -> Properties:
    """Return a connection's Extra with strings as values, which is all that pyiceberg parses."""
    properties: Properties = {}
    for name, value in connection.extra_dejson.items():
        # The only property of pyiceberg that has parts.
        if isinstance(value, dict) and name == "auth":
            properties[name] = value
        elif isinstance(value, dict | list):
            raise _invalid(
                connection.conn_id,
                f"{name!r} in its Extra is a {'list' if isinstance(value, list) else 'JSON object'}. Use a string.",
            )
        elif value not in (None, ""):
            properties[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return properties


def _address(connection: Connection) -> str:
    """Return a connection's Host, Schema and Port as an address, or an empty string."""
    host = (connection.host or "").rstrip("/")
    if not host or "://" in host:
        return host
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"


def _sql(connection: Connection, properties: Properties) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    warehouse = properties.get("warehouse")
    if not warehouse:
        raise _invalid(
            connection.conn_id,
            "'warehouse' is missing in its Extra. Set it to the prefix of all tables, for example "
            "'s3://bucket/iceberg'.",
        )
    if "uri" not in properties and _REMOTE.match(warehouse):
        raise _invalid(
            connection.conn_id,
            "'uri' is missing in its Extra. Set it to the database of the catalog, for example "
            "'postgresql+psycopg2://host:5432/iceberg', or 'sqlite:////data/catalog.db' where all tasks run on "
            "one machine.",
        )
    uri = properties.setdefault("uri", f"sqlite:///{urlsplit(warehouse).path.rstrip('/')}/catalog.db")
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        # The text of this error may contain the password.
        raise _invalid(
            connection.conn_id,
            "its uri is not an address of SQLAlchemy. Write 'sqlite:////path/catalog.db' or "
            "'postgresql+psycopg2://host:5432/database'.",
        ) from None
    if connection.login and not url.username:
        url = url.set(username=connection.login, password=connection.password)
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise _invalid(
                connection.conn_id,
                "a catalog in memory is lost when the task ends. Set its uri to a file: 'sqlite:////path/catalog.db'.",
            )
        # SQLite does not name the folder. It is not created, since the disk that it is on may not be mounted.
        if not url.database.startswith("file:") and not (folder := Path(url.database).parent).is_dir():
            raise _invalid(connection.conn_id, f"there is no folder {str(folder)!r} for its catalog. Create it first.")
        # The default of 5 s is too short for several tasks on a busy disk.
        if "timeout" not in url.query:
            url = url.update_query_dict({"timeout": "120"})
    properties["uri"] = url.render_as_string(hide_password=False)
    # A database may close a connection that is not used during a long load.
    properties.setdefault("pool_pre_ping", "true")


def _rest(connection: Connection, properties: Properties) -> None:
    if not properties.get("uri"):
        raise _invalid(connection.conn_id, "its Host is missing. Set it to the address of the REST catalog.")
    # The same as pyiceberg's own default, which it warns about.
    properties.setdefault("oauth2-server-uri", f"{properties['uri'].rstrip('/')}/v1/oauth/tokens")
    if properties.keys() & {"credential", "token", "auth"}:
        return
    login, password = connection.login, connection.password
    if bool(login) != bool(password):
        raise _invalid(
            connection.conn_id,
            f"its {'Password' if login else 'Login'} is missing. Set Login to the client id and Password to the client "
            "secret, or only 'token' in its Extra.",
        )
    if login:
        properties["credential"] = f"{login}:{password}"


def _glue(connection: Connection, properties: Properties) -> None:  # noqa: ARG001 - called as _sql and _rest are
    if connection.login or connection.password:
        raise _invalid(
            connection.conn_id,
            "Glue uses no Login and Password. Leave both empty, and set the credentials in the connection of "
            "aws_conn_id.",
        )


def _from_aws(aws_conn_id: str | None, properties: Properties) -> Properties:
    """Return the properties for S3 and Glue that an Airflow connection of type ``aws`` stands for."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=aws_conn_id)
    region, config = hook.region_name, hook.config
    found: Properties = {}
    if credentials := hook.get_session().get_credentials():
        frozen = credentials.get_frozen_credentials()
        found["client.access-key-id"], found["client.secret-access-key"] = frozen.access_key, frozen.secret_key
        if frozen.token:
            found["client.session-token"] = frozen.token
    for service in ("s3", "glue"):
        endpoint = hook.conn_config.get_service_endpoint_url(service)
        if endpoint:
            found[f"{service}.endpoint"] = endpoint
            # Arrow asks AWS for the region of a bucket if it has none.
            region = region or "us-east-1"
    if region and "client.region" not in properties:
        found["client.region"] = region
    # Arrow's limits are 1 s and 3 s by default.
    found["s3.connect-timeout"] = str(config.connect_timeout)
    found["s3.request-timeout"] = str(config.read_timeout)
    if ((config.s3 or {}).get("addressing_style")) == "virtual":
        found["s3.force-virtual-addressing"] = "true"
    return found


def _invalid(catalog_conn_id: str | None, problem: str) -> StemConfigError:
    return StemConfigError(f"Invalid catalog_conn_id {catalog_conn_id!r}: {problem}")


def _redacted(exc: BaseException, properties: Mapping[str, Any]) -> str:
    """Return an error's text in one line, without the catalog's secrets."""
    text = str(getattr(exc, "orig", None) or exc)
    for secret in _secrets(properties):
        text = text.replace(secret, "***")
    return one_line(text).rstrip(".")


def _secrets(properties: Mapping[str, Any]) -> Iterator[str]:
    """Iterate over the secrets among the properties of a catalog."""
    for name, value in properties.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif _SECRET.search(name):
            # A client's credential is ID:SECRET.
            yield from {str(value), str(value).partition(":")[2]} - {""}
        elif password := _IN_A_URI.search(str(value)):
            yield from {password[1], unquote(password[1])}
