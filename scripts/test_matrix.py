"""
The tests on each Airflow in turn, and one line a version at the end.

Give the versions as they stand in the names of the files in ``requirements``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(airflow: str) -> tuple[str, bool]:
    """Run the tests and the examples' on one Airflow, shown as they go; give its line and whether all is well."""
    began = time.monotonic()
    make = ["make", "--no-print-directory", "--keep-going", "test", "test-examples", f"AIRFLOW={airflow}"]
    shown = []
    with subprocess.Popen(make, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            shown.append(line)
    return summary(airflow, "".join(shown), time.monotonic() - began), process.returncode == 0


def summary(airflow: str, shown: str, seconds: float) -> str:
    """Give the line for what pytest has shown, in both of its runs."""
    closing = re.findall(r"^=+ (.* in [\d.]+s.*) =+$", shown, re.MULTILINE)
    python = re.search(r"-- Python ([\d.]+)", shown)
    exact = re.search(r"^airflow: (.+)$", shown, re.MULTILINE)
    if not (len(closing) == 2 and python and exact):
        return f"Airflow {airflow:<7} the tests did not run to their end"
    counts: Counter[str] = Counter()
    for count, what in re.findall(r"(\d+) ([a-z]+)", " ".join(closing)):
        counts[what] += int(count)
    failed = counts["failed"] + counts["error"] + counts["errors"]
    return (
        f"Airflow {exact[1]:<7} Python {python[1]:<7} {counts['passed']:>5} passed {failed:>4} failed "
        f"{counts['skipped']:>4} skipped {seconds:>6.0f} s"
    )


def main(versions: list[str]) -> int:
    """Run all; gives the exit code."""
    outcomes = [run(airflow) for airflow in versions]
    print("\n".join(line for line, _ in outcomes))
    return 0 if all(fine for _, fine in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
