-- A month that is over can be billed, and no month is missing between two others of a site.
{{ config(tags=['billing']) }}
SELECT *
FROM (
    SELECT bills.*, lag(month) OVER (PARTITION BY site_id ORDER BY month) AS previous
    FROM {{ ref('stem_billing_determinants') }} AS bills
) AS months
WHERE (NOT is_complete OR previous < CAST(month - INTERVAL '1 month' AS DATE))
    AND month >= CAST(date_trunc('month', DATE '{{ var('stem_test_from') }}') AS DATE)
    AND (CAST(month AS TIMESTAMP) + INTERVAL '1 month') AT TIME ZONE time_zone <= {{ stem_now() }}
