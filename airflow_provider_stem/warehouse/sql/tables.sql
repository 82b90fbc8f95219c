-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ schema }}.streams (
    site_id VARCHAR NOT NULL,
    stream_type VARCHAR NOT NULL,
    resolution INTEGER NOT NULL,
    interval_start TIMESTAMP WITH TIME ZONE NOT NULL,
    interval_end TIMESTAMP WITH TIME ZONE NOT NULL,
    kw_total_avg DOUBLE PRECISION,
    loaded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL
{# DuckDB keeps the index of a key in memory: 100 MB for a day of ten thousand sites. A load has the file for itself, and
   verifies what it wrote. #}
{% if engine == "postgres" %}
    , PRIMARY KEY (site_id, stream_type, resolution, interval_end)
{% endif %}
);

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ schema }}.loads (
    uri VARCHAR NOT NULL,
    row_count BIGINT NOT NULL,
    inserted BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    unchanged BIGINT NOT NULL,
    absent BIGINT NOT NULL,
    resolution INTEGER,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    window_end TIMESTAMP WITH TIME ZONE NOT NULL,
    dag_id VARCHAR,
    run_id VARCHAR,
    loaded_at TIMESTAMP WITH TIME ZONE NOT NULL
);

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ schema }}.sites (
    site_id VARCHAR NOT NULL,
    name VARCHAR,
    client_id VARCHAR,
{% for type in types %}
    {{ since_column(type) }} TIMESTAMP WITH TIME ZONE,
{% endfor %}
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    valid_to TIMESTAMP WITH TIME ZONE,
    last_listed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (site_id, valid_from)
);
