"""Operators that list sites and land their streams in S3 or another object store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import (
    AirflowSkipException,
    Asset,
    AssetAlias,
    BaseOperator,
    conf,
)

from airflow_provider_stem._arguments import checked, with_inherited_arguments
from airflow_provider_stem._mapping import CheckedWhenParsed, MappedOverSites
from airflow_provider_stem._text import number_of, one_line
from airflow_provider_stem.assets import as_alias_extra, summary
from airflow_provider_stem.errors import StemConfigError, StemDataError
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.intervals import is_partitioned, wall_time_of_run
from airflow_provider_stem.links import CompletenessLink, LandedObjectsLink
from airflow_provider_stem.streams.batches import batch_index
from airflow_provider_stem.streams.formats import FORMATS, FormatName, ParquetEncoding, resolve_compression
from airflow_provider_stem.streams.keys import DEFAULT_KEY, KeyTemplate, parse_path
from airflow_provider_stem.streams.sites import read_sites, stream_starts
from airflow_provider_stem.streams.store import resolve_address
from airflow_provider_stem.streams.stream_types import STREAM_TYPES, parse_stream_types
from airflow_provider_stem.streams.windows import Partition, Window, check_end

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_stem.api.client import StemClient
    from airflow_provider_stem.streams.landing import Landing
    from airflow_provider_stem.streams.records import Receipt, SiteRecord
    from airflow_provider_stem.streams.store import ObjectStore

__all__ = ["DEFAULT_KEY", "StemSiteListOperator", "StemStreamsToObjectStorageOperator", "StemStreamsToS3Operator"]

_MAX_LINES = 100
_UI_HAS_PLUGINS = tuple(map(int, airflow_version.split(".")[:2])) >= (3, 1)
_MAX_ID = 1_024  # the longest key that S3 allows


class StemSiteListOperator(CheckedWhenParsed, BaseOperator):
    """
    List the sites that the API key can access, as input for mapped tasks.

    :param client_id: list only the sites of this client, or of these clients; default: of every client.
    :param name: list only sites whose name contains this string.
    :param stream_types: list only sites that have at least one of these types, or whose ``stream_start_times`` the API
        omits; default: all sites.
    :param batches: group the sites into at most this many batches, 1 or more. A site's batch depends only on its id
        and this number, so it stays the same when other sites are added or removed.
    :param stem_conn_id: connection of type ``stem``.
    :return: records ``{"site_id", "name", "client_id", "stream_start_times"}`` for ``.expand(sites=...)``; the start
        times are by stream type, as the API shows them (ISO 8601, UTC), or ``None`` if it omits them. With
        ``batches``: dicts ``{"sites": [records], "batch": "007-of-032"}`` for ``.expand_kwargs(...)``. If no site is
        found, the task is skipped.
    :raises StemConfigError: an argument is wrong.
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
        self.stream_types = None if stream_types is None else parse_stream_types(stream_types)
        self.batches = batches
        self.stem_conn_id = stem_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002
        """
        Return the site records, in batches if ``batches`` is set.

        :raises AirflowFailException: an argument, the connection or the API key is wrong.
        :raises AirflowSkipException: no site is found.
        :raises StemError: any other error of the API; a retry may help.
        """
        with final_errors(self.stem_conn_id):
            listed = self.list_sites()
        if not listed:
            raise AirflowSkipException(
                f"No site found ({self._filters()}). Check these arguments and the permissions of the API key."
            )
        found = len(listed) if self.batches is None else sum(len(batch["sites"]) for batch in listed)
        self.log.info("Found %s", number_of(found, "site"))
        limit = conf.getint("core", "max_map_length", fallback=1024)
        if len(listed) > limit:
            self.log.warning(
                "Found %s entries, more than [core] max_map_length = %s. Set batches to map fewer tasks.",
                f"{len(listed):,}",
                limit,
            )
        return listed

    def list_sites(self) -> list[dict[str, Any]]:
        """
        Return the site records, in batches if ``batches`` is set, without an Airflow task.

        :return: an empty list if no site is found.
        :raises StemError: see :mod:`airflow_provider_stem.errors`.
        """
        self._check_rendered()
        with StemHook(self.stem_conn_id).get_conn() as client:
            records = {record["site_id"]: record for record in self._records(client)}
        sites: list[Any] = [records[site_id] for site_id in sorted(records)]
        if self.stream_types:
            sites = [site for site in sites if _may_have_any(site["stream_start_times"], self.stream_types)]
        return sites if self.batches is None else _in_batches(sites, self.batches)

    def _records(self, client: StemClient) -> Iterator[SiteRecord]:
        client_ids = [self.client_id] if isinstance(self.client_id, str) else self.client_id
        if client_ids is None:
            client_ids = [listed["id"] for listed in client.list_clients()]
        for client_id in client_ids:
            for site in client.list_sites(client_id, self.name):
                yield _record(site, client_id, client.redact)

    def _filters(self) -> str:
        return f"client_id={self.client_id!r}, name={self.name!r}, stream_types={self.stream_types!r}"


class _LandStreamsOperator(MappedOverSites, BaseOperator):
    """
    Land the streams of sites in a store. Subclasses add the arguments that name the store.

    :param sites: a site id, a record of :class:`StemSiteListOperator`, or a list of either.
    :param stream_types: any of ``MONITOR``, ``CONVERTER`` and ``INTERVAL_REVENUE``; one request fetches all
        of a site's types.
    :param resolution: length of an interval in seconds: 900, 1800 or 3600.
    :param start: aware datetime or ISO 8601 string with an offset; default: start of the run's data interval.
    :param end: the same; default: end of the run's data interval.
    :param default_interval: length of the window of a run without a data interval. It begins at the date of the run's
        partition, or, without one, ends when the run is due.
    :param lookback: also read this much time before the start, for values that arrived late or were restated. Needs
        ``partition`` ``hour``, ``day`` or ``month``.
    :param partition: ``interval`` for one object per run; ``hour``, ``day`` or ``month`` for one object per UTC period.
    :param batch: value of ``{batch}``; default: the site's id if ``sites`` is one site, else ``all``.
    :param file_format: ``parquet``, ``csv`` or ``jsonl``.
    :param compression: ``default`` (zstd for Parquet, gzip otherwise), ``zstd``, ``gzip``, ``none``, or, for Parquet,
        ``snappy``.
    :param on_incomplete: if rows are missing: ``warn``, or ``fail`` before anything is uploaded.
    :param on_unavailable: if a site lacks a type: ``skip`` that type and land the others, or ``fail``.
    :param on_empty: if the whole run has no rows: ``write`` objects that hold only the schema, ``skip`` or ``fail``.
    :param on_site_error: if a single site is forbidden, unknown or returns invalid data: ``fail``, or ``skip`` it.
        With ``if_exists="merge"``, rows that an earlier run landed for a skipped site are kept.
    :param partition_events: set the window as the partition key of asset events (Airflow 3.3).
    :param if_exists: ``merge``: write the union of the object's rows and the rows read; of two rows for one interval,
        keep the one that was read later. ``replace``: write only the rows read. ``fail``: raise an error if the key
        has other content; the same content counts as landed. In every mode, an attempt that began to read earlier
        never overwrites one that began later.
    :param parquet_encoding: ``portable`` for encodings that every common reader supports; ``smallest`` may use newer
        ones.
    :param max_workers: how many sites to read at a time, 1 or more; default: ``[stem] max_workers``, else 8.
    :param stem_conn_id: connection of type ``stem``.
    :return: the receipt: ``window`` (``{"start", "end", "resolution"}``, ISO 8601 in UTC and seconds); ``objects``
        (``{"uri", "rows", "bytes", "sha256", "read_at", "start", "end"}`` of each); the numbers ``rows``, ``expected``,
        ``missing``, ``sites`` and ``requests`` of this run; the numbers of rows ``inserted``, ``changed``,
        ``unchanged`` and ``kept`` in the objects; and at most 100 each of ``incomplete``, ``unavailable`` and
        ``failed_sites``, with their numbers ``incomplete_count``, ``unavailable_count`` and ``failed_count``.
    :raises StemConfigError: an argument is wrong.
    """

    template_fields: Sequence[str] = ("sites", "start", "end", "batch", "stem_conn_id")
    template_fields_renderers = {"sites": "json"}  # noqa: RUF012 - declared so by the base class
    operator_extra_links = (LandedObjectsLink(), *([CompletenessLink()] if _UI_HAS_PLUGINS else []))
    _key_argument: str

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
        batch: str | None = None,
        file_format: FormatName = "parquet",
        compression: str = "default",
        on_incomplete: Literal["warn", "fail"] = "warn",
        on_unavailable: Literal["skip", "fail"] = "skip",
        on_empty: Literal["write", "skip", "fail"] = "write",
        on_site_error: Literal["fail", "skip"] = "fail",
        partition_events: bool = False,
        if_exists: Literal["merge", "replace", "fail"] = "merge",
        parquet_encoding: ParquetEncoding = "portable",
        max_workers: int = conf.getint("stem", "max_workers", fallback=8),
        stem_conn_id: str = StemHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sites = sites
        self.stream_types = parse_stream_types(stream_types)
        self.resolution = resolution
        self.start = start
        self.end = end
        self.default_interval = default_interval
        self.lookback = lookback
        self.partition = partition
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
        self.max_workers = max_workers
        self.stem_conn_id = stem_conn_id
        self._client: StemClient | None = None
        self.receipt: Receipt | None = None

    def execute(self, context: Context) -> Receipt:
        """
        Land the run's window, emit the asset events and return the receipt.

        :raises AirflowFailException: an argument, a connection, the API key or a permission is wrong.
        :raises AirflowSkipException: no interval ends within the window, or no rows came and ``on_empty`` is ``skip``.
        :raises StemError: any other error of the API, its data or the store; a retry may help.
        """
        from airflow_provider_stem._stores import allows_unconditional_writes

        with final_errors(self.stem_conn_id), StemHook(self.stem_conn_id).get_conn() as self._client:
            sites = read_sites(self.sites)
            self._check_rendered()
            window = self._window(context)
            store, conn_id, key = self._destination()
            landing = self._landing(window, key, self._batch_name(context, self._client))
            self._check_outlets(context)
            self._log_group("Objects to land", [store.uri(key) for key in landing.objects])
            store.check(
                landing.template.probe(window),
                may_be_unconditional=self.if_exists == "replace" or allows_unconditional_writes(),
            )
            self.receipt = receipt = landing.run(self._client, sites, store)
        self._log_findings(receipt)
        if not receipt["rows"] and self.on_empty == "skip":
            raise AirflowSkipException(f"The API has no rows for {window}. Nothing was uploaded (on_empty='skip').")
        self._emit_asset_events(context, receipt, window, store.uri(landing.template.prefix))
        line = summary(receipt)
        if self.do_xcom_push and hasattr(context.get("ti"), "xcom_push"):
            LandedObjectsLink.persist(context, conn_id, [landed["uri"] for landed in receipt["objects"]])
            context["ti"].xcom_push(key="summary", value=line)
        self.log.info("%s", line)
        return receipt

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Return what was read and what landed, for OpenLineage; empty if the task failed before that."""
        from airflow_provider_stem._lineage import landed

        base_url = self._client.base_url if self._client else None
        redact = self._client.redact if self._client else str
        return landed(self.receipt, self.sites, base_url, self.stream_types, redact)

    def on_kill(self) -> None:
        """Cancel requests that wait for their next attempt, or for the pace of the connection."""
        if self._client is not None:
            self._client.close()

    def _destination(self) -> tuple[ObjectStore, str | None, str]:
        """Return the store, the id of its connection, and the template of the keys."""
        raise NotImplementedError

    def _log_findings(self, receipt: Receipt) -> None:
        findings: tuple[tuple[str, int, Sequence[Mapping[str, Any]]], ...] = (
            ("Incomplete streams", receipt["incomplete_count"], receipt["incomplete"]),
            ("Unavailable streams", receipt["unavailable_count"], receipt["unavailable"]),
            ("Failed sites", receipt["failed_count"], receipt["failed_sites"]),
        )
        for title, count, listed in findings:
            self._log_group(f"{title} ({count:,})", [self._format_finding(finding) for finding in listed])

    def _format_finding(self, finding: Mapping[str, Any]) -> str:
        line = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in finding.items())
        return one_line(self._client.redact(line) if self._client else line)

    def _log_group(self, title: str, lines: Sequence[str]) -> None:
        """Log lines as a group that Airflow's UI shows collapsed."""
        if not lines:
            return
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
        if not window.intervals:
            raise AirflowSkipException(
                f"No interval of {self.resolution} s ends within this run's window: nothing to land."
            )
        return window.with_lookback(self.lookback, self.partition)

    def _landing(self, window: Window, key: str, batch: str) -> Landing:
        from airflow_provider_stem.streams.landing import Landing

        compression = resolve_compression(self.file_format, self.compression)
        template = KeyTemplate(
            key,
            batch=batch,
            dag_id=self.dag_id,
            task_id=self.task_id,
            extension=FORMATS[self.file_format].extension(compression),
            argument=self._key_argument,
        )
        return Landing(
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

    def _batch_name(self, context: Context, client: StemClient) -> str:
        if self.batch is not None:
            return self.batch
        if isinstance(self.sites, (str, Mapping)):
            return client.redact(read_sites(self.sites)[0].site_id)  # an id may contain the API key
        map_index = getattr(context.get("ti"), "map_index", None)
        if isinstance(map_index, int) and map_index >= 0 and self.if_exists != "merge":
            raise StemConfigError(
                f"batch is missing, so mapped tasks would overwrite each other (if_exists={self.if_exists!r}). "
                "Map with .expand_kwargs over StemSiteListOperator(batches=...), which sets it."
            )
        return "all"

    def _check_outlets(self, context: Context) -> None:
        if self.partition_events and not all(
            isinstance(outlet, AssetAlias) or hasattr(event, "add_partitions")
            for outlet, event in self._outlet_events(context)
        ):
            raise StemConfigError("partition_events=True needs Airflow 3.3 or later. Leave it out.")

    def _outlet_events(self, context: Context) -> Iterator[tuple[Any, Any]]:
        """Iterate over the outlets and their events; none if the context was not made by Airflow, as in a test."""
        events = context.get("outlet_events")
        if events is not None:
            for outlet in self.outlets:
                yield outlet, events[outlet]

    def _emit_asset_events(self, context: Context, receipt: Receipt, window: Window, prefix: str) -> None:
        extra: dict[str, Any] = {name: receipt[name] for name in ("window", "objects", "rows")}
        for outlet, event in self._outlet_events(context):
            if isinstance(outlet, AssetAlias):
                event.add(Asset(prefix), extra=as_alias_extra(extra, airflow_version))
                continue
            event.extra.update(extra)
            if (self.partition_events or is_partitioned(context)) and hasattr(event, "add_partitions"):
                event.add_partitions(str(window))


@with_inherited_arguments
class StemStreamsToS3Operator(_LandStreamsOperator):
    """
    Land the streams of sites in S3: each interval of the run's window exactly once.

    Rows are in the landing schema: ``site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg``;
    average kW, times in UTC. Nothing is uploaded before the whole window has been read and checked. The same data
    produces the same bytes, so a retry or a cleared task changes nothing.

    :param s3_bucket: name of the bucket; may instead be part of ``s3_key``, or set in the AWS connection.
    :param s3_key: key or full ``s3://`` address. Jinja is rendered first, then the placeholders ``{start}``, ``{end}``,
        ``{resolution}``, ``{batch}``, ``{dag_id}``, ``{task_id}``, ``{extension}``.
    :param s3_extra_args: more arguments of each PUT, named as in boto3, such as ``ServerSideEncryption``.
    :param aws_conn_id: connection of type ``aws``.
    """

    template_fields: Sequence[str] = (
        *_LandStreamsOperator.template_fields,
        "s3_bucket",
        "s3_key",
        "s3_extra_args",
        "aws_conn_id",
    )
    template_fields_renderers = {"sites": "json", "s3_extra_args": "json"}  # noqa: RUF012 - declared so by the base class
    _key_argument = "s3_key"

    @checked
    def __init__(
        self,
        *,
        s3_bucket: str | None = None,
        s3_key: str = DEFAULT_KEY,
        s3_extra_args: Mapping[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.s3_bucket = s3_bucket
        self.s3_key = s3_key
        self.s3_extra_args = s3_extra_args
        self.aws_conn_id = aws_conn_id

    def _destination(self) -> tuple[ObjectStore, str | None, str]:
        from airflow_provider_stem._s3 import S3Store

        bucket, key = resolve_address(self.s3_bucket, self.s3_key)
        return S3Store(self.aws_conn_id, bucket, self.s3_extra_args), self.aws_conn_id, key


@with_inherited_arguments
class StemStreamsToObjectStorageOperator(_LandStreamsOperator):
    """
    Land the streams of sites in any object store or in a folder: each interval of the run's window exactly once.

    The guarantees are those of :class:`StemStreamsToS3Operator`.

    :param path: address ``s3://bucket/key``, ``gs://bucket/key``, ``abfs://container/key`` or ``file:///folder/key``;
        the connection may be part of it, as in ``gs://connection@bucket/key``. Jinja is rendered first, then the
        placeholders ``{start}``, ``{end}``, ``{resolution}``, ``{batch}``, ``{dag_id}``, ``{task_id}``,
        ``{extension}``. If it ends with ``/`` or is a bucket alone, :data:`DEFAULT_KEY` follows.
    :param conn_id: connection of type ``aws``, ``google_cloud_platform`` or ``wasb``; default: ``aws_default``,
        ``google_cloud_default`` or ``wasb_default``. A folder needs none.
    """

    template_fields: Sequence[str] = (*_LandStreamsOperator.template_fields, "path", "conn_id")
    _key_argument = "path"

    @checked
    def __init__(self, *, path: str, conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.conn_id = conn_id

    def _destination(self) -> tuple[ObjectStore, str | None, str]:
        from airflow_provider_stem._stores import open_store

        place = parse_path(self.path)
        conn_id = place.connection(self.conn_id)
        return open_store(place.scheme, place.bucket, conn_id), conn_id, place.key


def _record(site: Mapping[str, Any], client_id: str, redact: Callable[[str], str]) -> SiteRecord:
    """Return the site record that is stored in XCom: bounded in size, and valid JSON for every metadata database."""
    for identifier in (site["id"], client_id):
        if len(identifier) > _MAX_ID or re.search("[\0\ud800-\udfff]", identifier):
            raise StemDataError(
                f"Invalid id {one_line(repr(identifier[:100]))} of {len(identifier):,} characters from the API: more "
                f"than {_MAX_ID:,}, a NUL, or invalid Unicode. Ask Stem to correct it."
            )
    name, times = site.get("name"), site.get("stream_start_times")
    if not isinstance(name, str):
        name = None
    else:
        name = redact(name)
        if not name.isprintable() or len(name) > _MAX_ID:
            name = one_line(name)
    stream_starts(site, site["id"])  # an invalid time would fail every task that is mapped over the record
    return {
        "site_id": site["id"],
        "name": name,
        "client_id": client_id,
        "stream_start_times": times and {name: text for name, text in times.items() if name in STREAM_TYPES},
    }


def _may_have_any(stream_start_times: Mapping[str, Any] | None, stream_types: Sequence[str]) -> bool:
    return stream_start_times is None or not stream_start_times.keys().isdisjoint(stream_types)


def _in_batches(sites: Sequence[Mapping[str, Any]], batches: int) -> list[dict[str, Any]]:
    members: dict[int, list[Mapping[str, Any]]] = {}
    for site in sites:
        members.setdefault(batch_index(site["site_id"], batches), []).append(site)
    width = max(3, len(str(batches)))
    return [
        {"sites": members[index], "batch": f"{index + 1:0{width}d}-of-{batches:0{width}d}"} for index in sorted(members)
    ]
