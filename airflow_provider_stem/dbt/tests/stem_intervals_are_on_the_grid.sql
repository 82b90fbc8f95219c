SELECT *
FROM {{ source('stem_streams', 'streams') }}
WHERE interval_end > CAST('{{ var('stem_test_from') }} 00:00:00+00:00' AS TIMESTAMP WITH TIME ZONE)
    AND (
        extract(EPOCH FROM interval_end) - extract(EPOCH FROM interval_start) <> resolution
        OR CAST(extract(EPOCH FROM interval_end) * 1000000 AS BIGINT) % (CAST(resolution AS BIGINT) * 1000000) <> 0
    )
