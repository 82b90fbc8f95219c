-- Not executed in the tests: parsed only, and its columns compared with those of DuckDB and PostgreSQL.
-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.streams (
    site_id STRING NOT NULL,
    stream_type STRING NOT NULL,
    resolution INT64 NOT NULL,
    interval_start TIMESTAMP NOT NULL,
    interval_end TIMESTAMP NOT NULL,
    kw_total_avg FLOAT64,
    loaded_at TIMESTAMP NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    PRIMARY KEY (site_id, stream_type, resolution, interval_end) NOT ENFORCED
)
PARTITION BY TIMESTAMP_TRUNC(interval_end, MONTH)
CLUSTER BY site_id, stream_type;

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.loads (
    uri STRING NOT NULL,
    row_count INT64 NOT NULL,
    inserted INT64,
    changed INT64,
    unchanged INT64,
    absent INT64,
    resolution INT64,
    window_start TIMESTAMP NOT NULL,
    window_end TIMESTAMP NOT NULL,
    dag_id STRING,
    run_id STRING,
    loaded_at TIMESTAMP NOT NULL
);

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.sites (
    site_id STRING NOT NULL,
    name STRING,
    client_id STRING,
    monitor_since TIMESTAMP,
    converter_since TIMESTAMP,
    interval_revenue_since TIMESTAMP,
    valid_from TIMESTAMP NOT NULL,
    valid_to TIMESTAMP,
    last_listed_at TIMESTAMP NOT NULL,
    PRIMARY KEY (site_id, valid_from) NOT ENFORCED
);
