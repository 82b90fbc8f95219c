"""Check that what ``make release`` has built can be uploaded, and print how. It uploads nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from airflow_provider_stem import __version__

ROOT = Path(__file__).resolve().parent.parent


def problems(changelog: str, status: str, built: set[str], tags: set[str]) -> list[str]:
    """
    Return what prevents the release, one sentence per problem.

    :param changelog: the text of CHANGELOG.md.
    :param status: the output of ``git status --porcelain``.
    :param built: the names of the files in ``dist``.
    :param tags: the tags of the repository.
    """
    found = []
    heading = re.search(r"^## .*", changelog, re.MULTILINE)
    if not heading or not re.fullmatch(rf"## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", heading[0]):
        found.append(f"CHANGELOG.md must begin with '## [{__version__}] - YYYY-MM-DD', the version and its date.")
    if status:
        found.append(f"The work tree has changes. Commit or remove them:\n{status}")
    expected = {f"airflow_provider_stem-{__version__}-py3-none-any.whl", f"airflow_provider_stem-{__version__}.tar.gz"}
    if built != expected:
        found.append(f"dist must contain exactly {sorted(expected)}, got {sorted(built)}.")
    if __version__ in tags:
        found.append(f"The tag {__version__} exists. Raise __version__ in airflow_provider_stem/__init__.py.")
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print the problems or the next steps, and return the exit code."""
    found = problems(
        (ROOT / "CHANGELOG.md").read_text(),
        _git("status", "--porcelain"),
        {path.name for path in (ROOT / "dist").iterdir() if path.name != ".gitignore"},
        set(_git("tag").split()),
    )
    for problem in found:
        print(f"Not ready: {problem}", file=sys.stderr)
    if not found:
        print(f"{__version__} is built and checked, and not uploaded. To publish it:")
        print(f"  git tag {__version__} && git push origin {__version__}")
        print("  .venv/bin/twine upload dist/*")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
