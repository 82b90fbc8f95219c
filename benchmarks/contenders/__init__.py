"""
Ways to bring the same streams from the API into S3, to be measured beside each other.

Each module has a ``prepare(work)``, which imports what it needs and gives the function to be measured, and a
``rows(key, body)``, which gives what an object of its holds as columns ``site_id, stream_type, end, kw_total_avg``
(``end`` in epoch seconds). ``prepare`` runs in the contender's own environment, ``rows`` in this project's.
"""
