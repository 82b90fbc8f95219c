{% macro utc_day(instant) %}CAST({{ instant }} AT TIME ZONE 'UTC' AS DATE){% endmacro %}
{% macro local_time(instant) %}{{ instant }} AT TIME ZONE coalesce(zones.time_zone, 'UTC'){% endmacro %}
{% macro zones() %}(SELECT site_id, time_zone FROM {{ schema }}.sites WHERE valid_to IS NULL) AS zones{% endmacro %}
-- Energy in kWh by direction, from the sign of the power. It is null, not zero, where the power is unknown. day and month
-- are those of the site's time zone in which the interval begins; month is its first day.
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
SELECT power.site_id, resolution, interval_start, interval_end,
{% for type, one in types.items() if one.energy %}
{% set kw = type | lower ~ "_kw" %}
    CASE WHEN {{ kw }} > 0 THEN {{ kw }} * resolution / 3600.0 WHEN {{ kw }} <= 0 THEN 0.0 END AS {{ one.energy[0] }},
    CASE WHEN {{ kw }} < 0 THEN -{{ kw }} * resolution / 3600.0 WHEN {{ kw }} >= 0 THEN 0.0 END AS {{ one.energy[1] }},
{% endfor %}
    monitor_kw - converter_kw AS load_kw,
    CAST({{ local_time("interval_start") }} AS DATE) AS day,
    CAST(date_trunc('month', {{ local_time("interval_start") }}) AS DATE) AS month
FROM power
LEFT JOIN {{ zones() }} ON zones.site_id = power.site_id;

{% for view, period in (("demand_peaks", "month"), ("daily_demand_peaks", "day")) %}
-- The highest 15-minute average of the site meter in each {{ period }} of the site's time zone, and the first interval with
-- that value. An interval belongs to the {{ period }} in which it begins.
CREATE OR REPLACE VIEW {{ schema }}.{{ view }} AS
WITH local_times AS (
    SELECT stored.site_id, interval_start, interval_end, kw_total_avg,
        CAST(date_trunc('{{ period }}', {{ local_time("interval_start") }}) AS DATE) AS {{ period }}
    FROM {{ schema }}.streams AS stored
    LEFT JOIN {{ zones() }} ON zones.site_id = stored.site_id
    WHERE stream_type = 'MONITOR' AND resolution = 900 AND kw_total_avg IS NOT NULL
),
ranked AS (
    SELECT local_times.*,
        row_number() OVER (PARTITION BY site_id, {{ period }} ORDER BY kw_total_avg DESC, interval_end) AS place
    FROM local_times
)
SELECT site_id, {{ period }}, kw_total_avg AS peak_kw, interval_start, interval_end
FROM ranked
WHERE place = 1;

{% endfor %}
{% macro bits(am, pm) %}
{%- if engine == "postgres" -%}
bit_count(CAST({{ am }} AS BIT(64))) + bit_count(CAST({{ pm }} AS BIT(64)))
{%- else -%}
CAST(bit_count({{ am }}) + bit_count({{ pm }}) AS BIGINT)
{%- endif -%}
{% endmacro %}
-- Expected and received intervals of each stream, for each day that was loaded. Days are UTC days, and an interval
-- belongs to the day in which it begins. A row is late if it was first loaded after the end of the following day.
CREATE OR REPLACE VIEW {{ schema }}.completeness AS
WITH known AS (
    -- A site that the last listing lacks is expected to deliver up to the last day on which it was listed.
{% for type in types %}
    SELECT site_id, '{{ type }}' AS stream_type, {{ since_column(type) }} AS since,
        CASE WHEN last_listed_at < (SELECT max(last_listed_at) FROM {{ schema }}.sites)
            THEN {{ utc_day("last_listed_at") }} END AS last_day
    FROM {{ schema }}.sites WHERE valid_to IS NULL
{% if not loop.last %}
    UNION ALL
{% endif %}
{% endfor %}
),
candidates AS (
    SELECT known.site_id, known.stream_type, kinds.resolution
    FROM known
    JOIN (SELECT DISTINCT stream_type, resolution FROM {{ schema }}.loaded_streams) AS kinds
        ON kinds.stream_type = known.stream_type
    UNION
    SELECT site_id, stream_type, resolution FROM {{ schema }}.loaded_streams
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
due AS {{ "MATERIALIZED" if engine == "postgres" }} (
    SELECT site_id, stream_type, resolution, first_day, last_day,
        -- The bits from the first interval on; 2^48 - 1 has all.
        CASE WHEN slot < half THEN 281474976710656 - (CAST(1 AS BIGINT) << slot) ELSE 0 END AS first_am,
        281474976710656 - (CAST(1 AS BIGINT) << GREATEST(slot - half, 0)) AS first_pm
    FROM first_slots
),
{% if engine == "postgres" %}
days AS (
    -- One day after the other: so a condition on the day limits what is read.
    SELECT covered.day, covered.covered_am, covered.covered_pm, of_day.*
    FROM {{ schema }}.covered_days AS covered
    CROSS JOIN LATERAL (
        SELECT due.*, arrived.received_am, arrived.received_pm, arrived.late_am, arrived.late_pm
        FROM due
        LEFT JOIN (
            SELECT * FROM {{ schema }}.stream_days
            WHERE stream_days.day = covered.day AND stream_days.resolution = covered.resolution
        ) AS arrived
            ON arrived.site_id = due.site_id AND arrived.stream_type = due.stream_type
        OFFSET 0
    ) AS of_day
    -- Not within the subquery, where the planner would expect few rows and look each of them up.
    WHERE of_day.resolution = covered.resolution
),
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
        JOIN {{ schema }}.covered_days AS covered ON covered.resolution = due.resolution
        UNION ALL
        SELECT site_id, stream_type, resolution, day, NULL, NULL, NULL, NULL, NULL, NULL, received_am, received_pm,
            late_am, late_pm
        FROM {{ schema }}.stream_days
    ) AS halves
    GROUP BY site_id, stream_type, resolution, day
),
{% endif %}
masked AS (
    SELECT days.*,
        CASE
            WHEN first_day IS NULL OR day < first_day OR day > last_day THEN 0
            WHEN day = first_day THEN first_am ELSE 281474976710655
        END AS due_am,
        CASE
            WHEN first_day IS NULL OR day < first_day OR day > last_day THEN 0
            WHEN day = first_day THEN first_pm ELSE 281474976710655
        END AS due_pm
    FROM days
),
counted AS (
    SELECT site_id, stream_type, resolution, day,
        {{ bits("covered_am & due_am", "covered_pm & due_pm") }} AS expected,
        coalesce({{ bits("received_am & due_am", "received_pm & due_pm") }}, 0) AS received,
        coalesce({{ bits("late_am & due_am", "late_pm & due_pm") }}, 0) AS late
    FROM masked
)
SELECT site_id, stream_type, resolution, day, expected, received, late,
    CASE
        WHEN expected = 0 THEN 'not expected'
        WHEN received < expected THEN 'missing'
        WHEN late > 0 THEN 'late'
        ELSE 'complete'
    END AS status
FROM counted;
