"""HTTP client for the Stem API; does not depend on Airflow."""
