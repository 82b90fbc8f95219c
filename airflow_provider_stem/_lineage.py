"""OpenLineage events of a receipt: the sites' streams are inputs, the landed objects outputs; for the operator.

Only imported when the OpenLineage provider calls the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import pyarrow as pa

from airflow_provider_stem import __version__
from airflow_provider_stem.streams.sites import read_sites
from airflow_provider_stem.streams.store import split_uri
from airflow_provider_stem.streams.tables import LANDING_SCHEMA, SHOWN_ROW, description_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import InputDataset, OutputDataset, RunFacet
    from airflow.providers.common.compat.openlineage.facet import SchemaDatasetFacet as SchemaFacet
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.data_quality_assertions_dataset import Assertion

    from airflow_provider_stem.streams.records import LandedObject, ObjectRecord, Receipt

MAX_INPUTS = 100
"""With more sites than this, there is one input per client; with more clients than this, one input for all."""

RECEIPT_FACET = "stem_receipt"
LOAD_FACET = "stem_load"

PRODUCER = f"pkg:pypi/airflow-provider-stem@{__version__}"
_FIGURES = (
    "window",
    "rows",
    "expected",
    "missing",
    "sites",
    "requests",
    "incomplete_count",
    "unavailable_count",
    "failed_count",
)


def landed(
    receipt: Receipt | None,
    sites: Any,
    base_url: str | None,
    stream_types: Sequence[str],
    redact: Callable[[str], str],
) -> OperatorLineage[Any, Any]:
    """
    Return what was read as inputs and what landed as outputs.

    :param receipt: receipt of the operator, or ``None`` if it failed before it had one.
    :param sites: argument ``sites`` of the operator.
    :param base_url: base URL of the API.
    :param stream_types: argument ``stream_types`` of the operator.
    :param redact: function that removes the API key from a string.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    if receipt is None or base_url is None:
        return OperatorLineage()
    groups = {redact(name): members for name, members in _grouped(sites).items()}
    findings = _Findings(receipt, stream_types)
    return OperatorLineage(
        inputs=list(_inputs(groups, _namespace(base_url), findings)),
        outputs=list(_outputs(receipt["objects"])),
        run_facets={RECEIPT_FACET: run_facet({name: figure for name, figure in receipt.items() if name in _FIGURES})},
    )


def _grouped(sites: Any) -> dict[str, list[str]]:
    """Return the names of the inputs, each with its site ids."""
    found = read_sites(sites)
    if len(found) <= MAX_INPUTS:
        return {f"sites/{_segment(site.site_id)}/streams": [site.site_id] for site in found}
    groups: dict[str, list[str]] = {}
    for site in found:
        name = f"clients/{_segment(site.client_id)}/sites" if site.client_id else "sites"
        groups.setdefault(name, []).append(site.site_id)
    one = {"sites": [site.site_id for site in found]}
    return one if "sites" in groups or len(groups) > MAX_INPUTS else dict(sorted(groups.items()))


def _segment(identifier: str) -> str:
    """Return an id quoted as in the API's paths."""
    return quote(str(identifier), safe="", errors="replace")


def _namespace(base_url: str) -> str:
    url = urlsplit(base_url)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"stem://{host}" + (f":{url.port}" if url.port else "")


def _inputs(groups: Mapping[str, list[str]], namespace: str, findings: _Findings) -> Iterator[InputDataset]:
    from airflow.providers.common.compat.openlineage.facet import InputDataset
    from openlineage.client.facet_v2 import data_quality_assertions_dataset, data_quality_metrics_input_dataset

    schema = schema_facet([LANDING_SCHEMA.field("stream_type"), *SHOWN_ROW])
    for name, site_ids in groups.items():
        facets: dict[str, Any] = {}
        if len(groups) == 1:
            # The receipt does not contain the number of rows of each site.
            facets["dataQualityMetrics"] = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
                rowCount=findings.rows, columnMetrics={}, producer=PRODUCER
            )
        if assertions := list(findings.assertions(site_ids)):
            facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
                assertions=assertions, producer=PRODUCER
            )
        yield InputDataset(namespace=namespace, name=name, facets={"schema": schema}, inputFacets=facets)


def _outputs(objects: Iterable[ObjectRecord]) -> Iterator[OutputDataset]:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet

    schema = schema_facet(LANDING_SCHEMA)
    for landed_object in objects:
        namespace, name = name_of_object(landed_object["uri"])
        statistics = OutputStatisticsOutputDatasetFacet(
            rowCount=landed_object["rows"], size=landed_object["bytes"], fileCount=1, producer=PRODUCER
        )
        yield OutputDataset(
            namespace=namespace,
            name=name,
            facets={"schema": schema},
            outputFacets={"outputStatistics": statistics},
        )


def name_of_object(uri: str) -> tuple[str, str]:
    """Return the namespace and the name of a landed object. They connect it as an output and as an input."""
    scheme, bucket, key = split_uri(uri)
    return ("file", f"/{key}") if scheme == "file" else (f"{scheme}://{bucket}", key)


def schema_facet(fields: Iterable[pa.Field]) -> SchemaFacet:
    """Return the schema facet of columns, with the descriptions of the landing schema."""
    from airflow.providers.common.compat.openlineage.facet import SchemaDatasetFacet, SchemaDatasetFacetFields

    return SchemaDatasetFacet(
        fields=[
            SchemaDatasetFacetFields(
                name=field.name, type=str(field.type), description=description_of(_landed(field)), fields=None
            )
            for field in fields
        ],
        producer=PRODUCER,
    )


def object_loaded(landed: LandedObject, *, with_rows: bool) -> InputDataset:
    """Return a landed object as the input of a load."""
    from airflow.providers.common.compat.openlineage.facet import InputDataset
    from openlineage.client.facet_v2 import data_quality_metrics_input_dataset

    namespace, name = name_of_object(landed.uri)
    metrics = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
        rowCount=landed.rows, columnMetrics={}, producer=PRODUCER
    )
    return InputDataset(
        namespace=namespace,
        name=name,
        facets={"schema": schema_facet(LANDING_SCHEMA)},
        inputFacets={"dataQualityMetrics": metrics} if with_rows else {},
    )


def table_written(namespace: str, name: str, fields: Iterable[pa.Field], rows: int) -> OutputDataset:
    """Return a table as the output of a load that has written ``rows`` of its rows."""
    from airflow.providers.common.compat.openlineage.facet import OutputDataset, OutputStatisticsOutputDatasetFacet

    return OutputDataset(
        namespace=namespace,
        name=name,
        facets={"schema": schema_facet(fields)},
        outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=rows, producer=PRODUCER)},
    )


def load_facets(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of a load as facets of the run."""
    return {LOAD_FACET: run_facet(counts)}


def _landed(field: pa.Field) -> pa.Field:
    """Return the field of the landing schema with the same name, which has a description, or else the field."""
    return LANDING_SCHEMA.field(field.name) if field.name in LANDING_SCHEMA.names else field


def run_facet(figures: Mapping[str, Any]) -> RunFacet:
    """Return figures as a facet of the run."""
    from airflow.providers.common.compat.openlineage.facet import RunFacet

    # Its schema URL is the one of any run facet, as with Airflow's run facets: that schema allows other fields.
    return cast("RunFacet", RunFacet(producer=PRODUCER).with_additional_properties(**figures))


class _Findings:
    """The findings in a receipt, which lists only a limited number of sites."""

    def __init__(self, receipt: Receipt, stream_types: Sequence[str]) -> None:
        self.rows = receipt["rows"]
        self._receipt = receipt
        self._stream_types = stream_types
        self._incomplete = {(found["site_id"], found["stream_type"]): found for found in receipt["incomplete"]}
        self._unavailable = {(found["site_id"], found["stream_type"]) for found in receipt["unavailable"]}
        self._failed = {found["site_id"] for found in receipt["failed_sites"]}
        self._lists_all = (
            len(self._incomplete) == receipt["incomplete_count"]
            and len(self._unavailable) == receipt["unavailable_count"]
            and len(self._failed) == receipt["failed_count"]
        )

    def assertions(self, site_ids: Sequence[str]) -> Iterator[Assertion]:
        """Iterate over the assertions about one input; those that do not follow from the receipt are left out."""
        if failed := self._failed.intersection(site_ids):
            yield _assertion(
                "every site was read", success=False, expected=len(site_ids), actual=len(site_ids) - len(failed)
            )
        if len(site_ids) == 1:
            if not failed:
                yield from self._by_stream_type(site_ids[0])
            return
        members = set(site_ids)
        what = "every expected interval was received"
        if len(site_ids) == self._receipt["sites"]:
            expected, missing = self._receipt["expected"], self._receipt["missing"]
            yield _assertion(what, success=not missing, expected=expected, actual=expected - missing)
        elif any(site_id in members for site_id, _ in self._incomplete):
            yield _assertion(what, success=False)
        elif self._lists_all:
            yield _assertion(what, success=True)

    def _by_stream_type(self, site_id: str) -> Iterator[Assertion]:
        for stream_type in self._stream_types:
            what = f"every expected interval was received: {stream_type}"
            if found := self._incomplete.get((site_id, stream_type)):
                yield _assertion(
                    what,
                    success=False,
                    expected=found["expected"],
                    actual=found["received"],
                    params={"first_missing": found["first_missing"]},
                )
            elif self._lists_all and (site_id, stream_type) not in self._unavailable:
                yield _assertion(what, success=True)


def _assertion(what: str, *, success: bool, params: dict[str, Any] | None = None, **figures: int) -> Assertion:
    import attr
    from openlineage.client.generated.data_quality_assertions_dataset import Assertion

    more: dict[str, Any] = {
        "severity": "warn",
        "params": params,
        **{name: str(figure) for name, figure in figures.items()},
    }
    # Older clients have only the first two fields.
    known = {field.name for field in attr.fields(Assertion)}
    return Assertion(assertion=what, success=success, **{name: more[name] for name in known & more.keys()})
