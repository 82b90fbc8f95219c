"""Airflow's connection of type ``stem``, and the API behind it."""

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
from airflow_provider_stem.streams.windows import Window, check_end, check_stream_types, parse_instant

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_stem.api.client import StemClient
    from airflow_provider_stem.api.config import ClientConfig

_TEST_TIMEOUT = 15.0


class StemHook(BaseHook):
    """
    Reads Stem's Developer Data API with the credentials of an Airflow connection.

    Nothing is looked up or sent before a method is called. API errors are those of
    :mod:`airflow_provider_stem.errors`.

    :param stem_conn_id: connection of type ``stem``: the API key as Password; Host only for another server; Extra
        ``timeout``, ``max_attempts``, ``page_size``, ``verify``.
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
        """Describe the connection form to Airflow 2; Airflow 3 reads the provider's metadata."""
        from airflow_provider_stem._connection_form import UI_FIELD_BEHAVIOUR

        return UI_FIELD_BEHAVIOUR

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Give the connection form's own fields to Airflow 2."""
        from airflow_provider_stem._connection_form import connection_form_widgets

        return connection_form_widgets()

    def get_conn(self) -> StemClient:
        """
        Give a client for the connection.

        :raises StemConfigError: a field of the connection is wrong; the message names it.
        """
        return self.client_of(self.get_connection(self.stem_conn_id))

    @classmethod
    def client_of(cls, connection: Connection) -> StemClient:
        """
        Give a client for a connection that was looked up already, as a trigger must do in its own way.

        :raises StemConfigError: a field of the connection is wrong; the message names it.
        """
        from airflow_provider_stem.api.client import StemClient

        if not hasattr(connection, "password"):
            # Its type alone: a connection that is written as text holds the key.
            raise StemConfigError(
                f"connection is a {type(connection).__name__}: give a Connection, as get_connection does."
            )
        return StemClient(cls._config_of(connection))

    @cached_property
    def client(self) -> StemClient:
        """The client that the hook's own methods use."""
        return self.get_conn()

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the first client with the connection; tell what to mend where that fails."""
        try:
            from airflow_provider_stem.api.client import StemClient

            config = self._config_of(self.get_connection(self.stem_conn_id))
            patient = dataclasses.replace(config, max_attempts=1, timeout=min(config.timeout, _TEST_TIMEOUT))
            with StemClient(patient) as client:
                first = next(client.list_clients(), None)
        except StemAuthError as exc:
            return (
                False,
                f"The API refuses the key ({exc.message}): check the API key (Password), or ask Stem for access.",
            )
        except StemNotFoundError:
            return False, "There is no Stem API at this address: check the Host and its path (default /api/v1/)."
        except StemConfigError as exc:
            return False, str(exc)
        except StemTransportError as exc:
            return False, f"The API cannot be reached: check Host, Port and network ({exc})."
        except Exception as exc:  # noqa: BLE001 - the form shows whatever it is
            return False, str(exc) or type(exc).__name__
        if first is None:
            return True, "Connected, but the key sees no client: ask Stem to grant it permission."
        return True, f"Connected to {config.base_url}"

    def list_clients(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Give every client that the key may see, as the API sent it.

        :param name: only those whose name contains this.
        """
        return self.client.list_clients(name)

    def get_client(self, client_id: str) -> dict[str, Any]:
        """Give one client, as the API sent it."""
        return self.client.get_client(client_id)

    def list_sites(self, client_id: str | None = None, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Give every site that the key may see, once, as the API sent it.

        :param client_id: the sites of this client; by default those of every client.
        :param name: only those whose name contains this.
        """
        return self.client.list_sites(client_id, name)

    def get_site(self, site_id: str) -> dict[str, Any]:
        """Give one site, as the API sent it."""
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
        Give a site's streams: each interval that ends within the wall time ``(start, end]``, on the grid, once.

        :param start: aware datetime, or ISO 8601 string with an offset.
        :param end: likewise; at most one resolution in the future.
        :param stream_types: any of ``MONITOR``, ``CONVERTER``, ``INTERVAL_REVENUE``.
        :param resolution: seconds: 900, 1800 or 3600.
        :param on_unavailable: where the site lacks a type: ``fail``, or ``skip`` it and give the others.
        :return: a table in the landing schema, average kW by interval, times in UTC.
        :raises StemConfigError: (a ``ValueError``) an argument is wrong; no request was sent.
        :raises StemUnavailableError: the site lacks a type.
        :raises StemDataError: the answer is not what the API's guide describes ("Reading stream Data").
        """
        check_id("site_id", site_id)
        until = parse_instant("end", end)
        window = Window.covering(parse_instant("start", start), until, resolution)
        check_end(until, resolution)
        types = check_stream_types(stream_types)
        if on_unavailable not in ("fail", "skip"):
            raise StemConfigError(f"on_unavailable is {on_unavailable!r}: choose one of fail, skip.")

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

        set_by_administrator = {
            name: conf.get("stem", name, fallback="") for name in ("timeout", "max_attempts", "page_size")
        }
        return ClientConfig.from_connection(
            host=connection.host,
            schema=connection.schema,
            port=connection.port,
            password=connection.password,
            extra=connection.extra,
            defaults=set_by_administrator,
        )
