-- Not executed in the tests: parsed only. The DAG's task 'objects' returns the objects of asset events or receipts.

CREATE TEMPORARY TABLE stem_staged (
    site_id VARCHAR(1024), stream_type VARCHAR(1024), resolution INTEGER,
    interval_start TIMESTAMP, interval_end TIMESTAMP, kw_total_avg DOUBLE PRECISION
);

-- The manifest lists the objects. A prefix would also load objects that no receipt lists.
COPY stem_staged FROM '{{ ti.xcom_pull(task_ids='manifest') }}' IAM_ROLE DEFAULT FORMAT AS PARQUET MANIFEST;

-- Fails with a division by zero if an object was replaced since its receipt, or if a row's resolution is not listed.
SELECT 1 / CASE
    WHEN count(*) = {{ ti.xcom_pull(task_ids='objects') | sum(attribute='rows') }}
        AND count(CASE WHEN resolution NOT IN ({{ ti.xcom_pull(task_ids='objects') | map(attribute='resolution') | unique | join(', ') }}) THEN 1 END) = 0
    THEN 1 ELSE 0
END AS as_landed
FROM stem_staged;

-- Fails with a division by zero if two objects hold the same key: the load would insert a new key twice.
SELECT 1 / CASE WHEN count(*) = (
    SELECT count(*) FROM (SELECT DISTINCT site_id, stream_type, resolution, interval_end FROM stem_staged) AS staged_keys
) THEN 1 ELSE 0 END AS each_key_once
FROM stem_staged;

LOCK TABLE {{ params.schema }}.streams;

UPDATE {{ params.schema }}.streams
SET kw_total_avg = staged.kw_total_avg, changed_at = GETDATE()
FROM stem_staged AS staged
WHERE streams.site_id = staged.site_id AND streams.stream_type = staged.stream_type
    AND streams.resolution = staged.resolution
    AND streams.interval_end = staged.interval_end AT TIME ZONE 'UTC'
    AND (
        streams.kw_total_avg <> staged.kw_total_avg
        OR (streams.kw_total_avg IS NULL AND staged.kw_total_avg IS NOT NULL)
        OR (streams.kw_total_avg IS NOT NULL AND staged.kw_total_avg IS NULL)
    );

INSERT INTO {{ params.schema }}.streams (
    site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
)
SELECT staged.site_id, staged.stream_type, staged.resolution, staged.interval_start AT TIME ZONE 'UTC',
    staged.interval_end AT TIME ZONE 'UTC', staged.kw_total_avg, GETDATE(), GETDATE()
FROM stem_staged AS staged
LEFT JOIN {{ params.schema }}.streams AS known
    ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution
    AND known.interval_end = staged.interval_end AT TIME ZONE 'UTC'
WHERE known.site_id IS NULL;

-- One row per object. Inserted, changed, unchanged and absent rows are not counted for this engine.
INSERT INTO {{ params.schema }}.loads (
    uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end,
    dag_id, run_id, loaded_at
)
VALUES
{% for landed in ti.xcom_pull(task_ids='objects') %}
('{{ landed.uri | replace('\\', '\\\\') | replace("'", "''") }}', {{ landed.rows }}, NULL, NULL, NULL, NULL, {{ landed.resolution }},
     CAST('{{ landed.start }}' AS TIMESTAMPTZ), CAST('{{ landed.end }}' AS TIMESTAMPTZ), '{{ dag.dag_id }}', '{{ run_id | replace('\\', '\\\\') | replace("'", "''") }}', GETDATE()){{ ',' if not loop.last }}
{% endfor %};
