{# The statements that merge a group of objects of one period, in the order in which they run. Each object has a number.
   The only reads of streams are limited to the objects' streams and period, so that the cost does not grow with the size
   of the table: PostgreSQL looks each stream up in its index, and DuckDB skips the blocks of other periods. #}
{% macro stored(columns) %}
FROM (SELECT DISTINCT object, site_id, stream_type FROM stem_days) AS loaded
{% if engine == "postgres" %}
CROSS JOIN LATERAL (
    SELECT {{ columns }}
    FROM {{ schema }}.streams AS stored
    WHERE stored.site_id = loaded.site_id AND stored.stream_type = loaded.stream_type
        AND stored.resolution = ? AND stored.interval_end > ? AND stored.interval_end <= ?
    OFFSET 0 -- keeps the planner from reading the table as a whole
) AS stored
{% else %}
JOIN {{ schema }}.streams AS stored ON stored.site_id = loaded.site_id AND stored.stream_type = loaded.stream_type
WHERE stored.resolution = ? AND stored.interval_end > ? AND stored.interval_end <= ?
{% endif %}
{% endmacro %}
SELECT loaded.object, stored.site_id, stored.stream_type, stored.interval_end, stored.kw_total_avg, stored.changed_at
{{ stored("stored.*") }};

SELECT loaded.object, count(*), count(stored.kw_total_avg)
{{ stored("stored.kw_total_avg") }}
GROUP BY loaded.object;

SELECT staged.object, count(*) AS compared, count(known.site_id) AS known,
    count(CASE WHEN known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg THEN known.site_id END) AS changed,
    max(found.in_period)
FROM stem_staged AS staged
LEFT JOIN stem_known AS known
    ON known.object = staged.object AND known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.interval_end = staged.interval_end
LEFT JOIN (SELECT object, count(*) AS in_period FROM stem_known GROUP BY object) AS found
    ON found.object = staged.object
GROUP BY staged.object;

-- The values of one key are ordered by changed_at, even if two objects of a load have them, or the clocks of workers
-- differ.
SELECT staged.*, known.kw_total_avg AS old_kw,
    GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), known.changed_at + INTERVAL '1 microsecond') AS changed_at
FROM stem_staged AS staged
JOIN stem_known AS known
    ON known.object = staged.object AND known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.interval_end = staged.interval_end
WHERE known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg;

-- Two plain statements under a lock instead of ON CONFLICT. That would lock every unchanged row, and DuckDB 1.1 left two
-- rows with one key in a file that was reopened.
UPDATE {{ schema }}.streams AS stored
SET kw_total_avg = differing.kw_total_avg, changed_at = differing.changed_at
FROM stem_changed AS differing
WHERE stored.site_id = differing.site_id AND stored.stream_type = differing.stream_type
    AND stored.resolution = differing.resolution AND stored.interval_end = differing.interval_end
    AND stored.interval_end > ? AND stored.interval_end <= ?;

INSERT INTO {{ schema }}.restatements (
    site_id, stream_type, resolution, interval_end, old_kw, new_kw, changed_at, uri, dag_id, run_id
)
SELECT site_id, stream_type, resolution, interval_end, old_kw, kw_total_avg, changed_at, ?, ?, ?
FROM stem_changed
WHERE object = ?;

INSERT INTO {{ schema }}.streams (
    site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
)
SELECT staged.site_id, staged.stream_type, staged.resolution, staged.interval_start, staged.interval_end,
    staged.kw_total_avg, CAST(? AS TIMESTAMP WITH TIME ZONE), CAST(? AS TIMESTAMP WITH TIME ZONE)
FROM stem_staged AS staged
LEFT JOIN stem_known AS known
    ON known.object = staged.object AND known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.interval_end = staged.interval_end
WHERE known.site_id IS NULL;
