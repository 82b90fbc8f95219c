"""Example DAGs as they are, for the same Airflow; the others have tests of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

for name in ("stem_streams_to_s3", "stem_energy_from_asset", "stem_completeness"):
    path = Path(__file__).parents[2] / "example_dags" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    globals()[path.stem] = module.dag
