"""Command line ``stem-simulator``, which serves until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from airflow_provider_stem.simulator.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    :param arguments: without the program's name; default: those of the process.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    host, port = options.pop("host"), options.pop("port")
    try:
        settings = Settings(**options)
    except ValueError as error:
        parser.error(str(error))

    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # before any thread starts, so that all inherit it

    try:
        from airflow_provider_stem.simulator import Simulator

        simulator = Simulator(settings, host=host, port=port, keep_requests=False).start()
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    schema = simulator.url.replace("/api/v1/", "/openapi.json")
    sys.stdout.write(
        f"Serving {simulator.url} with the key {settings.api_key} (OpenAPI schema: {schema})\n"
        f"export AIRFLOW_CONN_STEM_DEFAULT={shlex.quote(simulator.connection)}\n"
    )
    sys.stdout.flush()
    signal.sigwait(stops)
    simulator.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stem-simulator",
        description="A simulator of Stem's Developer Data API.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 selects a free one")
    hints, helps = get_type_hints(Settings), _helps()
    for field in fields(Settings):
        name, hint, default = field.name, hints[field.name], field.default
        # The option is repeated for each fault, so its name is singular.
        flag = "--fault" if name == "faults" else f"--{name.replace('_', '-')}"
        options: dict[str, Any] = {"type": hint}
        if hint is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif get_origin(hint) is Literal:
            options = {"choices": get_args(hint)}
        elif name in ("forbidden", "faults"):
            options, default = {"action": "append"}, []
        elif name == "now":
            options = {"type": datetime.fromisoformat}
        parser.add_argument(flag, dest=name, default=default, help=helps.get(name, ""), **options)
    return parser


def _helps() -> dict[str, str]:
    """Return the description of each setting, from the docstring of :class:`Settings`."""
    text = inspect.getdoc(Settings) or ""
    found = re.findall(r":param (\w+): (.*?)(?=\n:|\Z)", text, flags=re.DOTALL)
    return {name: " ".join(words.split()).replace("%", "%%") for name, words in found}


if __name__ == "__main__":
    sys.exit(main())
