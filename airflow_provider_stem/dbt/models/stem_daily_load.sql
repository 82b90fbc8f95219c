-- The load of the site is what it uses without the battery: MONITOR - CONVERTER. It is null where one of them is unknown.
SELECT site_id, resolution, day, min(month) AS month,
    sum(load_kw * resolution / 3600.0) AS load_kwh,
    max(load_kw) AS peak_load_kw,
    count(load_kw) AS intervals
FROM {{ ref('stem_energy') }}
GROUP BY site_id, resolution, day
