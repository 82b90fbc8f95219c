"""Catalogs of real servers, and connections that do not lead to one."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pytest
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import ServerError

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.iceberg.catalogs import catalog_errors, catalog_from
from airflow_provider_stem.iceberg.tables import open_table
from tests.servers.catalogs import CATALOGS, HAS_SQL, WITHOUT_SQL, sql_catalog
from tests.servers.processes import HUNG_AFTER, free_ports

ROWS = pa.table({"site_id": ["a", "b"], "kw_total_avg": [1.5, None]})
SECRET = "s3cr/et+pa=ss"


needs_sql = pytest.mark.skipif(not HAS_SQL, reason=WITHOUT_SQL)


def connect(monkeypatch, **connection):
    """Make a connection ``stem_iceberg``, and open its catalog."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_ICEBERG", json.dumps({"conn_type": "generic", **connection}))
    return catalog_from("stem_iceberg", "aws_default")


def refused(monkeypatch, **connection):
    """Return the message for a connection that cannot be used, in which no secret may be."""
    with pytest.raises(StemConfigError) as caught:
        connect(monkeypatch, **connection)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize("catalog", CATALOGS, indirect=True)
def test_a_table_of_each_catalog_is_written_and_read(catalog):
    opened = catalog_from("stem_iceberg", "aws_default")
    opened.create_namespace("stem")
    table = opened.create_table("stem.streams", schema=ROWS.schema)
    table.append(ROWS)
    again = catalog_from("stem_iceberg", "aws_default").load_table("stem.streams")
    assert again.scan().to_arrow().to_pylist() == ROWS.to_pylist()
    assert again.location().startswith(catalog["extra"]["warehouse"])


@pytest.mark.parametrize("catalog", ["sqlite", "postgres"], indirect=True)
def test_several_tasks_open_a_new_catalog_at_the_same_time(catalog):
    at_once = Barrier(8)

    def task(_):
        at_once.wait(HUNG_AFTER)
        return catalog_from("stem_iceberg", "aws_default").list_namespaces()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(task, range(8))) == [[]] * 8


@needs_sql
def test_a_local_warehouse_has_its_catalog_in_the_same_folder(tmp_path, monkeypatch):
    opened = connect(monkeypatch, extra={"warehouse": str(tmp_path)})
    opened.create_namespace("stem")
    opened.create_table("stem.streams", schema=ROWS.schema).append(ROWS)
    assert (tmp_path / "catalog.db").exists()
    assert not [name for name in opened.properties if name.startswith(("s3.", "client."))]
    again = connect(monkeypatch, extra={"warehouse": f"file://{tmp_path}/"})
    assert again.load_table("stem.streams").scan().count() == 2


@needs_sql
def test_login_and_password_stand_for_those_of_a_database(lake, postgres_server, monkeypatch):
    postgres_server.create("separate")
    address = f"postgresql+psycopg2://127.0.0.1:{postgres_server.port}/separate"
    login = {"login": postgres_server.user, "password": postgres_server.password}
    extra = sql_catalog(address, lake.server)["extra"]
    in_host = {"conn_type": "generic", "host": address, "extra": {"warehouse": extra["warehouse"]}}
    for connection in ({"extra": extra}, in_host):
        opened = connect(monkeypatch, **connection, **login)
        assert opened.list_namespaces() == []


def test_extra_has_precedence_over_other_fields(lake, catalog, monkeypatch):
    server = lake.server
    extra = {
        "uri": server.iceberg_url,
        "credential": f"{server.access_key}:{server.secret_key}",
        "catalog_name": "other",
    }
    opened = connect(monkeypatch, host="http://127.0.0.1:1", login="x", password="y", extra=extra)
    assert isinstance(opened, RestCatalog)
    assert opened.name == "other"


@needs_sql
def test_credentials_in_extra_are_not_mixed_with_the_aws_connection(lake, tmp_path, monkeypatch):
    extra = {**sql_catalog(f"sqlite:///{tmp_path}/c.db", lake.server)["extra"], "s3.access-key-id": "another"}
    assert not {"client.access-key-id", "s3.endpoint"} & {*connect(monkeypatch, extra=extra).properties}


@needs_sql
def test_values_of_extra_are_strings_for_pyiceberg(tmp_path, monkeypatch):
    extra = {"warehouse": str(tmp_path), "pool_pre_ping": False, "s3.connect-timeout": 5, "echo": None}
    properties = connect(monkeypatch, extra=extra).properties
    assert (properties["pool_pre_ping"], properties["s3.connect-timeout"]) == ("false", "5")
    assert "echo" not in properties


@needs_sql
@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({}, "the type of its catalog is 'missing'. Set 'type' in its Extra to 'sql', 'rest' or 'glue'."),
        ({"extra": {"type": "hive"}}, "the type of its catalog is 'hive'. Set 'type'"),
        ({"extra": {"type": "sql"}}, "'warehouse' is missing in its Extra. Set it to the prefix of all tables"),
        ({"extra": {"type": "SQL", "warehouse": "s3://b/x"}}, "'uri' is missing in its Extra. Set it to the database"),
        ({"extra": {"warehouse": "s3://b/x"}}, "'uri' is missing in its Extra. Set it to the database"),
        (
            {"extra": {"warehouse": "/x", "uri": "sqlite:///:memory:"}},
            "a catalog in memory is lost when the task ends. Set its uri to a file",
        ),
        (
            {"extra": {"warehouse": "/x", "type": "sql", "uri": f"me:{SECRET}@host"}},
            "its uri is not an address of SQLAlchemy. Write",
        ),
        (
            {"extra": {"warehouse": "/x", "uri": f"nosuch://me:{SECRET}@host/db"}},
            "sqlalchemy.dialects:nosuch. Correct its address or credentials",
        ),
        (
            {"extra": {"warehouse": "/x", "uri": f"mysql+pymysql://me:{SECRET}@host/db"}},
            "No module named 'pymysql'. Install the driver that its uri names.",
        ),
        (
            {"extra": {"warehouse": "/x", "uri": "sqlite:////no/such/folder/c.db"}},
            "there is no folder '/no/such/folder' for it",
        ),
        ({"extra": {"warehouse": "/no/such/folder/"}}, "there is no folder '/no/such/folder' for its catalog. Create"),
        ({"extra": {"warehouse": "file:///no/such"}}, "there is no folder '/no/such' for its catalog. Create it first"),
        ({"extra": {"warehouse": "/x", "uri": "sqlite:////proc/c.db"}}, "unable to open database file. Correct its"),
        ({"extra": {"type": "rest"}}, "its Host is missing. Set it to the address of the REST catalog."),
        ({"conn_type": "iceberg", "host": "h", "login": "id"}, "its Password is missing. Set Login to the client id"),
        ({"conn_type": "iceberg", "host": "h", "password": SECRET}, "its Login is missing. Set Login to the client id"),
        ({"extra": {"type": "glue"}, "password": SECRET}, "Glue uses no Login and Password. Leave both empty"),
        ({"extra": {"uri": ["x"]}}, "'uri' in its Extra is a list. Use a string."),
        ({"extra": {"s3": {"region": "x"}}}, "'s3' in its Extra is a JSON object. Use a string."),
    ],
)
def test_an_invalid_connection_is_refused_with_the_remedy(connection, message, monkeypatch):
    text = refused(monkeypatch, **connection)
    assert text.startswith("Invalid catalog_conn_id 'stem_iceberg': ")
    assert message in text


@needs_sql
def test_wrong_credentials_are_refused(lake, postgres_server, monkeypatch):
    server = lake.server
    rest = {"conn_type": "iceberg", "host": server.iceberg_url, "extra": {"warehouse": "s3://x"}}
    text = refused(monkeypatch, **rest, login=server.access_key, password=SECRET)
    assert "Correct its address or credentials" in text
    text = refused(
        monkeypatch,
        extra={"uri": f"postgresql+psycopg2://airflow:s3cr%2Fet@127.0.0.1:{postgres_server.port}/x", "warehouse": "/x"},
    )
    assert 'password authentication failed for user "airflow"' in text


@needs_sql
def test_a_wrong_database_option_or_path_is_refused(lake, postgres_server, tmp_path, monkeypatch):
    uri = f"postgresql+psycopg2://{postgres_server.address('nowhere')}"
    assert 'database "nowhere" does not exist' in refused(monkeypatch, extra={"uri": uri, "warehouse": "/x"})
    uri = f"postgresql+psycopg2://{postgres_server.address('postgres')}"
    for option in ("sslmode=require", "sslmode=nonsense", "keepalives_idle=soon", "options=-c%20no_such=1", "none=1"):
        text = refused(monkeypatch, extra={"uri": f"{uri}?{option}", "warehouse": "/x"})
        assert "Correct its address or credentials" in text
    (tmp_path / "catalog.db").write_bytes(b"no database" * 1000)
    assert "file is not a database. Correct its address" in refused(monkeypatch, extra={"warehouse": str(tmp_path)})
    for address in (lake.server.url, lake.server.iceberg_url):
        assert refused(monkeypatch, extra={"uri": f"{address}/nowhere", "type": "rest", "token": SECRET})


@needs_sql
@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:{}", "postgresql+psycopg2://me:" + SECRET.replace("/", "%2F") + "@127.0.0.1:{}/x"]
)
def test_a_catalog_that_does_not_answer_is_tried_again_later(uri, monkeypatch):
    with pytest.raises(StemTransportError) as caught:
        connect(monkeypatch, extra={"uri": uri.format(*free_ports(1)), "warehouse": "/x"})
    assert "The catalog of connection 'stem_iceberg' failed: " in str(caught.value)
    assert str(caught.value).endswith(". Try again later, or correct its address.")
    assert SECRET not in str(caught.value)


def test_a_server_that_fails_while_a_table_is_created_is_asked_again(catalog, lake, monkeypatch):
    """Another task is creating the same namespace: some REST catalogs then fail for a moment."""
    opened = catalog_from("stem_iceberg", "aws_default")
    create, failures = opened.create_namespace, iter(range(2))

    def fail_twice(*arguments):
        if next(failures, None) is not None:
            raise ServerError("InternalServerError: failed to check namespace")
        create(*arguments)

    monkeypatch.setattr(opened, "create_namespace", fail_twice)
    assert open_table(opened, "stem.streams", 4).name() == ("stem", "streams")
    assert next(failures, None) is None


def test_wrong_credentials_of_the_store_are_refused(catalog, lake, monkeypatch):
    wrong = {**json.loads(lake.server.connection), "password": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(wrong))
    opened = catalog_from("stem_iceberg", "aws_default")
    opened.create_namespace("stem")
    with (
        pytest.raises(StemConfigError, match="Invalid catalog_conn_id 'stem_iceberg': .*Correct its address") as caught,
        catalog_errors("stem_iceberg", opened.properties),
    ):
        # Some REST catalogs write the metadata of a new table themselves.
        opened.create_table("stem.streams", schema=ROWS.schema).append(ROWS)
    assert SECRET not in str(caught.value)


@pytest.mark.skipif(HAS_SQL, reason="this Airflow has SQLAlchemy 2")
def test_a_sql_catalog_needs_sqlalchemy_2(tmp_path, monkeypatch):
    assert "needs SQLAlchemy 2" in refused(monkeypatch, extra={"warehouse": str(tmp_path)})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(
        StemConfigError, match=r"pyiceberg cannot be imported .* Install airflow-provider-stem\[iceberg\]"
    ):
        catalog_from("stem_iceberg", None)
