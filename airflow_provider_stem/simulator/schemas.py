"""Schemas of the API's responses, for its OpenAPI documentation."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ClientModel(BaseModel):
    """A client."""

    id: str = Field(examples=["acme-foods"])
    name: str = Field(examples=["Acme Foods"])
    link: str = Field(examples=["/api/v1/clients/acme-foods"])


class ClientList(BaseModel):
    """A page of clients."""

    clients: list[ClientModel]
    total: int = Field(description="Number of clients on all pages.")
    page: int = Field(description="Number of this page, 1 or more.")


class SiteModel(BaseModel):
    """A site."""

    id: str = Field(examples=["site-00001"])
    name: str = Field(examples=["Oakland Distribution Center"])
    link: str = Field(examples=["/api/v1/sites/site-00001"])
    stream_start_times: dict[str, str] = Field(
        description="The UTC time of the first data, for each stream type of the site.",
        examples=[{"CONVERTER": "2014-02-14T00:00:00Z", "MONITOR": "2011-03-01T16:15:01Z"}],
    )


class SiteList(BaseModel):
    """A page of sites."""

    sites: list[SiteModel]
    total: int = Field(description="Number of sites on all pages.")
    page: int = Field(description="Number of this page, 1 or more.")


class Stream(BaseModel):
    """One interval."""

    start_datetime: str = Field(
        description="One second after the beginning of the interval, UTC.", examples=["2014-12-31T23:30:01+00:00"]
    )
    end_datetime: str = Field(description="The end of the interval, UTC.", examples=["2014-12-31T23:45:00+00:00"])
    kw_total_avg: float | None = Field(description="Mean power in kW.", examples=[10.59252])


class StreamType(BaseModel):
    """The intervals of one stream type."""

    stream_type: str = Field(examples=["MONITOR"])
    streams: list[Stream]


class SiteStreams(BaseModel):
    """The streams of a site."""

    id: str
    name: str
    stream_types: list[StreamType]


class ErrorItem(BaseModel):
    """One error."""

    message: str
    code: int = Field(description="The HTTP status.")


class ErrorPayload(BaseModel):
    """The body of every response other than 200."""

    errors: list[ErrorItem]
