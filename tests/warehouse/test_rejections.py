"""What no retry can cure fails a load at once, with the remedy: connections, privileges, and tables that do not fit."""

from __future__ import annotations

import json
import secrets

import duckdb
import psycopg2  # type: ignore[import-untyped]
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_stem.errors import StemConfigError, StemTransportError
from airflow_provider_stem.warehouse.connections import session_factory
from airflow_provider_stem.warehouse.operators import StemSitesToSqlOperator
from airflow_provider_stem.warehouse.postgres_session import PostgresSession, _fix
from airflow_provider_stem.warehouse.sites import load_sites, read_records
from airflow_provider_stem.warehouse.sql import SCHEMA
from tests.servers.processes import HUNG_AFTER
from tests.support import run_context

from .helpers import Bucket, counts

A = ("site-a", "MONITOR")
RECORD = {"site_id": "site-a", "name": "One", "client_id": None, "stream_start_times": {"MONITOR": None}}
postgres_only = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


@pytest.fixture
def bucket():
    return Bucket()


@pytest.fixture
def receipt(bucket):
    return bucket.land("one", {A: [1.25, None]}, "01T00:00", "01T01:00")


def run(engine, *statements):
    with engine.session()() as session, session.transaction():
        for statement in statements:
            session.execute(statement)


@pytest.fixture
def role(engine):
    """Return the name of a role that may log in, and do nothing else."""
    name, owner = f"r{secrets.token_hex(6)}", engine.connect
    database = engine.address.rpartition("/")[2]
    run(
        engine,
        f"CREATE ROLE {name} LOGIN PASSWORD 'secret-password'",
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
    )
    yield name
    engine.connect = owner
    run(engine, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def as_role(engine, role, password="secret-password"):
    server = engine.address.rpartition("@")[2]
    engine.connect = lambda: psycopg2.connect(f"postgresql://{role}:{password}@{server}")


@postgres_only
@pytest.mark.parametrize(
    ("part", "value"), [("password", "not-it"), ("login", "nobody"), ("schema", "nowhere"), ("password", "")]
)
def test_a_wrong_login_password_or_database_fails_the_task(part, value, engine, monkeypatch):
    connection = json.loads(engine.connection) | {part: value}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    task = StemSitesToSqlOperator(task_id="sites", sites=[RECORD], sql_conn_id="warehouse")
    with pytest.raises(AirflowFailException, match=r"Correct Login, Password and Schema \(the database\)") as error:
        task.execute(run_context())
    assert "not-it" not in str(error.value)
    assert "\n" not in str(error.value)


@postgres_only
@pytest.mark.parametrize(
    "option",
    [
        {"sslmode": "require"}, {"sslmode": "nonsense"}, {"keepalives_idle": "soon"}, {"no_such_option": "1"},
        {"options": "-c no_such_parameter=1"}, {"options": "-c statement_timeout=soon"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_of_the_connection_fails_the_task(option, engine, monkeypatch):
    """The test's server has no SSL."""
    connection = json.loads(engine.connection) | {"extra": option}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    task = StemSitesToSqlOperator(task_id="sites", sites=[RECORD], sql_conn_id="warehouse")
    with pytest.raises(
        AirflowFailException, match="Correct Port and Extra of the connection, such as sslmode"
    ) as error:
        task.execute(run_context())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("FATAL: no such database: telemetry", "Correct Login, Password and Schema"),
        ("FATAL: SASL authentication failed", "Correct Login, Password and Schema"),
        ('FATAL: Peer authentication failed for user "stem"', "Correct Login, Password and Schema"),
        ("FATAL: unsupported startup parameter: search_path", "Correct Port and Extra"),
        ("SSL error: certificate verify failed", "Correct Port and Extra"),
        ('server certificate for "a" does not match host name "b"', "Correct Port and Extra"),
        ('root certificate file "/root.crt" does not exist', "Correct Port and Extra"),
        ("FATAL: sorry, too many clients already", ""),
        ("FATAL: the database system is starting up", ""),
        ("server closed the connection unexpectedly", ""),
        ('could not translate host name "db" to address: Temporary failure in name resolution', ""),
    ],
)
def test_the_texts_of_servers_that_are_not_run_here(text, fix):
    found = _fix("", f'connection to server at "10.0.0.1", port 5432 failed: {text}')
    assert found.startswith(fix)
    assert bool(found) == bool(fix)


@postgres_only
def test_a_missing_privilege_is_named_and_the_documented_ones_are_enough(engine, bucket, receipt, role):
    """Each is granted after the load that lacked it, by the owner."""
    owner, database = engine.connect, engine.address.rpartition("/")[2]

    def rejected(match):
        as_role(engine, role)
        try:
            with pytest.raises(StemConfigError, match=match) as error:
                bucket.load(engine, receipt)
        finally:
            engine.connect = owner
        assert len(str(error.value).splitlines()) == 1

    rejected("permission denied for database .* Grant CREATE on the database to the role of the connection, or create")
    bucket.load(engine, receipt)
    rejected("permission denied for schema stem. Grant the role")
    run(engine, f"GRANT USAGE ON SCHEMA stem TO {role}")
    rejected("permission denied for table streams. Grant the role")
    run(engine, f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA stem TO {role}")
    rejected("temporary tables .* Grant TEMPORARY on the database to the role of the connection.")
    run(engine, f"GRANT TEMPORARY ON DATABASE {database} TO {role}")
    as_role(engine, role)
    assert bucket.load(engine, receipt) == counts(1, 2, 0, 0, 2, 0)
    # Only an owner creates partitions.
    engine.connect = owner
    run(engine, "DROP TABLE stem.streams_2025_07")
    rejected("only the owner of table streams can create its partitions")


@postgres_only
def test_a_character_that_the_database_cannot_store_is_named(engine, bucket):
    receipt = bucket.land("one", {("a\0b", "MONITOR"): [1.0]}, "01T00:00", "01T01:00")
    with pytest.raises(StemConfigError, match="id or name has a character that the database cannot store. Leave the"):
        bucket.load(engine, receipt)
    with pytest.raises(StemConfigError, match="id or name has a character that the database cannot store. Leave the"):
        load_sites(read_records({**RECORD, "name": "a\0b"}), engine.session())
    assert engine.rows("SELECT (SELECT count(*) FROM stem.streams), (SELECT count(*) FROM stem.sites)") == [(0, 0)]


@postgres_only
def test_a_read_only_database_is_an_error(engine, bucket, receipt, role):
    run(engine, f"ALTER ROLE {role} SET default_transaction_read_only = on")
    as_role(engine, role)
    with pytest.raises(StemConfigError, match="read-only transaction. Use a connection to the primary server"):
        bucket.load(engine, receipt)


@postgres_only
@pytest.mark.parametrize("cursor", ["dictcursor", "namedtuplecursor"])
def test_the_cursor_of_a_connection_does_not_matter(cursor, engine, bucket, receipt, monkeypatch):
    connection = json.loads(engine.connection) | {"extra": {"cursor": cursor}}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    engine.session = lambda schema: session_factory("warehouse", schema, HUNG_AFTER)
    assert bucket.load(engine, receipt) == counts(1, 2, 2, 0, 0, 0)
    assert bucket.load(engine, receipt) == counts(1, 2, 0, 0, 2, 0)


@postgres_only
def test_a_server_that_ends_a_load_is_tried_again_later(engine, bucket, receipt, monkeypatch):
    """psycopg 3 has a code for a shutdown, and psycopg 2 has none."""
    bucket.load(engine, receipt)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", engine.connection)
    task = StemSitesToSqlOperator(task_id="sites", sites=[RECORD], sql_conn_id="warehouse")
    stage = PostgresSession.stage

    def end_sessions(session, *arguments):
        database = engine.address.rpartition("/")[2]
        run(engine, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND "
            "pid <> pg_backend_pid()")  # fmt: skip
        stage(session, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PostgresSession, "stage", end_sessions)
        with pytest.raises(
            StemTransportError, match="PostgreSQL (ended the load|cannot be reached): .*[.] (Try|Start)"
        ):
            task.execute(run_context())
    database = engine.address.rpartition("/")[2]
    run(engine, f"ALTER DATABASE {database} SET statement_timeout = '1ms'")
    with pytest.raises(
        StemTransportError, match="PostgreSQL ended the load: canceling statement due to statement"
    ) as e:
        task.execute(run_context())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_a_worker_without_enough_memory_is_tried_again_later(engine, bucket, receipt):
    bucket.load(engine, receipt)
    connect = engine.connect
    engine.connect = lambda: _limited(connect())
    with pytest.raises(StemTransportError, match="DuckDB ended the load: Out of Memory Error.* Free memory") as error:
        bucket.load(engine, receipt)
    assert "\n" not in str(error.value)
    engine.connect = connect
    assert bucket.load(engine, receipt) == counts(1, 2, 0, 0, 2, 0)


def _limited(connection):
    connection.execute("SET memory_limit = '1kB'")
    return connection


@pytest.mark.parametrize("engine", ["duckdb"], indirect=True)
def test_a_duckdb_file_that_cannot_be_written_is_an_error(engine, bucket, receipt, tmp_path):
    bucket.load(engine, receipt)
    engine.connect = lambda: duckdb.connect(engine.address, read_only=True)
    later = bucket.land("later", {A: [1.5]}, "01T00:00", "01T01:00")
    with pytest.raises(StemConfigError, match="open for reading only. Remove read_only"):
        bucket.load(engine, later)
    (tmp_path / "other").write_bytes(b"no database" * 1000)
    engine.connect = lambda: duckdb.connect(str(tmp_path / "other"))
    with pytest.raises(
        StemConfigError, match="not a valid DuckDB database file.* Set the connection's Host to the path"
    ):
        bucket.load(engine, receipt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "ALTER COLUMN kw_total_avg TYPE numeric(6,0)",
            r"kw_total_avg .* has type \S+\(6,0\). Change it to DOUBLE PREC",
        ),
        ("ALTER COLUMN kw_total_avg TYPE real", "kw_total_avg of table stem.streams has type (real|FLOAT). Change it"),
        ("ALTER COLUMN resolution TYPE bigint", "resolution of .* has type (?i:bigint). Change it to INTEGER"),
        (
            "DROP COLUMN loaded_at",
            "Table stem.streams has no column loaded_at. Add it with type TIMESTAMP WITH TIME ZONE",
        ),
    ],
)
def test_a_column_that_is_missing_or_has_another_type_is_an_error(change, message, engine, bucket, receipt):
    bucket.load(engine, receipt)
    run(engine, *(f"DROP VIEW {SCHEMA}.{view}" for view in ("energy", "demand_peaks", "daily_demand_peaks")))
    run(engine, f"ALTER TABLE {SCHEMA}.streams {change}")
    with pytest.raises(StemConfigError, match=message):
        bucket.load(engine, receipt)


def test_a_column_that_a_user_added_without_a_default_is_an_error(engine, bucket, receipt):
    run(engine, f"CREATE SCHEMA {SCHEMA}")
    with engine.session()() as session, session.transaction():
        session.create_missing()
    run(
        engine,
        f"ALTER TABLE {SCHEMA}.loads ADD COLUMN mine VARCHAR",
        f"ALTER TABLE {SCHEMA}.loads ALTER mine SET NOT NULL",
    )
    with pytest.raises(StemConfigError, match="mine.*. Compare the tables with those of an empty schema"):
        bucket.load(engine, receipt)
    run(engine, f"ALTER TABLE {SCHEMA}.loads ALTER mine SET DEFAULT 'x'")
    assert bucket.load(engine, receipt) == counts(1, 2, 2, 0, 0, 0)
