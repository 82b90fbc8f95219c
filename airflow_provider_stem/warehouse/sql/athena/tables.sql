-- Not executed here: parsed only, and its columns compared with those of the engines that the tests run on.
-- Instants are UTC: Athena's Iceberg tables keep them without a zone.
-- One row per site, stream type, resolution and interval, as it was landed last.
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

-- One row per site and version of what is known of it; valid_to is null in the current one.
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
