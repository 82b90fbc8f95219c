"""Print the path of the dbt package ``stem_telemetry``."""

from __future__ import annotations

from airflow_provider_stem.dbt import PROJECT

if __name__ == "__main__":
    print(PROJECT)  # noqa: T201 - the path is the output
