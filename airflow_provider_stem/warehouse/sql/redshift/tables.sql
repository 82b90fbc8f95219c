-- Not executed in the tests: parsed only, and its columns compared with those of DuckDB and PostgreSQL.
-- Redshift does not enforce primary keys; the load keeps keys unique.
-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.streams (
    site_id VARCHAR(1024) NOT NULL,
    stream_type VARCHAR(1024) NOT NULL,
    resolution INTEGER NOT NULL,
    interval_start TIMESTAMPTZ NOT NULL,
    interval_end TIMESTAMPTZ NOT NULL,
    kw_total_avg DOUBLE PRECISION,
    loaded_at TIMESTAMPTZ NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (site_id, stream_type, resolution, interval_end)
);

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.loads (
    uri VARCHAR(1024) NOT NULL,
    row_count BIGINT NOT NULL,
    inserted BIGINT,
    changed BIGINT,
    unchanged BIGINT,
    absent BIGINT,
    resolution INTEGER,
    window_start TIMESTAMPTZ NOT NULL,
    window_end TIMESTAMPTZ NOT NULL,
    dag_id VARCHAR(1024),
    run_id VARCHAR(1024),
    loaded_at TIMESTAMPTZ NOT NULL
);

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ params.schema }}.sites (
    site_id VARCHAR(1024) NOT NULL,
    name VARCHAR(1024),
    client_id VARCHAR(1024),
    monitor_since TIMESTAMPTZ,
    converter_since TIMESTAMPTZ,
    interval_revenue_since TIMESTAMPTZ,
    valid_from TIMESTAMPTZ NOT NULL,
    valid_to TIMESTAMPTZ,
    last_listed_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (site_id, valid_from)
);
