"""What differs between the SQL dialects, for the templates ``tables.sql`` and ``views.sql``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    A dialect; the defaults are PostgreSQL's.

    :param executed: whether the tests execute it; the others are only parsed.
    :param note: comment lines at the top of the tables.
    :param text: type of strings; ``integer``, ``bigint`` and ``double`` of numbers, ``instant`` of UTC times.
    :param required: constraint of columns that are never null.
    :param counted: constraint of the counts in ``loads``, which are null if the engine's own load does not count.
    :param key: primary key of columns ``{}``; empty if the engine has none.
    :param streams_key: whether ``streams`` has the key.
    :param partitions: clause of ``streams`` after its columns.
    :param storage: clause of each table after its columns; ``<table>`` stands for its name.
    :param utc_day: date of an instant ``{}``.
    :param utc_month: first date of the month of an instant ``{}``.
    :param with_windows: beginning of the view ``completeness``, which names its first subquery ``windows``.
    :param starts: subquery ``starts``: the start of each interval in the ``windows``, each once.
    :param union: ``UNION`` without duplicates.
    :param first_start: start of the first interval that begins at or after ``known.since``.
    :param late: condition: a row was loaded after the end of the day that follows ``covered.day``.
    """

    executed: bool = False
    note: str = ""
    text: str = "VARCHAR"
    integer: str = "INTEGER"
    bigint: str = "BIGINT"
    double: str = "DOUBLE PRECISION"
    instant: str = "TIMESTAMP WITH TIME ZONE"
    required: str = " NOT NULL"
    counted: str = ""
    key: str = "PRIMARY KEY ({})"
    streams_key: bool = True
    partitions: str = ""
    storage: str = ""
    utc_day: str = "CAST({} AT TIME ZONE 'UTC' AS DATE)"
    utc_month: str = "CAST(date_trunc('month', {} AT TIME ZONE 'UTC') AS DATE)"
    with_windows: str = "WITH windows"
    starts: str = """\
starts AS (
    SELECT DISTINCT windows.resolution, steps.interval_start
    FROM windows
    CROSS JOIN LATERAL generate_series(
        windows.window_start,
        windows.window_end - windows.resolution * INTERVAL '1 second',
        windows.resolution * INTERVAL '1 second'
    ) AS steps (interval_start)
)"""
    union: str = "UNION"
    first_start: str = (
        "to_timestamp(ceil(extract(EPOCH FROM known.since) / candidates.resolution) * candidates.resolution)"
    )
    late: str = "stored.loaded_at AT TIME ZONE 'UTC' > covered.day + INTERVAL '2 days'"


DIALECTS = {
    "athena": Dialect(
        note="-- Times are UTC. Athena's Iceberg tables store them without a time zone.\n",
        text="STRING",
        integer="INT",
        double="DOUBLE",
        instant="TIMESTAMP",
        required="",
        key="",
        partitions="\nPARTITIONED BY (month(interval_end))",
        storage="\nLOCATION '{{ params.location }}/<table>/'\nTBLPROPERTIES ('table_type' = 'ICEBERG')",
        utc_day="CAST({} AS DATE)",
        utc_month="CAST(date_trunc('month', {}) AS DATE)",
        starts="""\
starts AS (
    SELECT DISTINCT windows.resolution, steps.interval_start
    FROM windows
    CROSS JOIN UNNEST(
        sequence(
            windows.window_start,
            windows.window_end - windows.resolution * INTERVAL '1' SECOND,
            windows.resolution * INTERVAL '1' SECOND
        )
    ) AS steps (interval_start)
)""",
        first_start=(
            "CAST(from_unixtime(ceil(to_unixtime(known.since) / candidates.resolution) * candidates.resolution, 'UTC') "
            "AS TIMESTAMP)"
        ),
        late="stored.loaded_at > CAST(covered.day AS TIMESTAMP) + INTERVAL '2' DAY",
    ),
    "bigquery": Dialect(
        text="STRING",
        integer="INT64",
        bigint="INT64",
        double="FLOAT64",
        instant="TIMESTAMP",
        key="PRIMARY KEY ({}) NOT ENFORCED",
        partitions="\nPARTITION BY TIMESTAMP_TRUNC(interval_end, MONTH)\nCLUSTER BY site_id, stream_type",
        utc_day="DATE({}, 'UTC')",
        utc_month="DATE_TRUNC(DATE({}, 'UTC'), MONTH)",
        starts="""\
starts AS (
    SELECT DISTINCT windows.resolution, interval_start
    FROM windows
    CROSS JOIN UNNEST(
        GENERATE_TIMESTAMP_ARRAY(
            windows.window_start,
            TIMESTAMP_SUB(windows.window_end, INTERVAL windows.resolution SECOND),
            INTERVAL windows.resolution SECOND
        )
    ) AS interval_start
)""",
        union="UNION DISTINCT",
        first_start=(
            "TIMESTAMP_SECONDS(CAST(CEIL(UNIX_SECONDS(known.since) / candidates.resolution) AS INT64) "
            "* candidates.resolution)"
        ),
        late="stored.loaded_at > TIMESTAMP(DATE_ADD(covered.day, INTERVAL 2 DAY))",
    ),
    "duckdb": Dialect(
        executed=True,
        double="DOUBLE",
        counted=" NOT NULL",
        # DuckDB keeps the key's index in memory: 100 MB for a day of ten thousand sites. A load has the file for
        # itself, and verifies what it wrote.
        streams_key=False,
        starts="""\
starts AS (
    SELECT DISTINCT resolution,
        unnest(
            generate_series(
                window_start,
                window_end - resolution * INTERVAL '1 second',
                resolution * INTERVAL '1 second'
            )
        ) AS interval_start
    FROM windows
)""",
    ),
    "postgres": Dialect(executed=True, counted=" NOT NULL"),
    "redshift": Dialect(
        note="-- Redshift does not enforce primary keys; the load keeps keys unique.\n",
        text="VARCHAR(1024)",
        instant="TIMESTAMPTZ",
        with_windows="WITH RECURSIVE windows (resolution, window_start, window_end)",
        starts="""\
walked (resolution, interval_start, window_end) AS (
    SELECT resolution, window_start, window_end FROM windows
    UNION ALL
    SELECT resolution, DATEADD(second, resolution, interval_start), window_end
    FROM walked
    WHERE DATEADD(second, 2 * resolution, interval_start) <= window_end
),
starts AS (
    -- Redshift's generate_series runs on the leader node only, so a recursive query lists the intervals.
    SELECT DISTINCT resolution, interval_start FROM walked
)""",
        first_start=(
            "TIMESTAMPTZ 'epoch' + CAST(ceil(extract(EPOCH FROM known.since) / CAST(candidates.resolution "
            "AS DOUBLE PRECISION)) AS BIGINT) * candidates.resolution * INTERVAL '1 second'"
        ),
        late="stored.loaded_at AT TIME ZONE 'UTC' > DATEADD(day, 2, covered.day)",
    ),
    "snowflake": Dialect(
        note="-- Snowflake does not enforce primary keys; the merge keeps keys unique.\n",
        double="DOUBLE",
        instant="TIMESTAMP_LTZ(6)",
        utc_day="CAST(CONVERT_TIMEZONE('UTC', {}) AS DATE)",
        utc_month="CAST(date_trunc('month', CONVERT_TIMEZONE('UTC', {})) AS DATE)",
        starts="""\
starts AS (
    SELECT DISTINCT windows.resolution,
        TIMESTAMPADD(second, steps.value * windows.resolution, windows.window_start) AS interval_start
    FROM windows,
        LATERAL FLATTEN(
            input => ARRAY_GENERATE_RANGE(
                0, (TIMESTAMPDIFF(second, windows.window_start, windows.window_end) / windows.resolution)::INT
            )
        ) AS steps
)""",
        first_start=(
            "TO_TIMESTAMP_LTZ(CEIL(DATE_PART(epoch_second, known.since) / candidates.resolution) "
            "* candidates.resolution)"
        ),
        late="CONVERT_TIMEZONE('UTC', stored.loaded_at)::TIMESTAMP_NTZ > TIMESTAMPADD(day, 2, covered.day)",
    ),
}
