"""The Stem API over HTTP; knows nothing of Airflow."""
