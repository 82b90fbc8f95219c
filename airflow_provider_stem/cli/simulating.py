"""The command ``simulate``: the simulator, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, TextIO

from airflow_provider_stem.simulator.__main__ import serve


def simulate(arguments: argparse.Namespace, output: TextIO) -> int:
    """Serve a simulated API, and return the exit code."""

    def error(message: str) -> NoReturn:
        sys.stderr.write(f"stem simulate: {message}\n")
        raise SystemExit(2)

    return serve(arguments, output, error)
