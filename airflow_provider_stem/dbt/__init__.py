"""
The dbt package ``stem_telemetry``: models, tests and documentation over what the loads write.

``python -m airflow_provider_stem.dbt`` prints its path. The views of the warehouse are made from the same models.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PROJECT"]

PROJECT: Path = Path(__file__).parent
"""Folder of the dbt package, for ``--project-dir`` of dbt, or as a local package of another dbt project."""
