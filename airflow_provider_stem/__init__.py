"""Apache Airflow provider for Stem's Developer Data API."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "get_provider_info"]


def get_provider_info() -> dict[str, Any]:
    """Describe this distribution to Airflow's provider discovery."""
    return {
        "package-name": "airflow-provider-stem",
        "name": "Stem",
        "description": "Interval telemetry of battery-storage sites from Stem's Developer Data API.",
    }
