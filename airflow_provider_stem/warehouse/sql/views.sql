{% macro utc_day(instant) %}CAST({{ instant }} AT TIME ZONE 'UTC' AS DATE){% endmacro %}
{% macro utc_month(instant) %}CAST(date_trunc('month', {{ instant }} AT TIME ZONE 'UTC') AS DATE){% endmacro %}
-- Energy in kWh by direction, from the sign of the power. It is null, not zero, where the power is unknown.
CREATE OR REPLACE VIEW {{ schema }}.energy AS
WITH power AS (
    SELECT site_id, resolution, interval_start, interval_end,
{% for type, one in types.items() if one.energy %}
        max(CASE WHEN stream_type = '{{ type }}' THEN kw_total_avg END) AS {{ type | lower }}_kw{{ "," if not loop.last }}
{% endfor %}
    FROM {{ schema }}.streams
    WHERE stream_type IN ({% for type, one in types.items() if one.energy %}'{{ type }}'{{ ", " if not loop.last }}{% endfor %})
    GROUP BY site_id, resolution, interval_start, interval_end
)
SELECT site_id, resolution, interval_start, interval_end,
{% for type, one in types.items() if one.energy %}
{% set kw = type | lower ~ "_kw" %}
    CASE WHEN {{ kw }} > 0 THEN {{ kw }} * resolution / 3600.0 WHEN {{ kw }} <= 0 THEN 0.0 END AS {{ one.energy[0] }},
    CASE WHEN {{ kw }} < 0 THEN -{{ kw }} * resolution / 3600.0 WHEN {{ kw }} >= 0 THEN 0.0 END AS {{ one.energy[1] }},
{% endfor %}
    monitor_kw - converter_kw AS load_kw
FROM power;

-- The highest 15-minute average of the site meter in each month, and the first interval with that value.
-- Months are UTC months. An interval belongs to the month in which it begins.
CREATE OR REPLACE VIEW {{ schema }}.demand_peaks AS
WITH ranked AS (
    SELECT site_id, interval_start, interval_end, kw_total_avg,
        {{ utc_month('interval_start') }} AS month,
        row_number() OVER (
            PARTITION BY site_id, {{ utc_month('interval_start') }}
            ORDER BY kw_total_avg DESC, interval_end
        ) AS place
    FROM {{ schema }}.streams
    WHERE stream_type = 'MONITOR' AND resolution = 900 AND kw_total_avg IS NOT NULL
)
SELECT site_id, month, kw_total_avg AS peak_kw, interval_start, interval_end
FROM ranked
WHERE place = 1;

-- Expected and received intervals of each stream, for each day that was loaded. Days are UTC days, and an interval
-- belongs to the day in which it begins. A row is late if it was first loaded after the end of the following day.
CREATE OR REPLACE VIEW {{ schema }}.completeness AS
WITH windows AS (
    SELECT DISTINCT resolution, window_start, window_end
    FROM {{ schema }}.loads
    WHERE resolution IS NOT NULL AND window_start < window_end
),
starts AS (
{% if engine == "duckdb" %}
    SELECT DISTINCT resolution,
        unnest(
            generate_series(
                window_start,
                window_end - resolution * INTERVAL '1 second',
                resolution * INTERVAL '1 second'
            )
        ) AS interval_start
    FROM windows
{% else %}
    SELECT DISTINCT windows.resolution, steps.interval_start
    FROM windows
    CROSS JOIN LATERAL generate_series(
        windows.window_start,
        windows.window_end - windows.resolution * INTERVAL '1 second',
        windows.resolution * INTERVAL '1 second'
    ) AS steps (interval_start)
{% endif %}
),
covered AS (
    SELECT resolution, interval_start, {{ utc_day('interval_start') }} AS day
    FROM starts
),
days AS (
    SELECT resolution, day, count(*) AS intervals
    FROM covered
    GROUP BY resolution, day
),
loaded AS (
    SELECT DISTINCT site_id, stream_type, resolution
    FROM {{ schema }}.streams
),
known AS (
{% for type in types %}
    SELECT site_id, '{{ type }}' AS stream_type, {{ since_column(type) }} AS since
    FROM {{ schema }}.sites WHERE valid_to IS NULL
{% if not loop.last %}
    UNION ALL
{% endif %}
{% endfor %}
),
candidates AS (
    SELECT known.site_id, known.stream_type, kinds.resolution
    FROM known
    JOIN (SELECT DISTINCT stream_type, resolution FROM loaded) AS kinds ON kinds.stream_type = known.stream_type
    UNION
    SELECT site_id, stream_type, resolution FROM loaded
),
firsts AS (
    -- The first interval that begins at or after the stream's start.
    SELECT candidates.site_id, candidates.stream_type, candidates.resolution,
        to_timestamp(ceil(extract(EPOCH FROM known.since) / candidates.resolution) * candidates.resolution) AS first_start
    FROM candidates
    LEFT JOIN known ON known.site_id = candidates.site_id AND known.stream_type = candidates.stream_type
),
streams_due AS (
    SELECT site_id, stream_type, resolution, first_start,
        {{ utc_day('first_start') }} AS first_day
    FROM firsts
),
first_days AS (
    SELECT streams_due.site_id, streams_due.stream_type, streams_due.resolution, count(*) AS intervals
    FROM streams_due
    JOIN covered
        ON covered.resolution = streams_due.resolution AND covered.day = streams_due.first_day
        AND covered.interval_start >= streams_due.first_start
    GROUP BY streams_due.site_id, streams_due.stream_type, streams_due.resolution
),
arrivals AS (
    SELECT stored.site_id, stored.stream_type, stored.resolution, covered.day, count(*) AS received,
        count(CASE WHEN stored.loaded_at AT TIME ZONE 'UTC' > covered.day + INTERVAL '2 days' THEN 1 END) AS late
    FROM {{ schema }}.streams AS stored
    JOIN covered
        ON covered.resolution = stored.resolution AND covered.interval_start = stored.interval_start
    JOIN streams_due
        ON streams_due.site_id = stored.site_id AND streams_due.stream_type = stored.stream_type
        AND streams_due.resolution = stored.resolution AND stored.interval_start >= streams_due.first_start
    GROUP BY stored.site_id, stored.stream_type, stored.resolution, covered.day
),
counted AS (
    SELECT streams_due.site_id, streams_due.stream_type, streams_due.resolution, days.day,
        CASE
            WHEN streams_due.first_day IS NULL OR days.day < streams_due.first_day THEN 0
            WHEN days.day > streams_due.first_day THEN days.intervals
            ELSE coalesce(first_days.intervals, 0)
        END AS expected,
        coalesce(arrivals.received, 0) AS received,
        coalesce(arrivals.late, 0) AS late
    FROM streams_due
    JOIN days ON days.resolution = streams_due.resolution
    LEFT JOIN first_days
        ON first_days.site_id = streams_due.site_id AND first_days.stream_type = streams_due.stream_type
        AND first_days.resolution = streams_due.resolution
    LEFT JOIN arrivals
        ON arrivals.site_id = streams_due.site_id AND arrivals.stream_type = streams_due.stream_type
        AND arrivals.resolution = streams_due.resolution AND arrivals.day = days.day
)
SELECT site_id, stream_type, resolution, day, expected, received, late,
    CASE
        WHEN expected = 0 THEN 'not expected'
        WHEN received < expected THEN 'missing'
        WHEN late > 0 THEN 'late'
        ELSE 'complete'
    END AS status
FROM counted;
