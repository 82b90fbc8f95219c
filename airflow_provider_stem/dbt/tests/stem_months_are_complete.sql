-- A month that is over can be billed. A month without any row of a site is found by the completeness of its days.
{{ config(tags=['billing']) }}
SELECT *
FROM {{ ref('stem_billing_determinants') }}
WHERE NOT is_complete
    AND month >= CAST(date_trunc('month', DATE '{{ var('stem_test_from') }}') AS DATE)
    AND (CAST(month AS TIMESTAMP) + INTERVAL '1 month') AT TIME ZONE time_zone <= {{ stem_now() }}
