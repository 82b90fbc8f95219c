"""Apache Airflow provider for Stem's Developer Data API."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "get_provider_info"]


def get_provider_info() -> dict[str, Any]:
    """Describe this distribution to Airflow's provider discovery."""
    from airflow_provider_stem.connection_form import CONN_FIELDS, UI_FIELD_BEHAVIOUR

    return {
        "package-name": "airflow-provider-stem",
        "name": "Stem",
        "description": "Interval telemetry of battery-storage sites from Stem's Developer Data API.",
        "integrations": [
            {"integration-name": "Stem", "external-doc-url": "https://www.stem.com/", "tags": ["service"]}
        ],
        "hooks": [{"integration-name": "Stem", "python-modules": ["airflow_provider_stem.hooks"]}],
        "operators": [{"integration-name": "Stem", "python-modules": ["airflow_provider_stem.operators"]}],
        "connection-types": [
            {
                "connection-type": "stem",
                "hook-class-name": "airflow_provider_stem.hooks.StemHook",
                "hook-name": "Stem",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
    }
