"""The deadline of ``stem_alerts`` in a real Airflow, with a mail server."""

from __future__ import annotations

import email
import json
import socketserver
import threading
from datetime import UTC, datetime, timedelta
from email.policy import default
from importlib.metadata import version
from pathlib import Path

import duckdb
import pytest

from tests.servers.airflow_server import AirflowServer
from tests.support import until

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.stem_simulator(sites=2, clients=1, gaps=0.5),
    pytest.mark.skipif(
        tuple(map(int, version("apache-airflow").split(".")[:2])) < (3, 2), reason="there are no deadlines before 3.2"
    ),
]
DAG_FILE = Path(__file__).parent.parent.parent / "example_dags" / "stem_alerts.py"


class Mailbox(socketserver.ThreadingTCPServer):
    """A mail server that keeps what it gets."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Session)
        self.mails = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *exc):
        self.shutdown()
        super().__exit__(*exc)


class _Session(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self):
        self.answer("220 ready")
        for line in self.rfile:
            command = line.split(b" ")[0].strip().upper()
            if command == b"DATA":
                self.answer("354 go on")
                mail = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    mail += line
                self.server.mails.append(email.message_from_bytes(mail, policy=default))
            self.answer("221 bye" if command == b"QUIT" else "250 ok")

    def answer(self, text):
        self.wfile.write(f"{text}\r\n".encode())


def test_a_missed_deadline_sends_what_is_missing(stem, tmp_path):
    warehouse = str(tmp_path / "warehouse.duckdb")
    load_half(warehouse)
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / DAG_FILE.name).write_text(DAG_FILE.read_text())
    yesterdays = {(datetime.now(UTC) - timedelta(days=back)).date() for back in (0, 1)}  # it may become midnight
    with Mailbox() as mailbox:
        host, port = mailbox.server_address
        environment = {
            "AIRFLOW_CONN_STEM_DEFAULT": stem.connection,
            "AIRFLOW_CONN_STEM_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": warehouse}),
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(
                {"conn_type": "smtp", "host": host, "port": port, "extra": {"disable_ssl": True, "disable_tls": True}}
            ),
            "STEM_ALERTS_AFTER_HOURS": "0.0001",
            "STEM_ALERTS_TO": "night@example.com",
        }
        with AirflowServer(tmp_path / "airflow", dags, environment=environment):
            until(lambda: mailbox.mails)
    [mail] = mailbox.mails[:1]
    assert mail["To"] == "night@example.com"
    rest = "(UTC): 50 % of 96 intervals missing, 0 late, at 1 of 1 sites"
    assert mail["Subject"] in {f"Stem telemetry of {day} {rest}" for day in yesterdays}
    content = mail.get_body(("html",)).get_content()
    assert "site-00001: 48 of 96 missing\nhttps://example.com/completeness.html</pre>" in content


def load_half(path):
    """Make the relations that the notifier reads, with half of each recent day."""
    with duckdb.connect(path) as connection:
        connection.execute("""
            CREATE SCHEMA stem;
            CREATE TABLE stem.sites (site_id VARCHAR, name VARCHAR, valid_to TIMESTAMPTZ);
            CREATE TABLE stem.completeness AS
            SELECT 'site-00001' AS site_id, CAST(day AS DATE) AS day, 96 AS expected, 48 AS received, 0 AS late
            FROM generate_series(current_date - 9, current_date + 9, INTERVAL 1 DAY) AS days(day)
        """)
