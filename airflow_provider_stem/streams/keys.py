"""Object keys: templates and their placeholders; used by the operator and the landing."""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.store import DEFAULT_CONNECTIONS, resolve_address, split_uri
from airflow_provider_stem.streams.windows import Partition, Window

DEFAULT_KEY = (
    "stem/{dag_id}/{task_id}/date={start:%Y-%m-%d}/{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}"
    "_{resolution}s_{batch}.{extension}"
)

MAX_OBJECTS = 1000
"""Maximum number of objects of one task."""

PLACEHOLDERS = ("start", "end", "resolution", "batch", "dag_id", "task_id", "extension")

_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_MAX_KEY_BYTES = 1024
_MARK = "stem-batch-mark"
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")


class _KeyFormatter(string.Formatter):
    """
    ``str.format`` without attributes and indices, and with a default format for instants.

    :param argument: name of the operator's argument, for messages.
    """

    def __init__(self, argument: str) -> None:
        self._argument = argument

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Any) -> Any:  # noqa: ARG002
        if field_name not in PLACEHOLDERS:
            raise StemConfigError(
                f"{self._argument} has the unknown placeholder {{{field_name}}}. Use only "
                f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}."
            )
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, datetime) and not format_spec:
            format_spec = "%Y%m%dT%H%M%SZ"
        return str(super().format_field(value, format_spec))


_EXAMPLE = Window.covering(
    datetime.fromisoformat("2025-01-01T00:00Z"), datetime.fromisoformat("2025-01-02T00:00Z"), 900
)


def check_key_template(argument: str, value: object) -> None:
    """
    Validate ``s3_key`` or ``path`` when the DAG is parsed.

    :param argument: name of the argument.
    :param value: key or full address; Jinja expressions in it are ignored.
    :raises StemConfigError: it is not a string, has an unknown placeholder, or cannot become a valid key.
    """
    if not isinstance(value, str):
        raise StemConfigError(
            f"{argument} must be a string, got {value!r}. Use a key with its address, such as 's3://my-lake/key'."
        )
    without_jinja = _JINJA.sub("", value)
    example = {"batch": "batch", "dag_id": "dag", "task_id": "task", "extension": "parquet"}
    _format(without_jinja, _values(_EXAMPLE, **example), argument)
    if without_jinja == value:
        key = parse_path(value).key if argument == "path" else resolve_address(None, value)[1]
        KeyTemplate(key, **example, argument=argument).key(_EXAMPLE)


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a task writes, as ``path`` describes it.

    :param scheme: one of :data:`~airflow_provider_stem.streams.store.DEFAULT_CONNECTIONS`.
    :param conn_id: connection in the address, in Airflow's form ``gs://connection@bucket/key``; ``None`` without one.
    :param bucket: name of the bucket or container; empty for a folder.
    :param key: template of the keys.
    """

    scheme: str
    conn_id: str | None
    bucket: str
    key: str

    def connection(self, conn_id: str | None) -> str | None:
        """
        Return the id of the connection to use.

        :param conn_id: the operator's argument.
        :raises StemConfigError: it differs from the connection in the address, or a folder has one.
        """
        if conn_id and self.scheme == "file":
            raise StemConfigError(f"conn_id is {conn_id!r}, but a folder has no connection. Leave it out.")
        if conn_id and self.conn_id and conn_id != self.conn_id:
            raise StemConfigError(f"conn_id is {conn_id!r}, but path has {self.conn_id!r}. Remove one of them.")
        return self.conn_id or conn_id or DEFAULT_CONNECTIONS[self.scheme]


def parse_path(path: str, default: str = DEFAULT_KEY) -> Place:
    """
    Return where a task writes.

    :param path: address with Jinja rendered.
    :param default: what follows if it ends with ``/``, or is a bucket alone.
    :raises StemConfigError: the address is invalid.
    """
    scheme, authority, key = split_uri(path)
    if scheme not in DEFAULT_CONNECTIONS or not path.startswith(f"{scheme}://"):
        raise StemConfigError(
            f"Invalid path {path!r}. Use an address that begins with s3://, gs://, abfs:// or file:///."
        )
    conn_id, _, bucket = authority.rpartition("@")
    if scheme == "file" and (authority or not key):
        raise StemConfigError(f"Invalid path {path!r}. Use three slashes and an absolute path: 'file:///data/stem/'.")
    if scheme != "file" and not _BUCKET.fullmatch(bucket):
        raise StemConfigError(
            f"Invalid path {path!r}. Use the name of a bucket or container and a key, such as '{scheme}://my-lake/stem/'."
        )
    return Place(scheme, conn_id or None, bucket, key + default if key[-1:] in ("", "/") else key)


def check_key(argument: str, key: str) -> str:
    """
    Return a key that is valid in every store.

    :param argument: name of the argument that renders to it, for the message.
    :raises StemConfigError: it is empty, too long or not printable, or one of its parts is not a name or is ``.stem``,
        the folder of a store's own files.
    """
    if {"", ".", "..", ".stem"} & set(key.split("/")):
        raise StemConfigError(
            f"{argument} renders to {key!r}. Use a key without empty, '.', '..' or '.stem' parts and without '/' at "
            "the end."
        )
    if len(key.encode()) > _MAX_KEY_BYTES or not key.isprintable():
        raise StemConfigError(
            f"{argument} renders to {key[:100]!r}…. Use a key of at most 1,024 bytes without control characters."
        )
    return key


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """
    The keys of one task's objects.

    :param template: the template, with Jinja rendered and without the bucket.
    :param batch: any string; like the ids, it is percent-encoded, so that it stays one part of the key.
    :param dag_id: id of the DAG.
    :param task_id: id of the task.
    :param extension: file name extension, without the leading dot.
    :param argument: name of the operator's argument, for messages.
    """

    template: str
    batch: str
    dag_id: str
    task_id: str
    extension: str
    argument: str = "s3_key"

    def key(self, period: Window) -> str:
        """
        Return the key of one object.

        :param period: fills in ``{start}``, ``{end}`` and ``{resolution}``.
        :raises StemConfigError: the template has an unknown placeholder, or the result is not a valid key.
        """
        return check_key(self.argument, self._filled(period, self.batch))

    def plan(self, window: Window, partition: Partition) -> dict[str, Window]:
        """
        Return the period of each key, in order of time.

        :param window: what to split, see :meth:`Window.periods`.
        :param partition: length of the periods in UTC.
        :raises StemConfigError: more than :data:`MAX_OBJECTS` objects, or two periods with the same key.
        """
        periods = list(window.periods(partition))
        if len(periods) > MAX_OBJECTS:
            larger = {"hour": "'day'", "day": "'month'"}.get(partition, "'interval'")
            raise StemConfigError(
                f"partition={partition!r} creates {len(periods):,} objects for {window}, more than {MAX_OBJECTS:,}. "
                f"Use partition={larger}, or shorter windows."
            )
        planned = {self.key(period): period for period in periods}
        if len(planned) < len(periods):
            raise StemConfigError(
                f"{self.argument} {self.template!r} renders to the same key for several {partition}s, such as "
                f"{next(iter(planned))!r}. Use {{start}} in it, with the precision of the partition."
            )
        return planned

    @property
    def prefix(self) -> str:
        """The part of the key before the first placeholder that varies between periods or batches; names the asset."""
        prefix = ""
        for literal, field, _, _ in string.Formatter().parse(self.template):
            prefix += literal
            if field in {"dag_id", "task_id"}:
                prefix += key_part(self.dag_id if field == "dag_id" else self.task_id)
            elif field is not None:
                return prefix.rpartition("/")[0]
        return prefix

    def probe(self, window: Window) -> str:
        """Return the key of a hidden object in the folder of the first period, different for each batch."""
        folder = "".join(self.key(window).rpartition("/")[:2])
        return f"{folder}.stem-probe-{zlib.crc32(self.batch.encode(errors='surrogatepass')):08x}"

    def batches(self, period: Window) -> tuple[str, re.Pattern[str]] | None:
        """
        Describe the keys of all batches of one period.

        :return: their common prefix, and a pattern whose group ``batch`` matches the batch, percent-encoded; ``None``
            if the key does not contain the batch.
        """
        parts = self._filled(period, _MARK).split(_MARK)
        if len(parts) == 1:
            return None
        begin, *rest = map(re.escape, parts)
        return parts[0], re.compile(f"{begin}(?P<batch>[^/]+)" + "(?P=batch)".join(rest))

    def _filled(self, period: Window, batch: str) -> str:
        values = _values(period, batch, self.dag_id, self.task_id, self.extension)
        return _format(self.template, values, self.argument)


def _values(period: Window, batch: str, dag_id: str, task_id: str, extension: str) -> dict[str, Any]:
    return {
        "start": period.start,
        "end": period.end,
        "resolution": period.resolution,
        "batch": key_part(batch),
        "dag_id": key_part(dag_id),
        "task_id": key_part(task_id),
        "extension": extension,
    }


def key_part(text: str) -> str:
    """Return any string percent-encoded as one part of a key."""
    quoted = quote(text, safe=" ", errors="backslashreplace")
    return quoted.replace(".", "%2E") if set(quoted) <= {"."} or quoted == ".stem" else quoted


def _format(template: str, values: dict[str, Any], argument: str) -> str:
    try:
        return _KeyFormatter(argument).vformat(template, (), values)
    except StemConfigError:
        raise
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise StemConfigError(
            f"{argument} {template!r} cannot be formatted ({exc}). Write a literal brace twice."
        ) from None
