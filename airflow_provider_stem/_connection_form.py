"""The connection form in Airflow's UI: metadata for Airflow 3, widgets for Airflow 2."""

from __future__ import annotations

from typing import Any

_BEHAVIOUR: dict[str, Any] = {
    "relabeling": {"password": "API key (required)", "schema": "Scheme"},  # nosec B105 # labels
    "placeholders": {
        "host": "app.stem.com",
        "schema": "https",
        "port": "443",
        "password": "as Stem sent it to you",  # nosec B105 # a hint
        "extra__stem__timeout": "60",
        "extra__stem__max_attempts": "5",
        "extra__stem__page_size": "100",
        "extra__stem__verify": "true",
    },
}

# Airflow 3 reads the metadata, whose keys have hyphens. Airflow 2 calls the hook, whose keys have underscores, and the
# Test button of its edit form does nothing if Extra is hidden.
METADATA_FIELD_BEHAVIOUR: dict[str, Any] = {"hidden-fields": ["login", "extra"], **_BEHAVIOUR}
UI_FIELD_BEHAVIOUR: dict[str, Any] = {"hidden_fields": ["login"], **_BEHAVIOUR}

# No minimum: the form of Airflow 3.2 would fill an empty field with it, but an empty field means the default.
_FIELDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "timeout": (
        "Timeout (seconds)",
        "Time limit of a request, from its start to the last byte of the response (default 60).",
        {"type": ["number", "null"], "maximum": 86_400},
    ),
    "max_attempts": (
        "Attempts",
        "Maximum number of attempts of a request (default 5).",
        {"type": ["integer", "null"]},
    ),
    "page_size": (
        "Page size",
        "Number of clients or sites per page of a listing (default 100).",
        {"type": ["integer", "null"]},
    ),
    "verify": (
        "Verify TLS",
        "true, false, or the path of a CA bundle (default true).",
        {"type": ["string", "null"], "examples": ["true", "false"]},
    ),
    "requests_per_second": (
        "Requests per second",
        "Pace of one task. All tasks of a pool together: its slots times this number (default: no limit).",
        {"type": ["number", "null"], "maximum": 1_000},
    ),
}

CONN_FIELDS: dict[str, Any] = {
    name: {"label": label, "description": description, "schema": schema}
    for name, (label, description, schema) in _FIELDS.items()
}


def connection_form_widgets() -> dict[str, Any]:
    """Return the provider's fields of the form as widgets for Airflow 2's web server."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import IntegerField, StringField
    from wtforms.validators import NumberRange, Optional, Regexp

    widgets: dict[str, Any] = {}
    for name, (label, description, schema) in _FIELDS.items():
        field, validators = StringField, [Optional()]
        if name == "requests_per_second":
            # A string: the forms of Airflow 3.0 and 3.1 have no widget for a fraction.
            validators.append(Regexp(r"\s*(?=.*[1-9])(\d+\.?\d*|\.\d+)\s*$", message="Enter a number above 0."))
        elif "string" not in schema["type"]:
            # An empty number is saved as null. Without that the last field could not be cleared, because the form
            # ignores an Extra without keys.
            field, validators = IntegerField, [Optional(), NumberRange(1, schema.get("maximum"))]
        widgets[name] = field(label, description=description, widget=BS3TextFieldWidget(), validators=validators)
    return widgets
