"""
A year of 20 sites and two types (1.4 million rows): the operator beside a bare floor, in turn, in one run.

The floor is what anybody would write first: requests, pyarrow's JSON reader, Parquet and boto3 in 8 threads; it asks
for the same ranges and checks nothing. Prints medians and ratios::

    python benchmarks/year.py --rounds 5
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from s3_server import ACCESS_KEY, SECRET_KEY, S3Server

SITES = [f"site-{number:05}" for number in range(1, 21)]
TYPES = ("CONVERTER", "MONITOR")
START, MIDDLE, END = "2025-01-01T00:00:00Z", "2025-07-02T12:00:00Z", "2026-01-01T00:00:00Z"
ROWS = 20 * 2 * 365 * 96
BUCKET = "bench"


def operator() -> dict[str, Any]:
    """Land the year with the operator; its imports come first, as the floor's do."""
    import airflow_provider_stem.storage
    import airflow_provider_stem.streams.landing  # noqa: F401
    from airflow_provider_stem.operators import StemStreamsToS3Operator

    task = StemStreamsToS3Operator(
        task_id="year",
        sites=SITES,
        stream_types=TYPES,
        start=START,
        end=END,
        s3_bucket=BUCKET,
        s3_key="operator.parquet",
    )
    receipt: dict[str, Any] = measured(lambda: task.execute({}))
    return receipt


def floor() -> dict[str, Any]:
    """Land the year without looking at it."""
    import boto3
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq
    import requests
    from botocore.config import Config

    connection = json.loads(os.environ["AIRFLOW_CONN_STEM_DEFAULT"])
    sessions = threading.local()

    def fetch(part: tuple[str, str, str]) -> pa.Table:
        if not hasattr(sessions, "session"):
            sessions.session = requests.Session()
            sessions.session.headers["Authorization"] = f"APIKEY {connection['password']}"
        site, start, end = part
        answer = sessions.session.get(
            f"{connection['host']}sites/{site}/streams",
            params={"start_datetime": start, "end_datetime": end, "stream_type": ",".join(TYPES)},
            timeout=60,
        )
        options = pyarrow.json.ReadOptions(block_size=len(answer.content) + 1)
        entries = pyarrow.json.read_json(io.BytesIO(answer.content), options)["stream_types"].combine_chunks().flatten()
        tables = []
        for index, name in enumerate(entries.field("stream_type").to_pylist()):
            rows = pa.Table.from_struct_array(entries.field("streams").slice(index, 1).flatten())
            rows = rows.append_column("site_id", pa.repeat(site, rows.num_rows))
            tables.append(rows.append_column("stream_type", pa.repeat(name, rows.num_rows)))
        return pa.concat_tables(tables)

    def run() -> dict[str, Any]:
        parts = [(site, *span) for site in SITES for span in ((START, MIDDLE), (MIDDLE, END))]
        with ThreadPoolExecutor(8) as pool:
            table = pa.concat_tables(pool.map(fetch, parts))
        body = io.BytesIO()
        pq.write_table(table, body, compression="zstd")
        s3 = boto3.client(
            "s3",
            endpoint_url=os.environ["S3_URL"],
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        s3.put_object(Bucket=BUCKET, Key="floor.parquet", Body=body.getvalue())
        return {"rows": table.num_rows, "requests": len(parts), "objects": [{"bytes": body.tell()}]}

    return measured(run)


def measured(work: Any) -> dict[str, Any]:
    """Run something and add its seconds and the growth of the process."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    return {
        "seconds": seconds,
        "growth_mb": (peak[0] - before) / 1e6,
        "rows": outcome["rows"],
        "requests": outcome["requests"],
        "bytes": outcome["objects"][0]["bytes"],
    }


def check_rows(s3: S3Server, sim: Any) -> int:
    """Count the rows of the operator's object that are not the simulator's own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    client: Any = s3.client()
    body = client.get_object(Bucket=BUCKET, Key="operator.parquet")["Body"].read()
    table = pq.read_table(io.BytesIO(body))
    first, last = (int(time.mktime(time.strptime(t, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone) for t in (START, END))
    wrong = abs(int(table.num_rows) - ROWS)
    position = 0
    for site in SITES:
        for stream_type in TYPES:
            ends, values = sim.fleet.values(site, stream_type, 900, first + 900, last)
            rows = table.slice(position, len(ends))
            position += len(ends)
            got_ends = rows["interval_end"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
            wrong += int((got_ends != ends).sum()) + int((rows["kw_total_avg"].to_numpy() != values).sum())
            wrong += int(set(rows["site_id"].to_pylist()) != {site}) + int(
                set(rows["stream_type"].to_pylist()) != {stream_type}
            )
    return wrong


def main() -> None:
    """Run both in turn and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["operator", "floor"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"operator": operator, "floor": floor}[options.only]()))
        return

    from airflow_provider_stem.simulator import Settings, Simulator

    command = [sys.executable, "-m", "airflow_provider_stem.simulator", "--port", "0", "--sites", "20"]
    api = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder)) as s3:
            client: Any = s3.client()
            client.create_bucket(Bucket=BUCKET)
            assert api.stdout is not None
            line = next(line for line in api.stdout if line.startswith("AIRFLOW_CONN_STEM_DEFAULT="))
            environment = {
                **os.environ,
                "AIRFLOW_CONN_STEM_DEFAULT": line.split("=", 1)[1].strip().strip("'"),
                "AIRFLOW_CONN_AWS_DEFAULT": s3.connection,
                "S3_URL": s3.url,
            }
            runs: dict[str, list[dict[str, Any]]] = {"floor": [], "operator": []}
            for number in range(options.rounds + 1):
                for name, taken in runs.items():
                    one = subprocess.run(
                        [sys.executable, __file__, "--only", name],
                        env=environment,
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    if number:  # the first round warms the simulator
                        taken.append(json.loads(one.stdout.splitlines()[-1]))
            wrong = check_rows(s3, Simulator(Settings(sites=20)))
    finally:
        api.terminate()
        api.wait()
    print(f"{ROWS:,} rows, {options.rounds} rounds, medians; rows of the operator that are wrong: {wrong}")
    print(f"{'':10} {'seconds':>8} {'growth MB':>10} {'requests':>9} {'bytes/row':>10}")
    medians = {}
    for name, taken in runs.items():
        medians[name] = {key: statistics.median(one[key] for one in taken) for key in taken[0]}
        m = medians[name]
        print(
            f"{name:10} {m['seconds']:8.2f} {m['growth_mb']:10.0f} {m['requests']:9.0f} {m['bytes'] / m['rows']:10.2f}"
        )
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["operator"], runs["floor"], strict=True)]
    print(f"operator / floor: {statistics.median(ratios):.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
