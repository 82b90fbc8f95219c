"""Command line ``python -m airflow_provider_stem.simulator``, and the arguments of ``stem simulate``."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, NoReturn, TextIO, get_args, get_origin, get_type_hints

from airflow_provider_stem.simulator.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    :param arguments: without the program's name; default: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_stem.simulator", description="A simulator of Stem's Developer Data API."
    )
    for flag, options in described_arguments():
        parser.add_argument(flag, **options)
    return serve(parser.parse_args(arguments), sys.stdout, parser.error)


def serve(options: argparse.Namespace, output: TextIO, error: Callable[[str], NoReturn]) -> int:
    """Serve until Ctrl-C or SIGTERM, and return the exit code.

    :param options: values of :func:`described_arguments`.
    :param output: the address and the connection are written to it.
    :param error: called with a message about an option.
    """
    try:
        settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    except ValueError as exc:
        error(str(exc))
    if not re.fullmatch("[!-~]+", settings.api_key):  # no connection accepts another
        error("--api-key must consist of visible ASCII characters, without spaces")

    stops = {signal.SIGINT, signal.SIGTERM}
    # Before any thread starts, so that all inherit it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        try:
            from airflow_provider_stem.simulator import Simulator

            simulator = Simulator(settings, host=options.host, port=options.port, keep_requests=False).start()
        except (ImportError, OSError, OverflowError, ValueError) as exc:  # OverflowError: the port
            error(str(exc))
        schema = simulator.url.replace("/api/v1/", "/openapi.json")
        output.write(
            f"Serving {simulator.url} with the key {settings.api_key} (OpenAPI schema: {schema})\n"
            f"export AIRFLOW_CONN_STEM_DEFAULT={shlex.quote(simulator.connection)}\n"
        )
        output.flush()
        signal.sigwait(stops)
        simulator.stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def described_arguments() -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the options of the command line: each flag, and the other arguments of ``add_argument``."""
    yield "--host", {"default": "127.0.0.1", "help": "address to listen on (default: %(default)s)"}
    yield "--port", {"type": int, "default": 8000, "help": "port; 0 selects a free one (default: %(default)s)"}
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
        yield (
            flag,
            {"dest": name, "default": default, "help": f"{helps.get(name, '')} (default: %(default)s)", **options},
        )


def _helps() -> dict[str, str]:
    """Return the description of each setting, from the docstring of :class:`Settings`."""
    text = inspect.getdoc(Settings) or ""
    found = re.findall(r":param (\w+): (.*?)(?=\n:|\Z)", text, flags=re.DOTALL)
    return {name: " ".join(words.split()).replace("%", "%%") for name, words in found}


if __name__ == "__main__":
    sys.exit(main())
