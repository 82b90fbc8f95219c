"""
The commands of ``stem``, and of ``airflow stem`` (Airflow 3.2 or later).

Each command is described once, and both command lines are made from that. Importing this module loads neither Airflow
nor pyarrow, because Airflow imports it for every command.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TextIO

from airflow_provider_stem import __version__
from airflow_provider_stem.simulator.__main__ import described_arguments
from airflow_provider_stem.streams.stream_types import STREAM_TYPES

__all__ = ["get_cli_commands", "main"]


@dataclass(frozen=True, slots=True)
class Argument:
    """
    An argument of a command.

    :param flags: its name, or its options.
    :param options: the other arguments of ``argparse``'s ``add_argument``.
    """

    flags: tuple[str, ...]
    options: Mapping[str, Any]


def _argument(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


@dataclass(frozen=True, slots=True)
class Command:
    """
    A command.

    :param help: one line.
    :param run: module of this package, and the function in it that takes the parsed arguments and the standard output
        stream, and returns the exit code.
    :param arguments: in the order of its help.
    """

    name: str
    help: str
    run: tuple[str, str]
    arguments: tuple[Argument, ...]

    def __call__(self, arguments: argparse.Namespace) -> int:
        """Run the command, and return the exit code: 0, or 1 after a message on the standard error stream."""
        output = sys.stdout
        # Airflow writes its log to the standard output stream, which is for the result.
        with redirect_stdout(sys.stderr):
            return self._run(arguments, output)

    def _run(self, arguments: argparse.Namespace, output: TextIO) -> int:
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        from airflow_provider_stem._text import missing_connection
        from airflow_provider_stem.errors import StemError

        module, function = self.run
        run: Callable[[argparse.Namespace, TextIO], int] = getattr(import_module(f"{__name__}.{module}"), function)
        try:
            code = run(arguments, output)
            output.flush()
        except StemError as exc:
            message = str(exc)
        except AirflowNotFoundException as exc:
            message = missing_connection(exc)
        except OSError as exc:
            # Python would report an error of the output again when it exits.
            with suppress(io.UnsupportedOperation):  # the output is no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
            if isinstance(exc, BrokenPipeError):  # the reader has enough, such as `head`
                return 0
            message = str(exc)
        except KeyboardInterrupt as exc:
            sys.stderr.write(f"stem {self.name}: interrupted\n")
            return int(128 + (exc.args[0] if exc.args else signal.SIGINT))  # as shells report it
        else:
            return code
        sys.stderr.write(f"stem {self.name}: {redacted(message, arguments)}\n")
        return 1


def redacted(message: str, arguments: argparse.Namespace) -> str:
    """
    Return a message without the API key, which an id from the API may contain.

    :param arguments: of the command; its connection has the key.
    """
    from airflow_provider_stem.hooks import StemHook

    connection = getattr(arguments, "stem_conn_id", StemHook.default_conn_name)
    with suppress(Exception), StemHook(connection).get_conn() as client:
        return client.redact(message)
    return message


_CONNECTION = _argument("--stem-conn-id", default="stem_default", help="connection of type stem (default: %(default)s)")
_FROM = _argument(
    "--from", dest="start", required=True, help="first instant: a date (00:00 UTC), or ISO 8601 with a UTC offset"
)
_TO = _argument("--to", dest="end", required=True, help="last instant, exclusive; as --from")

COMMANDS = (
    Command(
        "doctor",
        "Check versions, the API key, the bucket and a DAG, each with its remedy.",
        ("doctor", "doctor"),
        (
            _argument("dag_file", nargs="?", help="file of DAGs, whose tasks name the connections and the bucket"),
            _CONNECTION,
            _argument("--aws-conn-id", default="aws_default", help="connection of type aws (default: %(default)s)"),
            _argument(
                "--bucket",
                help="bucket, or an address such as gs://bucket/prefix or file:///folder; default: those of the DAGs",
            ),
        ),
    ),
    Command(
        "sites",
        "List the sites that the API key can access.",
        ("reading", "sites"),
        (
            _CONNECTION,
            _argument("--client-id", help="only the sites of this client"),
            _argument("--name", help="only sites whose name contains this text"),
            _argument(
                "--output",
                choices=("table", "jsonl"),
                default="table",
                help="jsonl: one record per line, as operators accept them (default: %(default)s)",
            ),
        ),
    ),
    Command(
        "pull",
        "Read the streams of sites into a file.",
        ("reading", "pull"),
        (
            _argument("sites", nargs="+", metavar="SITE", help="site id"),
            _FROM,
            _TO,
            _argument(
                "-o",
                "--output",
                required=True,
                help="file to write; its name ends with the format: .parquet, .csv, .jsonl, or .csv.gz and so on",
            ),
            _argument(
                "--stream-types",
                type=lambda text: text.split(","),
                default=list(STREAM_TYPES),
                help="types to read, with commas between them; those that a site lacks are skipped (default: all)",
            ),
            _argument("--resolution", type=int, default=900, help="seconds: 900, 1800 or 3600 (default: %(default)s)"),
            _argument("--max-workers", type=int, default=8, help="sites read at a time (default: %(default)s)"),
            _CONNECTION,
        ),
    ),
    Command(
        "plan",
        "Show the windows, requests and objects that a backfill of a DAG would cost. It requests no streams.",
        ("planning", "plan"),
        (
            _argument("dag_file", help="file of DAGs"),
            _FROM,
            _TO,
            _argument("--dag-id", help="default: every DAG of the file"),
            _argument(
                "--sites",
                type=int,
                help="number of sites whose streams began before; default: those that the API lists",
            ),
            _argument("--requests-per-second", type=float, help="also show the time that this rate allows"),
        ),
    ),
    Command(
        "simulate",
        "Serve a simulated API, with its address and key as an Airflow connection.",
        ("simulating", "simulate"),
        tuple(Argument((flag,), options) for flag, options in described_arguments()),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run ``stem``, and return the exit code.

    :param arguments: without the program's name; default: those of the process.
    """
    parser = argparse.ArgumentParser(prog="stem", description="Tools for Stem's Developer Data API in Airflow.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help, description=command.help)
        for one in command.arguments:
            subparser.add_argument(*one.flags, **one.options)
        subparser.set_defaults(command=command)
    parsed = parser.parse_args(arguments)
    return int(parsed.command(parsed))


def get_cli_commands() -> list[Any]:
    """Return the group ``airflow stem``, as Airflow 3.2 and later read it from the provider's metadata."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    return [
        GroupCommand(
            name="stem",
            help="Tools for Stem's Developer Data API",
            subcommands=[
                ActionCommand(
                    name=command.name,
                    help=command.help,
                    func=partial(_exit_with, command),
                    args=[Arg(flags=one.flags, **one.options) for one in command.arguments],  # type: ignore[no-untyped-call]
                )
                for command in COMMANDS
            ],
        )
    ]


def _exit_with(command: Command, arguments: argparse.Namespace) -> None:
    if code := command(arguments):
        raise SystemExit(code)
