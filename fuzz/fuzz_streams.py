"""
Decode any bytes as a response of the streams endpoint. The result is rows in the landing schema, or ``StemDataError``.

Both decoders run: where the columnar one accepts a body, the plain one must return the same rows.
"""

from __future__ import annotations

import json
import logging
import struct
from datetime import UTC, datetime
from typing import Any

import atheris

from fuzz.harness import TOKENS, check_message, run

with atheris.instrument_imports(include=["airflow_provider_stem", "json"]):
    from airflow_provider_stem.errors import StemDataError
    from airflow_provider_stem.streams.decoding.columnar import read_columnar
    from airflow_provider_stem.streams.decoding.plain import read_plain
    from airflow_provider_stem.streams.tables import LANDING_SCHEMA, STREAM_SCHEMA, Streams, landing_batch
    from airflow_provider_stem.streams.windows import Window, iso

TYPES = ("MONITOR", "CONVERTER")
WINDOWS = (
    Window(datetime(2025, 7, 1, tzinfo=UTC), datetime(2025, 7, 1, 1, tzinfo=UTC), 900),
    Window(datetime(1969, 12, 31, 23, tzinfo=UTC), datetime(1970, 1, 1, 2, tzinfo=UTC), 3600),
)


def _row(end: int, resolution: int, value: Any, zone: str = "+00:00", **more: Any) -> dict[str, Any]:
    shown = [iso(datetime.fromtimestamp(k, UTC)).replace("Z", zone) for k in (end - resolution + 1, end)]
    return {"start_datetime": shown[0], "end_datetime": shown[1], "kw_total_avg": value, **more}


def _seeds() -> list[bytes]:
    bodies = []
    for window in WINDOWS:
        ends = range(window.first_end - window.resolution, window.last_end + 1, window.resolution)
        for zone, indent, more in (("+00:00", None, {}), ("Z", 1, {}), ("Z", None, {"quality": [1]})):
            streams: list[dict[str, Any]] = [
                {"stream_type": name, "streams": [_row(k, window.resolution, k / 7, zone, **more) for k in ends]}
                for name in TYPES
            ]
            streams[0]["streams"][-1]["kw_total_avg"] = None
            bodies.append(json.dumps({"id": "site", "name": "A", "stream_types": streams}, indent=indent).encode())
    one = {"stream_type": "MONITOR", "streams": [_row(WINDOWS[0].first_end, 900, 1.5)]}
    bodies += [json.dumps({"stream_types": [one]}).encode(code) for code in ("utf-8-sig", "utf-16", "utf-32-be")]
    bodies += [b'{"stream_types": []}', b'{"errors": [{"message": "m", "code": 400}]}']
    return bodies


_WORDS = (
    *('"stream_types"', '"stream_type"', '"streams"', '"start_datetime"', '"end_datetime"', '"kw_total_avg"'),
    *('"MONITOR"', '"CONVERTER"', '"INTERVAL_REVENUE"', '"site"', '"quality"', '"streams":[]', '{"stream_type":'),
    *("+00:00", "-00:00", "+0000", "+05:30", "-23:59", "+24:00", "Z", ".000", ".5", "T23:59:60", "T24:00:00"),
    *(
        "0000-",
        "0001-01-01T",
        "9999-12-31T23:45:00",
        "1969-12-31T",
        "2100-02-29T",
        "2025-07-01T00:15:00",
        "1970-01-01T",
    ),
)


def _exact(streams: Streams) -> dict[str, list[tuple[int, bytes | None]]]:
    """Return the rows with their values as bytes, since -0.0 equals 0.0."""
    exact = {}
    for name in TYPES:
        if name in streams and streams[name].num_rows:
            ends, values = (column.to_pylist() for column in streams[name].columns)
            exact[name] = [
                (int(end.timestamp()), None if value is None else struct.pack("<d", value))
                for end, value in zip(ends, values, strict=True)
            ]
    return exact


def _check_rows(streams: Streams, window: Window) -> None:
    for name, stream in streams.items():
        assert stream.schema.equals(STREAM_SCHEMA, check_metadata=True)
        stream.validate(full=True)
        batch = landing_batch("site", name, window.resolution, stream)
        batch.validate(full=True)
        assert batch.schema.equals(LANDING_SCHEMA, check_metadata=True)
        assert not stream.column(0).null_count
        ends = [int(end.timestamp()) for end in stream.column(0).to_pylist()]
        assert ends == sorted(set(ends))
        assert all(window.first_end <= end <= window.last_end and end % window.resolution == 0 for end in ends)


def check(body: bytes) -> None:
    """Decode one body with each decoder."""
    for window in WINDOWS:
        plain: Streams | None = None
        try:
            plain, unknown = read_plain(body, "site", TYPES, window)
        except StemDataError as error:
            check_message(error, one_line=False)
        else:
            assert all(name.isprintable() for name in unknown)
            _check_rows(plain, window)
        for lenient in (False, True):
            columnar = read_columnar(body, "site", TYPES, window, lenient=lenient)
            if columnar is not None:
                _check_rows(columnar, window)
                assert plain is not None, "only the columnar reader takes it"
                assert _exact(columnar) == _exact(plain), "the readers differ"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    run(check, _seeds(), (*TOKENS, *_WORDS), ".fuzz/streams")
