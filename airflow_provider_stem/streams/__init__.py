"""Telemetry: windows, rows, files and objects; does not depend on Airflow."""
