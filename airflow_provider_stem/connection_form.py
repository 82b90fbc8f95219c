"""The connection form in Airflow's UI: once as metadata for Airflow 3, once as widgets for Airflow 2."""

from __future__ import annotations

from typing import Any

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "extra"],
    "relabeling": {"password": "API key"},
    "placeholders": {"host": "app.stem.com", "schema": "https", "password": "as Stem sent it to you"},
}

_HELP = {
    "timeout": ("Timeout", "Seconds for one request, from its start to the last byte (default 60)."),
    "max_attempts": ("Attempts", "How often one request is sent at the most (default 5)."),
    "page_size": ("Page size", "Clients and sites per page of a listing (default 100)."),
    "verify": ("Verify TLS", "true, false, or the path of a CA bundle (default true)."),
}

CONN_FIELDS: dict[str, Any] = {
    name: {
        "label": label,
        "description": description,
        "schema": {"type": ["string", "null"]}
        if name == "verify"
        else {"type": ["number" if name == "timeout" else "integer", "null"], "minimum": 1},
    }
    for name, (label, description) in _HELP.items()
}


def connection_form_widgets() -> dict[str, Any]:
    """Give the form's own fields as Airflow 2's web server takes them."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import StringField
    from wtforms.validators import Optional

    return {
        name: StringField(label, description=description, widget=BS3TextFieldWidget(), validators=[Optional()])
        for name, (label, description) in _HELP.items()
    }
