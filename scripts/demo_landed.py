"""
Read back through Airflow what a run landed: its receipts, and the objects that they name.

``demo.py`` starts it beside the run, with the run's environment, and writes the run's logical date to its standard
input when the run has ended. Usage: ``python demo_landed.py DAG_ID LIST_TASK_ID LAND_TASK_ID FOLDER``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.utils.session import create_session


def returned(dag_id: str, task_id: str, logical_date: datetime) -> list[Any]:
    """Give what the (mapped) task returned in the run of that date, in the order of the map index."""
    # A task reads the XComs of others with ``xcom_pull``. From outside there is Airflow's REST API, which needs a
    # server to be running, and the model behind it, which needs the metadata database alone.
    (run,) = DagRun.find(dag_id=dag_id, logical_date=logical_date)
    query = XComModel.get_many(run_id=run.run_id, key="return_value", dag_ids=dag_id, task_ids=task_id)
    with create_session() as session:
        found: list[Any] = list(session.scalars(query))
        found.sort(key=lambda xcom: xcom.map_index)
        return [XComModel.deserialize_value(xcom) for xcom in found]


def fetch(uris: Iterable[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Copy objects into a folder, and give what S3 tells of them."""
    s3 = S3Hook()
    for number, uri in enumerate(uris):
        bucket, key = s3.parse_s3_url(uri)
        answer = s3.get_conn().get_object(Bucket=bucket, Key=key)
        copy = folder / f"{number:04d}.parquet"
        copy.write_bytes(answer["Body"].read())
        yield {
            "uri": uri,
            "file": str(copy),
            "bytes": answer["ContentLength"],
            "etag": answer["ETag"].strip('"'),
            "sha256": answer["Metadata"].get("sha256", ""),
        }


def main() -> int:
    """Wait for the run to end, and write ``landed.json``."""
    dag_id, list_task_id, land_task_id, folder = sys.argv[1:]
    logical_date = sys.stdin.readline().strip()
    if not logical_date:  # the run has failed, and nobody waits
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
    Path(folder, "landed.json").write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
