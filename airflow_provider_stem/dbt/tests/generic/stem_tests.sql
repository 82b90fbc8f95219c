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

{# Fails also if there is no row. #}
{% test stem_fresh(model, column_name, hours) %}
SELECT newest
FROM (SELECT max({{ column_name }}) AS newest FROM {{ model }}) AS found
WHERE newest IS NULL OR newest < {{ stem_now() }} - INTERVAL '{{ hours }} hours'
{% endtest %}
