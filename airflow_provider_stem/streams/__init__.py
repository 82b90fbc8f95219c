"""The telemetry: windows, rows, files and objects; knows nothing of Airflow."""
