"""Publication of the heat map of the last days, from the warehouse to an object store or a folder. For DAGs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import IO, Any, cast

from airflow_provider_stem._arguments import check_count
from airflow_provider_stem._stores import open_store
from airflow_provider_stem.completeness.cells import MAX_DAYS
from airflow_provider_stem.completeness.page import write_heat_map
from airflow_provider_stem.completeness.source import read_cells, read_names
from airflow_provider_stem.streams.keys import check_key, parse_path
from airflow_provider_stem.streams.spool import ScratchFile
from airflow_provider_stem.streams.store import Update, Version, update_object
from airflow_provider_stem.warehouse.connections import session_factory
from airflow_provider_stem.warehouse.session import check_schema

__all__ = ["publish_page"]

_LOCK_TIMEOUT = 60.0


def publish_page(
    path: str,
    *,
    days: int = 90,
    conn_id: str | None = None,
    sql_conn_id: str = "stem_warehouse",
    schema: str = "stem",
) -> dict[str, Any]:
    """
    Write the page of the last complete UTC days, and return its address and totals.

    A reader of the address sees the earlier page or the new one, whole. A page whose reading began later is kept. Its
    content type is HTML in UTF-8.

    :param path: address of the page, as for ``StemStreamsToObjectStorageOperator``: ``s3://bucket/key``,
        ``gs://bucket/key``, ``abfs://container/key`` or ``file:///folder/key``. If it ends with ``/``, the page is
        ``completeness.html`` there.
    :param days: number of days, up to yesterday; 1 to 3,660.
    :param conn_id: connection of the store; default: ``aws_default``, ``google_cloud_default`` or ``wasb_default``. A
        folder needs none.
    :param sql_conn_id: connection of type ``duckdb`` or ``postgres`` with the tables of ``StemObjectsToSqlOperator``.
    :param schema: schema of these tables.
    :return: ``{"uri", "bytes"}`` and the fields of :class:`~airflow_provider_stem.completeness.Summary`.
    :raises StemConfigError: an argument or a connection is wrong, or writing is forbidden.
    :raises StemTransportError: the warehouse is busy, or the store failed.
    """
    check_schema("schema", schema)
    check_count("days", days, MAX_DAYS)
    place = parse_path(path, "completeness.html")
    store = open_store(place.scheme, place.bucket, place.connection(conn_id))
    key = check_key("path", place.key)
    store.check(f"{key}.stem-probe", may_be_unconditional=True)
    seen, now = store.head(key)
    made = datetime.now(UTC)
    first, last = (made.date() - timedelta(days=back) for back in (days, 1))
    with session_factory(sql_conn_id, schema, _LOCK_TIMEOUT, read_only=True)() as session:
        cells, names = read_cells(session, first, last), read_names(session)
    with ScratchFile() as page, ScratchFile() as copy:
        summary = write_heat_map(cells, cast(IO[bytes], page), names=names, made=made, root=None)

        def prepare(current: Version | None) -> Update[None]:
            is_newer = current is not None and current.read_at is not None and current.read_at > now
            return Update(None if is_newer else page, now, None)

        update_object(store, key, copy, prepare, exists=seen is not None)
        return {"uri": store.uri(key), "bytes": page.size, **summary.as_json()}
