"""The notifier of completeness, on real warehouses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import ClassVar

import pytest
from airflow.providers.common.compat.sdk import BaseNotifier

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.notifiers import StemCompletenessNotifier
from airflow_provider_stem.warehouse.operators import StemSitesToSqlOperator
from tests.support import run_context
from tests.warehouse.conftest import engine
from tests.warehouse.helpers import Bucket

__all__ = ["engine"]

PATH = f"{__name__}.Recorder"
DAYS = "2025-07-01T00:00Z", "2025-07-03T00:00Z"
LINES = [
    "site-c: 192 of 192 missing",
    "site-b {{ conn.stem_default.password }} {subject} {text} <b> [31m: 6 of 192 missing",
]
HOSTILE = "{{ conn.stem_default.password }} {subject} {text} <b>\n\x1b[31m"


class Recorder(BaseNotifier):
    """A notifier that keeps what it would send."""

    template_fields = ("text", "subject")
    sent: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, text, subject=""):
        super().__init__()
        self.text, self.subject = text, subject

    def notify(self, _):
        self.sent.append((self.subject, self.text))


@pytest.fixture
def sent():
    Recorder.sent.clear()
    return Recorder.sent


@pytest.fixture
def warehouse(engine):
    """A warehouse of two days in which two of three sites lack some intervals."""
    sites = [
        {"site_id": site, "name": name, "client_id": "c", "stream_start_times": {"MONITOR": "2025-01-01T00:00:00Z"}}
        for site, name in {"site-a": "Whole", "site-b": HOSTILE, "site-c": None}.items()
    ]
    StemSitesToSqlOperator(task_id="t", sites=sites, sql_conn_id="warehouse").execute(run_context())
    bucket = Bucket()
    values = {("site-a", "MONITOR"): [1.0] * 192, ("site-b", "MONITOR"): [1.0] * 90 + [...] * 6 + [1.0] * 96}
    engine_counts = bucket.load(engine, bucket.land("x", values, "01T00:00", "03T00:00"))
    assert engine_counts["rows"] == 378
    return engine


def notify(context, **arguments):
    defaults = {"notifier": PATH, "arguments": {"subject": "[stem] {subject}", "text": "{text}"}, "days": 2}
    StemCompletenessNotifier(**{**defaults, "sql_conn_id": "warehouse", **arguments})(context)


def context_of(*interval, **more):
    return run_context(*interval, dag=None, **more)


def test_the_text_has_the_share_the_worst_sites_and_the_page(warehouse, sent):
    notify(context_of(*DAYS), page="https://example.com/completeness.html")
    subject = (
        "Stem telemetry of 2025-07-01 to 2025-07-02 (UTC): 34.38 % of 576 intervals missing, 378 late, at 2 of 3 sites"
    )
    assert sent == [
        (
            f"[stem] {subject}",
            "\n".join([subject, *LINES, "https://example.com/completeness.html"]),
        )
    ]


def test_the_data_interval_sets_the_days(warehouse, sent):
    notify(context_of("2025-07-02T00:00Z", "2025-07-03T00:00Z"), days=1)
    notify(context_of("2025-07-05T00:00Z", "2025-07-06T00:00Z"), days=1)
    assert [subject.partition(": ")[2] for subject, _ in sent] == [
        "33.33 % of 288 intervals missing, 192 late, at 1 of 3 sites",
        "no interval is expected. Check that these days and the sites were loaded",
    ]
    # A deadline has the run as JSON.
    notify({**context_of(), "dag_run": {"data_interval_end": "2025-07-03T00:00:00Z"}}, days=1)
    assert sent[-1][0].startswith("[stem] Stem telemetry of 2025-07-02 (UTC): 33.33 %")
    # Without one, the days are the last ones.
    notify(context_of(), days=1)
    today = datetime.now(UTC).date()
    assert sent[-1][0].startswith("[stem] Stem telemetry of 20")
    assert sent[-1][0][25:35] < today.isoformat()


def test_a_day_that_was_not_loaded_is_sent_in_any_case(warehouse, sent):
    notify(context_of("2025-07-05T00:00Z", "2025-07-06T00:00Z"), days=1, min_missing=1.0)
    notify(context_of("2025-07-03T00:00Z", "2025-07-04T00:00Z"), days=3, min_missing=1.0)
    assert [subject.partition("UTC): ")[2] for subject, _ in sent] == [
        "no interval is expected. Check that these days and the sites were loaded",
        "34.38 % of 576 intervals missing, 378 late, at 2 of 3 sites; 1 of these days not loaded",
    ]


def test_only_the_worst_sites_are_listed(warehouse, sent):
    notify(context_of(*DAYS), worst=1)
    assert sent[0][1].splitlines()[1:] == ["site-c: 192 of 192 missing", "and 1 more"]


@pytest.mark.parametrize(("min_missing", "number"), [(0.34, 1), (0.35, 0), (None, 1)])
def test_nothing_is_sent_if_less_is_missing(warehouse, sent, min_missing, number):
    notify(context_of(*DAYS), min_missing=min_missing)
    assert len(sent) == number


def test_a_class_and_nested_arguments_are_accepted(warehouse, sent):
    notify(context_of(*DAYS), notifier=Recorder, arguments={"text": [{"title": "{subject}"}, 5]})
    [(_, [first, number])] = sent
    assert first["title"].startswith("Stem telemetry of 2025-07-01 to 2025-07-02")
    assert number == 5


def test_arguments_are_templates_and_the_text_is_none(warehouse, sent):
    notify(context_of(*DAYS, run_id="one"), arguments={"text": "{{ run_id }}: {text}"})
    assert sent[0][1].startswith("one: Stem telemetry")
    assert "{{ conn.stem_default.password }}" in sent[0][1]


def test_a_warehouse_that_cannot_be_read_is_an_error_with_its_remedy(warehouse, sent, monkeypatch, tmp_path):
    def error_of(**arguments):
        notifier = StemCompletenessNotifier(notifier=PATH, arguments={"text": "{text}"}, **arguments)
        with pytest.raises(StemConfigError) as caught:
            notifier.notify(context_of(*DAYS))  # not by calling it, since Airflow 2 logs the error then
        return str(caught.value)

    remedy = (
        "cannot be read with connection 'warehouse'. Create it with StemObjectsToSqlOperator, or correct sql_conn_id"
    )
    assert error_of(sql_conn_id="warehouse", schema="other").startswith(f"The view other.completeness {remedy}")
    assert "`nowhere` isn't defined. Create this connection" in error_of(sql_conn_id="nowhere")
    monkeypatch.setenv("AIRFLOW_CONN_MISTYPED", json.dumps({"conn_type": "duckdb", "host": f"{tmp_path}/no.db"}))
    assert error_of(sql_conn_id="mistyped").startswith("The view stem.completeness cannot be read with connection 'mis")
    assert not (tmp_path / "no.db").exists()
    monkeypatch.setenv("AIRFLOW_CONN_REMOTE", json.dumps({"conn_type": "duckdb", "host": "https://x/y.db"}))
    assert "Set the connection's Host to the path of a DuckDB file" in error_of(sql_conn_id="remote")
    refused = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "login": "a", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_REFUSED", json.dumps(refused))
    with pytest.raises(StemTransportError, match=r"^PostgreSQL cannot be reached: .* Start its server") as caught:
        error_of(sql_conn_id="refused")
    assert "secret" not in str(caught.value)
    assert not sent


def test_html_is_escaped(warehouse, sent):
    notify(context_of(*DAYS), arguments={"text": "<h1>{html}</h1>"})
    assert sent[0][1].startswith("<h1><pre>Stem telemetry of")
    assert "{text} &lt;b&gt; [31m" in sent[0][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"days": 0}, "days must be an integer from 1 to 36,500, got 0."),
        ({"worst": "3"}, "worst must be an integer >= 1, got '3'."),
        ({"days": 10**7}, "days must be an integer from 1 to 36,500, got 10000000."),
        ({"min_missing": 0}, "min_missing must be a number > 0 and <= 1, where 0.5 is 50 %, got 0."),
        ({"notifier": int}, "Invalid notifier <class 'int'>: it is not a subclass of BaseNotifier."),
        ({"arguments": {}}, "Recorder does not accept them (missing a required argument: 'text')."),
        ({"arguments": {"text": "{text}", "nope": 1}}, "(got an unexpected keyword argument 'nope')."),
        ({"arguments": {"text": "{txt}"}}, "arguments contains no placeholder, so nothing of the text would be sent."),
        ({"arguments": {"text": [{"{text}": 1}]}}, "arguments contains no placeholder"),  # only values are replaced
        ({"arguments": {"text": {"{text}"}}}, "arguments contains no placeholder"),
        ({"page": 5}, "page must be a string or left out, got 5."),
        ({"schema": "a;b"}, "Invalid schema 'a;b'"),
        ({"arguments": "text"}, "arguments must be a dict of the notifier's arguments, got 'text'."),
        ({"schema": "a b"}, "Invalid schema 'a b'"),
        ({"sql_conn_id": ""}, "sql_conn_id must be the id of a connection"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(arguments, message):
    with pytest.raises(StemConfigError) as caught:
        StemCompletenessNotifier(**{"notifier": PATH, "arguments": {"text": "{text}"}, **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.Notifier", r"Invalid notifier 'no.such.Notifier': it cannot be imported \(No module named 'no'\)"),
        ("Notifier", "Invalid notifier 'Notifier': it cannot be imported"),
        ("..x", "Invalid notifier '..x': it cannot be imported"),
        ("json.JSONDecoder", "Invalid notifier 'json.JSONDecoder': it is not a subclass of BaseNotifier."),
    ],
)
def test_a_path_that_is_no_notifier_is_an_error(path, message):
    with pytest.raises(StemConfigError, match=message):
        StemCompletenessNotifier(notifier=path, arguments={})
