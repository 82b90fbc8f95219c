"""A hostile server, or hostile names: nothing escapes from a URL, an S3 key, a log line or XCom."""

from __future__ import annotations

import gzip
import json
import re
import resource
import socket
from contextlib import ExitStack
from urllib.parse import parse_qs, unquote

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException

from airflow_provider_stem.api import paging
from airflow_provider_stem.errors import StemConfigError, StemDataError, StemRequestError
from airflow_provider_stem.operators import StemSiteListOperator, StemStreamsToS3Operator
from tests.api.conftest import KEY, RawServer, certificate, reply, tls  # noqa: F401 - two are fixtures
from tests.support import run_context

HOUR = ("2025-07-01T00:00Z", "2025-07-01T01:00Z")

HARMLESS_ONCE_QUOTED = [
    "a\nERROR forged",
    "a\r\nX-Injected: 1",
    "a/b",
    "a/../../b",
    "../clients",
    "/etc/passwd",
    "...",
    "a\\..\\b",
    "%2e%2e",
    "%2e%2e%2fclients",
    "a%00b",
    'a"b',
    "a'b",
    "a?start_datetime=x#y",
    "a b&c=d+e;f",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe",
    "\u2028line",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{start}{dag_id}",
    "{batch.__class__}",
    "$(reboot)`reboot`",
    "<script>alert(1)</script>",
    "=HYPERLINK(1)",
    "東京 ☀",
    "x" * 200,  # S3 servers on a file system allow 255 bytes between two slashes
]
REJECTED_WHEN_LISTED = ["a\0b", "\ud800", "a\udfffb", "x" * 10_000]
REJECTED_WHEN_READ = [".", "..", " ", "\n"]


class HostileServer(RawServer):
    """An API whose sites have these ids and this name, and whose links point to another server."""

    def __init__(self, site_ids=(), name="A site", elsewhere="http://127.0.0.1:1/", **more):
        super().__init__(self.answer)
        self.site_ids = list(site_ids)
        self.name = name
        self.link = elsewhere
        self.more = more

    def answer(self, connection: socket.socket, head: bytes) -> None:
        path, _, query = head.split(b" ")[1].decode("ascii").partition("?")
        assert path.startswith("/api/v1/")
        segments = path.removeprefix("/api/v1/").split("/")
        connection.sendall(reply(json.dumps(self.payload(segments, parse_qs(query))).encode("utf-8", "surrogatepass")))

    def payload(self, segments, query):
        one = {"name": self.name, "link": self.link, "next": self.link, "href": self.link, **self.more}
        is_first = query.get("page") == ["1"]
        links = {"link": self.link, "next": self.link, "_links": {"next": {"href": self.link}}}
        match segments:
            case ["clients"]:
                return {"clients": [{"id": "client", **one}] if is_first else [], **links}
            case ["clients", "client", "sites"]:
                sites = [{"id": site_id, **one} for site_id in self.site_ids]
                return {"sites": sites if is_first else [], **links}
            case ["sites", segment, "streams"]:
                rows = [
                    {
                        "start_datetime": f"2025-07-01T00:{minute:02}:01+00:00",
                        "end_datetime": f"2025-07-01T{'01:00' if minute == 45 else f'00:{minute + 15}'}:00+00:00",
                        "kw_total_avg": 1.5,
                    }
                    for minute in (0, 15, 30, 45)
                ]
                streams = [{"stream_type": "MONITOR", "streams": rows, "link": self.link}]
                return {"id": unquote(segment), "name": self.name, "stream_types": streams, **links}
        raise AssertionError(segments)


@pytest.fixture
def serve(monkeypatch):
    """``serve(server)`` starts it, as the connection ``stem_default``."""
    with ExitStack() as running:

        def start(server):
            running.enter_context(server)
            fields = {"conn_type": "stem", "host": server.url, "password": KEY, "extra": {"max_attempts": 1}}
            monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps(fields))
            return server

        yield start


@pytest.fixture
def elsewhere():
    """Another server that must not receive any request."""
    with RawServer() as server:
        yield server
    assert server.connections == 0


@pytest.fixture(autouse=True)
def quiet_log(caplog, capfd):
    """Check that no log message breaks its line or contains terminal escapes."""
    caplog.set_level("INFO")
    yield
    ours = [record for record in caplog.records if "stem" in f"{record.name} {record.pathname}"]
    assert all(record.getMessage().isprintable() for record in ours)
    assert all(len(record.getMessage()) < 3000 for record in ours)
    output = "".join(capfd.readouterr())
    assert "ERROR forged\n" not in output.replace("\\n", "")
    for harm in ("\x1b[31m", "\x1b]0;", "\u202e", "\u2028"):
        assert harm not in output


def listed(**arguments):
    records = StemSiteListOperator(task_id="list", **arguments).execute(run_context())
    kept = json.dumps(records, allow_nan=False)
    assert "\\u0000" not in kept
    assert not re.search(r"\\ud[89ab]..(?!\\ud[c-f])", kept)
    return json.loads(kept)


def land(lake, sites, **arguments):
    arguments = {"s3_key": "stem/{batch}.{extension}", "on_site_error": "skip", **arguments}
    operator = StemStreamsToS3Operator(task_id="land", sites="listed", s3_bucket=lake.bucket)
    for name, value in {"sites": sites, **arguments}.items():
        setattr(operator, name, value)  # as templates and XCom do: unknown when the DAG is parsed
    receipt = operator.execute(run_context(*HOUR))
    json.dumps(receipt, allow_nan=False)
    return receipt


# --- ids and names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site_id", HARMLESS_ONCE_QUOTED)
def test_any_id_is_one_segment_of_urls_and_keys(site_id, serve, lake, elsewhere):
    server = serve(HostileServer([site_id], name=site_id, elsewhere=elsewhere.url))
    (record,) = listed()
    assert record["site_id"] == site_id
    assert record["name"].isprintable()
    operator = StemStreamsToS3Operator(
        task_id="land", sites=record, s3_bucket=lake.bucket, s3_key="stem/{batch}.{extension}"
    )
    assert operator.batch_name.isprintable()
    assert len(operator.batch_name) <= 250
    receipt = operator.execute(run_context(*HOUR))
    json.dumps(receipt)
    assert receipt["rows"] == 4
    (target,) = (target.partition("?")[0] for target in server.targets if "/streams" in target)
    before, segment, after = target.rpartition("/streams")[0].rpartition("/")[0], target.split("/")[4], target[-8:]
    assert (before, unquote(segment), after) == ("/api/v1/sites", site_id, "/streams")
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", segment)
    assert segment not in {".", ".."}
    ((key, _),) = lake.objects().items()
    assert re.fullmatch(r"stem/[^/]+\.parquet", key)
    assert ".." not in key.split("/")
    assert key.isprintable()
    assert lake.table()["site_id"].unique().to_pylist() == [site_id]


def test_all_ids_in_one_batch(serve, lake, elsewhere):
    serve(HostileServer(HARMLESS_ONCE_QUOTED, elsewhere=elsewhere.url))
    (first, *others) = listed(batches=3)
    rows = sum(land(lake, **mapped, on_unavailable="fail")["rows"] for mapped in (first, *others))
    assert rows == 4 * len(HARMLESS_ONCE_QUOTED)
    assert all(re.fullmatch(r"stem/00\d-of-003\.parquet", key) for key in lake.objects())


def test_values_from_xcom_are_not_rendered(serve, monkeypatch):
    serve(HostileServer(["{{ 7 * 7 }}", "{% raw %}"], name="{{ 7 * 7 }}"))
    records = listed()
    with DAG("hostile", schedule=None):
        listing = StemSiteListOperator(task_id="list")
        operator = StemStreamsToS3Operator(task_id="land", sites=listing.output, s3_bucket="b", batch="{{ 6 * 7 }}")
    # Airflow's versions resolve it differently.
    monkeypatch.setattr(type(listing.output), "resolve", lambda *_, **__: records)
    operator.render_template_fields({})
    assert (operator.sites, operator.batch) == (records, "42")


@pytest.mark.parametrize("site_id", REJECTED_WHEN_LISTED)
def test_an_id_that_a_database_cannot_store_is_rejected(site_id, serve):
    serve(HostileServer(["a", site_id]))
    with pytest.raises(StemDataError, match="Invalid id .* Ask Stem to correct it") as raised:
        StemSiteListOperator(task_id="list").execute(run_context())
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("site_id", REJECTED_WHEN_READ)
def test_an_id_that_is_a_path_segment_is_rejected_before_any_request(site_id, serve, lake):
    server = serve(HostileServer([site_id]))
    records = listed()
    asked = len(server.heads)
    with pytest.raises(AirflowFailException, match="invalid site id"):
        land(lake, records)
    assert len(server.heads) == asked
    assert not lake.objects()


@pytest.mark.parametrize(
    "name",
    [
        "a\n\x1b[31m",
        "\0",
        "\ud800",
        "x" * 10_000,
        None,
        5,
        float("nan"),
        ["deep", {"er": 1}],
        {"a": "\0"},
        "\u202e" * 600,
    ],
)
def test_any_name_is_shortened_and_storable(name, serve):
    serve(HostileServer(["a"], name=name))
    (record,) = listed()
    assert record["name"] is None or record["name"].isprintable()
    assert len(json.dumps(record)) < 1000


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        (None, None),
        ({}, {}),
        (
            {"MONITOR": "2011-03-01T16:15:01Z", "x" * 10_000: "2011-03-01", "NEW": None},
            {"MONITOR": "2011-03-01T16:15:01Z"},
        ),
        ({"MONITOR": None}, {"MONITOR": None}),
    ],
)
def test_only_start_times_of_known_types_are_kept(times, kept, serve):
    serve(HostileServer(["a"], stream_start_times=times))
    assert listed()[0]["stream_start_times"] == kept


@pytest.mark.parametrize(
    "times",
    [5, "MONITOR", ["MONITOR"], [[1]], {"MONITOR": 5}, {"MONITOR": "2011-03-01T00:00:00." + "0" * 10_000 + "Z"}],
)
@pytest.mark.parametrize("stream_types", [None, ["MONITOR"]])
def test_invalid_start_times_are_rejected(times, stream_types, serve):
    serve(HostileServer(["a"], stream_start_times=times))
    with pytest.raises(StemDataError, match="site a: stream_start_times"):
        StemSiteListOperator(task_id="list", stream_types=stream_types).execute(run_context())


@pytest.mark.parametrize("site_id", ["a\nERROR forged", "\x1b[31mred", "::endgroup::\n::error::", "x" * 900])
@pytest.mark.parametrize("wrong", ["forbidden", "unavailable", "gap"])
def test_a_site_that_fails_is_reported_in_one_line(site_id, wrong, serve, lake, caplog):
    class Refusing(HostileServer):
        def answer(self, connection, head):
            if b"/streams" in head and b"/good/" not in head:
                if wrong == "gap":
                    connection.sendall(reply({"stream_types": []}))
                elif wrong == "forbidden":
                    connection.sendall(reply({"errors": [{"message": site_id}]}, 403))
                else:
                    connection.sendall(reply({"errors": [{"message": "MONITOR is unavailable"}]}, 400))
            elif b"/sites/" in head and b"/streams" not in head:
                connection.sendall(
                    reply({"id": site_id, "stream_start_times": {}} if wrong != "gap" else {"id": site_id})
                )
            else:
                super().answer(connection, head)

    serve(Refusing([site_id, "good"]))
    receipt = land(lake, ["good", site_id], batch="b")
    found = {"forbidden": "failed_count", "unavailable": "unavailable_count", "gap": "incomplete_count"}[wrong]
    assert receipt[found] == 1
    assert len(json.dumps(receipt)) < 5000
    assert caplog.messages


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch", ["..", ".", "../up", "/abs", "a/../../b", "%2e%2e", "{site_id}", "{{ ds }}", "a\nb", "\x1b[31m", "C:\\x"]
)
def test_no_batch_leaves_the_prefix(batch, serve, lake):
    serve(HostileServer(["a"]))
    operator = StemStreamsToS3Operator(
        task_id="land", sites="a", batch=batch, s3_bucket=lake.bucket, s3_key="safe/{batch}/rows.{extension}"
    )
    operator.execute(run_context(*HOUR))
    ((key, _),) = lake.objects().items()
    assert re.fullmatch(r"safe/[^/]+/rows\.parquet", key)
    assert key.split("/")[1] not in {".", ".."}


@pytest.mark.parametrize(
    "s3_key",
    [
        "../up/{batch}",
        "/abs/{batch}",
        "a/../../{batch}",
        "a//{batch}",
        "./{batch}",
        "{batch}/..",
        "a\n{batch}",
        "",
        "a/",
    ],
)
def test_no_key_template_leaves_the_bucket(s3_key, serve, lake):
    server = serve(HostileServer(["a"]))
    with pytest.raises(AirflowFailException, match="s3_key renders to"):
        land(lake, "a", s3_key=s3_key)
    assert not lake.objects()
    assert not server.heads


@pytest.mark.parametrize(
    "s3_key",
    ["{site_id}/x", "{0}", "{}", "{batch.__class__}", "{batch[0]}", "{start.__globals__}", "{self}", "{batch!x}"],
)
def test_no_key_template_reads_more_than_its_placeholders(s3_key):
    with pytest.raises(StemConfigError, match="s3_key"):
        StemStreamsToS3Operator(task_id="land", sites="a", s3_bucket="b", s3_key=s3_key)


# --- redirects, links and endless answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("how", ["another host", "another scheme", "no scheme"])
def test_a_redirect_does_not_send_the_key_elsewhere(status, how, serve, elsewhere):
    location = {
        "another host": elsewhere.url,
        "another scheme": "ftp://127.0.0.1/",
        "no scheme": f"//{elsewhere.address}/",
    }
    server = serve(RawServer(reply(b"", status, Location=location[how], Refresh=f"0; url={elsewhere.url}")))
    with pytest.raises(StemRequestError, match="redirect"):
        StemSiteListOperator(task_id="list").execute(run_context())
    assert len(server.heads) == 1


def test_https_does_not_go_on_as_plain_http(elsewhere, tls, certificate, monkeypatch):  # noqa: F811
    with RawServer(reply(b"", 307, Location=elsewhere.url), tls=tls) as server:
        fields = {"host": server.url, "password": KEY, "extra": {"verify": str(certificate), "max_attempts": 1}}
        monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", json.dumps({"conn_type": "stem", **fields}))
        with pytest.raises(StemRequestError, match="redirect"):
            StemSiteListOperator(task_id="list").execute(run_context())
        assert server.authorizations == [f"APIKEY {KEY}"]


def test_an_endless_listing_is_an_error_although_its_pages_are_long(serve, monkeypatch):
    assert paging._MAX_ITEMS <= 1_000_000
    monkeypatch.setattr(paging, "_MAX_ITEMS", 5_000)

    class Endless(HostileServer):
        def payload(self, segments, query):
            page = int(query["page"][0])
            if segments == ["clients"]:
                return super().payload(segments, query)
            return {"sites": [{"id": f"{page}-{number}"} for number in range(1_000)]}

    server = serve(Endless())
    with pytest.raises(StemDataError, match="does not end after 5,000 entries"):
        StemSiteListOperator(task_id="list").execute(run_context())
    assert len(server.heads) < 10


def test_a_gzip_bomb_in_a_listing_is_not_unpacked(serve):
    packed = gzip.compress(b" " * (300 * 2**20))
    assert len(packed) < 2**20
    serve(RawServer(reply(packed, 200, Content_Encoding="gzip")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StemDataError, match="The response body exceeds"):
        StemSiteListOperator(task_id="list").execute(run_context())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # compressing the bomb took 300 MB


def test_links_are_never_followed(serve, lake, elsewhere):
    server = serve(HostileServer(["a", "b"], elsewhere=elsewhere.url))
    land(lake, listed(), batch="all")
    paths = [target.partition("?")[0] for target in server.targets]
    assert set(paths) == {
        "/api/v1/clients",
        "/api/v1/clients/client/sites",
        "/api/v1/sites/a/streams",
        "/api/v1/sites/b/streams",
    }
