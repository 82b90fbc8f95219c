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
) PARTITION BY RANGE (interval_end);
{% else %}
);
{% endif %}

-- One row per value that a load changed. The versions of a value follow each other by changed_at.
CREATE TABLE IF NOT EXISTS {{ schema }}.restatements (
    site_id VARCHAR NOT NULL,
    stream_type VARCHAR NOT NULL,
    resolution INTEGER NOT NULL,
    interval_end TIMESTAMP WITH TIME ZONE NOT NULL,
    old_kw DOUBLE PRECISION,
    new_kw DOUBLE PRECISION,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    uri VARCHAR NOT NULL,
    dag_id VARCHAR,
    run_id VARCHAR
);

-- One row per site, stream type and resolution in streams.
CREATE TABLE IF NOT EXISTS {{ schema }}.loaded_streams (
    site_id VARCHAR NOT NULL,
    stream_type VARCHAR NOT NULL,
    resolution INTEGER NOT NULL
);

-- Which intervals of a UTC day have a row in streams, so that completeness does not read streams. Bit n of received_am
-- stands for the interval that begins n resolutions after 0:00 UTC, bit n of received_pm for the one that begins n
-- resolutions after 12:00. late_am and late_pm: those that were first loaded after the end of the following day.
CREATE TABLE IF NOT EXISTS {{ schema }}.stream_days (
    day DATE NOT NULL,
    resolution INTEGER NOT NULL,
    site_id VARCHAR NOT NULL,
    stream_type VARCHAR NOT NULL,
    received_am BIGINT NOT NULL,
    received_pm BIGINT NOT NULL,
    late_am BIGINT NOT NULL,
    late_pm BIGINT NOT NULL
{% if engine == "postgres" %}
    , PRIMARY KEY (day, resolution, site_id, stream_type)
{% endif %}
);

-- Which intervals of a UTC day lie in the period of an object that was loaded, with bits as in stream_days.
CREATE TABLE IF NOT EXISTS {{ schema }}.covered_days (
    day DATE NOT NULL,
    resolution INTEGER NOT NULL,
    covered_am BIGINT NOT NULL,
    covered_pm BIGINT NOT NULL,
    PRIMARY KEY (day, resolution)
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

-- One row per site and version of its record. valid_to is null in the current version. time_zone comes from the user.
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
    time_zone VARCHAR,
    PRIMARY KEY (site_id, valid_from),
    -- An unknown name fails here, and not in the views.
    CHECK (time_zone IS NULL OR timezone(time_zone, TIMESTAMP '2000-01-01') IS NOT NULL)
);
