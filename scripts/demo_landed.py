"""
Read the receipts of a run and the objects that they list, through Airflow.

``demo.py`` starts this program during the run, with the environment of the run, and writes the logical date to its
standard input when the run has ended. If there is a connection ``stem_warehouse``, the program loads the objects into
it. Usage: ``python demo_landed.py DAG_ID LIST_TASK_ID LAND_TASK_ID FOLDER``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.providers.amazon.aws.hooks.s3 import S3Hook


def returned(dag_id: str, task_id: str, logical_date: datetime) -> list[Any]:
    """Return what each instance of a task returned in the run of that date, in the order of the map index."""
    # The REST API needs a running server. The model needs only the metadata database.
    (run,) = [run for run in DagRun.find(dag_id=dag_id) if run.logical_date == logical_date]
    instances = [instance for instance in run.get_task_instances() if instance.task_id == task_id]
    instances.sort(key=lambda instance: instance.map_index)
    found = [instance.xcom_pull(task_ids=task_id, map_indexes=instance.map_index) for instance in instances]
    return [value for value in found if value is not None]


def fetch(uris: Iterable[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Copy objects into a folder, and return their sizes and ETags."""
    s3 = S3Hook()
    for number, uri in enumerate(uris):
        if uri.startswith("file://"):
            body = Path(uri.removeprefix("file://")).read_bytes()
            etag = sha256(body).hexdigest()
        else:
            bucket, key = s3.parse_s3_url(uri)
            answer = s3.get_conn().get_object(Bucket=bucket, Key=key)
            body, etag = answer["Body"].read(), answer["ETag"].strip('"')
        copy = folder / f"{number:04d}.parquet"
        copy.write_bytes(body)
        yield {"uri": uri, "file": str(copy), "bytes": len(body), "etag": etag}


def load(receipts: list[Any], sites: list[Any]) -> None:
    """Load the objects of the receipts, and the sites, into the connection ``stem_warehouse``."""
    from airflow_provider_stem.warehouse.operators import StemObjectsToSqlOperator, StemSitesToSqlOperator

    conn_id = "stem_warehouse"
    StemObjectsToSqlOperator(task_id="load_streams", objects=receipts, sql_conn_id=conn_id).execute({})
    StemSitesToSqlOperator(task_id="load_sites", sites=sites, sql_conn_id=conn_id).execute({})


def main() -> int:
    """Wait for the end of the run, and write ``landed.json``."""
    dag_id, list_task_id, land_task_id, folder = sys.argv[1:]
    logical_date = sys.stdin.readline().strip()
    if not logical_date:  # the run has failed
        return 1
    when = datetime.fromisoformat(logical_date)
    receipts = returned(dag_id, land_task_id, when)
    batches = [batch for batches in returned(dag_id, list_task_id, when) for batch in batches]
    uris = [landed["uri"] for receipt in receipts for landed in receipt["objects"]]
    report = {
        "receipts": receipts,
        "names": {site["site_id"]: site["name"] for batch in batches for site in batch["sites"]},
        "objects": list(fetch(uris, Path(folder))),
    }
    if "AIRFLOW_CONN_STEM_WAREHOUSE" in os.environ:
        load(receipts, [site for batch in batches for site in batch["sites"]])
    Path(folder, "landed.json").write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
