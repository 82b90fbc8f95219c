-- Not executed in the tests: parsed only, and its columns compared with those of DuckDB and PostgreSQL.
-- Snowflake does not enforce primary keys; the merge keeps keys unique.
-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.streams (
    site_id VARCHAR NOT NULL,
    stream_type VARCHAR NOT NULL,
    resolution INTEGER NOT NULL,
    interval_start TIMESTAMP_LTZ(6) NOT NULL,
    interval_end TIMESTAMP_LTZ(6) NOT NULL,
    kw_total_avg DOUBLE,
    loaded_at TIMESTAMP_LTZ(6) NOT NULL,
    changed_at TIMESTAMP_LTZ(6) NOT NULL,
    PRIMARY KEY (site_id, stream_type, resolution, interval_end)
);

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.loads (
    uri VARCHAR NOT NULL,
    row_count BIGINT NOT NULL,
    inserted BIGINT,
    changed BIGINT,
    unchanged BIGINT,
    absent BIGINT,
    resolution INTEGER,
    window_start TIMESTAMP_LTZ(6) NOT NULL,
    window_end TIMESTAMP_LTZ(6) NOT NULL,
    dag_id VARCHAR,
    run_id VARCHAR,
    loaded_at TIMESTAMP_LTZ(6) NOT NULL
);

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.sites (
    site_id VARCHAR NOT NULL,
    name VARCHAR,
    client_id VARCHAR,
    monitor_since TIMESTAMP_LTZ(6),
    converter_since TIMESTAMP_LTZ(6),
    interval_revenue_since TIMESTAMP_LTZ(6),
    valid_from TIMESTAMP_LTZ(6) NOT NULL,
    valid_to TIMESTAMP_LTZ(6),
    last_listed_at TIMESTAMP_LTZ(6) NOT NULL,
    PRIMARY KEY (site_id, valid_from)
);
