"""Every argument of every public class, each with values that are wrong: told by name, value and remedy, in time."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import DAG, AirflowFailException

from airflow_provider_stem import assets
from airflow_provider_stem._connection_form import CONN_FIELDS
from airflow_provider_stem.api.config import ClientConfig
from airflow_provider_stem.errors import StemConfigError
from airflow_provider_stem.failures import final_errors
from airflow_provider_stem.hooks import StemHook
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from airflow_provider_stem.sensors import StemStreamsSensor
from airflow_provider_stem.simulator import Settings, Simulator
from airflow_provider_stem.triggers import StemStreamsTrigger
from tests.support import run_context
from tests.waiting import fire

DAY = ("2025-07-01T00:00Z", "2025-07-02T00:00Z")
KEY = "sentinel-5f1c-key"
NAIVE = datetime(2025, 7, 1)  # noqa: DTZ001
FUTURE = datetime(2999, 1, 1, tzinfo=UTC)
NAN = float("nan")
CENTURIES = timedelta.max

# What is wrong for each argument, wherever it is taken.
COUNTS = [0, -3, 1.5, "8", True, None, NAN]
CHOICES = ["sometimes", "", None, True, 1, ["fail"]]
FLAGS = ["False", "yes", 0, 1, None, []]
DURATIONS = [timedelta(), timedelta(hours=-1), CENTURIES, 3600, "1h", True]
TYPES = [[], "VOLTAGE", ["MONITOR", "monitor"], [""], 7, {"MONITOR": 1}, [None], None]
RESOLUTIONS = [60, 0, -900, 900.0, "900", True, None, [900]]
SHARES = [0, -0.5, 1.5, 98, NAN, float("inf"), "0.9", True, None]
INSTANTS = ["yesterday", "2025-13-01T00:00Z", "", NAIVE, "2025-07-01T00:00", 20250701, True, ["2025-07-01T00:00Z"]]
SITES: list[Any] = [None, 17, True, "", "..", [], {}, [""], [5], [None], {"name": "no id"}, [{"site_id": 5}], b"site"]
IDS = ["", ".", "..", 17, True, None]
CONNECTIONS = ["", "  ", 17, True, None, ["stem_default"]]
NAMES = [17, True, 1.5, ["name"], b"name"]
SECONDS = [-1, NAN, float("inf"), "60", True, timedelta(minutes=1)]


@dataclass(frozen=True)
class Wrong:
    """
    Values that an argument must refuse.

    :param remedy: what the message says to do.
    :param beside: other arguments, without which the value would be right.
    :param shows: what the message shows of the value, where not the whole of it; nothing of a key.
    """

    argument: str
    values: list[Any]
    remedy: str
    beside: dict[str, Any] = field(default_factory=dict)
    shows: str | None = None


STREAMS = [
    Wrong("sites", SITES, "give "),
    Wrong("stream_types", TYPES, "MONITOR, CONVERTER, INTERVAL_REVENUE"),
    Wrong("resolution", RESOLUTIONS, "the API knows 900, 1800, 3600 seconds"),
    Wrong("start", INSTANTS, "offset", {"end": DAY[1]}),
    Wrong("start", [DAY[1], "2025-07-02T01:00+01:00", "2025-07-09T00:00Z"], "later than", {"end": DAY[1]}),
    Wrong("end", INSTANTS, "offset", {"start": DAY[0]}),
    Wrong("end", [DAY[0], "2025-06-01T00:00Z", datetime(2025, 7, 1, tzinfo=UTC)], "later than", {"start": DAY[0]}),
    Wrong("default_interval", DURATIONS, "give a timedelta above zero"),
    Wrong("batch", ["", " ", 7, True, ["a"], 1.5], "give a text"),
    Wrong("max_workers", COUNTS, "give a whole number from 1 on"),
    Wrong("stem_conn_id", CONNECTIONS, "give the id of a connection"),
]
OPERATOR = [
    *STREAMS,
    Wrong("lookback", DURATIONS, "give a timedelta above zero", {"partition": "day"}),
    Wrong("lookback", [timedelta(1), timedelta(hours=1), timedelta(7)], "set partition to 'hour', 'day' or 'month'"),
    Wrong("partition", ["week", "", None, 1, True, ["day"]], "choose one of interval, hour, day, month"),
    Wrong("s3_bucket", ["a b", "s3://lake", "lake/prefix", "lämp", 7, True, ["lake"]], "give the name of a bucket"),
    Wrong("s3_key", [None, 7, True, ["key"]], "give a key"),
    Wrong("s3_key", ["", "/x", "a//b", "a/../b", "a\nb", "x" * 1025], "a key has"),
    Wrong("s3_key", ["s3://lake/", "s3://lake", "s3://a.b/"], "a key has", shows="gives ''"),
    Wrong("s3_key", ["s3://", "s3:///x", "s3://la ke/x"], "give a key, or a full address"),
    Wrong("s3_key", ["{site}/x", "{start.year}", "{0}/x"], "there are {start}", shows="placeholder {"),
    Wrong("s3_key", ["{start", "end}", "{batch:d}"], "write a literal brace twice"),
    Wrong("file_format", ["orc", "", None, True, [], {}], "choose one of parquet, csv, jsonl"),
    Wrong("parquet_encoding", ["tiny", "", None, True], "choose one of portable, smallest"),
    Wrong("compression", ["lzo", "", None, True, [], "snappy"], "choose one of default, gzip", {"file_format": "csv"}),
    Wrong("on_incomplete", CHOICES[:-1], "choose one of warn, fail"),
    Wrong("on_unavailable", CHOICES, "choose one of skip, fail"),
    Wrong("on_empty", CHOICES, "choose one of write, skip, fail"),
    Wrong("on_site_error", CHOICES, "choose one of fail, skip"),
    Wrong("partition_events", FLAGS, "give True or False"),
    Wrong("if_exists", CHOICES, "choose one of merge, replace, fail"),
    Wrong("parquet_encoding", CHOICES, "choose one of portable, smallest"),
    Wrong("s3_extra_args", ["ACL", [], 7, True, {1: "x"}], "must be a dict of arguments of a PUT"),
    Wrong("s3_extra_args", [{"Key": "x"}, {"Body": b""}, {"IfMatch": "etag"}], "Remove it", shows="must not hold"),
    Wrong("aws_conn_id", [17, True, ["aws"], b"aws"], "give a text"),
]
SENSOR = [
    *STREAMS,
    Wrong("min_completeness", SHARES, "give a share above 0 and up to 1"),
    Wrong("settle", DURATIONS, "give a timedelta above zero"),
    Wrong("deferrable", FLAGS, "give True or False"),
    Wrong("start_from_trigger", FLAGS, "give True or False"),
]
LISTING = [
    Wrong("client_id", ["", ".", "..", [], [""], [5], 17, True, {}, b"client"], "client id"),
    Wrong("name", NAMES, "give a text"),
    Wrong("stream_types", TYPES[:-1], "MONITOR, CONVERTER, INTERVAL_REVENUE"),
    Wrong("batches", COUNTS[:5] + COUNTS[6:], "give a whole number from 1 on"),
    Wrong("stem_conn_id", CONNECTIONS, "give the id of a connection"),
]
TRIGGER = [
    # Its durations are seconds, since its arguments are JSON.
    *(wrong for wrong in STREAMS if wrong.argument not in {"default_interval", "batch"}),
    Wrong("default_interval", [0, *SECONDS], "give a number of seconds above 0"),
    Wrong("min_completeness", SHARES, "give a share above 0 and up to 1"),
    Wrong("settle", [None, *SECONDS], "give a number of seconds from 0 on"),
    Wrong("poke_interval", [None, *SECONDS], "give a number of seconds from 0 on"),
    Wrong("exponential_backoff", FLAGS, "give True or False"),
    Wrong("max_wait", SECONDS, "give a number of seconds from 0 on"),
    Wrong("silent_fail", FLAGS, "give True or False"),
    Wrong("deadline", INSTANTS, "offset"),
    Wrong("progress", [[], "progress", 17, True], "give what Watch.progress gave"),
]
OPERATORS: dict[type[Any], tuple[dict[str, Any], list[Wrong]]] = {
    StemStreamsToS3Operator: ({"sites": "site-00001", "s3_bucket": "lake"}, OPERATOR),
    StemStreamsSensor: ({"sites": "site-00001", "deferrable": False}, SENSOR),
    StemSiteListOperator: ({}, LISTING),
}


HOOK = {
    "__init__": [Wrong("stem_conn_id", CONNECTIONS, "give the id of a connection")],
    "client_of": [
        Wrong("connection", [None, "stem_default", f"stem://:{KEY}@host", 17], "give a Connection", shows="is a ")
    ],
    "list_clients": [Wrong("name", NAMES, "give a part of a name as text")],
    "get_client": [Wrong("client_id", IDS, "give the identifier that the API lists")],
    "list_sites": [
        Wrong("client_id", IDS[:-1], "give the identifier that the API lists"),
        Wrong("name", NAMES, "give a part of a name as text"),
    ],
    "get_site": [Wrong("site_id", ["\ud800", *IDS], "give the identifier that the API lists")],
    "get_streams": [
        Wrong("site_id", [*IDS, ["site-00001"]], "give the identifier that the API lists"),
        *(wrong for wrong in STREAMS if wrong.argument in {"stream_types", "resolution", "start", "end"}),
        Wrong("end", ["2999-01-01T00:00Z", "2999-01-01T00:00:00+05:00", FUTURE], "run after the window is over"),
        Wrong("on_unavailable", CHOICES, "choose one of fail, skip"),
    ],
}
GIVEN_TO_HOOK = {
    "get_streams": {"site_id": "site-00001", "start": DAY[0], "end": DAY[1]},
}
NUMBERS = [0, -1, 1.5, "many", True, [5], NAN]
CONNECTION = [
    Wrong("Host", ["a b", "host?x=1", "host#x", "user@host"], "give the host", shows="holds a user, a query"),
    Wrong("Host", ["https://", "host:0", "host:99999", "-host", "ftp://host", "[::1"], "give one such as https://"),
    Wrong("http", ["http://example.com", "http://10.0.0.1/api", "http://stem:80"], "use https", shows="Plain http to"),
    Wrong("Schema", ["ftp", "htp", "s3"], "choose one of them"),
    Wrong("Port", [-1, 65536, 10**6], "leave it empty for the default"),
    Wrong("Port", [1, 443, 65535], "fill in the Host", {"host": ""}, shows="no Host"),
    Wrong("Password", ["", "  ", None], "put the Stem API key there", shows="has no"),
    Wrong("Password", [f"{KEY} x", f"{KEY}\nx", f"{KEY}é"], "paste the key again", shows="holds a space"),
    Wrong(
        "Extra", ["no JSON", "[1]", "17", '"text"', "{"], 'give one such as {"timeout": 60}', shows="not a JSON object"
    ),
    Wrong(
        "Extra",
        [{"retries": 3}, {"Timeout": 3}, {"": 1}],
        "it takes ['max_attempts', 'page_size', 'timeout', 'verify']",
    ),
    Wrong("timeout", [0, -1, "soon", True, [60], NAN, 86_401], "give a number of seconds above 0 and up to 86,400"),
    Wrong("max_attempts", NUMBERS, "give a whole number from 1 on"),
    Wrong("page_size", NUMBERS, "give a whole number from 1 to 100,000"),
    Wrong("verify", ["maybe", "/no/such/bundle.pem", 2, [True], {}], "give true, false or the path"),
]
OPTIONS = ("timeout", "max_attempts", "page_size", "verify")
CONFIGURED = [
    Wrong("timeout", ["0", "-1", "soon", "nan", "1e9"], "give a number of seconds above 0 and up to 86,400"),
    Wrong("max_attempts", ["0", "1.5", "many"], "give a whole number from 1 on"),
    Wrong("page_size", ["0", "-100", "all"], "give a whole number from 1 to 100,000"),
]
RECEIPT = {"window": {"start": "a", "end": "b", "resolution": 900}, "objects": [], "rows": 0}
ASSETS = {
    "combined": [
        Wrong("receipts", [None, 17, "receipt", RECEIPT], "give a list of what the tasks returned"),
        Wrong("receipts", [["receipt"], [17], [{"rows": 3}]], "give what StemStreamsToS3Operator returned"),
        Wrong("receipts", [[], [None], [None, None]], "give one or more, of one resolution", shows="[] as resolutions"),
    ],
    "landed_objects": [Wrong("context", [None, 17, "context", []], "give the context of a running task")],
    "event_extras": [Wrong("context", [None, 17, "context", []], "give the context of a running task")],
}
OF_THE_OPERATOR = {"as_alias_extra"}
"""What is there for the operator alone, which hands in what it made itself."""


def each(table):
    """Give a test's parameters, one for each wrong value: what it is about, the row, the value."""
    return [
        pytest.param(about, wrong, value, id=f"{getattr(about, '__name__', about)}-{wrong.argument}-{value!r:.30}")
        for about, rows in table.items()
        for wrong in rows
        for value in wrong.values
    ]


def forms(value):
    """Give the ways in which a message may show a value: whole, by what is wrong in it, or a time in UTC."""
    if isinstance(value, (list, dict)):
        yield from [repr(value)] if value else [repr(value), "is empty"]
        for part in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from forms(part)
    elif isinstance(value, str):
        yield from (repr(value)[:90], f" is {value},")
        if not isinstance(instant := _instant(value), str):
            yield from forms(instant)
    else:
        yield repr(value)
    if isinstance(value, datetime):
        yield from (str(value), value.isoformat())
    if isinstance(value, timedelta):
        yield f"={value!s}"


def _instant(text):
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return text
    return instant.astimezone(UTC) if instant.tzinfo else instant


def assert_tells(error, wrong, value):
    """The message names the argument, shows the value and says what to do; it never holds the key."""
    message = str(error)
    assert wrong.argument in message
    assert any(form in message for form in ([wrong.shows] if wrong.shows else forms(value))), message
    assert wrong.remedy in message
    assert KEY not in message


def made(cls, wrong, value):
    """Make an operator or a sensor with a wrong value."""
    return cls(**{"task_id": "task", **OPERATORS[cls][0], **wrong.beside, wrong.argument: value})


def connect(monkeypatch, sim, **fields):
    """Set the connection: the simulator's, but for some fields."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({**json.loads(sim.connection), **fields}))


@pytest.fixture(scope="module")
def server():
    with Simulator(Settings(api_key=KEY)) as running:
        yield running


@pytest.fixture
def sim(server, monkeypatch):
    """A simulator as the connection, which must not be asked for anything."""
    server.reset_requests()
    connect(monkeypatch, server)
    yield server
    assert server.requests == []


# --- operators and sensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "wrong", "value"), each({cls: rows for cls, (_, rows) in OPERATORS.items()}))
def test_a_wrong_argument_shows_when_the_dag_is_parsed(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        made(cls, wrong, value)
    assert_tells(error.value, wrong, value)
    with DAG("dag", schedule=None), pytest.raises(StemConfigError) as error:
        cls.partial(task_id="task", **{**wrong.beside, wrong.argument: value})
    assert_tells(error.value, wrong, value)


def templated(cls):
    return [wrong for wrong in OPERATORS[cls][1] if wrong.argument in cls.template_fields]


@pytest.mark.parametrize(("cls", "wrong", "value"), each({cls: templated(cls) for cls in OPERATORS}))
def test_a_template_that_gives_a_wrong_value_fails_the_task_before_any_request(cls, wrong, value, sim):
    with DAG("dag", schedule=None, render_template_as_native_obj=True):
        task = made(cls, wrong, "{{ wrong }}")
    task.render_template_fields({"wrong": value})
    with pytest.raises(AirflowFailException) as error:
        task.execute(run_context(*DAY))
    assert_tells(error.value, wrong, value)


@pytest.mark.parametrize("cls", OPERATORS)
def test_a_value_that_was_mapped_over_fails_the_task_before_any_request(cls, sim):
    """Where a mapped task is made, an error would be one that Airflow retries."""
    given, rows = OPERATORS[cls]
    for wrong in rows:
        if wrong.argument in cls.template_fields and not wrong.beside:
            beside = {name: value for name, value in given.items() if name != wrong.argument}
            with DAG("dag", schedule=None):
                mapping = cls.partial(task_id="task", **beside).expand_kwargs([{wrong.argument: "x"}])
            task = mapping.unmap({wrong.argument: wrong.values[0]})
            with pytest.raises(AirflowFailException) as error:
                task.execute(run_context(*DAY))
            assert_tells(error.value, wrong, wrong.values[0])


@pytest.mark.parametrize("cls", OPERATORS)
def test_what_is_not_known_yet_is_not_judged(cls):
    """Templates with whatever marks a DAG has set for them, and values of other tasks."""
    own = [wrong.argument for wrong in OPERATORS[cls][1] if wrong.argument in cls.template_fields]
    for value in ("{{ x }}", "{% if x %}a{% endif %}", "<< x >>", "[[ x ]]", "$x", "(( x ))"):
        cls(**{"task_id": "task", **OPERATORS[cls][0], **dict.fromkeys(own, value)})
    with DAG("dag", schedule=None):
        other = StemSiteListOperator(task_id="other")
        task = cls(**{"task_id": "task", **OPERATORS[cls][0], **dict.fromkeys(own, other.output)})
    assert task.upstream_task_ids == {"other"}


# --- the trigger ------------------------------------------------------------------------------------------------------

TRIGGER_GIVEN = {"sites": "site-00001", "start": DAY[0], "end": DAY[1]}


@pytest.mark.parametrize(
    ("cls", "wrong", "value"), each({StemStreamsTrigger: [row for row in TRIGGER if row.argument != "sites"]})
)
def test_a_wrong_argument_shows_when_the_trigger_is_made(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        cls(**{**TRIGGER_GIVEN, **wrong.beside, wrong.argument: value})
    assert_tells(error.value, wrong, value)


@pytest.mark.parametrize(
    ("cls", "wrong", "value"),
    each({StemStreamsTrigger: [row for row in TRIGGER if row.argument in {"sites", "start", "end", "stem_conn_id"}]}),
)
def test_what_shows_only_in_the_triggerer_is_told_before_any_request(cls, wrong, value, sim):
    waiting = cls(**TRIGGER_GIVEN)
    setattr(waiting, wrong.argument, value)  # as templates give it, once the trigger is made
    payload = fire(waiting)
    assert (payload["status"], payload["error"]) == ("error", "StemConfigError")
    assert_tells(payload["args"][0], wrong, value)


# --- the hook and its connection --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "wrong", "value"), each(HOOK))
def test_the_hook_refuses_before_any_request(method, wrong, value, sim):
    given = {**GIVEN_TO_HOOK.get(method, {}), **wrong.beside, wrong.argument: value}
    call: Any = StemHook if method == "__init__" else getattr(StemHook(), method)
    with pytest.raises(StemConfigError) as error:
        list(call(**given))
    assert_tells(error.value, wrong, value)


def refused():
    """Refuse the connection in each way of using it."""
    with pytest.raises(StemConfigError) as error:
        StemHook().get_conn()
    yield error.value
    works, message = StemHook().test_connection()
    assert not works
    yield message
    for cls, (given, _) in OPERATORS.items():
        with pytest.raises(AirflowFailException) as failed:
            cls(task_id="task", **given).execute(run_context(*DAY))
        yield failed.value


@pytest.mark.parametrize(("_", "wrong", "value"), each({"connection": CONNECTION}))
def test_a_wrong_field_of_the_connection_is_told_before_any_request(_, wrong, value, sim, monkeypatch):
    name = {"http": "host"}.get(wrong.argument, wrong.argument.lower())
    if wrong.shows == "not a JSON object" and airflow_version.startswith(("3.0.", "3.1.")):
        pytest.skip("Airflow 3.0 and 3.1 pass over a connection whose Extra is no object, as if it were not there")
    fields = {"extra": {name: value}} if name in OPTIONS else {name: value}
    connect(
        monkeypatch,
        sim,
        **{**({} if name in {"extra", *OPTIONS} else {"schema": "", "port": None}), **wrong.beside, **fields},
    )
    for error in refused():
        assert_tells(error, wrong, value)


@pytest.mark.parametrize(("_", "wrong", "value"), each({"configuration": CONFIGURED}))
def test_a_wrong_setting_of_the_administrator_is_told_before_any_request(_, wrong, value, sim, monkeypatch):
    monkeypatch.setenv(f"AIRFLOW__STEM__{wrong.argument.upper()}", value)
    for error in refused():
        assert_tells(error, wrong, value)


@pytest.mark.parametrize("field_name", ["host", "schema", "extra"])
def test_a_key_in_a_wrong_field_is_not_shown(field_name, sim, monkeypatch):
    connect(monkeypatch, sim, **{field_name: {KEY: KEY} if field_name == "extra" else f"{KEY}!"})
    for error in refused():
        assert KEY not in str(error)


# --- what tasks of one's own call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "wrong", "value"), each(ASSETS))
def test_what_is_no_event_and_no_receipt_is_told(function, wrong, value):
    with pytest.raises(StemConfigError) as error:
        list(getattr(assets, function)(value))
    assert_tells(error.value, wrong, value)


@pytest.mark.parametrize("objects", [17, "text", [17], [{"rows": 3}], {"uri": "s3://lake/x"}])
def test_objects_of_anothers_event_are_told(objects):
    event = SimpleNamespace(extra={"objects": objects})
    with pytest.raises(
        StemConfigError,
        match="lists wrong objects. Schedule the DAG on assets whose events StemStreamsToS3Operator makes",
    ):
        assets.landed_objects({"triggering_asset_events": {"asset": [event]}})


@pytest.mark.parametrize("value", CONNECTIONS)
def test_final_errors_tells_what_names_no_connection(value):
    with pytest.raises(AirflowFailException, match="give the id of a connection") as error, final_errors(value):
        pytest.fail("nothing was to be done")
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", DURATIONS)
def test_a_retry_policy_refuses_what_is_no_wait(value):
    policies = pytest.importorskip("airflow_provider_stem.retry_policies", exc_type=ImportError)
    with pytest.raises(StemConfigError) as error:
        policies.StemRetryPolicy(min_delay=value)
    assert_tells(error.value, Wrong("min_delay", [], "give a timedelta above zero"), value)


# --- nothing is left out ----------------------------------------------------------------------------------------------


def own_arguments(function):
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in {"self", "cls"}
    }


def public_functions(of):
    return {
        name: getattr(of, name)
        for name, value in vars(of).items()
        if (inspect.isfunction(value) or isinstance(value, classmethod))
        and getattr(value, "__module__", None) in {getattr(of, "__module__", None), of.__name__}
        and (name == "__init__" or not name.startswith("_"))
    }


@pytest.mark.parametrize(
    ("function", "rows"),
    [
        *(pytest.param(cls.__init__, rows, id=cls.__name__) for cls, (_, rows) in OPERATORS.items()),
        pytest.param(StemStreamsTrigger.__init__, TRIGGER, id="StemStreamsTrigger"),
        *(
            pytest.param(function, HOOK.get(name, []), id=f"StemHook.{name}")
            for name, function in public_functions(StemHook).items()
        ),
        *(
            pytest.param(function, ASSETS.get(name, []), id=f"assets.{name}")
            for name, function in public_functions(assets).items()
            if name not in OF_THE_OPERATOR
        ),
    ],
)
def test_every_argument_has_three_wrong_values_here(function, rows):
    values: dict[str, list[Any]] = {argument: [] for argument in own_arguments(function)}
    for wrong in rows:
        values[wrong.argument] += wrong.values
    assert {argument: given for argument, given in values.items() if len(given) < 3} == {}


def test_every_field_of_the_connection_has_three_wrong_values_here():
    fields = own_arguments(ClientConfig.from_connection) - {"defaults"} | set(CONN_FIELDS)
    values = dict.fromkeys(fields, 0)
    for wrong in CONNECTION:
        values[{"http": "host"}.get(wrong.argument, wrong.argument.lower())] += len(wrong.values)
    assert {name for name, count in values.items() if count < 3} == set()
