-- Not executed in the tests: parsed only, and its columns compared with those of DuckDB and PostgreSQL.
-- Times are UTC. Athena's Iceberg tables store them without a time zone.
-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.streams (
    site_id STRING,
    stream_type STRING,
    resolution INT,
    interval_start TIMESTAMP,
    interval_end TIMESTAMP,
    kw_total_avg DOUBLE,
    loaded_at TIMESTAMP,
    changed_at TIMESTAMP
)
PARTITIONED BY (month(interval_end))
LOCATION '{{ params.location }}/streams/'
TBLPROPERTIES ('table_type' = 'ICEBERG');

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.loads (
    uri STRING,
    row_count BIGINT,
    inserted BIGINT,
    changed BIGINT,
    unchanged BIGINT,
    absent BIGINT,
    resolution INT,
    window_start TIMESTAMP,
    window_end TIMESTAMP,
    dag_id STRING,
    run_id STRING,
    loaded_at TIMESTAMP
)
LOCATION '{{ params.location }}/loads/'
TBLPROPERTIES ('table_type' = 'ICEBERG');

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.sites (
    site_id STRING,
    name STRING,
    client_id STRING,
    monitor_since TIMESTAMP,
    converter_since TIMESTAMP,
    interval_revenue_since TIMESTAMP,
    valid_from TIMESTAMP,
    valid_to TIMESTAMP,
    last_listed_at TIMESTAMP
)
LOCATION '{{ params.location }}/sites/'
TBLPROPERTIES ('table_type' = 'ICEBERG');
