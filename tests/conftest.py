"""What the tests share: a home for Airflow, a real S3 server, and the simulator as a connection."""

from __future__ import annotations

import io
import itertools
import os
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Before anything imports Airflow: the tests must neither read nor write the user's own.
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

from s3_server import S3Server  # noqa: E402


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


_NUMBERS = itertools.count(1)


class Lake:
    """One bucket of the S3 server."""

    def __init__(self, server):
        self.server = server
        self.client = server.client()
        self.bucket = f"lake-{next(_NUMBERS)}"
        self.client.create_bucket(Bucket=self.bucket)

    def objects(self):
        """Give content by key."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {one["Key"]: self.read(one["Key"]) for one in listed}

    def read(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def table(self):
        """Give the rows of all Parquet objects, in the order of their keys."""
        tables = [pq.read_table(io.BytesIO(body)) for _, body in sorted(self.objects().items())]
        return pa.concat_tables(tables)

    def uploads(self):
        return self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])


@pytest.fixture
def lake(s3_server, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.connection)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Lake(s3_server)


@pytest.fixture
def stem(stem_simulator, monkeypatch):
    """The simulator, as the connection ``stem_default``."""
    monkeypatch.setenv("AIRFLOW_CONN_STEM_DEFAULT", stem_simulator.connection)
    return stem_simulator
