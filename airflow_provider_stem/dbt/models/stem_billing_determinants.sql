{{ stem_needs_all_tests() }}
-- What a bill of a month is computed from, by 15-minute intervals of the site meter. A sum has only what is known, so bill
-- a month only where it is complete.
WITH located AS (
    SELECT energy.*, {{ stem_zone() }} AS time_zone, sites.monitor_since,
        CAST(sites.last_day + 1 AS TIMESTAMP) AT TIME ZONE 'UTC' AS monitor_until
    FROM {{ ref('stem_energy') }} AS energy
    LEFT JOIN {{ stem_sites() }} AS sites ON sites.site_id = energy.site_id
    WHERE resolution = 900
        AND energy.site_id IN (
            SELECT site_id FROM {{ source('stem_streams', 'streams') }}
            WHERE stream_type = 'MONITOR' AND resolution = 900
        )
),
summed AS (
    SELECT site_id, month, time_zone,
        sum(import_kwh) AS import_kwh, sum(export_kwh) AS export_kwh, count(import_kwh) AS known,
        count(CASE WHEN interval_start < monitor_since OR interval_start >= monitor_until THEN import_kwh END) AS others,
        -- Seconds since 1970. The month is an hour shorter or longer where clocks change.
        extract(EPOCH FROM CAST(month AS TIMESTAMP) AT TIME ZONE time_zone) AS month_begin,
        extract(EPOCH FROM (CAST(month AS TIMESTAMP) + INTERVAL '1 month') AT TIME ZONE time_zone) AS month_end,
        extract(EPOCH FROM max(monitor_since)) AS since, extract(EPOCH FROM max(monitor_until)) AS until
    FROM located
    GROUP BY site_id, month, time_zone
),
counted AS (
    -- The intervals that begin in the month, not before the stream, and not after the last day of a site that is gone.
    SELECT summed.*,
        CAST(GREATEST(
            ceil(LEAST(month_end, coalesce(until, month_end)) / 900)
                - ceil(GREATEST(month_begin, coalesce(since, month_begin)) / 900),
            0
        ) AS INTEGER) AS expected
    FROM summed
)
SELECT counted.site_id, counted.month, time_zone, import_kwh, export_kwh, import_kwh - export_kwh AS net_kwh,
    peak_kw, interval_start AS peak_start,
    -- The average import by the highest one: 1 is a constant power.
    CASE WHEN peak_kw > 0 THEN import_kwh / (known * 0.25 * peak_kw) END AS load_factor,
    expected, known, known - others = expected AS is_complete
FROM counted
LEFT JOIN {{ ref('stem_demand_peaks') }} AS peaks
    ON peaks.site_id = counted.site_id AND peaks.month = counted.month
