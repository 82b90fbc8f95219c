"""Where an object goes: key templates and their placeholders; for the operator and the landing."""

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
from airflow_provider_stem.streams.windows import Partition, Window

DEFAULT_KEY = (
    "stem/{dag_id}/{task_id}/date={start:%Y-%m-%d}/{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}"
    "_{resolution}s_{batch}.{extension}"
)

MAX_OBJECTS = 1000
"""Of one task."""

PLACEHOLDERS = ("start", "end", "resolution", "batch", "dag_id", "task_id", "extension")

_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_MAX_KEY_BYTES = 1024
_MARK = "stem-batch-mark"
_SCHEME = "s3://"
# As boto3 checks them: a name, or the address of an access point.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:[^\s]+")


class _KeyFormatter(string.Formatter):
    """``str.format`` without attributes and indices, and with instants that fit into a key."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Any) -> Any:  # noqa: ARG002
        if field_name not in PLACEHOLDERS:
            raise StemConfigError(
                f"s3_key has the unknown placeholder {{{field_name}}}: there are "
                f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}."
            )
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, datetime) and not format_spec:
            format_spec = "%Y%m%dT%H%M%SZ"
        return str(super().format_field(value, format_spec))


_FORMATTER = _KeyFormatter()
_EXAMPLE = Window.covering(
    datetime.fromisoformat("2025-01-01T00:00Z"), datetime.fromisoformat("2025-01-02T00:00Z"), 900
)


def check_bucket(argument: str, bucket: object) -> None:
    """Refuse what is no bucket's name; an empty one stands for the connection's."""
    if bucket != "" and not (isinstance(bucket, str) and _BUCKET.fullmatch(bucket)):
        raise StemConfigError(
            f"{argument} is {bucket!r}: give the name of a bucket alone, such as 'my-lake', or leave it out."
        )


def split_address(s3_key: str) -> tuple[str | None, str]:
    """
    Part a full ``s3://bucket/key`` address; a key alone has no bucket.

    :raises StemConfigError: the address has no good bucket.
    """
    if not s3_key.startswith(_SCHEME):
        return None, s3_key
    bucket, key = split_uri(s3_key)
    if not _BUCKET.fullmatch(bucket):
        raise StemConfigError(f"s3_key is {s3_key!r}: give a key, or a full address such as 's3://my-lake/key'.")
    return bucket, key


def split_uri(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of the address of an object."""
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    return bucket, key


def check_key_template(s3_key: object) -> None:
    """
    Refuse a key template with unknown placeholders, and one that can give no good key, before anything runs.

    :param s3_key: may still hold Jinja, which is passed over.
    """
    if not isinstance(s3_key, str):
        raise StemConfigError(f"s3_key is {s3_key!r}: give a key or a full s3:// address as text.")
    without_jinja = _JINJA.sub("", s3_key)
    example = {"batch": "batch", "dag_id": "dag", "task_id": "task", "extension": "parquet"}
    _format(without_jinja, _values(_EXAMPLE, **example))
    if without_jinja == s3_key:
        KeyTemplate(split_address(s3_key)[1], **example).key(_EXAMPLE)


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """
    The keys of one task's objects.

    :param s3_key: the template, with Jinja rendered.
    :param batch: free text; what could lead out of its place in the key is percent-encoded.
    """

    s3_key: str
    batch: str
    dag_id: str
    task_id: str
    extension: str

    def key(self, period: Window) -> str:
        """
        Return the key of one object.

        :param period: fills in ``{start}``, ``{end}`` and ``{resolution}``.
        :raises StemConfigError: an unknown placeholder, or a result that is no valid key.
        """
        key = self._filled(period, self.batch)
        if not key or key.startswith("/") or {"", ".", ".."} & set(key.split("/")):
            raise StemConfigError(
                f"s3_key gives {key!r}: a key has no empty, '.' or '..' part and does not end with '/'."
            )
        if len(key.encode()) > _MAX_KEY_BYTES or not key.isprintable():
            raise StemConfigError(
                f"s3_key gives {key[:100]!r}…: a key has at most 1,024 bytes and no control characters."
            )
        return key

    def plan(self, window: Window, partition: Partition) -> dict[str, Window]:
        """
        Return the period of each key, in order.

        :raises StemConfigError: too many objects for one task, or two periods with the same key.
        """
        periods = list(window.periods(partition))
        if len(periods) > MAX_OBJECTS:
            larger = {"hour": "'day'", "day": "'month'"}.get(partition, "'interval'")
            raise StemConfigError(
                f"partition={partition!r} makes {len(periods):,} objects of {window}, more than {MAX_OBJECTS:,}: "
                f"use partition={larger}, or shorter windows."
            )
        planned = {self.key(period): period for period in periods}
        if len(planned) < len(periods):
            raise StemConfigError(
                f"s3_key {self.s3_key!r} gives several {partition}s the same key, such as {next(iter(planned))!r}. "
                "Use {start} in it, as finely as the partition."
            )
        return planned

    @property
    def prefix(self) -> str:
        """The part of the key that is the same for every object, period and batch: the address of an asset."""
        prefix = ""
        for literal, field, _, _ in _FORMATTER.parse(self.s3_key):
            prefix += literal
            if field in {"dag_id", "task_id"}:
                prefix += _part(self.dag_id if field == "dag_id" else self.task_id)
            elif field is not None:
                return prefix.rpartition("/")[0]
        return prefix

    def probe(self, window: Window) -> str:
        """Return the key of a hidden object in the folder of the first period's, different for each batch."""
        folder = "".join(self.key(window).rpartition("/")[:2])
        return f"{folder}.stem-probe-{zlib.crc32(self.batch.encode(errors='surrogatepass')):08x}"

    def batches(self, period: Window) -> tuple[str, re.Pattern[str]] | None:
        """
        Describe the keys of all batches of one period.

        :return: their common prefix, and a pattern whose group ``batch`` is the batch, percent-encoded; ``None`` where
            the key does not hold the batch.
        """
        parts = self._filled(period, _MARK).split(_MARK)
        if len(parts) == 1:
            return None
        begin, *rest = map(re.escape, parts)
        return parts[0], re.compile(f"{begin}(?P<batch>[^/]+)" + "(?P=batch)".join(rest))

    def _filled(self, period: Window, batch: str) -> str:
        return _format(self.s3_key, _values(period, batch, self.dag_id, self.task_id, self.extension))


def _values(period: Window, batch: str, dag_id: str, task_id: str, extension: str) -> dict[str, Any]:
    return {
        "start": period.start,
        "end": period.end,
        "resolution": period.resolution,
        "batch": _part(batch),
        "dag_id": _part(dag_id),
        "task_id": _part(task_id),
        "extension": extension,
    }


def _part(text: str) -> str:
    """Make a foreign text one harmless part of a key."""
    quoted = quote(text, safe=" ", errors="backslashreplace")
    return quoted.replace(".", "%2E") if set(quoted) <= {"."} else quoted


def _format(template: str, values: dict[str, Any]) -> str:
    try:
        return _FORMATTER.vformat(template, (), values)
    except StemConfigError:
        raise
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise StemConfigError(
            f"s3_key {template!r} cannot be filled in ({exc}): write a literal brace twice."
        ) from None
