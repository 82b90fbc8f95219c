"""Places of each kind that the operator writes to, for tests that run over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from airflow_provider_stem._stores import open_store
from airflow_provider_stem.streams.keys import parse_path
from airflow_provider_stem.streams.store import content_type
from tests.servers.processes import HUNG_AFTER


class Place:
    """
    An empty place.

    :param path: its address, with ``/`` at the end.
    :param env: environment variables of a process that uses it.
    """

    def __init__(self, path: str, env: dict[str, str]) -> None:
        self.path, self.env = path, env
        place = parse_path(f"{path}x")
        self.begin = place.key[:-1]
        self.arguments = place.scheme, place.bucket, place.connection(None)

    def store(self) -> Any:
        """Return a new store, as a task has it."""
        return open_store(*self.arguments)

    def key(self, name: str) -> str:
        """Return the key of an object by its name below the place."""
        return self.begin + name

    def objects(self) -> dict[str, bytes]:
        """Return the content of each object that a reader of the place sees, by name."""
        raise NotImplementedError

    def content_type(self, name: str) -> str:
        """Return the MIME type of an object, as a browser gets it."""
        raise NotImplementedError

    def write(self, name: str, body: bytes) -> None:
        """Write an object as another program does."""
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError


class FolderPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(f"file://{folder}/", {})

    def objects(self) -> dict[str, bytes]:
        files = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(name): (self.folder / name).read_bytes() for name in sorted(files) if ".stem" not in name.parts}

    def content_type(self, name: str) -> str:
        return content_type(name)  # a web server decides it

    def write(self, name: str, body: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        # Otherwise the file counts as damaged.
        (path.parent / ".stem" / f"{path.name}.meta").unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink()


class S3Place(Place):
    def __init__(self, lake: Any) -> None:
        self.lake = lake
        super().__init__(f"s3://{lake.bucket}/", {"AIRFLOW_CONN_AWS_DEFAULT": lake.server.connection})

    def objects(self) -> dict[str, bytes]:
        return self.lake.objects()  # type: ignore[no-any-return]

    def content_type(self, name: str) -> str:
        return str(self.lake.client.head_object(Bucket=self.lake.bucket, Key=name)["ContentType"])

    def write(self, name: str, body: bytes) -> None:
        self.lake.client.put_object(Bucket=self.lake.bucket, Key=name, Body=body)

    def delete(self, name: str) -> None:
        self.lake.client.delete_object(Bucket=self.lake.bucket, Key=name)


class GcsPlace(Place):
    def __init__(self, server: Any, bucket: str) -> None:
        connection = '{"conn_type": "google_cloud_platform", "extra": {"is_anonymous": true, "project": "test"}}'
        super().__init__(
            f"gs://{bucket}/",
            {"AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": connection, "STORAGE_EMULATOR_HOST": server.url},
        )
        requests.post(
            f"{server.url}/storage/v1/b?project=test", json={"name": bucket}, timeout=HUNG_AFTER
        ).raise_for_status()
        self.bucket = bucket

    def objects(self) -> dict[str, bytes]:
        client = self.store()._client
        return {blob.name: blob.download_as_bytes(raw_download=True) for blob in client.list_blobs(self.bucket)}

    def content_type(self, name: str) -> str:
        return str(self.store()._client.bucket(self.bucket).get_blob(name).content_type)

    def write(self, name: str, body: bytes) -> None:
        self.store()._client.bucket(self.bucket).blob(name).upload_from_string(body)

    def delete(self, name: str) -> None:
        self.store()._client.bucket(self.bucket).blob(name).delete()


class AzurePlace(Place):
    def __init__(self, server: Any, container: str) -> None:
        super().__init__(f"abfs://{container}/", {"AIRFLOW_CONN_WASB_DEFAULT": server.connection})

    def create(self) -> None:
        self.store()._container.create_container()

    def objects(self) -> dict[str, bytes]:
        container = self.store()._container
        return {name: container.download_blob(name).readall() for name in container.list_blob_names()}

    def content_type(self, name: str) -> str:
        return str(self.store()._container.get_blob_client(name).get_blob_properties().content_settings.content_type)

    def write(self, name: str, body: bytes) -> None:
        self.store()._container.upload_blob(name, body, overwrite=True)

    def delete(self, name: str) -> None:
        self.store()._container.delete_blob(name)
