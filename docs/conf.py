"""Configuration of the documentation, which ``make docs`` builds without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.util.inspect import signature, stringify_signature

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
# Importing Airflow reads its configuration, and says so.
os.environ["AIRFLOW_HOME"] = str(DOCS.parent / "build" / "airflow")
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"

import airflow_provider_stem  # noqa: E402
from docs import architecture  # noqa: E402

project = "airflow-provider-stem"
author = "The airflow-provider-stem authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = airflow_provider_stem.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_generated"]

# A link to a missing class, page or heading is an error. Other packages and private names have no page.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!airflow_provider_stem).*"),
    ("py:.*", r"airflow_provider_stem\.(_|api\.|streams\.|.*\._).*"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp"

architecture.write(Path(airflow_provider_stem.__file__).parent, DOCS / "_generated")


def setup(app: Sphinx) -> None:
    """Show the arguments of a class as its constructor lists them, also if the class has a ``__new__``."""

    def constructor(_: Sphinx, what: str, __: str, described: Any, *_rest: Any) -> tuple[str, str] | None:
        if what != "class" or "__init__" not in vars(described):
            return None
        shown = signature(described.__init__, bound_method=True)
        return stringify_signature(shown, show_return_annotation=False, unqualified_typehints=True), ""

    app.connect("autodoc-process-signature", constructor)
