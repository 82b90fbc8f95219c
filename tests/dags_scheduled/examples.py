"""The example DAGs as they are, for the same Airflow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

for path in sorted((Path(__file__).parents[2] / "example_dags").glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    globals()[path.stem] = module.dag
