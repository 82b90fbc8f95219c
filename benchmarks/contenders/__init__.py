"""
Programs that load the same streams from the API into S3; the benchmark measures them side by side.

Each module has a ``prepare(work)``, which imports what it needs and returns the function to measure, and a
``rows(key, body)``, which returns the rows of one of its objects as columns ``site_id, stream_type, end, kw_total_avg``
(``end`` in epoch seconds). ``prepare`` runs in the contender's own environment, ``rows`` in this project's.
"""
