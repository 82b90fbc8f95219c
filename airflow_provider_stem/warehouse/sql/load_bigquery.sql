-- Not executed in the tests: parsed only. The DAG's task 'objects' returns the objects of asset events or receipts.

-- Reading from S3 needs a connection of BigQuery Omni in the bucket's region.
LOAD DATA OVERWRITE {{ params.schema }}.stem_staged (
    site_id STRING, stream_type STRING, resolution INT64,
    interval_start TIMESTAMP, interval_end TIMESTAMP, kw_total_avg FLOAT64
)
FROM FILES (
    format = 'PARQUET',
    uris = [{% for landed in ti.xcom_pull(task_ids='objects') %}'{{ landed.uri | replace('\\', '\\\\') | replace("'", "\\'") }}'{{ ', ' if not loop.last }}{% endfor %}]
)
WITH CONNECTION `{{ params.connection }}`;

BEGIN TRANSACTION;

-- Fails if an object was replaced since its receipt, or if a row's resolution is not listed.
ASSERT (
    SELECT count(*) = {{ ti.xcom_pull(task_ids='objects') | sum(attribute='rows') }}
        AND countif(resolution NOT IN ({{ ti.xcom_pull(task_ids='objects') | map(attribute='resolution') | unique | join(', ') }})) = 0
    FROM {{ params.schema }}.stem_staged
)
    AS 'The rows of the objects do not match their receipts. Land the objects again';

-- Fails if two objects hold the same key: the merge would insert a new key twice.
ASSERT (SELECT count(*) FROM {{ params.schema }}.stem_staged) = (
    SELECT count(*) FROM (SELECT DISTINCT site_id, stream_type, resolution, interval_end FROM {{ params.schema }}.stem_staged) AS staged_keys
)
    AS 'Two objects hold the same key. Load them one after the other';

MERGE INTO {{ params.schema }}.streams AS known
USING {{ params.schema }}.stem_staged AS staged
ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
WHEN MATCHED AND known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg THEN
    UPDATE SET kw_total_avg = staged.kw_total_avg, changed_at = CURRENT_TIMESTAMP()
WHEN NOT MATCHED THEN
    INSERT (
        site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
    )
    VALUES (
        staged.site_id, staged.stream_type, staged.resolution, staged.interval_start, staged.interval_end,
        staged.kw_total_avg, CURRENT_TIMESTAMP(), CURRENT_TIMESTAMP()
    );

-- One row per object. Inserted, changed, unchanged and absent rows are not counted for this engine.
INSERT INTO {{ params.schema }}.loads (
    uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end,
    dag_id, run_id, loaded_at
)
VALUES
{% for landed in ti.xcom_pull(task_ids='objects') %}
('{{ landed.uri | replace('\\', '\\\\') | replace("'", "\\'") }}', {{ landed.rows }}, NULL, NULL, NULL, NULL, {{ landed.resolution }},
     TIMESTAMP '{{ landed.start }}', TIMESTAMP '{{ landed.end }}', '{{ dag.dag_id }}', '{{ run_id | replace('\\', '\\\\') | replace("'", "\\'") }}', CURRENT_TIMESTAMP()){{ ',' if not loop.last }}
{% endfor %};

COMMIT TRANSACTION;
