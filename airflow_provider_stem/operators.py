"""Operators: list the sites, land their streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import (
    AirflowSkipException,
    Asset,
    AssetAlias,
    BaseOperator,
    conf,
)

from airflow_provider_stem._arguments import check_templated, checked
from airflow_provider_stem._mapping import CheckedWhenParsed, MappedOverSites
from airflow_provider_stem._text import one_line
from airflow_provider_stem.assets import as_alias_extra
from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import is_partitioned, wall_time_of_run
from airflow_provider_stem.links import LandedObjectsLink
from airflow_provider_stem.streams.formats import check_format, extension
from airflow_provider_stem.streams.keys import DEFAULT_KEY, KeyTemplate, split_address
from airflow_provider_stem.streams.sites import read_sites, stream_starts
from airflow_provider_stem.streams.windows import STREAM_TYPES, Partition, Window, check_end, check_stream_types

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_stem.api.client import StemClient
    from airflow_provider_stem.streams.records import Receipt

__all__ = ["DEFAULT_KEY", "StemSiteListOperator", "StemStreamsToS3Operator"]

_MAX_LINES = 100
_MAX_ID = 1_024  # a key of S3 has no room for more


class StemSiteListOperator(CheckedWhenParsed, BaseOperator):
    """
    List the sites that the key may see, for tasks to be mapped over.

    :param client_id: the sites of this client, or of these; by default of every client.
    :param name: only sites whose name contains this.
    :param stream_types: only sites that have at least one of these, or whose ``stream_start_times`` the API leaves out.
    :param batches: group the sites into at most this many batches. A site's batch depends on its id and this number
        alone, so it stays when other sites come and go.
    :param stem_conn_id: connection of type ``stem``.
    :return: records ``{"site_id", "name", "client_id", "stream_start_times"}`` for ``.expand(sites=...)``, or with
        ``batches`` dicts ``{"sites": [records], "batch": "007-of-032"}`` for ``.expand_kwargs(...)``. Without any
        site the task is skipped.
    """

    template_fields: Sequence[str] = ("client_id", "name", "stem_conn_id")
    _may_be_none = ("stream_types",)

    @checked
    def __init__(
        self,
        *,
        client_id: str | Sequence[str] | None = None,
        name: str | None = None,
        stream_types: Sequence[str] | None = None,
        batches: int | None = None,
        stem_conn_id: str = StemHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.client_id = client_id
        self.name = name
        self.stream_types = None if stream_types is None else check_stream_types(stream_types)
        self.batches = batches
        self.stem_conn_id = stem_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002
        """List, filter, group."""
        with final_errors(self.stem_conn_id), self._client() as client:
            records = {record["site_id"]: record for record in self._records(client)}
        sites = [records[site_id] for site_id in sorted(records)]
        if self.stream_types:
            sites = [site for site in sites if _may_have(site["stream_start_times"], self.stream_types)]
        if not sites:
            raise AirflowSkipException(f"No site found ({self._described()}): nothing to do for the tasks that follow.")
        listed = sites if self.batches is None else _in_batches(sites, self.batches)
        self.log.info("Found %s sites (%s)", f"{len(sites):,}", self._described())
        limit = conf.getint("core", "max_map_length", fallback=1024)
        if len(listed) > limit:
            self.log.warning(
                "%s entries are more than [core] max_map_length = %s tasks can be mapped over: set batches=.",
                f"{len(listed):,}",
                limit,
            )
        return listed

    def _client(self) -> StemClient:
        check_templated(client_id=self.client_id, name=self.name, stem_conn_id=self.stem_conn_id)
        return StemHook(self.stem_conn_id).get_conn()

    def _records(self, client: StemClient) -> Iterator[dict[str, Any]]:
        client_ids = [self.client_id] if isinstance(self.client_id, str) else self.client_id
        if client_ids is None:
            client_ids = [listed["id"] for listed in client.list_clients()]
        for client_id in client_ids:
            for site in client.list_sites(client_id, self.name):
                yield _record(site, client_id, client.redact)

    def _described(self) -> str:
        return f"client_id={self.client_id!r}, name={self.name!r}, stream_types={self.stream_types!r}"


class StemStreamsToS3Operator(MappedOverSites, BaseOperator):
    """
    Land the streams of many sites in S3: every interval of the run's window exactly once, checked and accounted for.

    Rows are in the landing schema: ``site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg``;
    average kW, times in UTC. Nothing is uploaded before the whole window is complete locally, and the same data gives
    the same bytes, so a retry or a cleared task changes nothing.

    :param sites: a site id, a record of :class:`StemSiteListOperator`, or a list of either.
    :param stream_types: any of ``MONITOR``, ``CONVERTER``, ``INTERVAL_REVENUE``; one request fetches all of a site's.
    :param resolution: seconds: 900, 1800 or 3600.
    :param start: aware datetime or ISO 8601 string with an offset; default: the run's data interval.
    :param end: likewise.
    :param default_interval: for runs that have no interval of their own: read this much up to when the run is due.
    :param lookback: re-read this much before the start, for values that came late or were restated.
    :param partition: ``interval`` for one object a run; ``hour``, ``day`` or ``month`` for one object per UTC period.
    :param s3_bucket: where to; may also be in ``s3_key`` or in the connection.
    :param s3_key: key or full ``s3://`` address; Jinja, then ``{start}``, ``{end}``, ``{resolution}``, ``{batch}``,
        ``{dag_id}``, ``{task_id}``, ``{extension}``.
    :param batch: what ``{batch}`` stands for; default: the site's id where ``sites`` is one site, else ``all``.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: ``default`` (zstd for Parquet, else gzip), ``none``, or one by name.
    :param on_incomplete: where rows are missing: ``warn``, or ``fail`` before anything is uploaded.
    :param on_unavailable: where a site lacks a type: ``skip`` it and land the others, or ``fail``.
    :param on_empty: where the whole run has no row: ``write`` objects that hold the schema alone, ``skip`` or ``fail``.
    :param on_site_error: where a single site is forbidden, unknown or answers with wrong data: ``fail``, or ``skip``
        it. Rows that an earlier run landed for a skipped site stay with ``if_exists="merge"``.
    :param partition_events: give the asset events the window as partition key (Airflow 3.3).
    :param if_exists: ``merge``: an object becomes the union of what it held and what was read, and where both have a
        row, the one that was read later holds; ``replace``: it becomes what was read; ``fail``: other content under the
        key is an error, the same content counts as landed. In each, an attempt that began to read earlier never
        overwrites one that began later.
    :param parquet_encoding: ``portable``: what every common reader reads; ``smallest``: may use newer encodings.
    :param s3_extra_args: further arguments of each PUT, as boto3 takes them, such as ``ServerSideEncryption``.
    :param max_workers: how many sites are read at a time; default: ``[stem] max_workers``, else 8.
    :param stem_conn_id: connection of type ``stem``.
    :param aws_conn_id: connection of type ``aws``.
    :return: the receipt: window, objects, rows, and what is missing, unavailable or failed.
    """

    template_fields: Sequence[str] = (
        "sites",
        "start",
        "end",
        "s3_bucket",
        "s3_key",
        "batch",
        "stem_conn_id",
        "s3_extra_args",
        "aws_conn_id",
    )
    template_fields_renderers = {"sites": "json", "s3_extra_args": "json"}  # noqa: RUF012 - the base class's own way
    operator_extra_links = (LandedObjectsLink(),)

    @checked
    def __init__(
        self,
        *,
        sites: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        default_interval: timedelta | None = None,
        lookback: timedelta | None = None,
        partition: Partition = "interval",
        s3_bucket: str | None = None,
        s3_key: str = DEFAULT_KEY,
        batch: str | None = None,
        file_format: Literal["parquet", "csv", "jsonl"] = "parquet",
        compression: str = "default",
        on_incomplete: Literal["warn", "fail"] = "warn",
        on_unavailable: Literal["skip", "fail"] = "skip",
        on_empty: Literal["write", "skip", "fail"] = "write",
        on_site_error: Literal["fail", "skip"] = "fail",
        partition_events: bool = False,
        if_exists: Literal["merge", "replace", "fail"] = "merge",
        parquet_encoding: Literal["portable", "smallest"] = "portable",
        s3_extra_args: Mapping[str, Any] | None = None,
        max_workers: int = conf.getint("stem", "max_workers", fallback=8),
        stem_conn_id: str = StemHook.default_conn_name,
        aws_conn_id: str | None = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.stream_types = check_stream_types(stream_types)
        self.resolution = resolution
        self.start = start
        self.end = end
        self.default_interval = default_interval
        self.lookback = lookback
        self.partition = partition
        self.s3_bucket = s3_bucket
        self.s3_key = s3_key
        self.batch = batch
        self.file_format = file_format
        self.compression = compression
        self.on_incomplete = on_incomplete
        self.on_unavailable = on_unavailable
        self.on_empty = on_empty
        self.on_site_error = on_site_error
        self.partition_events = partition_events
        self.if_exists = if_exists
        self.parquet_encoding = parquet_encoding
        self.s3_extra_args = s3_extra_args
        self.max_workers = max_workers
        self.stem_conn_id = stem_conn_id
        self.aws_conn_id = aws_conn_id
        self._client: StemClient | None = None
        self._receipt: Receipt | None = None

    def execute(self, context: Context) -> Receipt:
        """Resolve the arguments, land the window, tell the outlets."""
        from airflow_provider_stem._s3 import S3Store
        from airflow_provider_stem.streams.landing import Landing

        with final_errors(self.stem_conn_id), StemHook(self.stem_conn_id).get_conn() as self._client:
            sites = read_sites(self.sites)
            check_templated(
                s3_bucket=self.s3_bucket,
                s3_key=self.s3_key,
                batch=self.batch,
                s3_extra_args=self.s3_extra_args,
                stem_conn_id=self.stem_conn_id,
                aws_conn_id=self.aws_conn_id,
            )
            window = self._window(context)
            if not window.intervals:
                raise AirflowSkipException(
                    f"No interval of {self.resolution} s ends within this run's window: nothing to land."
                )
            window = window.moved_back(self.lookback, self.partition)
            bucket, key = self._bucket_and_key()
            compression = check_format(self.file_format, self.compression)
            template = KeyTemplate(
                key,
                batch=self._batch_of(context, self._client),
                dag_id=self.dag_id,
                task_id=self.task_id,
                extension=extension(self.file_format, compression),
            )
            landing = Landing(
                window=window,
                stream_types=self.stream_types,
                objects=template.plan(window, self.partition),
                template=template,
                file_format=self.file_format,
                compression=compression,
                parquet_encoding=self.parquet_encoding,
                if_exists=self.if_exists,
                on_incomplete=self.on_incomplete,
                on_unavailable=self.on_unavailable,
                on_empty=self.on_empty,
                on_site_error=self.on_site_error,
                max_workers=self.max_workers,
            )
            store = S3Store(self.aws_conn_id, bucket, self.s3_extra_args)
            self._check_outlets(context)
            self._log_group("Objects to land", map(store.uri, landing.objects))
            store.check(
                template.probe(window),
                may_be_unconditional=self.if_exists == "replace"
                or conf.getboolean("stem", "allow_unconditional_writes", fallback=False),
            )
            self._receipt = receipt = landing.run(self._client, sites, store)
        findings: tuple[tuple[str, int, Sequence[Mapping[str, Any]]], ...] = (
            ("incomplete", receipt["incomplete_count"], receipt["incomplete"]),
            ("unavailable", receipt["unavailable_count"], receipt["unavailable"]),
            ("failed_sites", receipt["failed_count"], receipt["failed_sites"]),
        )
        for title, count, listed in findings:
            self._log_group(f"{title} ({count:,})", map(self._line_of, listed))
        if not receipt["rows"] and self.on_empty == "skip":
            raise AirflowSkipException(f"No row came for {window}: nothing was uploaded (on_empty='skip').")
        self._tell_outlets(context, receipt, window, store.uri(template.prefix))
        LandedObjectsLink.persist(context, self.aws_conn_id, [landed["uri"] for landed in receipt["objects"]])
        return receipt

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Tell OpenLineage what was read and what landed; nothing where it did not get that far."""
        from airflow_provider_stem._lineage import landed

        base_url = self._client.base_url if self._client else None
        redact = self._client.redact if self._client else str
        return landed(self._receipt, self.sites, base_url, self.stream_types, redact)

    def on_kill(self) -> None:
        """Let requests that wait for their next attempt end at once."""
        if self._client is not None:
            self._client.close()

    def _line_of(self, finding: Mapping[str, Any]) -> str:
        line = " ".join(f"{name}={value}" for name, value in finding.items())
        return one_line(self._client.redact(line) if self._client else line)

    def _log_group(self, title: str, lines: Iterable[str]) -> None:
        """Log lines that Airflow's UI shows folded."""
        if lines := list(lines):
            self.log.info("::group::%s", title)
            for line in lines[:_MAX_LINES]:
                self.log.info("%s", line)
            if len(lines) > _MAX_LINES:
                self.log.info("and %s more", f"{len(lines) - _MAX_LINES:,}")
            self.log.info("::endgroup::")

    def _window(self, context: Context) -> Window:
        start, end = wall_time_of_run(context, start=self.start, end=self.end, default_interval=self.default_interval)
        window = Window.covering(start, end, self.resolution)
        check_end(end, self.resolution)
        return window

    def _bucket_and_key(self) -> tuple[str | None, str]:
        bucket, key = split_address(self.s3_key)
        if bucket and self.s3_bucket:
            raise StemConfigError(
                f"s3_bucket is {self.s3_bucket!r} and s3_key {self.s3_key!r} names a bucket too: give one of them."
            )
        return bucket or self.s3_bucket or None, key

    def _batch_of(self, context: Context, client: StemClient) -> str:
        if self.batch is not None:
            return self.batch
        if isinstance(self.sites, (str, Mapping)):
            return client.redact(read_sites(self.sites)[0].site_id)  # an id may hold the API key, and keys are shown
        if getattr(context.get("ti"), "map_index", -1) >= 0 and self.if_exists != "merge":
            raise StemConfigError(
                f"batch is missing, so mapped tasks would overwrite each other (if_exists={self.if_exists!r}). "
                "Map with .expand_kwargs over StemSiteListOperator(batches=...), which sets it."
            )
        return "all"

    def _check_outlets(self, context: Context) -> None:
        if self.partition_events and not all(
            isinstance(outlet, AssetAlias) or hasattr(context["outlet_events"][outlet], "add_partitions")
            for outlet in self.outlets
        ):
            raise StemConfigError("partition_events=True needs asset partitions, which Airflow has from 3.3 on.")

    def _tell_outlets(self, context: Context, receipt: Receipt, window: Window, prefix: str) -> None:
        from airflow import __version__ as airflow_version

        extra: dict[str, Any] = {name: receipt[name] for name in ("window", "objects", "rows")}
        for outlet in self.outlets:
            event = context["outlet_events"][outlet]
            if isinstance(outlet, AssetAlias):
                event.add(Asset(prefix), extra=as_alias_extra(extra, airflow_version))
                continue
            event.extra.update(extra)
            if (self.partition_events or is_partitioned(context)) and hasattr(event, "add_partitions"):
                event.add_partitions(str(window))


def _record(site: Mapping[str, Any], client_id: str, redact: Callable[[str], str]) -> dict[str, Any]:
    """Return the site record that is stored in XCom: bounded in size, and valid JSON for every metadata database."""
    for identifier in (site["id"], client_id):
        if len(identifier) > _MAX_ID or re.search("[\0\ud800-\udfff]", identifier):
            raise StemDataError(
                f"the id {one_line(repr(identifier[:100]))} of {len(identifier):,} characters cannot be kept: "
                f"it has more than {_MAX_ID:,}, a NUL, or is not valid Unicode"
            )
    name, times = site.get("name"), site.get("stream_start_times")
    if not isinstance(name, str):
        name = None
    else:
        name = redact(name)
        if not name.isprintable() or len(name) > _MAX_ID:
            name = one_line(name)
    stream_starts(site, site["id"])  # what does not read here would fail every task that is mapped over it
    return {
        "site_id": site["id"],
        "name": name,
        "client_id": client_id,
        "stream_start_times": times and {t: text for t, text in times.items() if t in STREAM_TYPES},
    }


def _may_have(stream_start_times: Mapping[str, Any] | None, stream_types: Sequence[str]) -> bool:
    return stream_start_times is None or not stream_start_times.keys().isdisjoint(stream_types)


def _in_batches(sites: Sequence[dict[str, Any]], batches: int) -> list[dict[str, Any]]:
    members: dict[int, list[dict[str, Any]]] = {}
    for site in sites:
        digest = blake2b(site["site_id"].encode(errors="backslashreplace"), digest_size=8).digest()
        members.setdefault(int.from_bytes(digest) % batches, []).append(site)
    width = max(3, len(str(batches)))
    return [
        {"sites": members[index], "batch": f"{index + 1:0{width}d}-of-{batches:0{width}d}"} for index in sorted(members)
    ]
