-- Energy in kWh by direction, from the sign of the power. It is null, not zero, where the power is unknown. day and month
-- are those of the site's time zone in which the interval begins; month is its first day.
{% set types = [] %}
{% for type, columns in var('stem_types').items() if columns %}{{ types.append(type) or '' }}{% endfor %}
WITH power AS (
    SELECT site_id, resolution, interval_start, interval_end,
{% for type in types %}
        max(CASE WHEN stream_type = '{{ type }}' THEN kw_total_avg END) AS {{ type | lower }}_kw{{ ',' if not loop.last }}
{% endfor %}
    FROM {{ source('stem_streams', 'streams') }}
    WHERE stream_type IN ('{{ types | join("', '") }}')
    GROUP BY site_id, resolution, interval_start, interval_end
)
SELECT power.site_id, resolution, interval_start, interval_end,
{% for type in types %}
{% set kw = type | lower ~ '_kw' %}
    CASE WHEN {{ kw }} > 0 THEN {{ kw }} * resolution / 3600.0 WHEN {{ kw }} <= 0 THEN 0.0 END
        AS {{ var('stem_types')[type][0] }},
    CASE WHEN {{ kw }} < 0 THEN -{{ kw }} * resolution / 3600.0 WHEN {{ kw }} >= 0 THEN 0.0 END
        AS {{ var('stem_types')[type][1] }},
{% endfor %}
    monitor_kw - converter_kw AS load_kw,
    {{ stem_local('day', 'interval_start') }} AS day,
    {{ stem_local('month', 'interval_start') }} AS month
FROM power
LEFT JOIN {{ stem_sites() }} AS sites ON sites.site_id = power.site_id
