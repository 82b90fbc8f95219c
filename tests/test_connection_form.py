"""The connection form as each Airflow builds it; in tests/browser a browser fills it in."""

from __future__ import annotations

import json

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_stem._connection_form import CONN_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.errors import StemConfigError

OPTIONS = ["timeout", "max_attempts", "page_size", "verify", "requests_per_second"]
on_airflow_2 = pytest.mark.skipif(not airflow_version.startswith("2."), reason="Airflow 3 has no such form")


def config_of(extra):
    return ClientConfig.from_connection(
        host=None, schema=None, port=None, password="a-key", extra=json.dumps(extra), defaults={}
    )


@pytest.fixture
def widgets():
    """The widgets of Airflow 2, and the values that they parse from typed text."""
    multidict = pytest.importorskip("werkzeug.datastructures").MultiDict
    from wtforms import Form

    from airflow_provider_stem.hooks import StemHook

    form_class = type("StemForm", (Form,), StemHook.get_connection_form_widgets())
    return lambda **typed: form_class(multidict({**dict.fromkeys(OPTIONS, ""), **typed}))


def test_airflow_3_shows_the_fields():
    services = pytest.importorskip("airflow.api_fastapi.core_api.services.ui.connections")
    [form] = [meta for meta in services.HookMetaService.hook_meta_data() if meta.connection_type == "stem"]
    if form.standard_fields is None:
        pytest.skip("Airflow 3.0 knows no connection form at all unless the FAB provider is installed")
    assert form.standard_fields.login.hidden
    assert form.standard_fields.password.title == "API key (required)"
    assert form.standard_fields.url_schema.title == "Scheme"
    assert [form.standard_fields.host.placeholder, form.standard_fields.url_schema.placeholder] == [
        "app.stem.com",
        "https",
    ]
    assert list(form.extra_fields) == OPTIONS
    for name, field in form.extra_fields.items():
        assert field["value"] is None, "an empty field is the default"
        assert field["schema"]["title"] == CONN_FIELDS[name]["label"]
        assert field["description"] == CONN_FIELDS[name]["description"]
        assert "null" in field["schema"]["type"], "no field is required"


@on_airflow_2
def test_airflow_2_accepts_the_forms_description():
    from airflow.providers_manager import ProvidersManager

    behaviour = ProvidersManager().field_behaviours["stem"]
    assert behaviour["relabeling"] == {"password": "API key (required)", "schema": "Scheme"}
    assert behaviour["hidden_fields"] == ["login"]
    assert behaviour["placeholders"]["extra__stem__timeout"] == "60"
    shown = ProvidersManager().connection_form_widgets
    assert [info.field_name for name, info in shown.items() if name.startswith("extra__stem__")] == OPTIONS


def test_placeholders_are_the_defaults():
    shown = UI_FIELD_BEHAVIOUR["placeholders"]
    placeholders = {name: shown[f"extra__stem__{name}"] for name in OPTIONS if name != "requests_per_second"}
    assert config_of(placeholders) == config_of({})


@on_airflow_2
def test_empty_widgets_mean_the_defaults(widgets):
    form = widgets()
    assert form.validate(), form.errors
    assert form.data == {**dict.fromkeys(OPTIONS), "verify": "", "requests_per_second": ""}
    assert config_of(form.data) == config_of({})


@on_airflow_2
def test_the_hook_reads_typed_values(widgets):
    form = widgets(timeout=" 20", max_attempts="3", page_size="50", verify="false", requests_per_second=" 0.5")
    assert form.validate(), form.errors
    read = config_of(form.data)
    assert (read.timeout, read.max_attempts, read.page_size, read.verify) == (20.0, 3, 50, False)
    assert read.requests_per_second == 0.5


@on_airflow_2
@pytest.mark.parametrize(
    "typed",
    [
        *({"timeout": "soon"}, {"timeout": "0"}, {"timeout": "86401"}, {"max_attempts": "0"}, {"page_size": "-1"}),
        *({"requests_per_second": text} for text in ("0", "0.0", "-1", "1 2", ".", "many")),
    ],
)
def test_widgets_reject_what_the_hook_rejects(typed, widgets):
    form = widgets(**typed)
    assert not form.validate()
    assert set(form.errors) == set(typed)


@pytest.mark.parametrize("name", ["timeout", "requests_per_second"])
def test_the_maximum_of_the_form_is_that_of_the_hook(name):
    maximum = CONN_FIELDS[name]["schema"]["maximum"]
    assert getattr(config_of({name: maximum}), name) == maximum
    with pytest.raises(StemConfigError, match=name):
        config_of({name: maximum + 1})


def test_the_names_under_which_airflow_2_tests_options_are_understood():
    """Its Test button sends a value under the option's name and under the name of the form's field."""
    assert config_of({"extra__stem__timeout": "20", "timeout": "20"}) == config_of({"timeout": 20})
