"""Apache Airflow provider for Stem's Developer Data API."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "get_provider_info"]

_OPTIONS = {
    "max_workers": ("integer", "8", "How many sites a task reads at a time."),
    "max_attempts": ("integer", "5", "How many times one request is sent at most."),
    "timeout": ("integer", "60", "Seconds for one request, from its start to the last byte of the answer."),
    "page_size": ("integer", "100", "Clients and sites per page of a listing."),
    "allow_unconditional_writes": (
        "boolean",
        "False",
        "Whether to merge into a store without conditional writes, where tasks that write one object can lose rows.",
    ),
}


def get_provider_info() -> dict[str, Any]:
    """Describe this distribution to Airflow's provider discovery."""
    from airflow_provider_stem._connection_form import CONN_FIELDS, METADATA_FIELD_BEHAVIOUR

    return {
        "package-name": "airflow-provider-stem",
        "name": "Stem",
        "description": "Interval telemetry of battery-storage sites from Stem's Developer Data API.",
        "integrations": [
            {"integration-name": "Stem", "external-doc-url": "https://www.stem.com/", "tags": ["service"]}
        ],
        "hooks": [{"integration-name": "Stem", "python-modules": ["airflow_provider_stem.hooks"]}],
        "operators": [
            {
                "integration-name": "Stem",
                "python-modules": ["airflow_provider_stem.operators", "airflow_provider_stem.warehouse.operators"],
            }
        ],
        "sensors": [{"integration-name": "Stem", "python-modules": ["airflow_provider_stem.sensors"]}],
        "triggers": [{"integration-name": "Stem", "python-modules": ["airflow_provider_stem.triggers"]}],
        "connection-types": [
            {
                "connection-type": "stem",
                "hook-class-name": "airflow_provider_stem.hooks.StemHook",
                "hook-name": "Stem",
                "ui-field-behaviour": METADATA_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "extra-links": ["airflow_provider_stem.links.LandedObjectsLink"],
        "config": {
            "stem": {
                "description": "Defaults of the Stem provider. A connection's Extra and a task's argument go first.",
                "options": {
                    name: {
                        "description": description,
                        "version_added": "0.1.0",
                        "type": kind,
                        "example": None,
                        "default": default,
                    }
                    for name, (kind, default, description) in _OPTIONS.items()
                },
            }
        },
    }
