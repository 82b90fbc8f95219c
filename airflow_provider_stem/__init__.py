"""Apache Airflow provider for Stem's Developer Data API."""

from __future__ import annotations

from typing import Any

__version__ = "1.0.0"

__all__ = ["__version__", "get_provider_info"]

_OPTIONS = {
    "max_workers": ("integer", "8", "Number of sites that a task reads at a time."),
    "max_attempts": ("integer", "5", "Maximum number of attempts of a request."),
    "timeout": (
        "float",
        "60",
        "Time limit of a request in seconds, from its start to the last byte of the response.",
    ),
    "page_size": ("integer", "100", "Number of clients or sites per page of a listing."),
    "columnar_decoding": (
        "boolean",
        "True",
        "Decode long responses in columns, which is faster. The rows are the same without it.",
    ),
    "allow_unconditional_writes": (
        "boolean",
        "False",
        "Allow a store without conditional writes, where two tasks that write the same object can lose rows.",
    ),
    "completeness_conn_id": (
        "string",
        "",
        "Connection of the warehouse that the pages of completeness in Airflow read; empty: they show no data.",
    ),
    "completeness_schema": ("string", "stem", "Schema of the warehouse's tables and views, for these pages."),
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, for Airflow's provider discovery."""
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
        "notifications": ["airflow_provider_stem.notifiers.StemCompletenessNotifier"],
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
        # Airflow 3.2 and later read this.
        "cli": ["airflow_provider_stem.cli.get_cli_commands"],
        "extra-links": [f"airflow_provider_stem.links.{name}" for name in ("LandedObjectsLink", "CompletenessLink")],
        "config": {
            "stem": {
                "description": "Defaults. A connection's Extra and a task's arguments override them.",
                "options": {
                    name: {
                        "description": description,
                        "version_added": "1.0.0",
                        "type": kind,
                        "example": None,
                        "default": default,
                    }
                    for name, (kind, default, description) in _OPTIONS.items()
                },
            }
        },
    }
