"""
Cost of our imports when a DAG is parsed, and of the example DAG beside the same DAG made of EmptyOperators.

Every measurement runs in its own process with Airflow already imported, as in the DAG processor. Prints medians::

    python -m benchmarks.dag_parse
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import progress

ROOT = Path(__file__).parent.parent
FILES = {
    "twin with EmptyOperators": ROOT / "benchmarks" / "dags" / "empty_twin.py",
    "example DAG": ROOT / "example_dags" / "stem_streams_to_s3.py",
}
# Its names are imported on first use.
COMPAT = "from airflow.providers.common.compat.sdk import Asset, BaseHook, BaseOperator, BaseSensorOperator, conf"
IMPORTS = {
    "airflow.providers.common.compat.sdk": ("", COMPAT),
    "hooks, operators, sensors on top of it": (
        COMPAT,
        "import airflow_provider_stem.hooks, airflow_provider_stem.operators, airflow_provider_stem.sensors",
    ),
    "amazon's S3 hook on top of it": (COMPAT, "import airflow.providers.amazon.aws.hooks.s3"),
}
MEASURED = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
{first}
before, began = set(sys.modules), time.perf_counter()
{then}
seconds, new = time.perf_counter() - began, set(sys.modules) - before
heavy = sorted({{"boto3", "botocore", "numpy", "pandas", "pyarrow", "requests", "tenacity", "urllib3"}} & new)
print(json.dumps({{"ms": seconds * 1e3, "modules": len(new), "heavy": heavy}}))
"""
PARSE = "bag = DagBag({file!r}); assert len(bag.dags) == 1 and not bag.import_errors, bag.import_errors"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    # The other modules that a first parse imports (settings, timetables) belong to Airflow and are the same for both.
    warm = PARSE.format(file=str(FILES["twin with EmptyOperators"]))
    programs = {name: MEASURED.format(first=first, then=then) for name, (first, then) in IMPORTS.items()}
    for name, file in FILES.items():
        programs[f"parsing the {name}"] = MEASURED.format(first="", then=PARSE.format(file=str(file)))
        programs[f"parsing the {name}, Airflow warm"] = MEASURED.format(first=warm, then=PARSE.format(file=str(file)))
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        taken: dict[str, list[dict[str, object]]] = {name: [] for name in programs}
        for number in range(rounds + 1):
            progress(f"Round {number} of {rounds}")
            for name, program in programs.items():
                done = subprocess.run(
                    [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
                )
                if number:  # the first round writes the compiled modules
                    taken[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{rounds} rounds, medians")
    print(f"{'':52} {'ms':>7} {'modules':>8}  heavy modules")
    for name, all_of in taken.items():
        median = statistics.median(float(str(one["ms"])) for one in all_of)
        heavy = all_of[0]["heavy"]
        assert isinstance(heavy, list)
        print(f"{name:52} {median:7.1f} {all_of[0]['modules']:>8}  {', '.join(heavy) or 'none'}")
    ratios = [
        float(str(one["ms"])) / float(str(twin["ms"]))
        for twin, one in zip(*(taken[f"parsing the {name}"] for name in FILES), strict=True)
    ]
    print(f"example DAG : twin, median of the rounds' ratios: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
