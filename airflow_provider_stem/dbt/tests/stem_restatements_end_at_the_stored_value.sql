{{ config(enabled=var('stem_warehouse')) }}
-- The newest restatement of a key has the value in streams.
SELECT restated.*, streams.kw_total_avg
FROM (
    SELECT restatements.*,
        row_number() OVER (PARTITION BY site_id, stream_type, resolution, interval_end ORDER BY changed_at DESC) AS place
    FROM {{ source('stem', 'restatements') }} AS restatements
    WHERE interval_end > CAST('{{ var('stem_test_from') }} 00:00:00+00:00' AS TIMESTAMP WITH TIME ZONE)
) AS restated
LEFT JOIN {{ source('stem_streams', 'streams') }} AS streams
    ON streams.site_id = restated.site_id AND streams.stream_type = restated.stream_type
    AND streams.resolution = restated.resolution AND streams.interval_end = restated.interval_end
WHERE place = 1 AND (streams.site_id IS NULL OR streams.kw_total_avg IS DISTINCT FROM new_kw)
