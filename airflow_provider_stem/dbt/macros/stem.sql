{# The macros of the models. The warehouse's views are made from this file too, so it uses plain Jinja, and of dbt only
   config, ref, source, target and var. #}

{# The last day that is expected of a site: null, or the last day on which it was listed if the last listing lacks it. #}
{% macro stem_last_day() -%}
CASE WHEN last_listed_at < (SELECT max(last_listed_at) FROM {{ source('stem', 'sites') }})
            THEN {{ stem_utc_day('last_listed_at') }} END
{%- endmacro %}

{% macro stem_sites() %}
{% if var('stem_warehouse') %}
(
    SELECT site_id, time_zone, monitor_since,
        {{ stem_last_day() }} AS last_day
    FROM {{ source('stem', 'sites') }} WHERE valid_to IS NULL
)
{%- else %}
(
    SELECT CAST(NULL AS VARCHAR) AS site_id, CAST(NULL AS VARCHAR) AS time_zone,
        CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS monitor_since, CAST(NULL AS DATE) AS last_day
    WHERE 1 = 0
)
{%- endif %}
{% endmacro %}

{% macro stem_zone() %}coalesce(sites.time_zone, '{{ var('stem_time_zone') }}'){% endmacro %}

{# The day or month of the site's time zone in which an interval begins. #}
{% macro stem_local(period, instant) %}
CAST(date_trunc('{{ period }}', {{ instant }} AT TIME ZONE {{ stem_zone() }}) AS DATE)
{%- endmacro %}

{% macro stem_utc_day(instant) %}CAST({{ instant }} AT TIME ZONE 'UTC' AS DATE){% endmacro %}

{# For models that bills use. A test stops only models that depend on all that it reads. #}
{% macro stem_needs_all_tests() %}
{% if var('stem_warehouse') %}
-- depends_on: {{ ref('stem_completeness') }}, {{ source('stem', 'restatements') }}
{% endif %}
{% endmacro %}

{% macro stem_bits(am, pm) %}
{%- if target.type == 'postgres' -%}
bit_count(CAST({{ am }} AS BIT(64))) + bit_count(CAST({{ pm }} AS BIT(64)))
{%- else -%}
CAST(bit_count({{ am }}) + bit_count({{ pm }}) AS BIGINT)
{%- endif -%}
{% endmacro %}

{# The bits of half a day, am or pm, that a stream should have. #}
{% macro stem_due(half) -%}
CASE
            WHEN first_day IS NULL OR day < first_day OR day > last_day THEN 0
            WHEN day = first_day THEN first_{{ half }} ELSE 281474976710655
        END
{%- endmacro %}

{% macro stem_demand_peaks(period) %}
-- The highest 15-minute average of the site meter in each {{ period }} of the site's time zone, and the first interval with
-- that value. An interval belongs to the {{ period }} in which it begins.
WITH local_times AS (
    SELECT streams.site_id, interval_start, interval_end, kw_total_avg,
        {{ stem_local(period, 'interval_start') }} AS {{ period }}
    FROM {{ source('stem_streams', 'streams') }} AS streams
    LEFT JOIN {{ stem_sites() }} AS sites ON sites.site_id = streams.site_id
    WHERE stream_type = 'MONITOR' AND resolution = 900 AND kw_total_avg IS NOT NULL
),
ranked AS (
    SELECT local_times.*,
        row_number() OVER (PARTITION BY site_id, {{ period }} ORDER BY kw_total_avg DESC, interval_end) AS place
    FROM local_times
)
SELECT site_id, {{ period }}, kw_total_avg AS peak_kw, interval_start, interval_end
FROM ranked
WHERE place = 1
{% endmacro %}

{% macro stem_battery(period) %}
-- Cycles are equivalent full cycles: discharged energy by usable capacity.
WITH summed AS (
    SELECT site_id, resolution, {{ period }},
        sum(charge_kwh) AS charge_kwh, sum(discharge_kwh) AS discharge_kwh, count(charge_kwh) AS intervals
    FROM {{ ref('stem_energy') }}
    GROUP BY site_id, resolution, {{ period }}
)
SELECT summed.site_id, resolution, {{ period }}, charge_kwh, discharge_kwh,
    discharge_kwh / nullif(charge_kwh, 0) AS round_trip_efficiency,
{% if var('stem_batteries') %}
    discharge_kwh / nullif(CAST(batteries.usable_kwh AS DOUBLE PRECISION), 0) AS cycles,
{% else %}
    CAST(NULL AS DOUBLE PRECISION) AS cycles,
{% endif %}
    intervals
FROM summed
{% if var('stem_batteries') %}
LEFT JOIN {{ ref(var('stem_batteries')) }} AS batteries ON batteries.site_id = summed.site_id
{% endif %}
WHERE intervals > 0
{% endmacro %}

{% macro stem_now() %}
{%- if var('stem_now') -%}
CAST('{{ var('stem_now') }}' AS TIMESTAMP WITH TIME ZONE)
{%- else -%}
current_timestamp
{%- endif -%}
{% endmacro %}
