{% test stem_unique(model, columns) %}
SELECT {{ columns | join(', ') }}, count(*) AS times
FROM {{ model }}
GROUP BY {{ columns | join(', ') }}
HAVING count(*) > 1
{% endtest %}

{% test stem_range(model, column_name, low, high) %}
SELECT *
FROM {{ model }}
WHERE {{ column_name }} < {{ low }} OR {{ column_name }} > {{ high }}
{% endtest %}

{# Every day has at least a share of what is expected. #}
{% test stem_complete(model, received, expected, share=1) %}
SELECT *
FROM {{ model }}
WHERE {{ received }} < {{ share }} * {{ expected }}
{% endtest %}

{# Not the highest value: so PostgreSQL reads only the newest partitions. #}
{% test stem_fresh(model, column_name, hours) %}
SELECT 'no row is new enough' AS problem
WHERE NOT EXISTS (
    SELECT 1 FROM {{ model }} WHERE {{ column_name }} >= {{ stem_now() }} - INTERVAL '{{ hours }} hours'
)
{% endtest %}
