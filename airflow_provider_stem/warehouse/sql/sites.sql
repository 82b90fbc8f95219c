-- The statements that load site records, in the order in which they run.
SELECT DISTINCT site_id FROM {{ schema }}.sites;

-- Close the version of a site that changed. A version lasts at least a microsecond, even if the clocks of workers differ.
UPDATE {{ schema }}.sites AS known
SET valid_to = GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), known.valid_from + INTERVAL '1 microsecond')
FROM stem_listed AS listed
WHERE known.site_id = listed.site_id AND known.valid_to IS NULL AND (
    known.name IS DISTINCT FROM listed.name
    OR known.client_id IS DISTINCT FROM listed.client_id
{% for type in types %}
    OR known.{{ since_column(type) }} IS DISTINCT FROM listed.{{ since_column(type) }}
{% endfor %}
);

-- A time zone is not part of a version, since the views use the current one for all days.
UPDATE {{ schema }}.sites AS known
SET time_zone = listed.time_zone
FROM stem_listed AS listed
WHERE known.site_id = listed.site_id AND known.valid_to IS NULL AND known.time_zone IS DISTINCT FROM listed.time_zone
    AND listed.time_zone IS NOT NULL;

-- Open a version of each site that has no open one.
INSERT INTO {{ schema }}.sites (
    site_id, name, client_id,
{% for type in types %}
    {{ since_column(type) }},
{% endfor %}
    valid_from, valid_to, last_listed_at, time_zone
)
SELECT listed.site_id, listed.name, listed.client_id,
{% for type in types %}
    listed.{{ since_column(type) }},
{% endfor %}
    GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), closed.valid_to), NULL, CAST(? AS TIMESTAMP WITH TIME ZONE),
    coalesce(listed.time_zone, former.time_zone)
FROM stem_listed AS listed
LEFT JOIN (
    SELECT site_id, max(valid_to) AS valid_to, count(*) - count(valid_to) AS open_versions
    FROM {{ schema }}.sites GROUP BY site_id
) AS closed ON closed.site_id = listed.site_id
LEFT JOIN {{ schema }}.sites AS former ON former.site_id = listed.site_id AND former.valid_to = closed.valid_to
WHERE coalesce(closed.open_versions, 0) = 0;

UPDATE {{ schema }}.sites AS known
SET last_listed_at = GREATEST(CAST(? AS TIMESTAMP WITH TIME ZONE), known.last_listed_at)
FROM stem_listed AS listed
WHERE known.site_id = listed.site_id AND known.valid_to IS NULL;
