{{ config(enabled=var('stem_warehouse')) }}
-- Expected and received intervals of each stream, for each day that was loaded. Days are UTC days, and an interval
-- belongs to the day in which it begins. A row is late if it was first loaded after the end of the following day.
WITH known AS (
{% for type in var('stem_types') %}
    SELECT site_id, '{{ type }}' AS stream_type, {{ type | lower }}_since AS since,
        {{ stem_last_day() }} AS last_day
    FROM {{ source('stem', 'sites') }} WHERE valid_to IS NULL
{% if not loop.last %}
    UNION ALL
{% endif %}
{% endfor %}
),
candidates AS (
    SELECT known.site_id, known.stream_type, kinds.resolution
    FROM known
    JOIN (SELECT DISTINCT stream_type, resolution FROM {{ source('stem', 'loaded_streams') }}) AS kinds
        ON kinds.stream_type = known.stream_type
    UNION
    SELECT site_id, stream_type, resolution FROM {{ source('stem', 'loaded_streams') }}
),
firsts AS (
    -- The first interval that begins at or after the stream's start, in seconds since 1970.
    SELECT candidates.site_id, candidates.stream_type, candidates.resolution, known.last_day,
        CAST(ceil(extract(EPOCH FROM known.since) / candidates.resolution) AS BIGINT) * candidates.resolution AS first
    FROM candidates
    LEFT JOIN known ON known.site_id = candidates.site_id AND known.stream_type = candidates.stream_type
),
first_slots AS (
    -- The number of intervals of the first day before the first one.
    SELECT site_id, stream_type, resolution, last_day,
        DATE '1970-01-01' + CAST(floor(first / 86400.0) AS INTEGER) AS first_day,
        CAST((first - CAST(floor(first / 86400.0) AS BIGINT) * 86400) / resolution AS INTEGER) AS slot,
        CAST(43200 / resolution AS INTEGER) AS half
    FROM firsts
),
due AS {{ 'MATERIALIZED' if target.type == 'postgres' }} (
    SELECT site_id, stream_type, resolution, first_day, last_day,
        -- The bits from the first interval on; 2^48 - 1 has all.
        CASE WHEN slot < half THEN 281474976710656 - (CAST(1 AS BIGINT) << slot) ELSE 0 END AS first_am,
        281474976710656 - (CAST(1 AS BIGINT) << GREATEST(slot - half, 0)) AS first_pm
    FROM first_slots
),
{% set counts %}
        {{ stem_bits("covered_am & " ~ stem_due("am"), "covered_pm & " ~ stem_due("pm")) }} AS expected,
        coalesce({{ stem_bits("received_am & " ~ stem_due("am"), "received_pm & " ~ stem_due("pm")) }}, 0) AS received,
        coalesce({{ stem_bits("late_am & " ~ stem_due("am"), "late_pm & " ~ stem_due("pm")) }}, 0) AS late
{% endset %}
{% if target.type == 'postgres' %}
counted AS (
    -- One day after the other: so a condition on the day limits what is read.
    SELECT covered.day, of_day.*
    FROM {{ source('stem', 'covered_days') }} AS covered
    CROSS JOIN LATERAL (
        SELECT due.site_id, due.stream_type, due.resolution,
{{ counts }}
        FROM due
        LEFT JOIN (
            SELECT site_id, stream_type, received_am, received_pm, late_am, late_pm
            FROM {{ source('stem', 'stream_days') }}
            WHERE stream_days.day = covered.day AND stream_days.resolution = covered.resolution
        ) AS arrived
            ON arrived.site_id = due.site_id AND arrived.stream_type = due.stream_type
        OFFSET 0 -- counts once, and not again for each use of a count
    ) AS of_day
    -- Not within the subquery, where the planner would expect few rows and look each of them up.
    WHERE of_day.resolution = covered.resolution
)
{% else %}
days AS (
    -- Not a join with stream_days: so a condition on the day limits what is read of it.
    SELECT site_id, stream_type, resolution, day, min(first_day) AS first_day, min(last_day) AS last_day,
        max(first_am) AS first_am, max(first_pm) AS first_pm, max(covered_am) AS covered_am,
        max(covered_pm) AS covered_pm, max(received_am) AS received_am, max(received_pm) AS received_pm,
        max(late_am) AS late_am, max(late_pm) AS late_pm
    FROM (
        SELECT due.site_id, due.stream_type, due.resolution, covered.day, due.first_day, due.last_day, due.first_am,
            due.first_pm, covered.covered_am, covered.covered_pm, 0 AS received_am, 0 AS received_pm, 0 AS late_am,
            0 AS late_pm
        FROM due
        JOIN {{ source('stem', 'covered_days') }} AS covered ON covered.resolution = due.resolution
        UNION ALL
        SELECT site_id, stream_type, resolution, day, NULL, NULL, NULL, NULL, NULL, NULL, received_am, received_pm,
            late_am, late_pm
        FROM {{ source('stem', 'stream_days') }}
    ) AS halves
    GROUP BY site_id, stream_type, resolution, day
),
counted AS (
    SELECT site_id, stream_type, resolution, day,
{{ counts }}
    FROM days
)
{% endif %}
SELECT site_id, stream_type, resolution, day, expected, received, late,
    CASE
        WHEN expected = 0 THEN 'not expected'
        WHEN received < expected THEN 'missing'
        WHEN late > 0 THEN 'late'
        ELSE 'complete'
    END AS status
FROM counted
