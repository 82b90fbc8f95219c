"""Real servers on loopback, for tests, scripts and benchmarks: S3, PostgreSQL, Airflow, and an Airflow cluster."""

from __future__ import annotations

import sys
import time


def progress(step: str) -> None:
    """Print a step of a long program to standard error, with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {step}\n")
    sys.stderr.flush()
