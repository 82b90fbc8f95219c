-- Not executed in the tests: parsed only. The DAG's task 'objects' returns the objects of asset events or receipts.

DROP TABLE IF EXISTS {{ params.schema }}.stem_staged;

-- Its location holds a file that lists the objects.
CREATE EXTERNAL TABLE {{ params.schema }}.stem_staged (
    site_id STRING, stream_type STRING, resolution INT,
    interval_start TIMESTAMP, interval_end TIMESTAMP, kw_total_avg DOUBLE
)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '{{ ti.xcom_pull(task_ids='manifest') }}';

-- Fails with a division by zero if an object was replaced since its receipt, or if a row's resolution is not listed.
SELECT 1 / CASE
    WHEN count(*) = {{ ti.xcom_pull(task_ids='objects') | sum(attribute='rows') }}
        AND count(CASE WHEN resolution NOT IN ({{ ti.xcom_pull(task_ids='objects') | map(attribute='resolution') | unique | join(', ') }}) THEN 1 END) = 0
    THEN 1 ELSE 0
END AS as_landed
FROM {{ params.schema }}.stem_staged;

-- Fails with a division by zero if two objects hold the same key: the merge would insert a new key twice.
SELECT 1 / CASE WHEN count(*) = (
    SELECT count(*) FROM (SELECT DISTINCT site_id, stream_type, resolution, interval_end FROM {{ params.schema }}.stem_staged) AS staged_keys
) THEN 1 ELSE 0 END AS each_key_once
FROM {{ params.schema }}.stem_staged;

MERGE INTO {{ params.schema }}.streams AS known
USING {{ params.schema }}.stem_staged AS staged
ON known.site_id = staged.site_id AND known.stream_type = staged.stream_type
    AND known.resolution = staged.resolution AND known.interval_end = staged.interval_end
WHEN MATCHED AND known.kw_total_avg IS DISTINCT FROM staged.kw_total_avg THEN
    UPDATE SET kw_total_avg = staged.kw_total_avg, changed_at = CAST(CURRENT_TIMESTAMP AT TIME ZONE 'UTC' AS TIMESTAMP)
WHEN NOT MATCHED THEN
    INSERT (
        site_id, stream_type, resolution, interval_start, interval_end, kw_total_avg, loaded_at, changed_at
    )
    VALUES (
        staged.site_id, staged.stream_type, staged.resolution, staged.interval_start, staged.interval_end,
        staged.kw_total_avg, CAST(CURRENT_TIMESTAMP AT TIME ZONE 'UTC' AS TIMESTAMP), CAST(CURRENT_TIMESTAMP AT TIME ZONE 'UTC' AS TIMESTAMP)
    );

-- One row per object. Inserted, changed, unchanged and absent rows are not counted for this engine.
INSERT INTO {{ params.schema }}.loads (
    uri, row_count, inserted, changed, unchanged, absent, resolution, window_start, window_end,
    dag_id, run_id, loaded_at
)
VALUES
{% for landed in ti.xcom_pull(task_ids='objects') %}
('{{ landed.uri | replace("'", "''") }}', {{ landed.rows }}, NULL, NULL, NULL, NULL, {{ landed.resolution }},
     CAST(from_iso8601_timestamp('{{ landed.start }}') AS TIMESTAMP), CAST(from_iso8601_timestamp('{{ landed.end }}') AS TIMESTAMP), '{{ dag.dag_id }}', '{{ run_id | replace("'", "''") }}', CAST(CURRENT_TIMESTAMP AT TIME ZONE 'UTC' AS TIMESTAMP)){{ ',' if not loop.last }}
{% endfor %};
