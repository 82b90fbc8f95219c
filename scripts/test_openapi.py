"""Check the simulator against its OpenAPI schema, with valid and invalid requests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_stem.simulator import Settings, Simulator

# The schema describes each of them. Other settings simulate servers that violate it.
BEHAVIOURS: dict[str, Mapping[str, Any]] = {
    "default": {},
    "other resolution rules": {
        "reading": "B",
        "row_zone": "Z",
        "row_order": "descending",
        "past_end": "not_found",
    },
    "unknown fields, nulls, gaps": {"unknown_fields": True, "null_values": 0.2, "gaps": 0.2, "max_per_page": 3},
    "forbidden sites": {"forbidden": frozenset({"site-00001"}), "past_end": "repeat"},
}

# The shortest valid range depends on the resolution, which OpenAPI cannot express.
CONFIG = """
[[operations]]
include-path = "/api/v1/sites/{site_id}/streams"
checks.positive_data_acceptance.enabled = false
parameters."path.site_id" = "site-00002"
"""


def main(schemathesis: str, *options: str) -> int:
    """Run schemathesis with each group of settings, and return the number of groups that violate the schema."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "schemathesis.toml")
        config.write_text(CONFIG)
        for name, settings in BEHAVIOURS.items():
            sys.stdout.write(f"\n=== {name} ===\n")
            sys.stdout.flush()
            with Simulator(Settings(**settings), keep_requests=False) as simulator:
                address = simulator.url.replace("/api/v1/", "/openapi.json")
                key = f"Authorization: APIKEY {simulator.settings.api_key}"
                command = [
                    str(Path(schemathesis).absolute()),
                    "--config-file",
                    str(config),
                    "run",
                    address,
                    "--header",
                    key,
                ]
                command += ["--max-examples", "150", "--seed", "1", "--no-color", *options]
                failed += subprocess.run(command, check=False, cwd=folder).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
