{% if not executed %}
-- Not executed in the tests: parsed only, and its columns compared with those of DuckDB and PostgreSQL.
{% endif %}
{{ note -}}
-- One row per site, stream type, resolution and interval, with the value that was loaded last.
CREATE TABLE IF NOT EXISTS {{ schema }}.streams (
    site_id {{ text }}{{ required }},
    stream_type {{ text }}{{ required }},
    resolution {{ integer }}{{ required }},
    interval_start {{ instant }}{{ required }},
    interval_end {{ instant }}{{ required }},
    kw_total_avg {{ double }},
    loaded_at {{ instant }}{{ required }},
    changed_at {{ instant }}{{ required }}
    {%- if streams_key and key("") %},
    {{ key("site_id, stream_type, resolution, interval_end") }}
    {%- endif %}

){{ partitions }}{{ storage | replace("<table>", "streams") }};

-- One row per object and load.
CREATE TABLE IF NOT EXISTS {{ schema }}.loads (
    uri {{ text }}{{ required }},
    row_count {{ bigint }}{{ required }},
    inserted {{ bigint }}{{ counted }},
    changed {{ bigint }}{{ counted }},
    unchanged {{ bigint }}{{ counted }},
    absent {{ bigint }}{{ counted }},
    resolution {{ integer }},
    window_start {{ instant }}{{ required }},
    window_end {{ instant }}{{ required }},
    dag_id {{ text }},
    run_id {{ text }},
    loaded_at {{ instant }}{{ required }}
){{ storage | replace("<table>", "loads") }};

-- One row per site and version of its record. valid_to is null in the current version.
CREATE TABLE IF NOT EXISTS {{ schema }}.sites (
    site_id {{ text }}{{ required }},
    name {{ text }},
    client_id {{ text }},
{% for type in types %}
    {{ since_column(type) }} {{ instant }},
{% endfor %}
    valid_from {{ instant }}{{ required }},
    valid_to {{ instant }},
    last_listed_at {{ instant }}{{ required }}
    {%- if key("") %},
    {{ key("site_id, valid_from") }}
    {%- endif %}

){{ storage | replace("<table>", "sites") }};
