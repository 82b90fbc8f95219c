"""
OpenLineage metadata of a load: landed objects as inputs, the Iceberg table as output. For the operator.

Imported only when the OpenLineage provider calls the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_stem._lineage import load_facets, object_loaded, table_written
from airflow_provider_stem.iceberg.loading import Load
from airflow_provider_stem.iceberg.tables import COLUMNS
from airflow_provider_stem.streams.records import LandedObject

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


def load_lineage(done: tuple[Sequence[LandedObject], Load] | None) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a load.

    :param done: the objects and the load, or ``None`` if it did not finish.
    :return: one input per object, and the table as output, named after its location as other producers name Iceberg
        tables; empty if the load did not finish.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage

    if done is None:
        return OperatorLineage()
    objects, load = done
    location = urlsplit(load.location)
    namespace = f"{location.scheme}://{location.netloc}" if location.netloc else "file"
    written = (load.counts["inserted"] or 0) + (load.counts["changed"] or 0)
    return OperatorLineage(
        # The receipt of an object that was rewritten has an outdated row count.
        inputs=[object_loaded(landed, with_rows=not load.counts["replaced"]) for landed in objects],
        outputs=[table_written(namespace, location.path.strip("/"), COLUMNS, written)],
        run_facets=load_facets(load.counts),
    )
