"""Wrong values for every argument of every public class: the error names argument, value and remedy, early enough."""

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
from airflow_provider_stem.errors import StemConfigError, StemDataError
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

# Wrong values by kind of argument.
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
    Values that an argument must reject.

    :param remedy: the remedy in the message.
    :param beside: other arguments, without which the value would be valid.
    :param shows: what the message shows of the value, if not the complete value; nothing of a key.
    """

    argument: str
    values: list[Any]
    remedy: str
    beside: dict[str, Any] = field(default_factory=dict)
    shows: str | None = None


STREAMS = [
    Wrong("sites", SITES, "Use "),
    Wrong("stream_types", TYPES, "MONITOR, CONVERTER, INTERVAL_REVENUE"),
    Wrong("resolution", RESOLUTIONS, "Use one of 900, 1800, 3600 s"),
    Wrong("start", INSTANTS, "offset", {"end": DAY[1]}),
    Wrong("start", [DAY[1], "2025-07-02T01:00+01:00", "2025-07-09T00:00Z"], "later than", {"end": DAY[1]}),
    Wrong("end", INSTANTS, "offset", {"start": DAY[0]}),
    Wrong("end", [DAY[0], "2025-06-01T00:00Z", datetime(2025, 7, 1, tzinfo=UTC)], "later than", {"start": DAY[0]}),
    Wrong("default_interval", DURATIONS, "must be a timedelta above zero"),
    Wrong("batch", ["", " ", 7, True, ["a"], 1.5], "must be a string"),
    Wrong("max_workers", COUNTS, "must be an integer >= 1"),
    Wrong("stem_conn_id", CONNECTIONS, "must be the id of a connection"),
]
OPERATOR = [
    *STREAMS,
    Wrong("lookback", DURATIONS, "must be a timedelta above zero", {"partition": "day"}),
    Wrong("lookback", [timedelta(1), timedelta(hours=1), timedelta(7)], "Set partition to 'hour', 'day' or 'month'"),
    Wrong("partition", ["week", "", None, 1, True, ["day"]], "must be one of interval, hour, day, month"),
    Wrong("s3_bucket", ["a b", "s3://lake", "lake/prefix", "lämp", 7, True, ["lake"]], "Use only the name of a bucket"),
    Wrong("s3_key", [None, 7, True, ["key"]], "Use a key"),
    Wrong("s3_key", ["", "/x", "a//b", "a/../b", "a\nb", "x" * 1025], "Use a key "),
    Wrong("s3_key", ["s3://lake/", "s3://lake", "s3://a.b/"], "Use a key without", shows="renders to ''"),
    Wrong("s3_key", ["s3://", "s3:///x", "s3://la ke/x"], "Use a key, or a full address"),
    Wrong("s3_key", ["{site}/x", "{start.year}", "{0}/x"], "Use only {start}", shows="placeholder {"),
    Wrong("s3_key", ["{start", "end}", "{batch:d}"], "Write a literal brace twice"),
    Wrong("file_format", ["orc", "", None, True, [], {}], "Use one of parquet, csv, jsonl"),
    Wrong("parquet_encoding", ["tiny", "", None, True], "must be one of portable, smallest"),
    Wrong("compression", ["lzo", "", None, True, [], "snappy"], "Use one of default, gzip", {"file_format": "csv"}),
    Wrong("on_incomplete", CHOICES[:-1], "must be one of warn, fail"),
    Wrong("on_unavailable", CHOICES, "must be one of skip, fail"),
    Wrong("on_empty", CHOICES, "must be one of write, skip, fail"),
    Wrong("on_site_error", CHOICES, "must be one of fail, skip"),
    Wrong("partition_events", FLAGS, "must be True or False"),
    Wrong("if_exists", CHOICES, "must be one of merge, replace, fail"),
    Wrong("parquet_encoding", CHOICES, "must be one of portable, smallest"),
    Wrong("s3_extra_args", ["ACL", [], 7, True, {1: "x"}], "must be a dict of arguments of a PUT"),
    Wrong("s3_extra_args", [{"Key": "x"}, {"Body": b""}, {"IfMatch": "etag"}], "Remove it", shows="must not contain"),
    Wrong("aws_conn_id", [17, True, ["aws"], b"aws"], "must be a string"),
]
SENSOR = [
    *STREAMS,
    Wrong("min_completeness", SHARES, "must be a number > 0 and <= 1"),
    Wrong("settle", DURATIONS, "must be a timedelta above zero"),
    Wrong("deferrable", FLAGS, "must be True or False"),
    Wrong("start_from_trigger", FLAGS, "must be True or False"),
]
LISTING = [
    Wrong("client_id", ["", ".", "..", [], [""], [5], 17, True, {}, b"client"], "client id"),
    Wrong("name", NAMES, "must be a string"),
    Wrong("stream_types", TYPES[:-1], "MONITOR, CONVERTER, INTERVAL_REVENUE"),
    Wrong("batches", COUNTS[:5] + COUNTS[6:], "must be an integer >= 1"),
    Wrong("stem_conn_id", CONNECTIONS, "must be the id of a connection"),
]
TRIGGER = [
    # Its durations are in seconds, because its arguments are JSON.
    *(wrong for wrong in STREAMS if wrong.argument not in {"default_interval", "batch"}),
    Wrong("default_interval", [0, *SECONDS], "must be a number of seconds > 0"),
    Wrong("min_completeness", SHARES, "must be a number > 0 and <= 1"),
    Wrong("settle", [None, *SECONDS], "must be a number of seconds >= 0"),
    Wrong("poke_interval", [None, *SECONDS], "must be a number of seconds >= 0"),
    Wrong("exponential_backoff", FLAGS, "must be True or False"),
    Wrong("max_wait", SECONDS, "must be a number of seconds >= 0"),
    Wrong("silent_fail", FLAGS, "must be True or False"),
    Wrong("deadline", INSTANTS, "offset"),
    Wrong("progress", [[], "progress", 17, True], "must be the result of Watch.progress"),
]
OPERATORS: dict[type[Any], tuple[dict[str, Any], list[Wrong]]] = {
    StemStreamsToS3Operator: ({"sites": "site-00001", "s3_bucket": "lake"}, OPERATOR),
    StemStreamsSensor: ({"sites": "site-00001", "deferrable": False}, SENSOR),
    StemSiteListOperator: ({}, LISTING),
}


HOOK = {
    "__init__": [Wrong("stem_conn_id", CONNECTIONS, "must be the id of a connection")],
    "client_of": [
        Wrong("connection", [None, "stem_default", f"stem://:{KEY}@host", 17], "Use get_connection", shows="got a ")
    ],
    "list_clients": [Wrong("name", NAMES, "Use a part of the name")],
    "get_client": [Wrong("client_id", IDS, "Use an id that the API lists")],
    "list_sites": [
        Wrong("client_id", IDS[:-1], "Use an id that the API lists"),
        Wrong("name", NAMES, "Use a part of the name"),
    ],
    "get_site": [Wrong("site_id", ["\ud800", *IDS], "Use an id that the API lists")],
    "get_streams": [
        Wrong("site_id", [*IDS, ["site-00001"]], "must be an id that the API lists"),
        *(wrong for wrong in STREAMS if wrong.argument in {"stream_types", "resolution", "start", "end"}),
        Wrong("end", ["2999-01-01T00:00Z", "2999-01-01T00:00:00+05:00", FUTURE], "Run after the window is over"),
        Wrong("on_unavailable", CHOICES, "must be one of fail, skip"),
    ],
}
HOOK_ARGUMENTS = {
    "get_streams": {"site_id": "site-00001", "start": DAY[0], "end": DAY[1]},
}
NUMBERS = [0, -1, 1.5, "many", True, [5], NAN]
CONNECTION = [
    Wrong("Host", ["a b", "host?x=1", "host#x", "user@host"], "Enter only the host", shows="contains a user, a query"),
    Wrong("Host", ["https://", "host:0", "host:99999", "-host", "ftp://host", "[::1"], "Enter one such as https://"),
    Wrong("http", ["http://example.com", "http://10.0.0.1/api", "http://stem:80"], "Use https", shows="Plain http to"),
    Wrong("Schema", ["ftp", "htp", "s3"], "Clear it, or set one of them"),
    Wrong("Port", [-1, 65536, 10**6], "Leave it empty for the default"),
    Wrong("Port", [1, 443, 65535], "Enter the Host", {"host": ""}, shows="no Host"),
    Wrong("Password", ["", "  ", None], "Enter the Stem API key there", shows="has no"),
    Wrong("Password", [f"{KEY} x", f"{KEY}\nx", f"{KEY}é"], "Paste the key again", shows="contains a space"),
    Wrong(
        "Extra", ["no JSON", "[1]", "17", '"text"', "{"], 'Enter one such as {"timeout": 60}', shows="not a JSON object"
    ),
    Wrong(
        "Extra",
        [{"retries": 3}, {"Timeout": 3}, {"": 1}],
        "Use only ['max_attempts', 'page_size', 'requests_per_second', 'timeout', 'verify']",
    ),
    Wrong("timeout", [0, -1, "soon", True, [60], NAN, 86_401], "must be a number of seconds above 0 and up to 86,400"),
    Wrong("max_attempts", NUMBERS, "must be an integer >= 1"),
    Wrong("page_size", NUMBERS, "must be an integer from 1 to 100,000"),
    Wrong("requests_per_second", [0, -1, "many", True, [5], NAN, 0.0009, 1001], "must be a number from 0.001 to 1,000"),
    Wrong("verify", ["maybe", "/no/such/bundle.pem", 2, [True], {}], "must be true, false or the path"),
]
OPTIONS = ("timeout", "max_attempts", "page_size", "verify", "requests_per_second")
CONFIGURED = [
    Wrong("timeout", ["0", "-1", "soon", "nan", "1e9"], "must be a number of seconds above 0 and up to 86,400"),
    Wrong("max_attempts", ["0", "1.5", "many"], "must be an integer >= 1"),
    Wrong("page_size", ["0", "-100", "all"], "must be an integer from 1 to 100,000"),
]
RECEIPT = {"window": {"start": "a", "end": "b", "resolution": 900}, "objects": [], "rows": 0}
COUNTLESS = RECEIPT | {"window": {"start": "2025-07-01T00:00:00Z", "end": "2025-07-02T00:00:00Z", "resolution": 900}}
ASSETS = {
    "combined": [
        Wrong("receipts", [None, 17, "receipt", RECEIPT], "must be a list of what the tasks returned"),
        Wrong("receipts", [["receipt"], [17], [{"rows": 3}]], "Use what a landing operator returned"),
        Wrong("receipts", [[], [None], [None, None]], "Use the trigger rule", shows="contains no receipt"),
    ],
    "summary": [
        Wrong("receipts", [None, 17, "receipt"], "must be a list of what the tasks returned"),
        Wrong("receipts", [["receipt"], [17], {"rows": 3}], "Use what a landing operator returned"),
        Wrong("receipts", [[], [None], {}], "Use the trigger rule", shows="contains no receipt"),
        Wrong("receipts", [COUNTLESS, [COUNTLESS], COUNTLESS | {"sites": "all"}], "Use what", shows="its counts"),
    ],
    "landed_objects": [Wrong("context", [None, 17, "context", []], "must be the context of a running task")],
    "event_extras": [Wrong("context", [None, 17, "context", []], "must be the context of a running task")],
}
OF_THE_OPERATOR = {"as_alias_extra"}
"""Functions for the operator only, which passes valid arguments."""


def each(table):
    """Return a test's parameters, one for each wrong value: the key in the table, the row, the value."""
    return [
        pytest.param(about, wrong, value, id=f"{getattr(about, '__name__', about)}-{wrong.argument}-{value!r:.30}")
        for about, rows in table.items()
        for wrong in rows
        for value in wrong.values
    ]


def forms(value):
    """Iterate over the ways in which a message may show a value: complete, its wrong part, or a time in UTC."""
    if isinstance(value, (list, dict)):
        yield from [repr(value)] if value else [repr(value), "is empty"]
        for part in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from forms(part)
    elif isinstance(value, str):
        yield repr(value)[:90]
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


def assert_explains(error, wrong, value):
    """Check that the message names the argument, shows the value and the remedy, and does not contain the key."""
    message = str(error)
    assert wrong.argument in message
    assert any(form in message for form in ([wrong.shows] if wrong.shows else forms(value))), message
    assert wrong.remedy in message
    assert KEY not in message


def create(cls, wrong, value):
    """Create an operator or a sensor with a wrong value."""
    return cls(**{"task_id": "task", **OPERATORS[cls][0], **wrong.beside, wrong.argument: value})


def connect(monkeypatch, sim, **fields):
    """Set the connection to the simulator's, with some fields replaced."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({**json.loads(sim.connection), **fields}))


@pytest.fixture(scope="module")
def server():
    with Simulator(Settings(api_key=KEY)) as running:
        yield running


@pytest.fixture
def sim(server, monkeypatch):
    """A simulator as the connection; it must not receive any request."""
    server.reset_requests()
    connect(monkeypatch, server)
    yield server
    assert server.requests == []


# --- operators and sensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "wrong", "value"), each({cls: rows for cls, (_, rows) in OPERATORS.items()}))
def test_a_wrong_argument_shows_when_the_dag_is_parsed(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        create(cls, wrong, value)
    assert_explains(error.value, wrong, value)
    with DAG("dag", schedule=None), pytest.raises(StemConfigError) as error:
        cls.partial(task_id="task", **{**wrong.beside, wrong.argument: value})
    assert_explains(error.value, wrong, value)


def templated(cls):
    return [wrong for wrong in OPERATORS[cls][1] if wrong.argument in cls.template_fields]


@pytest.mark.parametrize("form", ["instance", "partial"])
@pytest.mark.parametrize(
    ("parent", "argument", "value"),
    [
        (StemStreamsToS3Operator, "if_exists", "mergE"),
        (StemStreamsToS3Operator, "partition_events", "no"),
        (StemStreamsSensor, "deferrable", "no"),
    ],
)
def test_a_subclass_validates_the_arguments_of_its_parent(parent, argument, value, form):
    class Subclass(parent):  # type: ignore[misc, valid-type]
        # The annotation cannot be resolved, as with an import under TYPE_CHECKING.
        def __init__(self, *, colour: Colour | None = None, **kwargs: Any) -> None:  # type: ignore[name-defined]  # noqa: F821
            super().__init__(**kwargs)
            self.colour = colour

    create = Subclass.partial if form == "partial" else Subclass
    arguments = OPERATORS[parent][0] if form == "instance" else {}
    assert create(task_id="task", colour="red", **arguments)
    with pytest.raises(StemConfigError, match=f"{argument} must be .*, got '{value}'"):
        create(task_id="task", **{**arguments, argument: value})


@pytest.mark.parametrize(("cls", "wrong", "value"), each({cls: templated(cls) for cls in OPERATORS}))
def test_a_template_with_a_wrong_value_fails_the_task_before_any_request(cls, wrong, value, sim):
    with DAG("dag", schedule=None, render_template_as_native_obj=True):
        task = create(cls, wrong, "{{ wrong }}")
    task.render_template_fields({"wrong": value})
    with pytest.raises(AirflowFailException) as error:
        task.execute(run_context(*DAY))
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize("cls", OPERATORS)
def test_a_wrong_mapped_value_fails_the_task_before_any_request(cls, sim):
    """Not when the mapped task is created, because Airflow would retry it."""
    arguments, rows = OPERATORS[cls]
    for wrong in rows:
        if wrong.argument in cls.template_fields and not wrong.beside:
            beside = {name: value for name, value in arguments.items() if name != wrong.argument}
            with DAG("dag", schedule=None):
                mapping = cls.partial(task_id="task", **beside).expand_kwargs([{wrong.argument: "x"}])
            task = mapping.unmap({wrong.argument: wrong.values[0]})
            with pytest.raises(AirflowFailException) as error:
                task.execute(run_context(*DAY))
            assert_explains(error.value, wrong, wrong.values[0])


@pytest.mark.parametrize("cls", OPERATORS)
def test_values_that_are_not_known_yet_are_not_validated(cls):
    """Templates with any delimiters that a DAG may set, and values of other tasks."""
    own = [wrong.argument for wrong in OPERATORS[cls][1] if wrong.argument in cls.template_fields]
    for value in ("{{ x }}", "{% if x %}a{% endif %}", "<< x >>", "[[ x ]]", "$x", "(( x ))"):
        cls(**{"task_id": "task", **OPERATORS[cls][0], **dict.fromkeys(own, value)})
    with DAG("dag", schedule=None):
        other = StemSiteListOperator(task_id="other")
        task = cls(**{"task_id": "task", **OPERATORS[cls][0], **dict.fromkeys(own, other.output)})
    assert task.upstream_task_ids == {"other"}


# --- the trigger ------------------------------------------------------------------------------------------------------

TRIGGER_ARGUMENTS = {"sites": "site-00001", "start": DAY[0], "end": DAY[1]}


@pytest.mark.parametrize(
    ("cls", "wrong", "value"), each({StemStreamsTrigger: [row for row in TRIGGER if row.argument != "sites"]})
)
def test_a_wrong_argument_shows_when_the_trigger_is_made(cls, wrong, value):
    with pytest.raises(StemConfigError) as error:
        cls(**{**TRIGGER_ARGUMENTS, **wrong.beside, wrong.argument: value})
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize(
    ("cls", "wrong", "value"),
    each({StemStreamsTrigger: [row for row in TRIGGER if row.argument in {"sites", "start", "end", "stem_conn_id"}]}),
)
def test_a_wrong_rendered_value_is_reported_in_the_triggerer_before_any_request(cls, wrong, value, sim):
    waiting = cls(**TRIGGER_ARGUMENTS)
    setattr(waiting, wrong.argument, value)  # as templates do after the trigger is created
    payload = fire(waiting)
    assert (payload["status"], payload["error"]) == ("error", "StemConfigError")
    assert_explains(payload["args"][0], wrong, value)


# --- the hook and its connection --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "wrong", "value"), each(HOOK))
def test_the_hook_rejects_a_wrong_argument_before_any_request(method, wrong, value, sim):
    arguments = {**HOOK_ARGUMENTS.get(method, {}), **wrong.beside, wrong.argument: value}
    call: Any = StemHook if method == "__init__" else getattr(StemHook(), method)
    with pytest.raises(StemConfigError) as error:
        list(call(**arguments))
    assert_explains(error.value, wrong, value)


def connection_errors():
    """Iterate over the errors of each way to use a wrong connection."""
    with pytest.raises(StemConfigError) as error:
        StemHook().get_conn()
    yield error.value
    works, message = StemHook().test_connection()
    assert not works
    yield message
    for cls, (arguments, _) in OPERATORS.items():
        with pytest.raises(AirflowFailException) as failed:
            cls(task_id="task", **arguments).execute(run_context(*DAY))
        yield failed.value


@pytest.mark.parametrize(("_", "wrong", "value"), each({"connection": CONNECTION}))
def test_a_wrong_field_of_the_connection_is_reported_before_any_request(_, wrong, value, sim, monkeypatch):
    name = {"http": "host"}.get(wrong.argument, wrong.argument.lower())
    if wrong.shows == "not a JSON object" and airflow_version.startswith(("3.0.", "3.1.")):
        pytest.skip("Airflow 3.0 and 3.1 ignore a connection whose Extra is not an object")
    fields = {"extra": {name: value}} if name in OPTIONS else {name: value}
    connect(
        monkeypatch,
        sim,
        **{**({} if name in {"extra", *OPTIONS} else {"schema": "", "port": None}), **wrong.beside, **fields},
    )
    for error in connection_errors():
        assert_explains(error, wrong, value)


@pytest.mark.parametrize(("_", "wrong", "value"), each({"configuration": CONFIGURED}))
def test_a_wrong_configuration_option_is_reported_before_any_request(_, wrong, value, sim, monkeypatch):
    monkeypatch.setenv(f"AIRFLOW__STEM__{wrong.argument.upper()}", value)
    for error in connection_errors():
        assert_explains(error, wrong, value)


@pytest.mark.parametrize("field_name", ["host", "schema", "extra"])
def test_a_key_in_a_wrong_field_is_not_shown(field_name, sim, monkeypatch):
    connect(monkeypatch, sim, **{field_name: {KEY: KEY} if field_name == "extra" else f"{KEY}!"})
    for error in connection_errors():
        assert KEY not in str(error)


# --- functions for users' own tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "wrong", "value"), each(ASSETS))
def test_an_invalid_event_or_receipt_is_an_error(function, wrong, value):
    with pytest.raises(StemConfigError) as error:
        list(getattr(assets, function)(value))
    assert_explains(error.value, wrong, value)


@pytest.mark.parametrize("objects", [17, "text", [17], [{"rows": 3}], {"uri": "s3://lake/x"}])
def test_invalid_objects_in_an_event_are_an_error(objects):
    event = SimpleNamespace(extra={"objects": objects})
    with pytest.raises(
        StemConfigError,
        match="lists invalid objects. Schedule the DAG on assets whose events a landing operator emits",
    ):
        assets.landed_objects({"triggering_asset_events": {"asset": [event]}})


@pytest.mark.parametrize("value", CONNECTIONS)
def test_final_errors_rejects_a_wrong_connection_id(value):
    with pytest.raises(AirflowFailException, match="must be the id of a connection") as error, final_errors(value):
        pytest.fail("the block was entered")
    assert repr(value) in str(error.value)


def test_final_errors_reads_the_connection_once(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", f"stem://:{KEY}@")
    read = []
    get_connection = StemHook.get_connection

    def counted(name):
        read.append(name)
        return get_connection(name)

    monkeypatch.setattr(StemHook, "get_connection", staticmethod(counted))
    with pytest.raises(StemDataError) as error, final_errors("stem_default"):
        raise StemDataError(f"a {KEY}", f"b {KEY}", f"c {KEY}")
    assert KEY not in str(error.value.args)
    assert read == ["stem_default"]


@pytest.mark.parametrize("value", DURATIONS)
def test_a_retry_policy_rejects_a_wrong_delay(value):
    policies = pytest.importorskip("airflow_provider_stem.retry_policies", exc_type=ImportError)
    with pytest.raises(StemConfigError) as error:
        policies.StemRetryPolicy(min_delay=value)
    assert_explains(error.value, Wrong("min_delay", [], "must be a timedelta above zero"), value)


# --- completeness of this file ----------------------------------------------------------------------------------------


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
    assert {argument: wrong for argument, wrong in values.items() if len(wrong) < 3} == {}


def test_every_field_of_the_connection_has_three_wrong_values_here():
    configured = {"defaults", "columnar_decoding"}  # from Airflow's configuration, not from the connection
    fields = own_arguments(ClientConfig.from_connection) - configured | set(CONN_FIELDS)
    values = dict.fromkeys(fields, 0)
    for wrong in CONNECTION:
        values[{"http": "host"}.get(wrong.argument, wrong.argument.lower())] += len(wrong.values)
    assert {name for name, count in values.items() if count < 3} == set()
