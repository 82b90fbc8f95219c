"""
The tests on each Airflow in turn, and one line a version at the end.

Give the versions as they stand in the names of the files in ``requirements``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(airflow: str) -> tuple[str, bool]:
    """Run the tests on one Airflow, shown as they go; give its line and whether all is well."""
    began = time.monotonic()
    make = ["make", "--no-print-directory", "test", f"AIRFLOW={airflow}"]
    shown = []
    with subprocess.Popen(make, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            shown.append(line)
    return summary(airflow, "".join(shown), time.monotonic() - began), process.returncode == 0


def summary(airflow: str, shown: str, seconds: float) -> str:
    """Give the line for what pytest has shown."""
    closing = re.findall(r"^=+ (.* in [\d.]+s.*) =+$", shown, re.MULTILINE)
    python = re.search(r"-- Python ([\d.]+)", shown)
    exact = re.search(r"^airflow: (.+)$", shown, re.MULTILINE)
    if not (closing and python and exact):
        return f"Airflow {airflow:<7} the tests did not run to their end"
    counts = {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", closing[-1])}
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return (
        f"Airflow {exact[1]:<7} Python {python[1]:<7} {counts.get('passed', 0):>5} passed {failed:>4} failed "
        f"{counts.get('skipped', 0):>4} skipped {seconds:>6.0f} s"
    )


def main(versions: list[str]) -> int:
    """Run all; gives the exit code."""
    outcomes = [run(airflow) for airflow in versions]
    print("\n".join(line for line, _ in outcomes))
    return 0 if all(fine for _, fine in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
