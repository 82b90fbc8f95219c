"""Hook that reads the API with an Airflow connection of type ``stem``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import BaseHook, conf

from airflow_provider_stem._arguments import check_connection_id, check_id
from airflow_provider_stem.errors import (
    StemAuthError,
    StemConfigError,
    StemNotFoundError,
    StemTransportError,
)
from airflow_provider_stem.streams.stream_types import parse_stream_types
from airflow_provider_stem.streams.windows import Window, check_end, parse_instant

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_stem.api.client import StemClient
    from airflow_provider_stem.api.config import ClientConfig

__all__ = ["StemHook"]

_TEST_TIMEOUT = 15.0
_TYPES = (None, "", "stem", "generic", "http", "https")  # a connection may have been created without the provider


class StemHook(BaseHook):
    """
    Read Stem's Developer Data API with the credentials of an Airflow connection.

    The constructor neither reads the connection nor sends a request. Methods raise the errors of
    :mod:`airflow_provider_stem.errors`.

    :param stem_conn_id: connection of type ``stem``. Password is the API key. Host is only needed for another server.
        Extra may have ``timeout``, ``max_attempts``, ``page_size``, ``verify`` and ``requests_per_second``.
    :raises StemConfigError: ``stem_conn_id`` is not a connection id.
    """

    conn_name_attr = "stem_conn_id"
    default_conn_name = "stem_default"
    conn_type = "stem"
    hook_name = "Stem"

    def __init__(self, stem_conn_id: str = default_conn_name) -> None:
        super().__init__()
        check_connection_id("stem_conn_id", stem_conn_id)
        self.stem_conn_id = stem_conn_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the connection form for Airflow 2; Airflow 3 reads the provider's metadata."""
        from airflow_provider_stem._connection_form import UI_FIELD_BEHAVIOUR

        return UI_FIELD_BEHAVIOUR

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the provider's fields of the connection form, for Airflow 2."""
        from airflow_provider_stem._connection_form import connection_form_widgets

        return connection_form_widgets()

    def get_conn(self) -> StemClient:
        """
        Return a client for the connection.

        :raises AirflowNotFoundException: there is no such connection.
        :raises StemConfigError: a field of the connection is wrong; the message names it.
        """
        return self.client_of(self.get_connection(self.stem_conn_id))

    @classmethod
    def client_of(cls, connection: Connection) -> StemClient:
        """
        Return a client for a connection that the caller has read; a trigger must read it asynchronously.

        :raises StemConfigError: a field of the connection is wrong; the message names it.
        """
        from airflow_provider_stem.api.client import StemClient

        if not hasattr(connection, "password"):
            # Only the type: a connection URI contains the key.
            raise StemConfigError(
                f"connection must be a Connection, got a {type(connection).__name__}. Use get_connection."
            )
        return StemClient(cls._config_of(connection))

    @cached_property
    def client(self) -> StemClient:
        """The client that this hook's methods use; created at first use."""
        return self.get_conn()

    def test_connection(self) -> tuple[bool, str]:
        """
        Test the connection with a request for the first client, without a wait for ``requests_per_second``.

        :return: whether it works, and a message that says what to correct if not.
        """
        try:
            from airflow_provider_stem.api.client import StemClient

            config = self._config_of(self.get_connection(self.stem_conn_id))
            once = dataclasses.replace(
                config, max_attempts=1, timeout=min(config.timeout, _TEST_TIMEOUT), requests_per_second=None
            )
            with StemClient(once) as client:
                first = next(client.list_clients(), None)
        except StemAuthError as exc:
            return (
                False,
                f"The API rejected the key ({exc.message}). Check the API key (Password), or ask Stem for access.",
            )
        except StemNotFoundError:
            return False, "There is no Stem API at this address. Check Host and its path (default /api/v1/)."
        except StemConfigError as exc:
            return False, str(exc)
        except StemTransportError as exc:
            return False, f"The API cannot be reached. Check Host, Port and the network ({exc})."
        except Exception as exc:  # noqa: BLE001 - the form shows any error
            return False, str(exc) or type(exc).__name__
        if first is None:
            return True, "Connected, but the key can access no client. Ask Stem to grant it permission."
        return True, f"Connected to {config.base_url}"

    def list_clients(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over the clients that the key can access, each as the API sent it.

        :param name: list only clients whose name contains this string; default: all.
        :raises StemConfigError: ``name`` is not a string.
        :raises StemDataError: the listing is incomplete or invalid.
        """
        return self.client.list_clients(name)

    def get_client(self, client_id: str) -> dict[str, Any]:
        """
        Return a client, as the API sent it.

        :param client_id: id of the client.
        :raises StemConfigError: ``client_id`` is not an id.
        :raises StemNotFoundError: there is no such client.
        """
        return self.client.get_client(client_id)

    def list_sites(self, client_id: str | None = None, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Iterate over the sites that the key can access, each once, as the API sent it.

        :param client_id: list only the sites of this client; default: of every client.
        :param name: list only sites whose name contains this string; default: all.
        :raises StemConfigError: ``client_id`` is not an id, or ``name`` is not a string.
        :raises StemDataError: the listing is incomplete or invalid.
        """
        return self.client.list_sites(client_id, name)

    def get_site(self, site_id: str) -> dict[str, Any]:
        """
        Return a site, as the API sent it.

        :param site_id: id of the site.
        :raises StemConfigError: ``site_id`` is not an id.
        :raises StemNotFoundError: there is no such site.
        """
        return self.client.get_site(site_id)

    def get_streams(
        self,
        site_id: str,
        start: datetime | str,
        end: datetime | str,
        *,
        stream_types: Sequence[str] = ("MONITOR",),
        resolution: int = 900,
        on_unavailable: Literal["fail", "skip"] = "fail",
    ) -> pa.Table:
        """
        Return a site's streams: each interval that ends within the wall time ``(start, end]``, exactly once.

        :param site_id: id of the site.
        :param start: aware datetime, or ISO 8601 string with an offset.
        :param end: the same; at most one resolution in the future.
        :param stream_types: any of ``MONITOR``, ``CONVERTER`` and ``INTERVAL_REVENUE``.
        :param resolution: length of an interval in seconds: 900, 1800 or 3600.
        :param on_unavailable: if the site lacks a type: ``fail``, or ``skip`` that type and return the others.
        :return: a table in the landing schema: average kW per interval, times in UTC.
        :raises StemConfigError: (a ``ValueError``) an argument is wrong; no request was sent.
        :raises StemUnavailableError: the site lacks a type, and ``on_unavailable`` is ``fail``.
        :raises StemDataError: the response is not what the API's guide describes ("Reading stream Data").
        """
        check_id("site_id", site_id)
        until = parse_instant("end", end)
        window = Window.covering(parse_instant("start", start), until, resolution)
        check_end(until, resolution)
        types = parse_stream_types(stream_types)
        if on_unavailable not in ("fail", "skip"):
            raise StemConfigError(f"on_unavailable must be one of fail, skip, got {on_unavailable!r}.")

        import pyarrow as pa

        from airflow_provider_stem.streams.reading import SiteReading
        from airflow_provider_stem.streams.sites import read_sites
        from airflow_provider_stem.streams.source import StreamsSource
        from airflow_provider_stem.streams.tables import LANDING_SCHEMA, landing_batch

        (site,) = read_sites(site_id)
        batches: dict[str, list[pa.RecordBatch]] = {}
        if window.intervals:
            reading = SiteReading(StreamsSource(self.client), site, types, window, lambda rows: rows, on_unavailable)
            batches = reading.run().kept
        return pa.Table.from_batches(
            [
                landing_batch(site.site_id, stream_type, resolution, rows)
                for stream_type in sorted(batches)
                for rows in batches[stream_type]
            ],
            LANDING_SCHEMA,
        )

    @staticmethod
    def _config_of(connection: Connection) -> ClientConfig:
        from airflow_provider_stem.api.config import ClientConfig

        if not (connection.conn_type or connection.host or connection.password or connection.extra):
            raise StemConfigError(
                "The connection is empty. If it is in an environment variable, correct that to JSON or a URI."
            )
        # The secret of a connection to another service must not be sent to Stem.
        if connection.conn_type not in _TYPES:
            raise StemConfigError(
                f"The connection has the type {connection.conn_type!r}. Use one of type 'stem', or correct the "
                "connection id."
            )
        defaults = {name: conf.get("stem", name, fallback="") for name in ("timeout", "max_attempts", "page_size")}
        return ClientConfig.from_connection(
            host=connection.host,
            schema=connection.schema,
            port=connection.port,
            password=connection.password,
            extra=connection.extra,
            defaults=defaults,
            columnar_decoding=conf.getboolean("stem", "columnar_decoding", fallback=True),
        )
