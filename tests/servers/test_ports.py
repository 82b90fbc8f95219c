"""A server whose port another program has taken starts on other ports, and is never confused with that program."""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.servers import airflow_cluster, airflow_server, postgres, processes, s3
from tests.servers.airflow_cluster import Cluster
from tests.servers.processes import PortTakenError, ServerProcess, free_ports, retry_on_other_ports


class Stranger(BaseHTTPRequestHandler):
    """Accept every request."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    """A port on which another program answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def first_ports(stranger, monkeypatch):
    """A function that makes a module choose the stranger's port first, at a position in the list of ports."""

    def arrange(module, position=0):
        chosen: list[list[int]] = []

        def choose(count):
            ports = free_ports(count)
            if not chosen:
                ports[position] = stranger
            chosen.append(ports)
            return ports

        monkeypatch.setattr(module, "free_ports", choose)
        return chosen

    return arrange


# The ports of the master and of S3.
@pytest.mark.s3
@pytest.mark.parametrize("position", [0, 6])
def test_s3(first_ports, position, tmp_path):
    chosen = first_ports(s3, position)
    with s3.S3Server(tmp_path / "s3") as server:
        assert len(chosen) > 1  # another program may have taken the second port too
        assert server.client().list_buckets()["Buckets"] == []


def test_another_s3_server_does_not_accept_the_credentials(s3_server, tmp_path):
    other = s3.S3Server(tmp_path)
    other.url = s3_server.url
    with pytest.raises(s3_server.client().exceptions.ClientError, match="InvalidAccessKeyId"):
        other.client().list_buckets()


def test_postgres(first_ports, postgres_server, tmp_path):
    chosen = first_ports(postgres)
    with postgres.PostgresServer(tmp_path / "log") as server:
        assert len(chosen) > 1
        server.create("database")


@pytest.mark.skipif("redis-server" in airflow_cluster.missing_programs(), reason=airflow_cluster.missing_programs())
def test_redis(first_ports, tmp_path):
    from redis import Redis

    chosen = first_ports(airflow_cluster)
    cluster = Cluster(tmp_path, tmp_path)
    server = retry_on_other_ports(cluster._start_redis)
    try:
        assert len(chosen) > 1
        with Redis.from_url(cluster._broker) as client:
            assert client.ping()
    finally:
        server.stop()


def test_an_answer_of_another_program_is_not_taken_for_airflow(stranger, tmp_path, monkeypatch):
    monkeypatch.setattr(airflow_server, "free_ports", lambda _: [stranger])
    monkeypatch.setattr(processes, "_ATTEMPTS", 2)
    with pytest.raises(PortTakenError), airflow_server.AirflowServer(tmp_path / "home", tmp_path):
        pass


def test_an_answer_of_another_program_is_not_taken_for_the_server(stranger, tmp_path):
    # The program has not noticed yet that the port is taken.
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]
    server = ServerProcess(command, log=tmp_path / "log", environment=os.environ, folder=tmp_path)
    with pytest.raises(PortTakenError):
        server.wait_until_ready([stranger])
    assert not server.is_running


def test_a_server_that_fails_for_another_reason_is_not_started_again(tmp_path):
    starts = []

    def start():
        starts.append(1)
        failing = [sys.executable, "-c", "raise SystemExit('no such option')"]
        server = ServerProcess(failing, log=tmp_path / "log", environment=os.environ, folder=tmp_path)
        server.wait_until_ready(free_ports(1))

    with pytest.raises(RuntimeError, match="no such option"):
        retry_on_other_ports(start)
    assert len(starts) == 1


def test_the_number_of_starts_is_limited(stranger, tmp_path):
    starts = []

    def start():
        starts.append(1)
        raise PortTakenError

    with pytest.raises(PortTakenError):
        retry_on_other_ports(start)
    assert len(starts) == processes._ATTEMPTS
