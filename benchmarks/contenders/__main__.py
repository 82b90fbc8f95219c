"""
Do the work once, and print seconds and the growth of the process as JSON.

Usage: ``python -m benchmarks.contenders NAME < work.json``.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from pathlib import Path

from benchmarks.contenders.work import Work


def main(name: str) -> None:
    """Import first, then measure."""
    run = importlib.import_module(f"benchmarks.contenders.{name}").prepare(Work.from_json(sys.stdin.read()))
    gc.collect()  # otherwise the garbage of the imports is collected at some point of the work
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _held("VmRSS")
    cpu, began = time.process_time(), time.perf_counter()
    run()
    measured = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "growth_mb": (_held("VmHWM") - before) / 1e6,
    }
    print(json.dumps(measured))


def _held(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1])
