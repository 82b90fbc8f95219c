"""The commands ``sites`` and ``pull``, which read the API without a DAG."""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from airflow_provider_stem._arguments import check_count
from airflow_provider_stem._text import one_line
from airflow_provider_stem.cli.progress import progress
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.streams.formats import FORMATS
from airflow_provider_stem.streams.windows import Window, check_end, parse_instant

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_provider_stem.streams.formats import FileFormat
    from airflow_provider_stem.streams.reading import SiteResult


def sites(arguments: argparse.Namespace, output: TextIO) -> int:
    """List sites, as a table or one record per line, and return the exit code."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from airflow_provider_stem.operators import StemSiteListOperator

    listing = StemSiteListOperator(
        task_id="sites",
        client_id=arguments.client_id,
        name=arguments.name,
        stem_conn_id=arguments.stem_conn_id,
    )
    records = listing.list_sites()
    if arguments.output == "jsonl":
        output.writelines(json.dumps(record) + "\n" for record in records)
        return 0
    table = Table()
    for name in ("site", "name", "client", "streams"):
        table.add_column(name, overflow="fold")
    for record in records:
        streams = ", ".join(
            f"{name} since {start[:10] if start else 'unknown'}"
            for name, start in (record["stream_start_times"] or {}).items()
        )
        # As Text, since a name may contain rich's markup.
        row = (record["site_id"], record["name"] or "", record["client_id"], streams)
        table.add_row(*(Text(one_line(cell)) for cell in row))
    Console(file=output).print(table)
    return 0


def pull(arguments: argparse.Namespace, output: TextIO) -> int:
    """
    Write the streams of sites to a file, which is there completely or not at all, and return the exit code.

    :raises StemConfigError: an argument is wrong; no request was sent.
    :raises StemError: a site cannot be read; see :mod:`airflow_provider_stem.errors`.
    """
    from airflow_provider_stem.hooks import StemHook
    from airflow_provider_stem.streams.extraction import Extraction
    from airflow_provider_stem.streams.sites import read_sites
    from airflow_provider_stem.streams.stream_types import parse_stream_types
    from airflow_provider_stem.streams.tables import landing_batch

    path = Path(arguments.output)
    file_format, compression = _format_of(path)
    target = _target(path)
    start, end = instant("--from", arguments.start), instant("--to", arguments.end)
    window = Window.covering(start, end, arguments.resolution)
    check_end(end, arguments.resolution)
    if not window.intervals:
        raise StemConfigError(
            f"No interval of {arguments.resolution} s ends between --from and --to. Use a longer time."
        )
    types = parse_stream_types(arguments.stream_types)
    wanted = read_sites(arguments.sites)
    check_count("--max-workers", arguments.max_workers)
    results: list[SiteResult[pa.RecordBatch]] = []

    def rows(incoming: Iterator[SiteResult[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
        for result in incoming:
            for stream_type, parts in sorted(result.kept.items()):
                for part in parts:
                    yield landing_batch(result.site_id, stream_type, window.resolution, part)
            result.kept.clear()
            results.append(result)

    with StemHook(arguments.stem_conn_id).get_conn() as client:
        extraction: Extraction[pa.RecordBatch] = Extraction(client, types, window, lambda part: part)
        reading = progress(extraction.read(wanted, arguments.max_workers), "sites", len(wanted))
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
        with _interruptible(), NamedTemporaryFile(dir=target.parent, prefix=".stem-", delete=False) as file:
            try:
                count = file_format.write(rows(reading), cast("BinaryIO", file), compression, "portable")
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(mode)
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    missing = sum(one.expected - one.received for result in results for one in result.accounts.values())
    output.write(
        f"{path}: rows: {count:,}, missing: {missing:,}, sites: {len(results):,}, requests: {client.requests_sent:,}, "
        f"window: {window}\n"
    )
    for result in results:
        if result.unavailable:
            output.write(f"Site {one_line(result.site_id)} has no {', '.join(result.unavailable)}\n")
    return 0


def instant(name: str, text: str) -> datetime:
    """
    Return a time on the command line as an instant in UTC.

    :param name: name of the argument, for the message.
    :param text: a date, which is its 00:00 UTC, or ISO 8601 with a UTC offset.
    :raises StemConfigError: it is neither.
    """
    try:
        day = date.fromisoformat(text.strip())
    except ValueError as exc:
        if "T" in text or ":" in text:
            return parse_instant(name, text)
        raise StemConfigError(
            f"Invalid {name} {text!r}: {exc}. Use a date such as '2025-07-01', or a time such as '2025-07-01T00:00Z'."
        ) from None
    return parse_instant(name, f"{day}T00:00Z")


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the block by ``KeyboardInterrupt(number)`` also if a signal ends the process, so that it cleans up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # nohup ignores SIGHUP. Python cannot restore a handler that it did not set, which is None.
    changed = {number: handler for number, handler in before.items() if handler not in {signal.SIG_IGN, None}}
    for number in changed:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _format_of(path: Path) -> tuple[FileFormat, str]:
    """
    Return the format and the compression of the extension in a file's name.

    :raises StemConfigError: there is no such format.
    """
    choices = {
        file_format.extension(compression): (file_format, compression)
        for file_format in FORMATS.values()
        # The default is the first one.
        for compression in reversed(file_format.compressions)
    }
    for extension, choice in choices.items():
        if path.name.lower().endswith(f".{extension}"):
            return choice
    raise StemConfigError(
        f"--output {str(path)!r} has no known extension. Use one of {', '.join(f'.{name}' for name in choices)}."
    )


def _target(path: Path) -> Path:
    """
    Return the file to replace. If the path is a link, it is what the link points to, so that it stays a link.

    :raises StemConfigError: no file can be written there.
    """
    is_special = False
    try:
        target = path.resolve()
        with suppress(FileNotFoundError):
            is_special = not stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError) as exc:  # such as a link that points to itself, or a name that is too long
        raise StemConfigError(
            f"--output {str(path)!r} cannot be written ({one_line(str(exc))}). Use another path."
        ) from None
    if is_special:
        raise StemConfigError(f"--output {str(path)!r} exists, and is no regular file. Use another path.")
    for folder in (path.parent, target.parent):
        if not folder.is_dir():
            raise StemConfigError(f"--output {str(path)!r} is in no folder. Create {str(folder)!r}.")
    return target
