{{ config(enabled=var('stem_warehouse')) }}
-- By how much each run changed sums of energy. An unknown value adds nothing to a sum. Both days are local: day is that of
-- the interval, changed_day that of the load.
WITH changes AS (
    SELECT restatements.site_id, stream_type, resolution,
        {{ stem_local('day', "(interval_end - resolution * INTERVAL '1 second')") }} AS day,
        {{ stem_local('day', 'changed_at') }} AS changed_day,
        dag_id, run_id, changed_at, old_kw, new_kw,
        (coalesce(new_kw, 0) - coalesce(old_kw, 0)) * resolution / 3600.0 AS kwh
    FROM {{ source('stem', 'restatements') }} AS restatements
    LEFT JOIN {{ stem_sites() }} AS sites ON sites.site_id = restatements.site_id
)
SELECT site_id, stream_type, resolution, day, changed_day, dag_id, run_id,
    sum(kwh) AS net_kwh,
    sum(abs(kwh)) AS gross_kwh,
    count(*) AS changes,
    count(*) - count(old_kw) AS became_known,
    count(*) - count(new_kw) AS became_unknown,
    min(changed_at) AS first_change,
    max(changed_at) AS last_change
FROM changes
GROUP BY site_id, stream_type, resolution, day, changed_day, dag_id, run_id
